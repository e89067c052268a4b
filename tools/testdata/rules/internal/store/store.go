// Package store breaks its rule.
package store

import (
	_ "math/rand" // want
	_ "math/rand/v2"

	_ "github.com/disko/backupd/internal/snapshot/pack" // want
)
