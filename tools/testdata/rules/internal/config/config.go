// Package config stands for ours.
package config

import (
	_ "github.com/disko/backupd/internal/schedule"
	_ "github.com/disko/backupd/internal/store" // want
)
