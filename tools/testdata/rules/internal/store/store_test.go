package store_test

import (
	_ "math/rand" // want

	_ "github.com/disko/backupd/internal/store"
)
