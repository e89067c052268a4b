// Package seed breaks its rule.
package seed

import (
	_ "github.com/disko/backupd/internal/docker"   // want
	_ "github.com/disko/backupd/internal/schedule" // want
	_ "github.com/disko/backupd/internal/snapshot" // want
	_ "github.com/disko/backupd/internal/snapshot/tree"
	_ "github.com/disko/backupd/internal/targets" // want
)
