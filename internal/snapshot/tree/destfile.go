package tree

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// DestFile is a file that is being written.
type DestFile struct {
	d    *Dest
	h    tarstream.Header
	up   *handle
	name string // its place
	temp string // the name it has until then; empty if it has its own
	fd   int
}

// CreateFile begins a regular file. With replace it has a temporary name until
// Finish, so that what is in its place is there until then; otherwise there must be nothing.
func (d *Dest) CreateFile(h *tarstream.Header, replace bool) (f *DestFile, err error) {
	err = d.at(h.Path, func(up *handle, name string) error {
		f = &DestFile{d: d, h: *h, up: up, name: name}
		as := name
		if replace {
			f.temp = tempName()
			as = f.temp
		}
		f.fd, err = ignoringEINTR(func() (int, error) {
			return unix.Openat(up.fd, as, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, h.Mode&0o777)
		})
		if err != nil {
			return act("create", h.Path, err)
		}
		if up != d.root {
			d.mu.Lock()
			up.users++ // until Finish or Abort
			d.mu.Unlock()
		}
		return nil
	})
	return f, err
}

func tempName() string {
	var b [8]byte
	rand.Read(b[:])
	return tempPrefix + hex.EncodeToString(b[:])
}

// WriteAt writes all of p at off.
func (f *DestFile) WriteAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		k, err := ignoringEINTR(func() (int, error) { return unix.Pwrite(f.fd, p[n:], off+int64(n)) })
		if err != nil {
			return n, act("write", f.h.Path, err)
		}
		n += k
	}
	return n, nil
}

// Truncate sets the file's size, making a hole up to it.
func (f *DestFile) Truncate(size int64) error {
	return act("truncate", f.h.Path, unix.Ftruncate(f.fd, size))
}

// Abort drops the file.
func (f *DestFile) Abort() {
	unix.Close(f.fd)
	name := f.name
	if f.temp != "" {
		name = f.temp
	}
	unix.Unlinkat(f.up.fd, name, 0)
	f.d.release(f.up)
}

// Finish gives the file its metadata and its name.
func (f *DestFile) Finish() error {
	soft, err := f.finish()
	if err != nil {
		f.Abort()
		return err
	}
	if err := unix.Close(f.fd); err != nil { // a network file system says here that it is full
		f.fd = -1
		f.Abort()
		return act("close", f.h.Path, err)
	}
	defer f.d.release(f.up)
	if f.temp != "" {
		if err := unix.Renameat(f.up.fd, f.temp, f.up.fd, f.name); err != nil {
			unix.Unlinkat(f.up.fd, f.temp, 0)
			return act("put in place", f.h.Path, err)
		}
	}
	return soft
}

// finish sets owner, mode, attributes and times, in this order: each may
// undo what comes after it. It leaves out what the file has already.
func (f *DestFile) finish() (soft, err error) {
	h, d := &f.h, f.d
	mode := h.Mode
	chowned := false
	if !d.o.NoOwner {
		if h.UID != d.uid || h.GID != d.gid || f.up.setgid {
			if err := unix.Fchown(f.fd, int(h.UID), int(h.GID)); err != nil {
				return nil, &OwnerError{h.Path, h.UID, h.GID, err}
			}
			chowned = true
		}
	} else {
		mode &= 0o777 // whoever gets the file now was not meant by these bits
	}
	if mode&d.umask != 0 || mode&0o7000 != 0 || chowned && mode&0o7000 != 0 || f.up.defaultACL || f.temp != "" {
		if err := unix.Fchmod(f.fd, mode); err != nil {
			return nil, act("set mode", h.Path, err)
		}
	}
	if len(h.Xattrs) > 0 || f.up.defaultACL {
		soft = setXattrs(h, f.up.defaultACL, fdXattrs(f.fd))
	}
	if err := utimes(f.fd, "", h.Mtime, 0); err != nil {
		return nil, act("set time", h.Path, err)
	}
	return soft, nil
}

// WriteSmall writes a regular file whose content is at hand.
func (d *Dest) WriteSmall(h *tarstream.Header, content []byte, replace bool) error {
	f, err := d.CreateFile(h, replace)
	if err != nil {
		return err
	}
	if len(content) > 0 {
		if _, err := f.WriteAt(content, 0); err != nil {
			f.Abort()
			return err
		}
	}
	return f.Finish()
}

// utimes sets the modification time, and the access time to the same.
func utimes(dirfd int, name string, t tarstream.Time, flags int) error {
	ts := [2]unix.Timespec{{Sec: t.Sec, Nsec: int64(t.Nsec)}, {Sec: t.Sec, Nsec: int64(t.Nsec)}}
	if name == "" {
		return utimensatFd(dirfd, &ts)
	}
	return unix.UtimesNanoAt(dirfd, name, ts[:], flags)
}

// xattrCalls are the calls on one kind of reference to a file.
type xattrCalls struct {
	list   func() ([]tarstream.Xattr, error)
	set    func(name string, value []byte) error
	remove func(name string) error
}

func fdXattrs(fd int) xattrCalls {
	return xattrCalls{
		list:   func() ([]tarstream.Xattr, error) { return FdXattrs(fd) },
		set:    func(n string, v []byte) error { return unix.Fsetxattr(fd, n, v, 0) },
		remove: func(n string) error { return unix.Fremovexattr(fd, n) },
	}
}

func pathXattrs(dirfd int, name string) xattrCalls {
	p := procPath(dirfd, name)
	return xattrCalls{
		list:   func() ([]tarstream.Xattr, error) { return LXattrs(dirfd, name) },
		set:    func(n string, v []byte) error { return unix.Lsetxattr(p, n, v, 0) },
		remove: func(n string) error { return unix.Lremovexattr(p, n) },
	}
}

