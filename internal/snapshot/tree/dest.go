package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// IncompleteMark is the file in a volume's root that says: a restore did not end here.
const IncompleteMark = ".backupd-incomplete"

// lostFound is made by mkfs, and belongs to the file system.
const lostFound = "lost+found"

// tempPrefix begins the names of files on their way to their place.
const tempPrefix = ".backupd-tmp-"

// DestOptions say how a tree is written.
type DestOptions struct {
	NoOwner bool // leave owners, and set-uid and set-gid bits, alone
}

// Dest is a tree that is written. Every call goes, component by component and
// never through a symlink, from the root's descriptor to that of the entry's
// directory, and names the entry itself with one component: nothing outside
// the root can be reached, whatever lies in the tree. Safe for concurrent use.
type Dest struct {
	o        DestOptions
	root     *handle
	uid, gid uint32
	umask    uint32

	mu   sync.Mutex
	open map[string]*handle
	tick uint64
}

// handle is an open directory.
type handle struct {
	fd     int
	users  int
	used   uint64 // tick of the last use
	closed bool   // not in the cache any more: the last user closes fd
	// Files made here may differ from what was asked for:
	setgid     bool // they get the directory's group
	defaultACL bool // they get an ACL, and other permissions
}

// OwnerError says that an owner could not be set.
type OwnerError struct {
	Path     string
	UID, GID uint32
	Err      error
}

func (e *OwnerError) Error() string {
	return fmt.Sprintf("give %q to user %d, group %d: %v", e.Path, e.UID, e.GID, e.Err)
}

// Unwrap returns the cause.
func (e *OwnerError) Unwrap() error { return e.Err }

// XattrError says that an extended attribute could not be set; all else of the entry was.
type XattrError struct {
	Path, Name string
	Err        error
}

func (e *XattrError) Error() string {
	return fmt.Sprintf("set attribute %s of %q: %v", e.Name, e.Path, e.Err)
}

// Unwrap returns the cause.
func (e *XattrError) Unwrap() error { return e.Err }

// MakeRoot makes a directory for a tree where only its last component is missing.
func MakeRoot(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// OpenDest opens the directory root for writing a tree into it.
func OpenDest(root string, o DestOptions) (*Dest, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open directory", Path: root, Err: err}
	}
	d := &Dest{o: o, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), umask: umask(), open: map[string]*handle{}}
	if d.root, err = newHandle(fd); err != nil {
		unix.Close(fd)
		return nil, &fs.PathError{Op: "stat", Path: root, Err: err}
	}
	d.root.users = 1 // forever
	return d, nil
}

// umask reads the process's mask, which can otherwise only be read by changing it.
func umask() uint32 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o777 // every mode is then set explicitly
	}
	_, rest, ok := strings.Cut(string(b), "\nUmask:\t")
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseUint(line, 8, 32)
	if !ok || err != nil {
		return 0o777
	}
	return uint32(n)
}

func newHandle(fd int) (*handle, error) {
	st, err := statFd(fd)
	if err != nil {
		return nil, err
	}
	_, err = unix.Fgetxattr(fd, aclDefault, nil)
	return &handle{fd: fd, setgid: st.Mode&unix.S_ISGID != 0, defaultACL: err == nil}, nil
}

// Close closes all descriptors.
func (d *Dest) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for p, h := range d.open {
		unix.Close(h.fd)
		delete(d.open, p)
	}
	return unix.Close(d.root.fd)
}

