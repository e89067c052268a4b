// Package compose may import compose-go.
package compose

import _ "github.com/compose-spec/fake"
