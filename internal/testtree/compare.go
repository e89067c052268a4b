package testtree

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Options say what a comparison leaves out. The zero value compares everything.
type Options struct {
	// Ignore is asked for every path below the root (relative, slashes, never
	// "."), in both trees; what it accepts is skipped with all that is below it.
	Ignore func(path string) bool
	// NoSparse skips the check that holes stayed holes. Needed where the two
	// trees lie on different kinds of file systems or one of them compresses.
	NoSparse bool
	// NoOwner skips uid and gid.
	NoOwner bool
	// NoXattrs skips extended attributes, and with them ACLs and capabilities.
	NoXattrs bool
}

// Compare reports an error to t, naming every difference, unless got is what a
// perfect restore of want is.
func Compare(t testing.TB, want, got string, o Options) {
	t.Helper()
	diffs, err := Diff(want, got, o)
	if err != nil {
		t.Errorf("compare %s with %s: %v", want, got, err)
	}
	if len(diffs) == 0 {
		return
	}
	const most = 40
	shown := diffs[:min(len(diffs), most)]
	more := ""
	if len(diffs) > most {
		more = fmt.Sprintf("\n  and %d more", len(diffs)-most)
	}
	t.Errorf("%s differs from %s in %d places:\n  %s%s", got, want, len(diffs), strings.Join(shown, "\n  "), more)
}

// Diff lists how got differs from a perfect restore of want, one line each, in
// the order of a walk. Compared are: the set of names, type, all twelve mode
// bits, uid, gid, size, content, mtime in nanoseconds (of the roots too), symlink
// text, device number, which paths are one inode, extended attributes, and that a
// file with holes does not take more blocks. Not compared: atime, ctime, birth
// time, links to names outside the tree. Sockets of want and lost+found in the
// roots do not exist for it. The error says that something could not be read;
// differences found until then are returned too.
func Diff(want, got string, o Options) ([]string, error) {
	w, err := openRoot(want)
	if err != nil {
		return nil, err
	}
	defer w.close()
	g, err := openRoot(got)
	if err != nil {
		return nil, err
	}
	defer g.close()
	d := &differ{
		want: w, got: g, o: o,
		wantFirst: map[inode]string{}, gotFirst: map[inode]string{},
		wantBuf: make([]byte, bufSize), gotBuf: make([]byte, bufSize),
	}
	ws, err := w.lstat(".")
	if err != nil {
		return nil, err
	}
	gs, err := g.lstat(".")
	if err != nil {
		return nil, err
	}
	err = d.entry(".", &ws, &gs)
	return d.diffs, err
}

const (
	bufSize = 256 << 10
	// holeSlack is how many more bytes a restored sparse file may take: holes
	// smaller than a writer's granularity need not come back.
	holeSlack = 64 << 10
)

type differ struct {
	want, got           *root
	o                   Options
	diffs               []string
	wantFirst, gotFirst map[inode]string // the first path seen of each inode with several links
	wantBuf, gotBuf     []byte
}

func (d *differ) report(path, format string, args ...any) {
	d.diffs = append(d.diffs, fmt.Sprintf("%q: ", shorten(path))+fmt.Sprintf(format, args...))
}

// shorten keeps a report legible where a path has thousands of bytes.
func shorten(path string) string {
	const most = 300
	if len(path) <= most {
		return path
	}
	return path[:most/2] + fmt.Sprintf("...[%d bytes]...", len(path)-most) + path[len(path)-most/2:]
}

// entry compares one path that both trees have, and what is below it.
func (d *differ) entry(path string, ws, gs *unix.Stat_t) error {
	if kind(ws) != kind(gs) {
		d.report(path, "is a %s, want a %s", kindName(gs), kindName(ws))
		return nil
	}
	d.metadata(path, ws, gs)
	if err := d.xattrs(path); err != nil {
		return err
	}
	if kind(ws) == unix.S_IFDIR {
		return d.directory(path)
	}
	d.links(path, ws, gs)
	switch kind(ws) {
	case unix.S_IFREG:
		return d.file(path, ws, gs)
	case unix.S_IFLNK:
		return d.symlink(path)
	case unix.S_IFCHR, unix.S_IFBLK:
		if ws.Rdev != gs.Rdev {
			d.report(path, "device %d:%d, want %d:%d", unix.Major(gs.Rdev), unix.Minor(gs.Rdev),
				unix.Major(ws.Rdev), unix.Minor(ws.Rdev))
		}
	}
	return nil
}

func (d *differ) metadata(path string, ws, gs *unix.Stat_t) {
	if w, g := ws.Mode&0o7777, gs.Mode&0o7777; w != g {
		d.report(path, "mode %04o, want %04o", g, w)
	}
	if !d.o.NoOwner && (ws.Uid != gs.Uid || ws.Gid != gs.Gid) {
		d.report(path, "owner %d:%d, want %d:%d", gs.Uid, gs.Gid, ws.Uid, ws.Gid)
	}
	if ws.Mtim != gs.Mtim {
		d.report(path, "mtime %d.%09d, want %d.%09d", gs.Mtim.Sec, gs.Mtim.Nsec, ws.Mtim.Sec, ws.Mtim.Nsec)
	}
}

func (d *differ) xattrs(path string) error {
	if d.o.NoXattrs {
		return nil
	}
	want, err := d.want.xattrs(path, d.wantBuf)
	if err != nil {
		return err
	}
	got, err := d.got.xattrs(path, d.gotBuf)
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if value, ok := got[key]; !ok {
			d.report(path, "xattr %q is missing", key)
		} else if value != want[key] {
			d.report(path, "xattr %q is %q, want %q", key, value, want[key])
		}
	}
	for _, key := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[key]; !ok {
			d.report(path, "xattr %q is not expected", key)
		}
	}
	return nil
}

