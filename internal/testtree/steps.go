package testtree

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

func (m *mutator) writeInPlace() (string, error) {
	e := m.pickFile(1)
	if e == nil {
		return "", nil
	}
	off := m.rng.Int64N(e.st.Size)
	data := make([]byte, 1+m.rng.Int64N(min(e.st.Size-off, 5000)))
	fillRandom(m.rng, data)
	return fmt.Sprintf("%d bytes at %d of %s", len(data), off, quote(e)), m.write(e.path, 0, off, data)
}

func (m *mutator) replace() (string, error) {
	e := m.pickFile(0)
	if e == nil {
		return "", nil
	}
	size := int(e.st.Size)/2 + m.rng.IntN(int(e.st.Size)+100)
	temporary := m.newPath("")
	if err := m.create(temporary, size); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, now %d bytes", quote(e), size), m.root.rename(temporary, e.path, 0)
}

func (m *mutator) appendTo() (string, error) {
	e := m.pickFile(0)
	if e == nil {
		return "", nil
	}
	data := content(m.rng, 1+m.rng.IntN(9000))
	return fmt.Sprintf("%d bytes to %s", len(data), quote(e)), m.write(e.path, 0, e.st.Size, data)
}

func (m *mutator) truncate() (string, error) {
	e := m.pickFile(1)
	if e == nil {
		return "", nil
	}
	to := m.rng.Int64N(e.st.Size) * m.rng.Int64N(3) / 2 // to nothing, to less, or up to 1.5 times its size
	return fmt.Sprintf("%s from %d to %d", quote(e), e.st.Size, to), m.resize(e.path, to)
}

func (m *mutator) resize(path string, size int64) (err error) {
	f, err := m.root.openFile(path, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return f.Truncate(size)
}

// sneak changes content so that only ctime tells.
func (m *mutator) sneak() (string, error) {
	e := m.pickFile(1)
	if e == nil {
		return "", nil
	}
	off := m.rng.Int64N(e.st.Size)
	data := make([]byte, 1+m.rng.Int64N(min(e.st.Size-off, 3000)))
	fillRandom(m.rng, data)
	if err := m.write(e.path, 0, off, data); err != nil {
		return "", err
	}
	return quote(e), m.root.setMtime(e.path, e.st.Mtim)
}

func (m *mutator) grow() (string, error) {
	e := m.pick(func(e *entry) bool { return kind(&e.st) == unix.S_IFREG && e.st.Size < 64<<10 })
	if e == nil {
		return "", nil
	}
	size := 1<<20 + m.rng.IntN(2<<20)
	return fmt.Sprintf("%s, now %d bytes", quote(e), size), m.write(e.path, unix.O_TRUNC, 0, content(m.rng, size))
}

func (m *mutator) shrink() (string, error) {
	e := m.pick(func(e *entry) bool { return kind(&e.st) == unix.S_IFREG && e.st.Size >= 128<<10 })
	if e == nil {
		return "", nil
	}
	size := 1 + m.rng.IntN(2000)
	return fmt.Sprintf("%s, now %d bytes", quote(e), size), m.write(e.path, unix.O_TRUNC, 0, content(m.rng, size))
}

func (m *mutator) punch() (string, error) {
	e := m.pickFile(8192)
	if e == nil {
		return "", nil
	}
	fd, err := m.root.open(e.path, unix.O_WRONLY)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	off := m.rng.Int64N(e.st.Size-4096) &^ 4095
	n := min(4096+m.rng.Int64N(e.st.Size), e.st.Size-off)
	err = unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, unix.ENOTSUP) {
		return "", nil
	}
	return fmt.Sprintf("%d bytes at %d of %s", n, off, quote(e)), err
}

func (m *mutator) chmod() (string, error) {
	e := m.pick(func(e *entry) bool { return kind(&e.st) != unix.S_IFLNK })
	if e == nil {
		return "", nil
	}
	modes := fileModes
	if !m.super {
		modes = plainModes
	}
	if kind(&e.st) == unix.S_IFDIR {
		modes = []uint32{0o755, 0o700, 0o1777, 0o2775}
	}
	mode := modes[m.rng.IntN(len(modes))]
	return fmt.Sprintf("%04o %s", mode, quote(e)), m.root.chmod(e.path, mode)
}