// dir returns the open directory of that path; release it.
func (d *Dest) dir(p string) (*handle, error) {
	if p == "." || p == "" {
		return d.root, nil
	}
	d.mu.Lock()
	if h := d.open[p]; h != nil {
		h.users++
		d.tick++
		h.used = d.tick
		d.mu.Unlock()
		return h, nil
	}
	d.mu.Unlock()
	up, err := d.dir(path.Dir(p))
	if err != nil {
		return nil, err
	}
	defer d.release(up)
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(up.fd, path.Base(p), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open directory", Path: quote(p), Err: err}
	}
	h, err := newHandle(fd)
	if err != nil {
		unix.Close(fd)
		return nil, &fs.PathError{Op: "stat", Path: quote(p), Err: err}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if other := d.open[p]; other != nil { // another goroutine was faster
		unix.Close(fd)
		h = other
	} else {
		d.evict()
		d.open[p] = h
	}
	h.users++
	d.tick++
	h.used = d.tick
	return h, nil
}

// maxHandles bounds the open directories.
const maxHandles = 256

func (d *Dest) evict() {
	if len(d.open) < maxHandles {
		return
	}
	var oldest string
	for p, h := range d.open {
		if h.users == 0 && (oldest == "" || h.used < d.open[oldest].used) {
			oldest = p
		}
	}
	if oldest != "" {
		unix.Close(d.open[oldest].fd)
		delete(d.open, oldest)
	}
}

func (d *Dest) release(h *handle) {
	if h == d.root {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if h.users--; h.users == 0 && h.closed {
		unix.Close(h.fd)
	}
}

// forget drops cached directories at and below a path that goes.
func (d *Dest) forget(p string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for q, h := range d.open {
		if q == p || strings.HasPrefix(q, p+"/") {
			delete(d.open, q)
			if h.closed = true; h.users == 0 {
				unix.Close(h.fd)
			}
		}
	}
}

// at calls use with the open directory that an entry lies in, and its name there.
func (d *Dest) at(p string, use func(up *handle, name string) error) error {
	if err := tarstream.CheckPath(p); err != nil {
		return err
	}
	if p == "." {
		return use(d.root, ".")
	}
	up, err := d.dir(path.Dir(p))
	if err != nil {
		return err
	}
	defer d.release(up)
	return use(up, path.Base(p))
}

// quote shortens and quotes a path for a message.
func quote(p string) string {
	if len(p) > 200 {
		return strconv.Quote(p[:100]) + "..." + strconv.Quote(p[len(p)-60:])
	}
	return strconv.Quote(p)
}

// act gives an error the act and the path, once.
func act(what, p string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: what, Path: quote(p), Err: err}
}

// Lstat returns an entry's stat.
func (d *Dest) Lstat(p string) (st Stat, err error) {
	err = d.at(p, func(up *handle, name string) error {
		st, err = statAt(up.fd, name)
		return act("stat", p, err)
	})
	return st, err
}

// ReadDirNames returns a directory's names, in no order.
func (d *Dest) ReadDirNames(p string) (names []string, err error) {
	h, err := d.dir(p)
	if err != nil {
		return nil, err
	}
	defer d.release(h)
	fd, err := unix.Openat(h.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, act("open directory", p, err)
	}
	f := os.NewFile(uintptr(fd), p)
	defer f.Close()
	names, err = f.Readdirnames(-1)
	return names, act("read directory", p, errors.Unwrap(err))
}

// Readlink returns a symlink's text.
func (d *Dest) Readlink(p string) (text string, err error) {
	err = d.at(p, func(up *handle, name string) error {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(up.fd, name, buf)
		text = string(buf[:max(n, 0)])
		return act("read symlink", p, err)
	})
	return text, err
}

// OpenRead opens a regular file for reading.
func (d *Dest) OpenRead(p string) (f *os.File, err error) {
	err = d.at(p, func(up *handle, name string) error {
		fd, err := openNoAtime(up.fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC)
		if err != nil {
			return act("open", p, err)
		}
		f = os.NewFile(uintptr(fd), p)
		return nil
	})
	return f, err
}

// Xattrs returns an entry's extended attributes, sorted.
func (d *Dest) Xattrs(p string) (x []tarstream.Xattr, err error) {
	err = d.at(p, func(up *handle, name string) error {
		x, err = LXattrs(up.fd, name)
		return act("read attributes", p, err)
	})
	return x, err
}

// Mkdir makes a directory that only we can enter; one that is there is fine.
func (d *Dest) Mkdir(p string) (created bool, err error) {
	err = d.at(p, func(up *handle, name string) error {
		err := unix.Mkdirat(up.fd, name, 0o700)
		if errors.Is(err, unix.EEXIST) {
			st, serr := statAt(up.fd, name)
			if serr == nil && st.Type == tarstream.Dir {
				return nil
			}
		}
		created = err == nil
		return act("make directory", p, err)
	})
	return created, err
}

// Remove removes an entry, and with a directory all that is below it, except
// what keep says yes to, and its directories. What is mounted below stays.
func (d *Dest) Remove(p string, keep func(path string) bool) error {
	if p == lostFound || p == IncompleteMark {
		return nil
	}
	_, err := d.remove(p, keep)
	return err
}

func (d *Dest) remove(p string, keep func(string) bool) (gone bool, err error) {
	if keep != nil && keep(p) {
		return false, nil
	}
	st, err := d.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	flags := 0
	if st.Type == tarstream.Dir {
		if st.MountRoot {
			return false, nil
		}
		flags = unix.AT_REMOVEDIR
		names, err := d.ReadDirNames(p)
		if err != nil {
			return false, err
		}
		all := true
		for _, n := range names {
			gone, err := d.remove(p+"/"+n, keep)
			if err != nil {
				return false, err
			}
			all = all && gone
		}
		if !all {
			return false, nil
		}
		d.forget(p)
	}
	err = d.at(p, func(up *handle, name string) error { return unix.Unlinkat(up.fd, name, flags) })
	if errors.Is(err, unix.EBUSY) {
		return false, nil // a mount point
	}
	return err == nil, act("remove", p, err)
}

// WriteMark writes the incomplete mark, durably. One that is there stays.
func (d *Dest) WriteMark(text []byte) error {
	fd, err := unix.Openat(d.root.fd, IncompleteMark, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return act("write the mark", IncompleteMark, err)
	}
	f := os.NewFile(uintptr(fd), IncompleteMark)
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = unix.Fsync(d.root.fd)
	}
	return act("write the mark", IncompleteMark, err)
}

// HasMark says whether the incomplete mark is there.
func (d *Dest) HasMark() bool {
	_, err := statAt(d.root.fd, IncompleteMark)
	return err == nil
}

// ReadMark returns the mark's text.
func (d *Dest) ReadMark() ([]byte, error) {
	f, err := d.OpenRead(IncompleteMark)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buf := make([]byte, 4096)
	n, err := f.ReadAt(buf, 0)
	if n > 0 {
		err = nil
	}
	return buf[:n], err
}

// RemoveMark removes the mark; what was written before must be synced.
func (d *Dest) RemoveMark() error {
	if err := unix.Unlinkat(d.root.fd, IncompleteMark, 0); err != nil {
		return act("remove the mark", IncompleteMark, err)
	}
	return act("remove the mark", IncompleteMark, unix.Fsync(d.root.fd))
}

// Sync makes everything written durable.
func (d *Dest) Sync() error { return act("sync", ".", unix.Syncfs(d.root.fd)) }
