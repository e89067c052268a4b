package testtree

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// small is a tree with one of everything that the cases below change.
func small(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "want")
	write(t, dir+"/d/file", "content")
	write(t, dir+"/d/other", "content")
	write(t, dir+"/d/twin", "content")
	same := time.Unix(1_700_000_000, 5)
	ok(t, os.Chtimes(dir+"/d/other", same, same))
	ok(t, os.Chtimes(dir+"/d/twin", same, same))
	write(t, dir+"/linked", "many names")
	write(t, dir+"/odd\n\xff", "x")
	ok(t, os.Link(dir+"/linked", dir+"/d/linked too"))
	ok(t, os.Link(dir+"/linked", dir+"/linked three"))
	ok(t, os.Symlink("target", dir+"/symlink"))
	ok(t, os.Mkdir(dir+"/empty", 0o755))
	ok(t, unix.Mkfifo(dir+"/fifo", 0o644))
	ok(t, unix.Mknod(dir+"/socket", unix.S_IFSOCK|0o644, 0))
	ok(t, unix.Lsetxattr(dir+"/d/file", "user.key", []byte("value"), 0))
	write(t, dir+"/sparse", "start")
	ok(t, os.Truncate(dir+"/sparse", 1<<20))
	write(t, dir+"/large", strings.Repeat("0123456789abcdef", 1<<16))
	if os.Geteuid() == 0 {
		ok(t, unix.Mknod(dir+"/device", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
		ok(t, unix.Mknod(dir+"/block", unix.S_IFBLK|0o600, int(unix.Mkdev(7, 3))))
		ok(t, unix.Lsetxattr(dir+"/symlink", "trusted.key", []byte("value"), 0))
	}
	return dir
}

func write(t *testing.T, path, content string) {
	t.Helper()
	ok(t, os.MkdirAll(filepath.Dir(path), 0o755))
	ok(t, os.WriteFile(path, []byte(content), 0o644))
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func diff(t *testing.T, want, got string, o Options) []string {
	t.Helper()
	diffs, err := Diff(want, got, o)
	ok(t, err)
	return diffs
}

func TestEveryDifferenceIsReported(t *testing.T) {
	const rootOnly = true
	cases := []struct {
		name   string
		says   string // the one line that must be reported
		change func(t *testing.T, dir string) error
		root   bool
	}{
		{"missing file", `"d/other": file is missing`, func(_ *testing.T, d string) error { return os.Remove(d + "/d/other") }, false},
		{"missing directory", `"empty": directory is missing`, func(_ *testing.T, d string) error { return os.Remove(d + "/empty") }, false},
		{"missing odd name", `"odd\n\xff": file is missing`, func(_ *testing.T, d string) error { return os.Remove(d + "/odd\n\xff") }, false},
		{"extra file", `"d/extra": file is not expected`, func(t *testing.T, d string) error { write(t, d+"/d/extra", ""); return nil }, false},
		{"extra directory", `"zz": directory is not expected`, func(_ *testing.T, d string) error { return os.Mkdir(d+"/zz", 0o755) }, false},
		{"extra socket", `"s": socket is not expected`, func(_ *testing.T, d string) error { return unix.Mknod(d+"/s", unix.S_IFSOCK, 0) }, false},
		{"a socket restored", `"socket": socket is not expected`, func(_ *testing.T, d string) error { return unix.Mknod(d+"/socket", unix.S_IFSOCK, 0) }, false},
		{"lost+found deeper", `"d/lost+found": directory is not expected`, func(_ *testing.T, d string) error { return os.Mkdir(d+"/d/lost+found", 0o755) }, false},
		{"type", `"fifo": is a file, want a fifo`, func(t *testing.T, d string) error { ok(t, os.Remove(d+"/fifo")); write(t, d+"/fifo", ""); return nil }, false},
		{"file for directory", `"empty": is a symlink, want a directory`, func(t *testing.T, d string) error { ok(t, os.Remove(d+"/empty")); return os.Symlink("d", d+"/empty") }, false},
		{"size", `"d/other": size 8, want 7`, func(t *testing.T, d string) error { write(t, d+"/d/other", "content2"); return nil }, false},
		{"content", `"d/other": content differs first at byte 6`, func(t *testing.T, d string) error { write(t, d+"/d/other", "contenT"); return nil }, false},
		{"late content", `"large": content differs first at byte 1048575`, func(_ *testing.T, d string) error { return poke(d+"/large", 1<<20-1) }, false},
		{"content in a hole", `"sparse": content differs first at byte 600000`, func(_ *testing.T, d string) error { return poke(d+"/sparse", 600000) }, false},
		{"hole in content", `"large": content differs first at byte 0`, func(_ *testing.T, d string) error { return hollow(d+"/large", 1<<20) }, false},
		{"permission", `"d/other": mode 0640, want 0644`, func(_ *testing.T, d string) error { return unix.Chmod(d+"/d/other", 0o640) }, false},
		{"set-uid", `"d/other": mode 4644, want 0644`, func(_ *testing.T, d string) error { return unix.Chmod(d+"/d/other", 0o4644) }, false},
		{"set-gid", `"empty": mode 2755, want 0755`, func(_ *testing.T, d string) error { return unix.Chmod(d+"/empty", 0o2755) }, false},
		{"sticky", `"empty": mode 1755, want 0755`, func(_ *testing.T, d string) error { return unix.Chmod(d+"/empty", 0o1755) }, false},
		{"mode of the root", `".": mode 0711, want 0755`, func(_ *testing.T, d string) error { return unix.Chmod(d, 0o711) }, false},
		{"mode of a fifo", `"fifo": mode 0600, want 0644`, func(_ *testing.T, d string) error { return unix.Chmod(d+"/fifo", 0o600) }, false},
		{"symlink text", `"symlink": symlink to "targeT", want "target"`, func(t *testing.T, d string) error {
			ok(t, os.Rename(d+"/symlink", d+"/gone"))
			ok(t, os.Symlink("targeT", d+"/symlink"))
			if os.Geteuid() == 0 {
				ok(t, unix.Lsetxattr(d+"/symlink", "trusted.key", []byte("value"), 0))
			}
			return os.Remove(d + "/gone")
		}, false},
		{"xattr value", `"d/file": xattr "user.key" is "other", want "value"`, func(_ *testing.T, d string) error {
			return unix.Lsetxattr(d+"/d/file", "user.key", []byte("other"), 0)
		}, false},
		{"xattr missing", `"d/file": xattr "user.key" is missing`, func(_ *testing.T, d string) error { return unix.Lremovexattr(d+"/d/file", "user.key") }, false},
		{"xattr extra, empty", `"d": xattr "user.x=%" is not expected`, func(_ *testing.T, d string) error { return unix.Lsetxattr(d+"/d", "user.x=%", nil, 0) }, false},
		{"xattr of the root", `".": xattr "user.r" is not expected`, func(_ *testing.T, d string) error { return unix.Lsetxattr(d, "user.r", []byte("1"), 0) }, false},
		{"link lost", `"linked three": is a file of its own, want a hard link to "d/linked too"`, func(t *testing.T, d string) error {
			ok(t, os.Remove(d+"/linked three"))
			write(t, d+"/linked three", "many names")
			return nil
		}, false},
		{"link gained", `"d/twin": is a hard link to "d/other", want a file of its own`, func(t *testing.T, d string) error {
			ok(t, os.Remove(d+"/d/twin"))
			return os.Link(d+"/d/other", d+"/d/twin")
		}, false},
		{"holes filled", `"sparse": takes 1048576 bytes on disk`, func(t *testing.T, d string) error {
			write(t, d+"/sparse", "start"+strings.Repeat("\x00", 1<<20-5))
			return nil
		}, false},
		{"uid", `"d/other": owner 77:`, func(_ *testing.T, d string) error { return os.Lchown(d+"/d/other", 77, -1) }, rootOnly},
		{"gid", `"symlink": owner 0:77`, func(_ *testing.T, d string) error { return os.Lchown(d+"/symlink", -1, 77) }, rootOnly},
		{"trusted xattr of a symlink", `"symlink": xattr "trusted.key" is missing`, func(_ *testing.T, d string) error { return unix.Lremovexattr(d+"/symlink", "trusted.key") }, rootOnly},
		{"ACL", `"empty": xattr "system.posix_acl_default" is not expected`, func(_ *testing.T, d string) error {
			return unix.Lsetxattr(d+"/empty", "system.posix_acl_default", []byte(acl(7, 1, 5, 5)), 0)
		}, rootOnly},
		{"capability", `"d/other": xattr "security.capability" is not expected`, func(_ *testing.T, d string) error {
			return unix.Lsetxattr(d+"/d/other", "security.capability", []byte(capability), 0)
		}, rootOnly},
		{"device number", `"device": device 1:5, want 1:3`, func(t *testing.T, d string) error { return remake(d+"/device", unix.S_IFCHR, 1, 5) }, rootOnly},
		{"device type", `"block": is a character device, want a block device`, func(t *testing.T, d string) error { return remake(d+"/block", unix.S_IFCHR, 7, 3) }, rootOnly},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.root && os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			want := small(t)
			got := want + "-copy"
			Clone(t, want, got)
			ok(t, os.Remove(got+"/socket")) // as a restored tree
			levelTimes(t, want, got)
			Compare(t, want, got, Options{})
			ok(t, c.change(t, got))
			levelTimes(t, want, got)
			diffs := diff(t, want, got, Options{})
			if len(diffs) != 1 || !strings.HasPrefix(diffs[0], c.says) {
				t.Fatalf("reported %q, want only %q", diffs, c.says)
			}
		})
	}
}

