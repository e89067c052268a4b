// Package dir breaks the targets' rule.
package dir

import (
	_ "github.com/aws/fake"

	_ "github.com/disko/backupd/internal/snapshot" // want
	_ "github.com/disko/backupd/internal/targets"
)
