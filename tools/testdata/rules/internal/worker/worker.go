// Package worker breaks its rule.
package worker

import (
	_ "github.com/disko/backupd/internal/store" // want
)
