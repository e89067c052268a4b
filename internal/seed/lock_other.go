//go:build !unix

package seed

import (
	"errors"
	"os"
)

// tryLock is for containers, which have Linux.
func tryLock(*os.File) error { return errors.ErrUnsupported }
