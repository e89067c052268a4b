package testtree

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCloneOfRandomTreesIsExact(t *testing.T) {
	for seed := range uint64(6) {
		o := RandomOptions{Deep: seed%2 == 0, NoRoot: seed == 5, NoLarge: seed%3 == 1}
		src, dst := t.TempDir(), filepath.Join(t.TempDir(), "made/on the way")
		Random(t, src, seed, o)
		Clone(t, src, dst)
		Compare(t, src, dst, Options{})
		Compare(t, dst, src, Options{})
	}
}

func TestRandomIsDeterministic(t *testing.T) {
	for _, o := range []RandomOptions{{Deep: true}, {NoRoot: true, NoLarge: true, Files: 200}} {
		a, b, c := t.TempDir(), t.TempDir(), t.TempDir()
		Random(t, a, 7, o)
		Random(t, b, 7, o)
		Random(t, c, 8, o)
		Compare(t, a, b, Options{})
		if len(diff(t, a, c, Options{})) < 5 {
			t.Error("two seeds give nearly the same tree")
		}
	}
}

// TestRandomHasEveryFeature counts, so that a feature cannot vanish unseen.
func TestRandomHasEveryFeature(t *testing.T) {
	for seed := range uint64(4) {
		dir := t.TempDir()
		Random(t, dir, seed, RandomOptions{Deep: true, Sockets: true})
		has := features(t, dir)
		need := []string{
			"empty file", "5 MiB", "symlink", "fifo", "socket", "linked file", "linked symlink", "linked fifo", "three names",
			"sparse", "before 1970", "time zero", "after 2099", "mode 0555 directory", "mode 1777 directory", "set-uid", "set-gid", "long name",
			"newline", "deep", "empty directory", "xattr user.", "xattr with =", "empty xattr", "ACL", "default ACL",
		}
		if os.Geteuid() == 0 {
			need = append(need, "mode 0000 file", "character device", "block device", "large uid", "capability", "trusted")
		}
		for _, feature := range need {
			if has[feature] == 0 {
				t.Errorf("seed %d: the tree has no %s", seed, feature)
			}
		}
	}
}

func features(t *testing.T, dir string) map[string]int {
	t.Helper()
	r, err := openRoot(dir)
	ok(t, err)
	defer r.close()
	all, err := r.walk()
	ok(t, err)
	has := map[string]int{}
	mark := func(feature string, there bool) {
		if there {
			has[feature]++
		}
	}
	parents := map[string]bool{}
	for _, e := range all {
		parents[parent(e.path)] = true
	}
	scratch := make([]byte, 64<<10)
	for _, e := range all {
		st, name := &e.st, e.path[strings.LastIndexByte(e.path, '/')+1:]
		has[kindName(st)]++
		file, isDir := kind(st) == unix.S_IFREG, kind(st) == unix.S_IFDIR
		mark("linked "+kindName(st), !isDir && st.Nlink > 1)
		mark("three names", !isDir && st.Nlink > 2)
		mark("empty file", file && st.Size == 0)
		mark("5 MiB", file && st.Size == 5<<20+3)
		mark("sparse", file && st.Blocks*512 < st.Size-holeSlack)
		mark("before 1970", st.Mtim.Sec < 0)
		mark("time zero", st.Mtim == unix.Timespec{})
		mark("after 2099", st.Mtim.Sec > 4_070_908_800)
		mark(fmt.Sprintf("mode %04o %s", st.Mode&0o7777, kindName(st)), true)
		mark("set-uid", file && st.Mode&0o4000 != 0)
		mark("set-gid", file && st.Mode&0o2000 != 0)
		mark("large uid", st.Uid > 1<<21)
		mark("long name", len(name) == 255)
		mark("newline", strings.Contains(name, "\n"))
		mark("deep", len(e.path) > 5000)
		mark("empty directory", isDir && !parents[e.path])
		xattrs, err := r.xattrs(e.path, scratch)
		ok(t, err)
		for key, value := range xattrs {
			mark("xattr user.", strings.HasPrefix(key, "user."))
			mark("xattr with =", strings.Contains(key, "="))
			mark("empty xattr", value == "")
			mark("ACL", key == "system.posix_acl_access")
			mark("default ACL", key == "system.posix_acl_default")
			mark("capability", key == "security.capability")
			mark("trusted", strings.HasPrefix(key, "trusted."))
		}
	}
	return has
}

func TestMutateChangesATreeAndCloneKeepsIt(t *testing.T) {
	if testing.Short() {
		t.Skip("many copies")
	}
	changed, steps, done := 0, 10, map[string]bool{}
	for seed := range uint64(4) {
		dir := t.TempDir()
		Random(t, dir, seed, RandomOptions{Deep: seed%2 == 0, NoLarge: true})
		for step := range uint64(steps) {
			before := filepath.Join(t.TempDir(), "before")
			Clone(t, dir, before)
			log := Mutate(t, dir, seed*100+step)
			for _, line := range log {
				what, _, _ := strings.Cut(line, ":")
				done[what] = true
			}
			if len(diff(t, before, dir, Options{})) > 0 {
				changed++
			} else {
				t.Logf("no difference after %q", log)
			}
		}
	}
	if changed < 4*steps*8/10 {
		t.Errorf("%d of %d rounds changed something", changed, 4*steps)
	}
	for _, step := range neverDone(done) {
		t.Errorf("%q never happened", step)
	}
}

// neverDone lists the steps that were not done, but for those that need root.
func neverDone(done map[string]bool) (never []string) {
	for _, s := range steps {
		if !done[s.name] && (s.name != "chown" || os.Geteuid() == 0) {
			never = append(never, s.name)
		}
	}
	return never
}

func TestMutateIsDeterministic(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	Random(t, a, 3, RandomOptions{NoLarge: true})
	Clone(t, a, b)
	for seed := range uint64(5) {
		if x, y := Mutate(t, a, seed), Mutate(t, b, seed); strings.Join(x, "\n") != strings.Join(y, "\n") {
			t.Fatalf("one seed did\n%q\nand\n%q", x, y)
		}
	}
	for _, d := range diff(t, a, b, Options{}) {
		if !strings.Contains(d, ": mtime ") {
			t.Error(d)
		}
	}
}
