package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// maxOpenDirs bounds the descriptors that a walk holds: deeper trees give up
// those of their upper directories and open them again when they return.
const maxOpenDirs = 128

// Source is a tree that is read. Close it after its last node was released.
type Source struct {
	root *dir
	mu   sync.Mutex
	open []*dir // with a descriptor, by age
}

// dir is a directory of a source: its descriptor may be given up at any time
// that nobody uses it, and is opened again by name from its parent.
type dir struct {
	src    *Source
	parent *dir
	name   string
	stat   Stat
	fd     int // -1 while given up
	users  int // calls that use fd now
	refs   int // walk, nodes and subdirectories that may still ask for it
}

// Node is an entry that a walk comes by. Its path is relative to the root,
// which is ".". Release it when nothing more will be read from it.
type Node struct {
	Path string
	Stat Stat
	// Err says why the entry cannot be read: its stat, or the opening of a directory.
	Err  error
	name string
	up   *dir // nil for the root
	self *dir // of a directory that could be opened
}

// OpenSource opens the directory path for reading.
func OpenSource(path string) (*Source, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open directory", Path: path, Err: err}
	}
	st, err := statAt(fd, "")
	if err != nil {
		unix.Close(fd)
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	s := &Source{}
	s.root = &dir{src: s, stat: st, fd: fd, users: 1, refs: 1} // a user forever: it has no parent to be opened from
	return s, nil
}

// Close releases the root.
func (s *Source) Close() error { return unix.Close(s.root.fd) }

// Root is the stat of the root directory at the time of opening.
func (s *Source) Root() Stat { return s.root.stat }

// Walk visits every entry of the tree. Names that vanish while it goes are
// passed over in silence. Its memory is bounded by the largest directory.
func (s *Source) Walk(ctx context.Context, v Visitor) error {
	st, err := statAt(s.root.fd, "")
	if err != nil {
		return err
	}
	s.root.stat = st
	names, err := s.root.names()
	if err != nil {
		return fmt.Errorf("read the root directory: %w", err)
	}
	s.root.retain()
	n := &Node{Path: ".", Stat: st, self: s.root}
	if err := v.Visit(n); err != nil {
		return err
	}
	return s.walk(ctx, s.root, names, "", v)
}

func (s *Source) walk(ctx context.Context, d *dir, names []string, prefix string, v Visitor) error {
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := &Node{Path: prefix + name, name: name, up: d}
		fd, err := d.use()
		if err == nil {
			n.Stat, err = statAt(fd, name)
			d.unuse()
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		n.Err = err
		if n.Err == nil && v.Skip(n) {
			continue
		}
		// A directory's names are read before it is visited: one that cannot be
		// read must not be presented as empty.
		var below []string
		if n.Err == nil && n.Stat.Type == tarstream.Dir {
			if n.self, n.Err = d.openDir(name, n.Stat); n.Err == nil {
				if below, n.Err = n.self.names(); n.Err != nil {
					n.self.release()
					n.self = nil
				}
			}
			if errors.Is(n.Err, fs.ErrNotExist) {
				continue
			}
		}
		d.retain()
		self := n.self
		if self != nil {
			self.retain() // for the walk, beside the node
		}
		if err := v.Visit(n); err != nil {
			if self != nil {
				self.release()
			}
			return err
		}
		if self != nil {
			err := s.walk(ctx, self, below, n.Path+"/", v)
			self.release()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// names returns a directory's names in byte order.
func (d *dir) names() ([]string, error) {
	fd, err := d.use()
	if err != nil {
		return nil, err
	}
	defer d.unuse()
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	var names []string
	buf := make([]byte, 32<<10)
	for {
		n, err := ignoringEINTR(func() (int, error) { return unix.ReadDirent(fd, buf) })
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// openDir opens a subdirectory, and makes sure that it is the one of st.
func (d *dir) openDir(name string, st Stat) (*dir, error) {
	fd, err := d.use()
	if err != nil {
		return nil, err
	}
	defer d.unuse()
	sub, err := openNoAtime(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	now, err := statFd(sub)
	if err == nil && (now.Ino != st.Ino || now.Dev != st.Dev) {
		err = errors.New("was replaced while the tree was read")
	}
	if err != nil {
		unix.Close(sub)
		return nil, err
	}
	s := d.src
	s.mu.Lock()
	defer s.mu.Unlock()
	d.refs++
	c := &dir{src: s, parent: d, name: name, stat: st, fd: sub, refs: 1}
	s.opened(c)
	return c, nil
}

// opened notes a directory with a descriptor and gives up the oldest that nobody uses.
func (s *Source) opened(d *dir) {
	s.open = append(s.open, d)
	if len(s.open) <= maxOpenDirs {
		return
	}
	for i, o := range s.open {
		if o.users == 0 && o != d {
			unix.Close(o.fd)
			o.fd = -1
			s.open = slices.Delete(s.open, i, i+1)
			return
		}
	}
}

// use returns the directory's descriptor, which stays open until unuse.
func (d *dir) use() (int, error) {
	s := d.src
	s.mu.Lock()
	if d.fd >= 0 {
		d.users++
		s.mu.Unlock()
		return d.fd, nil
	}
	s.mu.Unlock()
	up, err := d.parent.use()
	if err != nil {
		return -1, err
	}
	defer d.parent.unuse()
	fd, err := openNoAtime(up, d.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if err != nil {
		return -1, err
	}
	st, err := statFd(fd)
	if err == nil && (st.Ino != d.stat.Ino || st.Dev != d.stat.Dev) {
		err = errors.New("directory was replaced while the tree was read")
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d.users++
	if d.fd >= 0 { // another goroutine was faster
		unix.Close(fd)
		return d.fd, nil
	}
	d.fd = fd
	s.opened(d)
	return fd, nil
}

func (d *dir) unuse() {
	d.src.mu.Lock()
	d.users--
	d.src.mu.Unlock()
}

func (d *dir) retain() {
	d.src.mu.Lock()
	d.refs++
	d.src.mu.Unlock()
}

func (d *dir) release() {
	s := d.src
	s.mu.Lock()
	defer s.mu.Unlock()
	for d != nil && d.parent != nil {
		if d.refs--; d.refs > 0 {
			return
		}
		if d.fd >= 0 {
			unix.Close(d.fd)
			d.fd = -1
			if i := slices.Index(s.open, d); i >= 0 {
				s.open = slices.Delete(s.open, i, i+1)
			}
		}
		d = d.parent
	}
}

// Release says that nothing more will be read from the node.
func (n *Node) Release() {
	if n.up != nil {
		n.up.release()
	}
	if n.self != nil {
		n.self.release()
	}
	n.up, n.self = nil, nil
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// openNoAtime opens without touching the access time where that is allowed:
// a backup should leave no trace in what it reads.
func openNoAtime(dirfd int, name string, flags int) (int, error) {
	fd, err := ignoringEINTR(func() (int, error) { return unix.Openat(dirfd, name, flags|unix.O_NOATIME, 0) })
	if errors.Is(err, unix.EPERM) {
		fd, err = ignoringEINTR(func() (int, error) { return unix.Openat(dirfd, name, flags, 0) })
	}
	return fd, err
}
