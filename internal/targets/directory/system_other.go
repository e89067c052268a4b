//go:build !linux

package directory

import (
	"os"
	"syscall"
)

// write writes all of data to an empty file.
func write(f *os.File, data []byte) error {
	_, err := f.Write(data)
	return err
}

// renameNew is not to be had: place falls back on a reservation.
func renameNew(string, string) error { return syscall.ENOSYS }

// noFollow is not known everywhere: a symlink that somebody put into a target is followed.
const noFollow = 0

// unlink removes a file. A directory is a prefix of keys and no object.
func unlink(path string) error {
	st, err := os.Lstat(path)
	if err == nil && st.IsDir() {
		return syscall.EISDIR
	}
	if err != nil {
		return err
	}
	return os.Remove(path)
}
