// Package host breaks its rules.
package host

import (
	_ "github.com/compose-spec/fake" // want

	_ "github.com/disko/backupd/internal/compose"
	_ "github.com/disko/backupd/internal/docker"
	_ "github.com/disko/backupd/internal/snapshot" // want
	_ "github.com/disko/backupd/internal/targets"  // want
)
