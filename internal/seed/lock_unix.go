//go:build unix

package seed

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// tryLock takes a lock that lasts until the file is closed or the process dies;
// so a killed container leaves none. It is seen by all containers of a machine.
func tryLock(f *os.File) error {
	var err error = unix.EINTR
	for errors.Is(err, unix.EINTR) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errBusy
	}
	if err != nil {
		return os.NewSyscallError("flock", err)
	}
	return nil
}
