package directory

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// directMin is the smallest object that is written past the page cache, in
	// bytes: for smaller ones it does not pay.
	directMin = 1 << 20
	// directAlign is what place, length and memory of a direct write must be
	// a multiple of, on every device that is made.
	directAlign = 4096
)

// write writes all of data to an empty file. A pack goes past the page cache
// where the file system is known to do that well: it would be copied there
// only to be synced at once, which costs more than all else that is done with
// data that do not compress, and would push out what the volumes' own programs
// have there. Whatever refuses a direct write gets an ordinary one.
func write(f *os.File, data []byte) error {
	if whole := len(data) &^ (directAlign - 1); whole >= directMin && knowsDirect(f) {
		n, err := writeDirect(f, data[:whole])
		if err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.EOPNOTSUPP) {
			return err
		}
		data = data[n:]
	}
	_, err := f.Write(data)
	return err
}

// knowsDirect says whether the file lies on ext4 or XFS. Elsewhere a direct
// write may be slower than another (NFS, SMB), or be none at all.
func knowsDirect(f *os.File) bool {
	var sfs unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &sfs) != nil {
		return false
	}
	return sfs.Type == unix.EXT4_SUPER_MAGIC || sfs.Type == unix.XFS_SUPER_MAGIC
}

// writeDirect returns how much was written; the rest is to be written as usual.
func writeDirect(f *os.File, data []byte) (n int, err error) {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return 0, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFL, flags|unix.O_DIRECT); err != nil {
		return 0, err
	}
	n, err = f.Write(data)
	if _, rerr := unix.FcntlInt(f.Fd(), unix.F_SETFL, flags); rerr != nil && err == nil {
		err = rerr
	}
	return n, err
}

// renameNew renames a file unless that would replace another.
func renameNew(from, to string) error {
	return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
}

// noFollow opens no symlink, and waits for no FIFO.
const noFollow = unix.O_NOFOLLOW | unix.O_NONBLOCK

// unlink removes a file. It is not os.Remove: a directory is a prefix of keys and no object.
func unlink(path string) error { return unix.Unlink(path) }
