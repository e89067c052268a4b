//go:build linux

package tree

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// outside makes a directory beside the root that nothing may touch, and tells at the end.
func outside(t *testing.T, root string) string {
	t.Helper()
	dir := filepath.Join(filepath.Dir(root), "outside")
	ok(t, os.Mkdir(dir, 0o700))
	ok(t, os.WriteFile(dir+"/victim", []byte("intact"), 0o600))
	look := func() string {
		var s string
		ok(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
			ok(t, err)
			var st unix.Stat_t
			ok(t, unix.Lstat(p, &st))
			x, err := LXattrs(unix.AT_FDCWD, p)
			if err != nil {
				x = nil
			}
			b, _ := os.ReadFile(p)
			s += fmt.Sprintln(p, st.Mode, st.Uid, st.Gid, st.Mtim, st.Ctim, st.Nlink, x, string(b))
			return nil
		}))
		return s
	}
	before := look()
	t.Cleanup(func() {
		if after := look(); after != before {
			t.Errorf("outside was changed:\n%s\nbefore:\n%s", after, before)
		}
	})
	return dir
}

// everything tries all calls that write on a path, and returns the names of those that succeeded.
func everything(d *Dest, p string) (done []string) {
	try := func(name string, err error) {
		if err == nil {
			done = append(done, name)
		}
	}
	h := func(typ tarstream.Type) *tarstream.Header {
		return &tarstream.Header{Path: p, Type: typ, Mode: 0o4777, UID: 66, GID: 66, Xattrs: []tarstream.Xattr{{Name: "user.x", Value: []byte("x")}}}
	}
	for _, replace := range []bool{false, true} {
		try("WriteSmall", d.WriteSmall(h(tarstream.File), []byte("bad"), replace))
		s := h(tarstream.Symlink)
		s.Link, s.Xattrs = "/", nil
		try("Symlink", d.Symlink(s, replace))
		s = h(tarstream.Fifo)
		s.Xattrs = nil
		try("Special", d.Special(s, replace))
		s = h(tarstream.Link)
		s.Link = "mine"
		try("Link", d.Link(s, replace))
	}
	_, err := d.Mkdir(p)
	try("Mkdir", err)
	try("FinishDir", d.FinishDir(h(tarstream.Dir)))
	try("SetMeta", d.SetMeta(h(tarstream.File), nil))
	try("SetMeta", d.SetMeta(h(tarstream.Dir), nil))
	_, err = d.OpenRead(p)
	try("OpenRead", err)
	return done
}

func TestPlantedSymlinksLeadNowhere(t *testing.T) {
	needRoot(t)
	eachWay(t, func(t *testing.T, d *Dest, root string) {
		out := outside(t, root)
		ok(t, os.WriteFile(root+"/mine", nil, 0o644))
		ok(t, os.MkdirAll(root+"/a/b", 0o755))
		for _, text := range []string{out, "../outside", "../../../outside", "/proc/self/fd/" + fmt.Sprint(d.root.fd) + "/../outside"} {
			for _, at := range []string{"l", "a/l", "a/b/l"} {
				ok(t, os.Symlink(text, filepath.Join(root, at)))
				for _, below := range []string{"/victim", "/new", "/x/y"} {
					if done := everything(d, at+below); len(done) > 0 {
						t.Errorf("through %s -> %s: %v succeeded", at, text, done)
					}
					ok2 := d.Remove(at+below, nil)
					if ok2 == nil {
						t.Errorf("removed below a symlink %s", at)
					}
				}
				// On the symlink itself only what replaces it succeeds.
				for _, name := range everything(d, at) {
					if !slices.Contains([]string{"WriteSmall", "Symlink", "Special", "Link", "OpenRead", "SetMeta"}, name) {
						t.Errorf("on %s -> %s: %s succeeded", at, text, name)
					}
				}
				ok(t, d.Remove(at, nil))
				// A link that is the entry is removed, not what it leads to.
				ok(t, os.Symlink(text, filepath.Join(root, at)))
				ok(t, d.Remove(at, nil))
				ok(t, os.Symlink(filepath.Join(text, "victim"), filepath.Join(root, at)))
				if done := everything(d, at)[:1]; done[0] == "OpenRead" {
					t.Error("read through a symlink")
				}
				ok(t, d.Remove(at, nil))
			}
		}
		for _, p := range []string{"../outside/new", "/etc/x", "a/../../outside/new", "", "a//b", "./a", "a/", "a\x00b", ".."} {
			if done := everything(d, p); len(done) > 0 {
				t.Errorf("path %q: %v succeeded", p, done)
			}
			refused(t, p, d.Remove(p, nil))
			_, err := d.ReadDirNames(p)
			refused(t, p, err)
			l := &tarstream.Header{Path: "hard", Type: tarstream.Link, Link: p}
			refused(t, "link to "+p, d.Link(l, false))
		}
		// A hard link to a symlink is one to the symlink itself.
		ok(t, os.Symlink(out+"/victim", root+"/sym"))
		ok(t, d.Link(&tarstream.Header{Path: "hard", Type: tarstream.Link, Link: "sym"}, false))
		if st := stat(t, d, "hard"); st.Type != tarstream.Symlink {
			t.Error("linked what a symlink leads to")
		}
	})
}

