package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// memoryFile makes a file that lies on no disk and is gone with the process, and
// returns a name by which the process can open it as often as it likes.
func memoryFile(content []byte) (string, error) {
	fd, err := unix.MemfdCreate("backupd", unix.MFD_CLOEXEC)
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("/proc/self/fd/%d", fd)
	for len(content) > 0 {
		n, err := unix.Write(fd, content)
		if err != nil {
			return "", err
		}
		content = content[n:]
	}
	return name, nil
}
