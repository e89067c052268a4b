package testtree

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxAt is the longest path given to one system call. The kernel takes 4095
// bytes; the rest is room for the "/proc/self/fd/N/" that extended attributes
// need, as they have no call relative to a directory.
const maxAt = 3500

// root reaches what lies below one directory, however long the paths are.
// Paths are relative; "." is the directory itself.
type root struct{ fd int }

func openRoot(dir string) (*root, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return &root{fd}, nil
}

func (r *root) close() { _ = unix.Close(r.fd) }

// do calls f with a descriptor and a name that together reach path.
func (r *root) do(op, path string, f func(fd int, name string) error) error {
	fd, name := r.fd, path
	for len(name) > maxAt {
		cut := strings.LastIndexByte(name[:maxAt], '/')
		if cut <= 0 {
			return &os.PathError{Op: op, Path: path, Err: unix.ENAMETOOLONG}
		}
		next, err := unix.Openat(fd, name[:cut], unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if fd != r.fd {
			_ = unix.Close(fd)
		}
		if err != nil {
			return &os.PathError{Op: op, Path: path, Err: err}
		}
		fd, name = next, name[cut+1:]
	}
	if fd != r.fd {
		defer func() { _ = unix.Close(fd) }()
	}
	if err := f(fd, name); err != nil {
		return &os.PathError{Op: op, Path: path, Err: err}
	}
	return nil
}

// do2 is do for the calls that take two paths.
func (r *root) do2(op, from, to string, f func(ffd int, fname string, tfd int, tname string) error) error {
	return r.do(op, from, func(ffd int, fname string) error {
		return r.do(op, to, func(tfd int, tname string) error { return f(ffd, fname, tfd, tname) })
	})
}

func (r *root) lstat(path string) (st unix.Stat_t, err error) {
	err = r.do("lstat", path, func(fd int, name string) error {
		return unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	return st, err
}

// open opens without following a symlink and without waiting for a FIFO's other end.
func (r *root) open(path string, flags int) (file int, err error) {
	err = r.do("open", path, func(fd int, name string) error {
		file, err = unix.Openat(fd, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
		return err
	})
	return file, err
}

// openFile is open as an *os.File, for writing.
func (r *root) openFile(path string, flags int) (*os.File, error) {
	fd, err := r.open(path, flags)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// names gives a directory's names, sorted as bytes.
func (r *root) names(path string) ([]string, error) {
	f, err := r.openFile(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	slices.Sort(names)
	return names, err
}

func (r *root) readlink(path string) (text string, err error) {
	err = r.do("readlink", path, func(fd int, name string) error {
		buf := make([]byte, unix.PathMax+1)
		n, err := unix.Readlinkat(fd, name, buf)
		if err == nil {
			text = string(buf[:n])
		}
		return err
	})
	return text, err
}

// xattrs gives every extended attribute that the kernel lists, of the entry
// itself and never of what a symlink points to. scratch is at least 64 KiB,
// which is the kernel's limit for the list and for a value.
func (r *root) xattrs(path string, scratch []byte) (map[string]string, error) {
	var all map[string]string
	err := r.do("list xattrs of", path, func(fd int, name string) error {
		proc := procPath(fd, name)
		n, err := unix.Llistxattr(proc, scratch)
		if err == unix.ENOTSUP || n == 0 && err == nil {
			return nil
		}
		if err != nil {
			return err
		}
		keys := strings.Split(strings.TrimSuffix(string(scratch[:n]), "\x00"), "\x00")
		all = make(map[string]string, len(keys))
		for _, key := range keys {
			n, err := unix.Lgetxattr(proc, key, scratch)
			if err != nil {
				return fmt.Errorf("%q: %w", key, err)
			}
			all[key] = string(scratch[:n])
		}
		return nil
	})
	return all, err
}

func (r *root) setXattr(path, key, value string) error {
	return r.do("set xattr "+strconv.Quote(key)+" of", path, func(fd int, name string) error {
		return unix.Lsetxattr(procPath(fd, name), key, []byte(value), 0)
	})
}

func (r *root) removeXattr(path, key string) error {
	return r.do("remove xattr "+strconv.Quote(key)+" of", path, func(fd int, name string) error {
		return unix.Lremovexattr(procPath(fd, name), key)
	})
}

func procPath(fd int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + name
}

func (r *root) mkdir(path string) error {
	return r.do("mkdir", path, func(fd int, name string) error { return unix.Mkdirat(fd, name, 0o700) })
}

func (r *root) mknod(path string, mode uint32, dev uint64) error {
	return r.do("mknod", path, func(fd int, name string) error { return unix.Mknodat(fd, name, mode, int(dev)) })
}

func (r *root) symlink(text, path string) error {
	return r.do("symlink", path, func(fd int, name string) error { return unix.Symlinkat(text, fd, name) })
}

func (r *root) link(from, to string) error {
	return r.do2("link", from, to, func(ffd int, fname string, tfd int, tname string) error {
		return unix.Linkat(ffd, fname, tfd, tname, 0)
	})
}

// rename takes the flags of renameat2(2).
func (r *root) rename(from, to string, flags uint) error {
	return r.do2("rename", from, to, func(ffd int, fname string, tfd int, tname string) error {
		return unix.Renameat2(ffd, fname, tfd, tname, flags)
	})
}

func (r *root) chmod(path string, mode uint32) error {
	return r.do("chmod", path, func(fd int, name string) error { return unix.Fchmodat(fd, name, mode&0o7777, 0) })
}

func (r *root) chown(path string, uid, gid int) error {
	return r.do("chown", path, func(fd int, name string) error {
		return unix.Fchownat(fd, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// setMtime leaves the access time alone.
func (r *root) setMtime(path string, mtime unix.Timespec) error {
	return r.do("set mtime of", path, func(fd int, name string) error {
		return unix.UtimesNanoAt(fd, name, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func (r *root) unlink(path string) error {
	return r.do("unlink", path, func(fd int, name string) error { return unix.Unlinkat(fd, name, 0) })
}

// removeAll removes an entry and all that is below it.
func (r *root) removeAll(path string) error {
	st, err := r.lstat(path)
	if err != nil {
		return err
	}
	if kind(&st) != unix.S_IFDIR {
		return r.unlink(path)
	}
	names, err := r.names(path)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := r.removeAll(join(path, name)); err != nil {
			return err
		}
	}
	return r.do("rmdir", path, func(fd int, name string) error { return unix.Unlinkat(fd, name, unix.AT_REMOVEDIR) })
}

// entry is one name in a tree.
type entry struct {
	path string
	st   unix.Stat_t
}

// walk lists a tree: a directory before what it holds, names sorted as bytes,
// the root itself left out, and lost+found in the root too.
func (r *root) walk() ([]entry, error) {
	var all []entry
	var below func(dir string) error
	below = func(dir string) error {
		names, err := r.names(dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			if dir == "." && name == "lost+found" {
				continue
			}
			path := join(dir, name)
			st, err := r.lstat(path)
			if err != nil {
				return err
			}
			all = append(all, entry{path, st})
			if kind(&st) == unix.S_IFDIR {
				if err := below(path); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return all, below(".")
}

func kind(st *unix.Stat_t) uint32 { return st.Mode & unix.S_IFMT }

// inode names a file whatever its path.
type inode struct{ dev, ino uint64 }

func inodeOf(st *unix.Stat_t) inode { return inode{st.Dev, st.Ino} }

func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

func parent(path string) string {
	if cut := strings.LastIndexByte(path, '/'); cut >= 0 {
		return path[:cut]
	}
	return "."
}
