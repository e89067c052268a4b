// Package schedule stands for ours.
package schedule

import (
	_ "github.com/disko/backupd/internal/store" // want
)
