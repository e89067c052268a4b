package tarstream

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pattern is the content of every file here: a byte depends on its place only.
func pattern(p []byte, off int64) {
	for i := range p {
		at := off + int64(i)
		p[i] = byte(at>>12)*31 + byte(at)*7 + 1
	}
}

// writeEntry writes header, content and padding.
func writeEntry(w io.Writer, h *Header) error {
	b, err := h.Append(nil)
	if err != nil {
		return err
	}
	if _, err := w.Write(b); err != nil {
		return err
	}
	ext := h.Sparse
	if ext == nil && h.Size > 0 {
		ext = []Extent{{0, h.Size}}
	}
	for _, e := range ext {
		p := make([]byte, e.Length)
		pattern(p, e.Offset)
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	_, err = w.Write(make([]byte, Padding(h.DataSize())))
	return err
}

func TestGoReadsWhatAppendWrites(t *testing.T) {
	for _, h := range samples() {
		var buf bytes.Buffer
		if h.Sparse == nil && h.Size > 1<<20 {
			buf.Write(mustAppend(t, &h)) // its content is not asked for
		} else if err := writeEntry(&buf, &h); err != nil {
			t.Fatal(err)
		}
		r := tar.NewReader(&buf)
		got, err := r.Next()
		if err != nil {
			t.Errorf("%.60q: %v", h.Path, err)
			continue
		}
		name := strings.TrimSuffix(got.Name, "/")
		if name != h.Path || got.Typeflag != byte(h.Type) || got.Linkname != h.Link || got.Mode != int64(h.Mode) ||
			got.Uid != int(h.UID) || got.Gid != int(h.GID) || got.Size != h.Size ||
			got.Devmajor != int64(h.Major) || got.Devminor != int64(h.Minor) {
			t.Errorf("%.60q: got %.500v", h.Path, got)
		}
		if want := time.Unix(h.Mtime.Sec, int64(h.Mtime.Nsec)); !got.ModTime.Equal(want) {
			t.Errorf("%.60q: time %v, want %v", h.Path, got.ModTime.UTC(), want.UTC())
		}
		for _, x := range h.Xattrs {
			v, ok := got.PAXRecords[xattrPrefix+xattrEscape.Replace(x.Name)]
			if !ok || v != string(x.Value) {
				t.Errorf("%.60q: attribute %s is %q, want %q", h.Path, x.Name, v, x.Value)
			}
		}
		if h.Type != File || h.Size > 1<<26 {
			continue
		}
		content, err := io.ReadAll(r)
		if err != nil || int64(len(content)) != h.Size {
			t.Errorf("%.60q: %d bytes of content, %v", h.Path, len(content), err)
			continue
		}
		want := make([]byte, h.Size)
		if h.Sparse == nil {
			pattern(want, 0)
		}
		for _, e := range h.Sparse {
			pattern(want[e.Offset:e.Offset+e.Length], e.Offset)
		}
		if !bytes.Equal(content, want) {
			t.Errorf("%.60q: content differs", h.Path)
		}
	}
}

func TestGNUTarUnpacksWhatAppendWrites(t *testing.T) {
	tarPath := gnuTar(t)
	if os.Geteuid() != 0 {
		t.Skip("owners and device nodes need root")
	}
	dir := t.TempDir()
	list := []Header{
		{Path: "loop", Type: Block, Mode: 0o660, GID: 6, Major: 259, Minor: 70_000},
		{Path: "holder", Type: File, Mode: 0o640, UID: 3, GID: 4, Size: 700, Mtime: Time{Sec: -7, Nsec: 7}},
		{Path: "other name\n", Type: Link, Link: "holder", Mode: 0o640, UID: 3, GID: 4, Mtime: Time{Sec: -7, Nsec: 7}},
		{Path: `back\slash\n\101`, Type: File, Size: 1, Mtime: Time{Nsec: 999_999_999}},
		{Path: "ends in newline\n", Type: Dir, Mode: 0o500, Mtime: Time{Sec: -2, Nsec: 10}},
		{Path: strings.Repeat("\xff", 255), Type: File, Mode: 0o4711, UID: 5, Size: 1},
		{Path: "slash", Type: Symlink, Link: "to/", Mode: 0o777, Mtime: Time{Sec: -3, Nsec: 100}},
		{Path: "names", Type: File, Xattrs: []Xattr{{"user.%25=%3D\n=", []byte("=\x00\n")}, {"user." + strings.Repeat("n", 250), []byte{0}}}},
		{Path: "trusted", Type: File, Xattrs: []Xattr{{"trusted.overlay", []byte("y\x00z")}}},
		{Path: "dir-with-attributes", Type: Dir, Mode: 0o2750, Mtime: Time{Sec: -1, Nsec: 1}, Xattrs: []Xattr{{"user.d", []byte("1")}}},
	}
	for _, h := range samples() {
		switch {
		case h.Type == Block, len(h.Path) > 3900, h.Sparse == nil && h.Size > 1<<20:
			continue // no such device, more than PATH_MAX, content of 8 GiB
		case h.Type == Link && h.Link != "a":
			list = append(list, Header{Path: h.Link, Type: File, Mode: h.Mode, Mtime: h.Mtime})
		}
		list = append(list, h)
	}
	cmd := exec.Command(tarPath, "-xp", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--warning=no-timestamp", "-C", dir)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &msg, &msg
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for i := range list {
		if err = writeEntry(in, &list[i]); err != nil {
			break
		}
	}
	if err == nil {
		_, err = in.Write(make([]byte, 2*blockSize))
	}
	in.Close()
	if werr := cmd.Wait(); err != nil || werr != nil || msg.Len() > 0 {
		t.Fatalf("tar: %v, %v\n%s", err, werr, msg.Bytes())
	}
	for i := range list {
		checkFile(t, dir, &list[i])
	}
}

// TestGNUTarFindsItsWayPastHugeFiles: more than 8 GiB of stored data take a
// size record, which must lead to the next entry and not become a sparse file's size.
func TestGNUTarFindsItsWayPastHugeFiles(t *testing.T) {
	tarPath := gnuTar(t)
	f, err := os.Create(filepath.Join(t.TempDir(), "huge.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var end int64
	var want strings.Builder
	for _, h := range []Header{
		{Path: "sparse", Type: File, Size: 20 << 30, Sparse: []Extent{{4096, 9 << 30}}},
		{Path: "full", Type: File, Size: 9<<30 + 1},
		{Path: "largest", Type: File, Size: 1<<63 - 1, Sparse: []Extent{{4096, 512}}},
		{Path: "last", Type: File, Size: 1},
	} {
		b := mustAppend(t, &h)
		if _, err := f.WriteAt(b, end); err != nil {
			t.Fatal(err)
		}
		end += int64(len(b)) + h.DataSize() + int64(Padding(h.DataSize())) // the content is a hole of the archive
		fmt.Fprintf(&want, "%d %s\n", h.Size, h.Path)
	}
	if err := f.Truncate(end + 2*blockSize); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tarPath, "-tvf", f.Name()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var got strings.Builder
	for line := range strings.Lines(string(out)) {
		if w := strings.Fields(line); len(w) == 6 {
			fmt.Fprintf(&got, "%s %s\n", w[2], w[5])
		}
	}
	if got.String() != want.String() {
		t.Errorf("tar lists\n%swant\n%s", out, want.String())
	}
}

// gnuTar is the path of GNU tar, or skips the test.
func gnuTar(t *testing.T) string {
	t.Helper()
	tarPath, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("no tar here")
	}
	if v, _ := exec.Command(tarPath, "--version").Output(); !bytes.Contains(v, []byte("GNU tar")) {
		t.Skip("tar is not GNU tar")
	}
	return tarPath
}

// checkFile compares a file with its header, asking the kernel only.
func checkFile(t *testing.T, dir string, h *Header) {
	t.Helper()
	p := filepath.Join(dir, h.Path)
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		t.Errorf("%.60q: %v", h.Path, err)
		return
	}
	bad := func(what string, got, want any) { t.Errorf("%.60q: %s is %v, want %v", h.Path, what, got, want) }
	kinds := map[Type]uint32{File: unix.S_IFREG, Link: unix.S_IFREG, Symlink: unix.S_IFLNK, Char: unix.S_IFCHR, Block: unix.S_IFBLK, Dir: unix.S_IFDIR, Fifo: unix.S_IFIFO}
	if st.Mode&unix.S_IFMT != kinds[h.Type] {
		bad("type", st.Mode&unix.S_IFMT, kinds[h.Type])
		return
	}
	if got := st.Mode & 0o7777; got != h.Mode {
		bad("mode", got, h.Mode)
	}
	if st.Uid != h.UID || st.Gid != h.GID {
		bad("owner", []uint32{st.Uid, st.Gid}, []uint32{h.UID, h.GID})
	}
	if st.Mtim.Sec != h.Mtime.Sec || st.Mtim.Nsec != int64(h.Mtime.Nsec) {
		bad("time", st.Mtim, h.Mtime)
	}
	if (h.Type == Char || h.Type == Block) && st.Rdev != unix.Mkdev(h.Major, h.Minor) {
		bad("device", st.Rdev, unix.Mkdev(h.Major, h.Minor))
	}
	for _, x := range h.Xattrs {
		buf := make([]byte, 4096)
		n, err := unix.Lgetxattr(p, x.Name, buf)
		if errors.Is(err, unix.EOPNOTSUPP) {
			t.Logf("no attribute %s on this file system", x.Name)
			continue
		}
		if err != nil || !bytes.Equal(buf[:n], x.Value) {
			bad("attribute "+x.Name, buf[:max(n, 0)], x.Value)
		}
	}
	switch h.Type {
	case Symlink:
		if text, err := os.Readlink(p); err != nil || text != h.Link {
			bad("text", text, h.Link)
		}
	case Link:
		var to unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, h.Link), &to); err != nil || to.Ino != st.Ino {
			bad("inode", st.Ino, to.Ino)
		}
	case File:
		checkContent(t, p, h, &st)
	}
}

