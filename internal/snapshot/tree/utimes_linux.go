package tree

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// utimensatFd is futimens(3): utimensat(2) with no path, which the package
// unix cannot express.
func utimensatFd(fd int, ts *[2]unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
