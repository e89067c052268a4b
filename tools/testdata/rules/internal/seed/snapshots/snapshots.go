// Package snapshots is what stands between seed and the engine.
package snapshots

import _ "github.com/disko/backupd/internal/snapshot"
