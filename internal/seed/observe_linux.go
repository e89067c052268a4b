package seed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tree"
)

// Observe looks at a volume without changing anything.
func Observe(ctx context.Context, v Volume) (*Observation, error) {
	o := &Observation{Volume: v}
	path, err := filepath.EvalSymlinks(v.Path)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return nil, fmt.Errorf("look at volume %s: %w", v.Name, err)
	}
	st, err := statPath(path)
	if err != nil {
		return nil, fmt.Errorf("look at volume %s: stat %s: %w", v.Name, path, err)
	}
	o.Identity = Identity{Inode: st.inode, Born: st.born}
	o.Mtime = st.mtime
	if err := o.observeMount(path); err != nil {
		return nil, fmt.Errorf("look at volume %s: %w", v.Name, err)
	}
	root, err := openDir(path)
	if errors.Is(err, os.ErrPermission) {
		o.Unreadable = err.Error()
		return o, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at volume %s: %w", v.Name, err)
	}
	defer root.Close()
	w := observer{o: o, dev: st.dev}
	if err := w.dir(ctx, root, ""); err != nil {
		return nil, fmt.Errorf("look at volume %s: %w", v.Name, err)
	}
	return o, nil
}

func (o *Observation) observeMount(path string) error {
	list, err := ownMounts()
	if err != nil {
		return err
	}
	if m, ok := at(list, path); ok {
		o.Plain = plainVolume.MatchString(m.root)
	}
	var sfs unix.Statfs_t
	if err := unix.Statfs(path, &sfs); err != nil {
		return &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	o.ReadOnly = sfs.Flags&unix.ST_RDONLY != 0
	return nil
}

// observer is one walk. It goes from descriptor to descriptor and follows no symlink.
type observer struct {
	o   *Observation
	dev uint64
}

// maxDepth bounds the descriptors that are open at once.
const maxDepth = 200

func (w *observer) dir(ctx context.Context, d *os.File, prefix string) error {
	depth := 0
	for i := range len(prefix) {
		if prefix[i] == '/' {
			depth++
		}
	}
	if depth > maxDepth {
		w.o.More = true
		return nil
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		names, err := d.Readdirnames(1024)
		for _, name := range names {
			if err := w.entry(ctx, d, prefix+name, name); err != nil || w.o.More {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			w.unreadable(prefix, err)
			return nil
		}
	}
}

func (w *observer) unreadable(path string, err error) {
	if w.o.Unreadable == "" {
		w.o.Unreadable = fmt.Sprintf("%q: %v", path, err)
	}
}

func (w *observer) entry(ctx context.Context, d *os.File, path, name string) error {
	st, err := statAt(int(d.Fd()), name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		w.unreadable(path, err)
		return nil
	}
	e := Entry{Path: path, Kind: st.kind, Inode: st.inode, Born: st.born, Mtime: st.mtime}
	if e.Kind == File {
		e.Size = st.size
	}
	if path == name { // in the root
		switch {
		case name == "lost+found" && e.Kind == Dir:
			return nil
		case name == tree.IncompleteMark:
			w.o.Mark = readMark(d)
			return nil
		case placeholders[name] && e.Kind == File:
			w.o.Placeholders = append(w.o.Placeholders, name)
			return nil
		}
	}
	if st.dev != w.dev || st.mounted {
		if w.o.Mounted == "" {
			w.o.Mounted = path
		}
		return nil
	}
	if len(w.o.Entries) >= maxEntries {
		w.o.More = true
		return nil
	}
	w.o.Entries = append(w.o.Entries, e)
	if e.Kind != Dir {
		return nil
	}
	fd, err := unix.Openat(int(d.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		w.unreadable(path, err)
		return nil
	}
	sub := os.NewFile(uintptr(fd), path)
	defer sub.Close()
	return w.dir(ctx, sub, path+"/")
}

// readMark reads the mark in a root. Whatever stands there, there is one.
func readMark(root *os.File) *Mark {
	m := &Mark{}
	fd, err := unix.Openat(int(root.Fd()), tree.IncompleteMark, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return m
	}
	f := os.NewFile(uintptr(fd), tree.IncompleteMark)
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil || json.Unmarshal(b, m) != nil {
		return &Mark{}
	}
	return m
}

func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// seen is what statx(2) says, times in nanoseconds since 1970.
type seen struct {
	kind               Kind
	inode, dev         uint64
	size               int64
	born, mtime, ctime int64 // born is 0 where the file system does not tell
	mounted            bool
}

func statPath(path string) (seen, error) { return statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW) }

func statAt(dir int, name string) (seen, error) { return statx(dir, name, unix.AT_SYMLINK_NOFOLLOW) }

func statFd(fd int) (seen, error) { return statx(fd, "", unix.AT_EMPTY_PATH) }

func statx(dir int, name string, flags int) (seen, error) {
	var s unix.Statx_t
	var err error = unix.EINTR
	for errors.Is(err, unix.EINTR) {
		err = unix.Statx(dir, name, flags|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &s)
	}
	if err != nil {
		return seen{}, err
	}
	out := seen{
		kind: Other, inode: s.Ino, dev: unix.Mkdev(s.Dev_major, s.Dev_minor), size: int64(s.Size),
		mtime: nanoseconds(s.Mtime), ctime: nanoseconds(s.Ctime), mounted: s.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
	}
	switch s.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		out.kind = File
	case unix.S_IFDIR:
		out.kind = Dir
	case unix.S_IFLNK:
		out.kind = Symlink
	}
	if s.Mask&unix.STATX_BTIME != 0 {
		out.born = nanoseconds(s.Btime)
	}
	return out, nil
}

// nanoseconds clips what does not fit: years beyond 2262 are all alike.
func nanoseconds(t unix.StatxTimestamp) int64 {
	const limit = math.MaxInt64/int64(time.Second) - 1
	return max(-limit, min(limit, t.Sec))*int64(time.Second) + int64(t.Nsec)
}

func identify(root *os.File) (Identity, error) {
	st, err := statFd(int(root.Fd()))
	if err != nil {
		return Identity{}, &os.PathError{Op: "stat", Path: root.Name(), Err: err}
	}
	return Identity{Inode: st.inode, Born: st.born}, nil
}

// hasMark says whether a root bears the mark of an unfinished restore.
func hasMark(root *os.File) bool {
	_, err := statAt(int(root.Fd()), tree.IncompleteMark)
	return err == nil
}