func poke(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt([]byte("!"), at)
	return err
}

func hollow(path string, size int64) error {
	if err := os.Truncate(path, 0); err != nil {
		return err
	}
	return os.Truncate(path, size)
}

func remake(path string, kind uint32, major, minor uint32) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return unix.Mknod(path, kind|0o600, int(unix.Mkdev(major, minor)))
}

// levelTimes gives what stands in both trees the first one's mtimes, so that a case
// shows one difference and not also those of the directories around it.
func levelTimes(t *testing.T, want, got string) {
	t.Helper()
	w, err := openRoot(want)
	ok(t, err)
	defer w.close()
	g, err := openRoot(got)
	ok(t, err)
	defer g.close()
	all, err := w.walk()
	ok(t, err)
	st, err := w.lstat(".")
	ok(t, err)
	for _, e := range append(all, entry{".", st}) {
		if err := g.setMtime(e.path, e.st.Mtim); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}

func TestEveryMtimeCountsToTheNanosecond(t *testing.T) {
	want := small(t)
	for _, path := range []string{".", "d", "empty", "d/file", "symlink", "fifo", "linked"} {
		got := fmt.Sprintf("%s-%s", want, strings.ReplaceAll(path, "/", "_"))
		Clone(t, want, got)
		ok(t, os.Remove(got+"/socket"))
		levelTimes(t, want, got)
		r, err := openRoot(got)
		ok(t, err)
		st, err := r.lstat(path)
		ok(t, err)
		st.Mtim.Nsec = (st.Mtim.Nsec + 1) % 1e9
		ok(t, r.setMtime(path, st.Mtim))
		r.close()
		if st.Nlink > 1 && kind(&st) == unix.S_IFREG {
			if n := len(diff(t, want, got, Options{})); n != 3 {
				t.Errorf("%s: %d differences, want one for each of 3 names", path, n)
			}
			continue
		}
		diffs := diff(t, want, got, Options{})
		if len(diffs) != 1 || !strings.Contains(diffs[0], fmt.Sprintf("%q: mtime", path)) {
			t.Errorf("%s: reported %q", path, diffs)
		}
	}
}

func TestOptionsLeaveOut(t *testing.T) {
	want := small(t)
	got := want + "-copy"
	Clone(t, want, got)
	ok(t, os.Remove(got+"/socket"))
	levelTimes(t, want, got)
	ok(t, os.Mkdir(got+"/lost+found", 0o700))
	ok(t, os.Remove(got+"/d/other"))
	ok(t, unix.Lremovexattr(got+"/d/file", "user.key"))
	write(t, got+"/sparse", "start"+strings.Repeat("\x00", 1<<20-5))
	if os.Geteuid() == 0 {
		ok(t, os.Lchown(got+"/large", 5, 5))
	}
	levelTimes(t, want, got)
	if len(diff(t, want, got, Options{})) < 3 {
		t.Error("nothing to leave out")
	}
	Compare(t, want, got, Options{NoSparse: true, NoOwner: true, NoXattrs: true, Ignore: func(p string) bool { return p == "d/other" }})
}

func TestMissingTreeIsAnError(t *testing.T) {
	if _, err := Diff(t.TempDir(), "/no/such/tree", Options{}); err == nil {
		t.Error("no error for a tree that is not there")
	}
	if _, err := Diff("/no/such/tree", t.TempDir(), Options{}); err == nil {
		t.Error("no error for a tree that is not there")
	}
}

func TestCompareFailsTheTest(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	write(t, a+"/x", "1")
	fake := &recorder{TB: t}
	Compare(fake, a, b, Options{})
	if !fake.failed {
		t.Error("Compare let different trees pass")
	}
}

type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Errorf(string, ...any) { r.failed = true }