func (m *mutator) chown() (string, error) {
	e := m.pick(func(*entry) bool { return m.super })
	if e == nil {
		return "", nil
	}
	uid, gid := owners[m.rng.IntN(len(owners))], owners[m.rng.IntN(len(owners))]
	return fmt.Sprintf("%d:%d %s", uid, gid, quote(e)), m.root.chown(e.path, int(uid), int(gid))
}

func (m *mutator) touch() (string, error) {
	e := m.pick(func(*entry) bool { return true })
	if e == nil {
		return "", nil
	}
	mtime := odd(m.rng, len(mtimes), mtimes, randomTime(m.rng))
	if m.rng.IntN(2) == 0 { // by the least that a clock going back can do
		if mtime = e.st.Mtim; mtime.Nsec > 0 {
			mtime.Nsec--
		} else {
			mtime.Sec--
		}
	}
	return fmt.Sprintf("%d.%09d %s", mtime.Sec, mtime.Nsec, quote(e)), m.root.setMtime(e.path, mtime)
}

func (m *mutator) setXattr() (string, error) {
	e := m.pick(func(e *entry) bool { return kind(&e.st) == unix.S_IFREG || kind(&e.st) == unix.S_IFDIR })
	if e == nil {
		return "", nil
	}
	key := []string{"user.plain", "user.added", "user.a=b%c", "user.empty"}[m.rng.IntN(4)]
	value := wordList[m.rng.IntN(len(wordList))]
	if m.super && m.rng.IntN(3) == 0 {
		key, value = "system.posix_acl_access", acl(6, m.rng.Uint32N(1<<20), 4, 4)
	}
	err := m.root.setXattr(e.path, key, value)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOSPC) {
		return "", nil
	}
	return fmt.Sprintf("%q of %s", key, quote(e)), err
}

func (m *mutator) removeXattr() (string, error) {
	scratch := make([]byte, 64<<10)
	for range 200 {
		e := m.pick(func(*entry) bool { return true })
		if e == nil {
			return "", nil
		}
		xattrs, err := m.root.xattrs(e.path, scratch)
		if err != nil {
			return "", err
		}
		if len(xattrs) > 0 {
			key := slices.Min(slices.Collect(maps.Keys(xattrs)))
			return fmt.Sprintf("%q of %s", key, quote(e)), m.root.removeXattr(e.path, key)
		}
	}
	return "", nil
}

func (m *mutator) remove() (string, error) {
	e := m.pick(func(e *entry) bool { return kind(&e.st) != unix.S_IFDIR })
	if e == nil {
		return "", nil
	}
	return quote(e), m.root.unlink(e.path)
}

func (m *mutator) removeDir() (string, error) {
	e := m.pickDir()
	if e == nil {
		return "", nil
	}
	return quote(e), m.root.removeAll(e.path)
}

func (m *mutator) addFile() (string, error) {
	path, size := m.newPath(""), m.rng.IntN(1<<(1+m.rng.IntN(16)))
	return fmt.Sprintf("%q of %d bytes", shorten(path), size), m.create(path, size)
}

func (m *mutator) addDir() (string, error) {
	path := m.newPath("")
	return fmt.Sprintf("%q", shorten(path)), m.fill(path)
}

// fill makes a directory with a few files and an empty directory.
func (m *mutator) fill(dir string) error {
	if err := m.root.mkdir(dir); err != nil {
		return err
	}
	for i := range m.rng.IntN(5) {
		if err := m.create(fmt.Sprintf("%s/new %d", dir, i), m.rng.IntN(4000)); err != nil {
			return err
		}
	}
	return m.root.mkdir(dir + "/empty")
}

func (m *mutator) addSymlink() (string, error) {
	path := m.newPath("")
	return fmt.Sprintf("%q", shorten(path)), m.root.symlink(ordinaryName(m.rng), path)
}

func (m *mutator) renameFile() (string, error) {
	e := m.pick(func(e *entry) bool { return kind(&e.st) != unix.S_IFDIR })
	if e == nil {
		return "", nil
	}
	to := m.newPath("")
	return fmt.Sprintf("%s to %q", quote(e), shorten(to)), m.root.rename(e.path, to, 0)
}