// directory merges the names of both sides.
func (d *differ) directory(dir string) error {
	wantNames, err := d.want.names(dir)
	if err != nil {
		return err
	}
	gotNames, err := d.got.names(dir)
	if err != nil {
		return err
	}
	for len(wantNames) > 0 || len(gotNames) > 0 {
		var name string
		inWant := len(gotNames) == 0 || len(wantNames) > 0 && wantNames[0] <= gotNames[0]
		inGot := len(wantNames) == 0 || len(gotNames) > 0 && gotNames[0] <= wantNames[0]
		if inWant {
			name, wantNames = wantNames[0], wantNames[1:]
		}
		if inGot {
			name, gotNames = gotNames[0], gotNames[1:]
		}
		if err := d.name(dir, name, inWant, inGot); err != nil {
			return err
		}
	}
	return nil
}

func (d *differ) name(dir, name string, inWant, inGot bool) error {
	path := join(dir, name)
	if dir == "." && name == "lost+found" || d.o.Ignore != nil && d.o.Ignore(path) {
		return nil
	}
	var ws, gs unix.Stat_t
	var err error
	if inWant {
		if ws, err = d.want.lstat(path); err != nil {
			return err
		}
		inWant = kind(&ws) != unix.S_IFSOCK
	}
	if inGot {
		if gs, err = d.got.lstat(path); err != nil {
			return err
		}
	}
	switch {
	case inWant && inGot:
		return d.entry(path, &ws, &gs)
	case inWant:
		d.report(path, "%s is missing", kindName(&ws))
	case inGot:
		d.report(path, "%s is not expected", kindName(&gs))
	}
	return nil
}

// links compares the partition of paths into inodes: in both trees a path must be
// the same file as the same earliest path.
func (d *differ) links(path string, ws, gs *unix.Stat_t) {
	if ws.Nlink == 1 && gs.Nlink == 1 {
		return
	}
	w, g := first(d.wantFirst, path, ws), first(d.gotFirst, path, gs)
	if w == g {
		return
	}
	say := func(p string) string {
		if p == path {
			return "a file of its own"
		}
		return fmt.Sprintf("a hard link to %q", shorten(p))
	}
	d.report(path, "is %s, want %s", say(g), say(w))
}

func first(seen map[inode]string, path string, st *unix.Stat_t) string {
	if p, ok := seen[inodeOf(st)]; ok {
		return p
	}
	seen[inodeOf(st)] = path
	return path
}

func (d *differ) symlink(path string) error {
	want, err := d.want.readlink(path)
	if err != nil {
		return err
	}
	got, err := d.got.readlink(path)
	if err != nil {
		return err
	}
	if got != want {
		d.report(path, "symlink to %q, want %q", shorten(got), shorten(want))
	}
	return nil
}

func (d *differ) file(path string, ws, gs *unix.Stat_t) error {
	if ws.Size != gs.Size {
		d.report(path, "size %d, want %d", gs.Size, ws.Size)
		return nil
	}
	wantBytes, gotBytes := ws.Blocks*512, gs.Blocks*512
	if !d.o.NoSparse && wantBytes < ws.Size && gotBytes > wantBytes+holeSlack {
		d.report(path, "takes %d bytes on disk, want no more than %d: holes were filled", gotBytes, wantBytes)
	}
	if ws.Size == 0 {
		return nil
	}
	wfd, err := d.want.open(path, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(wfd) }()
	gfd, err := d.got.open(path, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(gfd) }()
	return d.content(path, wfd, gfd, ws.Size)
}

// content compares size bytes, leaping over what is a hole on both sides.
func (d *differ) content(path string, wfd, gfd int, size int64) error {
	for off := int64(0); off < size; {
		if size > bufSize {
			if off = min(nextData(wfd, off, size), nextData(gfd, off, size)); off == size {
				return nil
			}
		}
		n := int(min(bufSize, size-off))
		if err := readAt(wfd, d.wantBuf[:n], off); err != nil {
			return fmt.Errorf("read %q of the wanted tree at %d: %w", path, off, err)
		}
		if err := readAt(gfd, d.gotBuf[:n], off); err != nil {
			return fmt.Errorf("read %q of the tree at %d: %w", path, off, err)
		}
		if !bytes.Equal(d.wantBuf[:n], d.gotBuf[:n]) {
			i := 0
			for d.wantBuf[i] == d.gotBuf[i] {
				i++
			}
			d.report(path, "content differs first at byte %d of %d: %#02x, want %#02x",
				off+int64(i), size, d.gotBuf[i], d.wantBuf[i])
			return nil
		}
		off += int64(n)
	}
	return nil
}

// nextData is where data begins at or after off; off itself where the file
// system cannot say.
func nextData(fd int, off, size int64) int64 {
	at, err := unix.Seek(fd, off, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO:
		return size
	case err != nil:
		return off
	}
	return min(at, size)
}

func readAt(fd int, buf []byte, off int64) error {
	for len(buf) > 0 {
		n, err := unix.Pread(fd, buf, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("the file shrank")
		}
		buf, off = buf[n:], off+int64(n)
	}
	return nil
}

func kindName(st *unix.Stat_t) string {
	switch kind(st) {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFSOCK:
		return "socket"
	}
	return fmt.Sprintf("%#o", kind(st))
}