func checkContent(t *testing.T, p string, h *Header, st *unix.Stat_t) {
	t.Helper()
	if st.Size != h.Size {
		t.Errorf("%.60q: %d bytes, want %d", h.Path, st.Size, h.Size)
		return
	}
	f, err := os.Open(p)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	ext := h.Sparse
	if ext == nil && h.Size > 0 {
		ext = []Extent{{0, h.Size}}
	}
	var data, last int64
	for _, e := range ext {
		got, want := make([]byte, e.Length), make([]byte, e.Length)
		pattern(want, e.Offset)
		if _, err := f.ReadAt(got, e.Offset); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%.60q: content at %d differs (%v)", h.Path, e.Offset, err)
			return
		}
		// The hole before it, at its ends.
		for _, at := range []int64{last, e.Offset - 1} {
			one := []byte{0}
			if at >= last && at < e.Offset {
				if _, err := f.ReadAt(one, at); err != nil || one[0] != 0 {
					t.Errorf("%.60q: byte %d of a hole is %d (%v)", h.Path, at, one[0], err)
					return
				}
			}
		}
		last = e.Offset + e.Length
		data += (e.Length + 4095) &^ 4095
	}
	if h.Sparse != nil && st.Blocks*512 > 2*data+64<<10 {
		t.Errorf("%.60q: takes %d bytes for %d bytes of data: its holes are gone", h.Path, st.Blocks*512, data)
	}
}