func (m *mutator) renameDir() (string, error) {
	e := m.pickDir()
	if e == nil {
		return "", nil
	}
	to := m.newPath(e.path)
	return fmt.Sprintf("%s to %q", quote(e), shorten(to)), m.root.rename(e.path, to, 0)
}

// exchange swaps two entries, of whatever type, so that both names stay.
func (m *mutator) exchange() (string, error) {
	a, b := m.pick(func(*entry) bool { return true }), m.pick(func(*entry) bool { return true })
	if a == nil || within(a.path, b.path) || within(b.path, a.path) {
		return "", nil
	}
	err := m.root.rename(a.path, b.path, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) { // not on every file system
		return "", nil
	}
	return quote(a) + " with " + quote(b), err
}

// become removes an entry and calls make for another in its place.
func (m *mutator) become(e *entry, make func(path string) error) (string, error) {
	if e == nil {
		return "", nil
	}
	if err := m.root.removeAll(e.path); err != nil {
		return "", err
	}
	return quote(e), make(e.path)
}

func (m *mutator) newFile(path string) error    { return m.create(path, m.rng.IntN(6000)) }
func (m *mutator) newSymlink(path string) error { return m.root.symlink(ordinaryName(m.rng), path) }

func (m *mutator) fileToDir() (string, error) { return m.become(m.pickFile(0), m.fill) }

func (m *mutator) dirToFile() (string, error) { return m.become(m.pickDir(), m.newFile) }

func (m *mutator) dirToSymlink() (string, error) { return m.become(m.pickDir(), m.newSymlink) }

func (m *mutator) fileToSymlink() (string, error) { return m.become(m.pickFile(0), m.newSymlink) }

func (m *mutator) symlinkToFile() (string, error) {
	return m.become(m.pickKind(unix.S_IFLNK), m.newFile)
}

func (m *mutator) fileToFifo() (string, error) {
	return m.become(m.pickFile(0), func(path string) error { return m.root.mknod(path, unix.S_IFIFO|0o640, 0) })
}

func (m *mutator) addLink() (string, error) {
	e := m.pick(func(e *entry) bool { return kind(&e.st) != unix.S_IFDIR && kind(&e.st) != unix.S_IFSOCK })
	if e == nil {
		return "", nil
	}
	to := m.newPath("")
	return fmt.Sprintf("%q to %s", shorten(to), quote(e)), m.root.link(e.path, to)
}

// pickLink chooses a name of a file with several: its first one in the tree, or another.
func (m *mutator) pickLink(holder bool) *entry {
	seen := map[inode]string{}
	for i := range m.all {
		first(seen, m.all[i].path, &m.all[i].st)
	}
	return m.pick(func(e *entry) bool {
		return kind(&e.st) != unix.S_IFDIR && e.st.Nlink > 1 && (seen[inodeOf(&e.st)] == e.path) == holder
	})
}

func (m *mutator) removeLink() (string, error) {
	e := m.pickLink(false)
	if e == nil {
		return "", nil
	}
	return quote(e), m.root.unlink(e.path)
}

func (m *mutator) removeHolder() (string, error) {
	e := m.pickLink(true)
	if e == nil {
		return "", nil
	}
	return quote(e), m.root.unlink(e.path)
}

// breakLink makes one name a file of its own with the same content and mtime.
func (m *mutator) breakLink() (string, error) {
	e := m.pickLink(m.rng.IntN(2) == 0)
	if e == nil || kind(&e.st) != unix.S_IFREG || e.st.Size > 16<<20 {
		return "", nil
	}
	data := make([]byte, e.st.Size)
	fd, err := m.root.open(e.path, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	err = readAt(fd, data, 0)
	_ = unix.Close(fd)
	if err != nil {
		return "", err
	}
	if err := m.root.unlink(e.path); err != nil {
		return "", err
	}
	if err := m.write(e.path, unix.O_CREAT|unix.O_EXCL, 0, data); err != nil {
		return "", err
	}
	return quote(e), m.root.setMetadata(e.path, &e.st, nil)
}