func TestDirectoryThatTurnsIntoASymlinkWhileInUse(t *testing.T) {
	needRoot(t)
	eachWay(t, func(t *testing.T, d *Dest, root string) {
		out := outside(t, root)
		_, err := d.Mkdir("a")
		ok(t, err)
		f, err := d.CreateFile(file("a/half"), true)
		ok(t, err)
		ok(t, os.Rename(root+"/a", root+"/moved"))
		ok(t, os.Symlink(out, root+"/a"))
		ok(t, f.Finish())
		ok(t, d.WriteSmall(file("a/more"), nil, false)) // by the open directory
		d.changed("a")
		refused(t, "by the symlink", d.WriteSmall(file("a/more"), nil, false))
		check(t, d, file("moved/half"))
		check(t, d, file("moved/more"))
	})
}

func TestSwappingRacesWriteNothingOutside(t *testing.T) {
	needRoot(t)
	eachWay(t, func(t *testing.T, d *Dest, root string) {
		out := outside(t, root)
		ok(t, os.MkdirAll(root+"/a/b", 0o755))
		ok(t, os.Symlink(out, root+"/evil"))
		ok(t, os.Symlink(out+"/victim", root+"/mine"))
		stop, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				// The attacker itself must not be led outside by its symlinks. Errors
				// are the race's: the other side removes and replaces too.
				for _, dir := range []string{".", "a", "a/b"} {
					fd, err := openBeneath(d.root.fd, dir, unix.O_PATH|unix.O_DIRECTORY)
					if err != nil {
						continue
					}
					for _, name := range []string{"a", "b", "victim"} {
						_ = unix.Renameat2(d.root.fd, "evil", fd, name, unix.RENAME_EXCHANGE)
					}
					_ = unix.Symlinkat(out+"/victim", fd, "l")
					unix.Close(fd)
				}
			}
		}()
		for range 300 {
			for _, p := range []string{"a", "a/b"} {
				d.changed(p)
			}
			everything(d, "a/b/victim")
			everything(d, "a/b/l")
			_ = d.Remove("a/b", nil)
			_, _ = d.Mkdir("a")
			_, _ = d.Mkdir("a/b")
		}
		close(stop)
		<-ended
	})
}

func TestDeepAndLongPaths(t *testing.T) {
	eachWay(t, func(t *testing.T, d *Dest, _ string) {
		levels := 3000
		if d.walks {
			levels = 600
		}
		for _, c := range []struct {
			name   string
			levels int
		}{{strings.Repeat("n", 250), 40}, {"d", levels}} {
			p := c.name
			for i := 1; ; i++ {
				_, err := d.Mkdir(p)
				ok(t, err)
				if i == c.levels {
					break
				}
				p += "/" + c.name
			}
			h := file(p + "/f")
			ok(t, d.WriteSmall(h, []byte("deep"), false))
			l := symlink(p+"/l", "x")
			ok(t, d.Symlink(l, false))
			ok(t, d.Link(&tarstream.Header{Path: p + "/h", Type: tarstream.Link, Link: h.Path}, false))
			dir := head(p, tarstream.Dir, 0o755)
			ok(t, d.FinishDir(dir))
			for _, h := range []*tarstream.Header{h, l, dir} {
				check(t, d, h)
			}
			if string(read(t, d, h.Path)) != "deep" {
				t.Error("content")
			}
			ok(t, d.Remove(c.name, nil))
			names, err := d.ReadDirNames(".")
			ok(t, err)
			if len(names) > 0 {
				t.Errorf("left: %.40q", names)
			}
		}
		if _, err := d.Mkdir(strings.Repeat("n", 5000)); !errors.Is(err, unix.ENAMETOOLONG) || len(err.Error()) > 400 {
			t.Errorf("too long a name: %v", err)
		}
	})
}

func TestRemoveKeeps(t *testing.T) {
	needRoot(t)
	eachWay(t, func(t *testing.T, d *Dest, root string) {
		make := func() {
			for _, p := range []string{"lost+found", "a/lost+found", "a/b/keep", "a/b/c/gone", "a/e", "mount/x", "s"} {
				ok(t, os.MkdirAll(filepath.Join(root, p), 0o755))
			}
			for _, p := range []string{"lost+found/x", "a/b/keep/below", "a/b/c/gone/f", "a/f", "top", IncompleteMark} {
				ok(t, os.WriteFile(filepath.Join(root, p), nil, 0o400))
			}
		}
		make()
		ok(t, unix.Mount(root+"/s", root+"/mount", "", unix.MS_BIND, "")) // the same device
		t.Cleanup(func() { _ = unix.Unmount(root+"/mount", 0) })
		ok(t, os.WriteFile(root+"/mount/inside", nil, 0o600))
		keep := func(p string) bool { return p == "a/b/keep" || p == "s" }
		ok(t, d.Remove("none", keep))
		ok(t, d.Remove("a", keep))
		left := func() string {
			out, err := exec.Command("find", root, "-mindepth", "1", "-printf", "%P ").Output()
			ok(t, err)
			s := strings.Fields(string(out))
			slices.Sort(s)
			return strings.Join(s, " ")
		}
		if got, want := left(), IncompleteMark+" a a/b a/b/keep a/b/keep/below lost+found lost+found/x mount mount/inside s s/inside top"; got != want {
			t.Errorf("left %s\nwant %s", got, want)
		}
		make()
		ok(t, d.Remove(".", keep))
		if got, want := left(), IncompleteMark+" a a/b a/b/keep a/b/keep/below lost+found lost+found/x mount mount/inside mount/x s s/inside s/x"; got != want {
			t.Errorf("left %s\nwant %s", got, want)
		}
		ok(t, d.WriteSmall(file("a/b/again"), nil, false)) // its handle may not be stale
		ok(t, d.Remove("a", nil))
		_, err := d.Mkdir("a")
		ok(t, err)
		ok(t, d.WriteSmall(file("a/again"), nil, false))
		check(t, d, file("a/again"))
	})
}