// setXattrs gives an entry the header's attributes; with exact it removes others.
func setXattrs(h *tarstream.Header, exact bool, calls xattrCalls) error {
	var first error
	failed := func(name string, err error) {
		if err != nil && first == nil {
			first = &XattrError{h.Path, name, err}
		}
	}
	var have []tarstream.Xattr
	if exact {
		var err error
		have, err = calls.list()
		failed("", err)
		for _, x := range have {
			if !slices.ContainsFunc(h.Xattrs, func(w tarstream.Xattr) bool { return w.Name == x.Name }) {
				if err := calls.remove(x.Name); !errors.Is(err, unix.ENODATA) {
					failed(x.Name, err)
				}
			}
		}
	}
	for _, x := range h.Xattrs {
		if slices.ContainsFunc(have, func(w tarstream.Xattr) bool { return w.Name == x.Name && bytes.Equal(w.Value, x.Value) }) {
			continue
		}
		failed(x.Name, calls.set(x.Name, x.Value))
	}
	return first
}

// Symlink makes a symlink.
func (d *Dest) Symlink(h *tarstream.Header, replace bool) error {
	return d.make(h, replace, func(up *handle, name string) error { return unix.Symlinkat(h.Link, up.fd, name) })
}

// Special makes a FIFO or a device node.
func (d *Dest) Special(h *tarstream.Header, replace bool) error {
	kind := map[tarstream.Type]uint32{tarstream.Fifo: unix.S_IFIFO, tarstream.Char: unix.S_IFCHR, tarstream.Block: unix.S_IFBLK}[h.Type]
	if kind == 0 {
		return act("make", h.Path, errors.New("is no special file"))
	}
	dev := unix.Mkdev(h.Major, h.Minor)
	return d.make(h, replace, func(up *handle, name string) error {
		return unix.Mknodat(up.fd, name, kind|0o600, int(dev))
	})
}

// Link makes a hard link to another path of the tree, which must be no directory.
func (d *Dest) Link(h *tarstream.Header, replace bool) error {
	return d.at(h.Link, func(from *handle, holder string) error {
		return d.at(h.Path, func(up *handle, name string) error {
			return d.place(h.Path, up, name, replace, func(as string) error {
				return unix.Linkat(from.fd, holder, up.fd, as, 0)
			})
		})
	})
}

// make makes an entry without content, with its metadata.
func (d *Dest) make(h *tarstream.Header, replace bool, create func(up *handle, name string) error) (err error) {
	var soft error
	err = d.at(h.Path, func(up *handle, name string) error {
		return d.place(h.Path, up, name, replace, func(as string) error {
			if err := create(up, as); err != nil {
				return err
			}
			soft, err = d.meta(h, up, as, nil)
			if err != nil {
				unix.Unlinkat(up.fd, as, 0)
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	return soft
}

// place makes something under a temporary name, where there may be something
// else in its place, and renames it.
func (d *Dest) place(p string, up *handle, name string, replace bool, create func(as string) error) error {
	if !replace {
		return act("create", p, create(name))
	}
	temp := tempName()
	if err := create(temp); err != nil {
		return act("create", p, err)
	}
	err := unix.Renameat(up.fd, temp, up.fd, name)
	// rename(2) does nothing where both names are links to one file.
	unix.Unlinkat(up.fd, temp, 0)
	return act("put in place", p, err)
}

// meta sets the metadata of an entry that is no regular file. have is its
// stat where it is known: what it has already is left alone.
func (d *Dest) meta(h *tarstream.Header, up *handle, name string, have *Stat) (soft, err error) {
	if !d.o.NoOwner && (have == nil || have.UID != h.UID || have.GID != h.GID) {
		if err := unix.Fchownat(up.fd, name, int(h.UID), int(h.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, &OwnerError{h.Path, h.UID, h.GID, err}
		}
		have = nil // clears set-uid bits
	}
	if h.Type != tarstream.Symlink && (have == nil || have.Mode != h.Mode) {
		// There is no fchmodat that spares symlinks on older kernels; but the
		// name was just made, or seen to be a directory, in a directory of ours.
		if err := unix.Fchmodat(up.fd, name, h.Mode, 0); err != nil {
			return nil, act("set mode", h.Path, err)
		}
	}
	soft = setXattrs(h, true, pathXattrs(up.fd, name))
	if h.Type == tarstream.Symlink {
		var x *XattrError
		if errors.As(soft, &x) && x.Name == "" {
			soft = nil
		}
	}
	if err := utimes(up.fd, name, h.Mtime, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, act("set time", h.Path, err)
	}
	return soft, nil
}

// FinishDir gives a directory its metadata, when nothing more will be put into it.
func (d *Dest) FinishDir(h *tarstream.Header) error {
	up, err := d.dir(h.Path)
	if err != nil {
		return err
	}
	defer d.release(up)
	st, err := statFd(up.fd)
	if err != nil {
		return act("stat", h.Path, err)
	}
	if !d.o.NoOwner && (st.UID != h.UID || st.GID != h.GID) {
		if err := unix.Fchown(up.fd, int(h.UID), int(h.GID)); err != nil {
			return &OwnerError{h.Path, h.UID, h.GID, err}
		}
		st.Mode = 1 << 31
	}
	if st.Mode != h.Mode {
		if err := unix.Fchmod(up.fd, h.Mode); err != nil {
			return act("set mode", h.Path, err)
		}
	}
	soft := setXattrs(h, true, fdXattrs(up.fd))
	if err := utimes(up.fd, "", h.Mtime, 0); err != nil {
		return act("set time", h.Path, err)
	}
	return soft
}
