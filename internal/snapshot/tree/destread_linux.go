package tree

import (
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// Lstat returns an entry's stat; fs.ErrNotExist where there is none.
func (d *Dest) Lstat(p string) (Stat, error) {
	up, name, err := d.entry(p)
	if err != nil {
		return Stat{}, err
	}
	defer d.release(up)
	st, err := statAt(up.fd, name)
	return st, act("stat", p, err)
}

// ReadDirNames returns a directory's names in byte order.
func (d *Dest) ReadDirNames(p string) ([]string, error) {
	if err := tarstream.CheckPath(p); err != nil {
		return nil, err
	}
	h, err := d.dir(p)
	if err != nil {
		return nil, err
	}
	defer d.release(h)
	// The handle is shared, and with it would be the position in the directory.
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(h.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, act("open directory", p, err)
	}
	defer unix.Close(fd)
	var names []string
	buf := make([]byte, 16<<10)
	for {
		n, err := ignoringEINTR(func() (int, error) { return unix.ReadDirent(fd, buf) })
		if err != nil {
			return nil, act("read directory", p, err)
		}
		if n <= 0 {
			slices.Sort(names)
			return slices.Compact(names), nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// Readlink returns a symlink's text.
func (d *Dest) Readlink(p string) (string, error) {
	up, name, err := d.entry(p)
	if err != nil {
		return "", err
	}
	defer d.release(up)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(up.fd, name, buf)
	return string(buf[:max(n, 0)]), act("read symlink", p, err)
}

// OpenRead opens a regular file, and nothing else, for reading.
func (d *Dest) OpenRead(p string) (*os.File, error) {
	up, name, err := d.entry(p)
	if err != nil {
		return nil, err
	}
	defer d.release(up)
	// Not blocking, lest a FIFO that took the file's place stops the run.
	fd, err := openNoAtime(up.fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC)
	if err != nil {
		return nil, act("open", p, err)
	}
	st, err := statFd(fd)
	if err == nil && st.Type != tarstream.File {
		err = errType
	}
	if err != nil {
		unix.Close(fd)
		return nil, act("open", p, err)
	}
	return os.NewFile(uintptr(fd), p), nil
}

// Xattrs returns an entry's extended attributes, sorted; of a symlink its own.
func (d *Dest) Xattrs(p string) ([]tarstream.Xattr, error) {
	up, name, err := d.entry(p)
	if err != nil {
		return nil, err
	}
	defer d.release(up)
	x, err := LXattrs(up.fd, name)
	return x, act("read attributes", p, err)
}
