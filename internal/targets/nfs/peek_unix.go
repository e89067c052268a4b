//go:build unix

package nfs

import (
	"errors"

	"golang.org/x/sys/unix"
)

// stillOpen says whether the other side has not ended a connection.
func stillOpen(fd uintptr) bool {
	n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return n > 0 || errors.Is(err, unix.EAGAIN)
}
