package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// visitor is a Visitor of functions; without them it visits all and releases all.
type visitor struct {
	skip  func(n *Node) bool
	visit func(n *Node) error
}

func (v visitor) Skip(n *Node) bool { return v.skip != nil && v.skip(n) }

func (v visitor) Visit(n *Node) error {
	if v.visit != nil {
		return v.visit(n)
	}
	n.Release()
	return nil
}

func openSource(t testing.TB, dir string) *Source {
	t.Helper()
	s, err := OpenSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// walkPaths walks a tree and returns its paths in the order of the visits.
func walkPaths(t testing.TB, s *Source) (paths []string) {
	t.Helper()
	err := s.Walk(t.Context(), visitor{visit: func(n *Node) error {
		if n.Err != nil {
			t.Errorf("%.100q: %v", n.Path, n.Err)
		}
		paths = append(paths, n.Path)
		n.Release()
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// descriptors counts the process's open descriptors below a directory.
func descriptors(t testing.TB, dir string) (n int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc here")
	}
	for _, e := range list {
		// The names of deep directories are too long to be told.
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if errors.Is(err, unix.ENAMETOOLONG) || err == nil && (to == dir || strings.HasPrefix(to, dir+"/")) {
			n++
		}
	}
	return n
}

func TestWalkGoesInTheOrderOfComponents(t *testing.T) {
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(1, 2))
	names := []string{"a", "a-", "a.", "a b", "aa", "b", "\x01", "\xff", "ü", "a\n", "~", "A", "-"}
	want := []string{"."}
	var fill func(prefix string, depth int)
	fill = func(prefix string, depth int) {
		for _, i := range r.Perm(len(names)) {
			p := prefix + names[i]
			switch r.IntN(3) {
			case 0:
				continue
			case 1:
				if depth < 3 {
					if err := os.Mkdir(filepath.Join(dir, p), 0o700); err != nil {
						t.Fatal(err)
					}
					want = append(want, p)
					fill(p+"/", depth+1)
					continue
				}
				fallthrough
			default:
				if err := os.WriteFile(filepath.Join(dir, p), nil, 0o600); err != nil {
					t.Fatal(err)
				}
				want = append(want, p)
			}
		}
	}
	fill("", 0)
	split := func(p string) []string {
		if p == "." {
			return nil
		}
		return strings.Split(p, "/")
	}
	slices.SortFunc(want, func(a, b string) int { return slices.Compare(split(a), split(b)) })
	if got := walkPaths(t, openSource(t, dir)); !slices.Equal(got, want) {
		t.Errorf("%d entries\ngot  %.500q\nwant %.500q", len(want), got, want)
	}
}

func TestWalkSkipsWhatItIsToldTo(t *testing.T) {
	dir := t.TempDir()
	for _, p := range []string{"keep/a", "skip/below/b", "c"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(p)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, p), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	err := openSource(t, dir).Walk(t.Context(), visitor{
		skip:  func(n *Node) bool { return n.Path == "skip" },
		visit: func(n *Node) error { got = append(got, n.Path); n.Release(); return nil },
	})
	if want := []string{".", "c", "keep", "keep/a"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
}

// deepTree makes a chain of directories, a file before and behind the next in each.
func deepTree(t testing.TB, dir string, levels int) (entries int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { unix.Close(fd) }()
	for i := range levels {
		for _, name := range []string{"a", "z"} {
			f, err := unix.Openat(fd, name, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(fdWriter(f), i, name)
			unix.Close(f)
		}
		if err := unix.Mkdirat(fd, "directory", 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "directory", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	return 3*levels + 1
}

type fdWriter int

func (w fdWriter) Write(p []byte) (int, error) { return unix.Write(int(w), p) }

const deepLevels = 1100 // with names of 9 bytes, twice PATH_MAX

func TestDeepTreesAreWalkedAndWrittenWithFewDescriptors(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	entries := deepTree(t, from, deepLevels)
	s := openSource(t, from)
	d, err := OpenDest(to, DestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	most, n := 0, 0
	var dirs []*tarstream.Header
	err = s.Walk(t.Context(), visitor{visit: func(node *Node) error {
		defer node.Release()
		n++
		if node.Err != nil {
			return node.Err
		}
		h := node.Stat.Header(node.Path)
		if h.Type == tarstream.Dir {
			dirs = append(dirs, &h)
			if h.Path == "." {
				return nil
			}
			_, err := d.Mkdir(h.Path)
			return err
		}
		f, st, err := node.Open()
		if err != nil {
			return err
		}
		defer f.Close()
		b := make([]byte, st.Size)
		if _, err := f.ReadAt(b, 0); err != nil {
			return err
		}
		return d.WriteSmall(&h, b, false)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if n != entries {
		t.Errorf("%d of %d entries", n, entries)
	}
	for _, h := range slices.Backward(dirs) {
		if err := d.FinishDir(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	// What was written is what was read: both are walked side by side.
	type entry struct {
		path, content string
		mode          uint32
		mtime         tarstream.Time
	}
	list := func(s *Source) (out []entry) {
		err := s.Walk(t.Context(), visitor{visit: func(n *Node) error {
			defer n.Release()
			if len(out)%100 == 0 {
				most = max(most, descriptors(t, from))
			}
			e := entry{path: n.Path, mode: n.Stat.Mode, mtime: n.Stat.Mtime}
			if n.Err == nil && n.Stat.Type == tarstream.File {
				f, st, err := n.Open()
				if err != nil {
					return err
				}
				defer f.Close()
				b := make([]byte, st.Size)
				_, err = f.ReadAt(b, 0)
				e.content = string(b)
				if err != nil {
					return err
				}
			}
			out = append(out, e)
			return n.Err
		}})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if a, b := list(s), list(openSource(t, to)); !slices.Equal(a, b) || len(a) != entries {
		t.Errorf("%d entries were written as %d, or differ", len(a), len(b))
	}
	if most > maxOpenDirs+8 {
		t.Errorf("%d descriptors at a time", most)
	}
}

func TestDeepTreesAreRemoved(t *testing.T) {
	dir := t.TempDir()
	deepTree(t, dir, deepLevels)
	d, err := OpenDest(dir, DestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Remove("directory", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "directory")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// wideTree makes more directories than may be open, with a file in each.
func wideTree(t testing.TB, dir string) (files int) {
	t.Helper()
	for i := range 3 * maxOpenDirs {
		sub := filepath.Join(dir, fmt.Sprintf("d%03d", i), "below")
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, "file"), fmt.Append(nil, i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return 3 * maxOpenDirs
}

func TestNodesAreReadLongAfterTheWalkWentOn(t *testing.T) {
	dir := t.TempDir()
	files := wideTree(t, dir)
	s := openSource(t, dir)
	before := descriptors(t, dir)
	var kept []*Node
	err := s.Walk(t.Context(), visitor{visit: func(n *Node) error {
		kept = append(kept, n)
		return n.Err
	}})
	if err != nil {
		t.Fatal(err)
	}
	if n := descriptors(t, dir); n > before+maxOpenDirs+1 {
		t.Errorf("%d descriptors are open", n)
	}
	read := 0
	for _, i := range rand.New(rand.NewPCG(1, 1)).Perm(len(kept)) {
		n := kept[i]
		if n.Stat.Type == tarstream.File {
			f, st, err := n.Open()
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, st.Size)
			if _, err := f.ReadAt(b, 0); err != nil || !strings.HasPrefix(n.Path, fmt.Sprintf("d%03s/", b)) {
				t.Errorf("%s has %q, %v", n.Path, b, err)
			}
			f.Close()
			read++
		} else if _, err := n.Header(); err != nil {
			t.Error(err)
		}
		n.Release()
	}
	if read != files {
		t.Errorf("%d of %d files were read", read, files)
	}
	if n := descriptors(t, dir); n != before {
		t.Errorf("%d descriptors remain, %d before", n, before)
	}
}

func TestAWalkThatEndsEarlyLeavesNoDescriptor(t *testing.T) {
	dir := t.TempDir()
	deepTree(t, dir, 20)
	s := openSource(t, dir)
	before := descriptors(t, dir)
	stop := errors.New("stop")
	for name, at := range map[string]string{"at a directory": "directory", "at a file": "z"} {
		n := 0
		err := s.Walk(t.Context(), visitor{visit: func(node *Node) error {
			defer node.Release()
			if n++; n > 20 && strings.HasSuffix(node.Path, at) {
				return stop
			}
			return nil
		}})
		if !errors.Is(err, stop) {
			t.Errorf("%s: %v", name, err)
		}
		if n := descriptors(t, dir); n != before {
			t.Errorf("%s: %d descriptors remain, %d before", name, n, before)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := s.Walk(ctx, visitor{visit: func(node *Node) error { cancel(); node.Release(); return nil }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if n := descriptors(t, dir); n != before {
		t.Errorf("cancelled: %d descriptors remain, %d before", n, before)
	}
}

func TestAFileThatWasReplacedIsNotRead(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, replace := range map[string]func(p string) error{
		"by a symlink":   func(p string) error { return os.Symlink(outside, p) },
		"by a FIFO":      func(p string) error { return unix.Mkfifo(p, 0o600) },
		"by a directory": func(p string) error { return os.Mkdir(p, 0o700) },
		"by nothing":     func(string) error { return nil },
	} {
		dir := t.TempDir()
		p := filepath.Join(dir, "file")
		if err := os.WriteFile(p, []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := openSource(t, dir).Walk(t.Context(), visitor{visit: func(n *Node) error {
			defer n.Release()
			if n.Path != "file" {
				return nil
			}
			if err := os.Remove(p); err != nil {
				return err
			}
			if err := replace(p); err != nil {
				return err
			}
			f, _, err := n.Open()
			if err == nil {
				f.Close()
			}
			return err
		}})
		if want := map[bool]error{true: fs.ErrNotExist, false: ErrReplaced}[name == "by nothing"]; !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestADirectoryThatWasReplacedIsNotReadThrough(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	wideTree(t, dir)
	if err := os.Mkdir(filepath.Join(outside, "below"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "below", "file"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, replace := range map[string]func(p string) error{
		"by a symlink":           func(p string) error { return os.Symlink(outside, p) },
		"by another directory":   func(p string) error { return os.MkdirAll(filepath.Join(p, "below"), 0o700) },
		"by a file":              func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"by a loop to its place": func(p string) error { return os.Symlink(filepath.Base(p), p) },
	} {
		var kept *Node
		err := openSource(t, dir).Walk(t.Context(), visitor{visit: func(n *Node) error {
			if n.Path == "d000/below/file" {
				kept = n // its directory's descriptor is given up before long
				return nil
			}
			n.Release()
			return nil
		}})
		if err != nil || kept == nil {
			t.Fatal(err)
		}
		p := filepath.Join(dir, "d000")
		if err := os.Rename(p, p+".old"); err != nil {
			t.Fatal(err)
		}
		if err := replace(p); err != nil {
			t.Fatal(err)
		}
		// The descriptor may still be that of the old directory, which is right too.
		if f, st, err := kept.Open(); err == nil {
			b := make([]byte, st.Size)
			if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) || string(b) != "0" {
				t.Errorf("%s: read %q, %v", name, b, err)
			}
			f.Close()
		}
		kept.Release()
		if err := os.RemoveAll(p); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(p+".old", p); err != nil {
			t.Fatal(err)
		}
	}
}

func TestExtentsAreWhereTheDataIs(t *testing.T) {
	const block = 4096
	dir := t.TempDir()
	for name, c := range map[string]struct {
		size int64
		data []tarstream.Extent
	}{
		"empty":          {0, nil},
		"only a hole":    {10 * block, []tarstream.Extent{}},
		"leading hole":   {10 * block, []tarstream.Extent{{Offset: 8 * block, Length: 2 * block}}},
		"trailing hole":  {10 * block, []tarstream.Extent{{Offset: 0, Length: block}}},
		"two pieces":     {100*block + 1, []tarstream.Extent{{Offset: 16 * block, Length: block}, {Offset: 64 * block, Length: 36*block + 1}}},
		"over 8 GiB":     {9 << 30, []tarstream.Extent{{Offset: 8<<30 + block, Length: block}}},
		"without a hole": {3*block + 5, nil},
	} {
		p := filepath.Join(dir, "file")
		w, err := os.Create(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Truncate(c.size); err != nil {
			t.Fatal(err)
		}
		write := c.data
		if c.data == nil {
			write = []tarstream.Extent{{Length: c.size}}
		}
		for _, e := range write {
			if _, err := w.WriteAt(slices.Repeat([]byte{1}, int(e.Length)), e.Offset); err != nil {
				t.Fatal(err)
			}
		}
		w.Close()
		err = openSource(t, dir).Walk(t.Context(), visitor{visit: func(n *Node) error {
			defer n.Release()
			if n.Path != "file" {
				return nil
			}
			f, st, err := n.Open()
			if err != nil {
				return err
			}
			defer f.Close()
			got, err := f.Extents(st.Size)
			switch {
			case got == nil && len(c.data) == 0 && c.size == 0, got != nil && len(got) == 0 && c.size == 0:
			case (got == nil) != (c.data == nil) || !slices.Equal(got, c.data):
				t.Errorf("%s: got %v, want %v", name, got, c.data)
			}
			return err
		}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMountPointsAreSeenAndNotRemoved(t *testing.T) {
	dir := t.TempDir()
	mounted := filepath.Join(dir, "parent", "mounted")
	if err := os.MkdirAll(mounted, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", mounted, "tmpfs", 0, "size=1m"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("CI must be able to mount: %v", err)
		}
		t.Skipf("cannot mount here: %v", err)
	}
	defer func() {
		if err := unix.Unmount(mounted, 0); err != nil {
			t.Error(err)
		}
	}()
	for _, p := range []string{"parent/mounted/precious", "parent/other"} {
		if err := os.WriteFile(filepath.Join(dir, p), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	s, err := OpenSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.Walk(t.Context(), visitor{visit: func(n *Node) error {
		seen[n.Path] = n.Stat.MountRoot
		n.Release()
		return n.Err
	}})
	if err != nil || !seen["parent/mounted"] || seen["parent"] || seen["parent/mounted/precious"] {
		t.Errorf("mount points: %v, %v", seen, err)
	}
	d, err := OpenDest(dir, DestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Remove("parent", nil); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(mounted, "precious")); err != nil || string(b) != "x" {
		t.Errorf("behind the mount point: %q, %v", b, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "parent", "other")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("beside the mount point: %v", err)
	}
}
