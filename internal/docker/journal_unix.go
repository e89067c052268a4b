//go:build unix

package docker

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// lock takes the lock of a journal for as long as the file is open. Without
// wait, it returns errOwned where another process has it.
func lock(f *os.File, wait bool) error {
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		err := unix.Flock(int(f.Fd()), how)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return errOwned
		default:
			return &os.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
	}
}
