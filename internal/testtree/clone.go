package testtree

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Clone copies the tree at src to dst exactly: everything that Diff compares, and
// sockets. dst is made if it is not there, and must be empty. lost+found in the
// root of src is not copied. (Compare finds the sockets of a copy "not expected", as it
// does in a restored tree; a copy as the wanted side is fine.)
func Clone(t testing.TB, src, dst string) {
	t.Helper()
	if err := clone(src, dst); err != nil {
		t.Fatalf("clone %s to %s: %v", src, dst, err)
	}
	removable(t, dst)
}

func clone(src, dst string) error {
	if err := os.MkdirAll(dst, 0o700); err != nil {
		return err
	}
	from, err := openRoot(src)
	if err != nil {
		return err
	}
	defer from.close()
	to, err := openRoot(dst)
	if err != nil {
		return err
	}
	defer to.close()
	if names, err := to.names("."); err != nil || len(names) > 0 {
		return errors.Join(fmt.Errorf("%s is not an empty directory", dst), err)
	}
	all, err := from.walk()
	if err != nil {
		return err
	}
	c := cloner{from: from, to: to, first: map[inode]string{}, buf: make([]byte, 1<<20)}
	for i := range all {
		if err := c.make(&all[i]); err != nil {
			return err
		}
	}
	// Directories get their metadata when nothing in them changes any more, and
	// when no default ACL can be inherited.
	for i := len(all) - 1; i >= 0; i-- {
		if kind(&all[i].st) == unix.S_IFDIR {
			if err := c.metadata(all[i].path, &all[i].st); err != nil {
				return err
			}
		}
	}
	st, err := from.lstat(".")
	if err != nil {
		return err
	}
	return c.metadata(".", &st)
}

type cloner struct {
	from, to *root
	first    map[inode]string
	buf      []byte
}

// make makes an entry, with its metadata unless it is a directory.
func (c *cloner) make(e *entry) error {
	if kind(&e.st) == unix.S_IFDIR {
		return c.to.mkdir(e.path)
	}
	if e.st.Nlink > 1 {
		if earlier := first(c.first, e.path, &e.st); earlier != e.path {
			return c.to.link(earlier, e.path)
		}
	}
	if err := c.content(e); err != nil {
		return err
	}
	return c.metadata(e.path, &e.st)
}

func (c *cloner) content(e *entry) error {
	switch kind(&e.st) {
	case unix.S_IFREG:
		return c.file(e)
	case unix.S_IFLNK:
		text, err := c.from.readlink(e.path)
		if err != nil {
			return err
		}
		return c.to.symlink(text, e.path)
	default:
		return c.to.mknod(e.path, kind(&e.st)|0o600, e.st.Rdev)
	}
}

// file copies content, leaving holes where the source has them.
func (c *cloner) file(e *entry) (err error) {
	in, err := c.from.open(e.path, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(in) }()
	out, err := c.to.openFile(e.path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if e.st.Blocks*512 < e.st.Size {
		if err := out.Truncate(e.st.Size); err != nil {
			return err
		}
	}
	for off := int64(0); off < e.st.Size; {
		if off = nextData(in, off, e.st.Size); off == e.st.Size {
			break
		}
		end, err := unix.Seek(in, off, unix.SEEK_HOLE)
		if err != nil {
			end = e.st.Size
		}
		for end = min(end, e.st.Size); off < end; {
			part := c.buf[:min(int64(len(c.buf)), end-off)]
			if err := readAt(in, part, off); err != nil {
				return fmt.Errorf("read %q: %w", e.path, err)
			}
			if _, err := out.WriteAt(part, off); err != nil {
				return err
			}
			off += int64(len(part))
		}
	}
	return nil
}

func (c *cloner) metadata(path string, st *unix.Stat_t) error {
	xattrs, err := c.from.xattrs(path, c.buf)
	if err != nil {
		return err
	}
	return c.to.setMetadata(path, st, xattrs)
}

// setMetadata gives an entry owner, mode, xattrs and mtime, in the one order that
// keeps all: chown drops capabilities and set-id bits, a file without write
// permission takes no user xattrs from a plain user, and chmod changes an ACL.
func (r *root) setMetadata(path string, st *unix.Stat_t, xattrs map[string]string) error {
	if err := r.chown(path, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	keys := slices.Sorted(maps.Keys(xattrs))
	set := func(acl bool) error {
		for _, key := range keys {
			if strings.HasPrefix(key, "system.") != acl {
				continue
			}
			if err := r.setXattr(path, key, xattrs[key]); err != nil {
				return err
			}
		}
		return nil
	}
	if err := set(false); err != nil {
		return err
	}
	if kind(st) != unix.S_IFLNK {
		if err := r.chmod(path, st.Mode); err != nil {
			return err
		}
	}
	if err := set(true); err != nil {
		return err
	}
	return r.setMtime(path, st.Mtim)
}

// MakeRemovable gives the owner full rights to every directory below dir, so that
// os.RemoveAll works for a plain user too.
func MakeRemovable(dir string) error {
	r, err := openRoot(dir)
	if err != nil {
		return err
	}
	defer r.close()
	var open func(path string) error
	open = func(path string) error {
		if err := r.chmod(path, 0o700); err != nil {
			return err
		}
		names, err := r.names(path)
		if err != nil {
			return err
		}
		for _, name := range names {
			st, err := r.lstat(join(path, name))
			if err != nil {
				return err
			}
			if kind(&st) == unix.S_IFDIR {
				if err := open(join(path, name)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return open(".")
}

// removable lets t.TempDir remove what it could not; root needs no help.
func removable(t testing.TB, dir string) {
	if os.Geteuid() == 0 {
		return
	}
	t.Cleanup(func() {
		if err := MakeRemovable(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Logf("make %s removable: %v", dir, err)
		}
	})
}
