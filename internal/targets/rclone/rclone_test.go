package rclone

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/targets/targetstest"
	"github.com/disko/backupd/internal/testservers"
)

// versions are the programs to test with: Debian's, which is the oldest that
// must work, and the newest.
func versions(t *testing.T) map[string]string {
	t.Helper()
	v := map[string]string{"installed": debian(t)}
	if !testing.Short() {
		v["newest"] = testservers.Rclone(t)
	}
	return v
}

func debian(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("rclone")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("rclone is missing; apt-get install rclone")
		}
		t.Skip("rclone is missing; apt-get install rclone")
	}
	return program
}

// options are those of a new directory, with an empty configuration.
func options(t *testing.T, binary string) (Options, string) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "rclone.conf")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	return Options{Remote: ":local:" + dir, Binary: binary, ConfigFile: config}, dir
}

func open(t *testing.T, o Options) *Target {
	t.Helper()
	target, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close() })
	return target
}

// long is for tests that -short leaves out; the others run beside them.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes some ten seconds")
	}
	t.Parallel()
}

// wantNoTemp makes sure that nothing is left of what failed.
func wantNoTemp(t *testing.T, root string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(root, tmpDir))
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	for _, e := range entries {
		t.Errorf("%s is left in %s", e.Name(), tmpDir)
	}
}

func TestALocalRemoteKeepsTheContract(t *testing.T) {
	t.Parallel()
	for name, binary := range versions(t) {
		t.Run(name, func(t *testing.T) {
			targetstest.Run(t, func(t *testing.T) store.Writer {
				o, dir := options(t, binary)
				target := open(t, o)
				t.Cleanup(func() { wantNoTemp(t, dir) })
				return target
			})
		})
	}
}

// A service of buckets: it copies, and does not move.
func TestARemoteOfBucketsKeepsTheContract(t *testing.T) {
	long(t)
	targetstest.Run(t, func(t *testing.T) store.Writer {
		o, _ := options(t, testservers.Rclone(t))
		o.Remote = ":memory:bucket"
		target, err := Create(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { target.Close() })
		return target
	})
}

// What a service that can neither move nor copy can keep of it, in one process.
func TestARemoteWithoutMovesKeepsTheContract(t *testing.T) {
	long(t)
	targetstest.Run(t, func(t *testing.T) store.Writer {
		o, _ := options(t, debian(t))
		target := open(t, o)
		target.staged = false
		return target
	})
}

func TestAWebDAVRemoteKeepsTheContract(t *testing.T) {
	long(t)
	targetstest.Run(t, func(t *testing.T) store.Writer {
		// Old versions keep 10 ms between requests, which takes half a minute here.
		o, dir := webdavOptions(t, testservers.Rclone(t), ",pacer_min_sleep=0")
		target := open(t, o)
		t.Cleanup(func() { wantNoTemp(t, dir) })
		return target
	})
}

// The oldest version answers some of these with nonsense, and hangs up on others.
func TestRangesOfWebDAVThroughAnOldVersion(t *testing.T) {
	t.Parallel()
	o, _ := webdavOptions(t, debian(t), "")
	target := open(t, o)
	put(t, target, "dir/object", "0123456789")
	for _, c := range []struct {
		off, n int64
		want   string
		err    error
	}{
		{0, -1, "0123456789", nil},
		{3, 4, "3456", nil},
		{3, -1, "3456789", nil},
		{10, -1, "", nil},
		{10, 0, "", nil},
		{10, 1, "", store.ErrShort},
		{9, 2, "", store.ErrShort},
		{500, 10, "", store.ErrShort},
		{11, -1, "", store.ErrShort},
	} {
		got, err := target.Get(context.Background(), "dir/object", c.off, c.n)
		if string(got) != c.want || !errors.Is(err, c.err) {
			t.Errorf("%d from %d: %q, %v; want %q, %v", c.n, c.off, got, err, c.want, c.err)
		}
	}
}

// webdavOptions are those of a new WebDAV server, and the directory it serves.
func webdavOptions(t *testing.T, binary, more string) (Options, string) {
	t.Helper()
	url, dir := webdav(t, debian(t))
	o, _ := options(t, binary)
	o.Remote = ":webdav,url='" + url + "',user=somebody,pass=" + obscure(t, binary, "p:ss,word") + more + ":"
	return o, dir
}

// webdav starts `rclone serve webdav` and returns its address and the
// directory that it serves.
func webdav(t *testing.T, binary string) (url, dir string) {
	t.Helper()
	addr, err := testservers.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	home := t.TempDir()
	cmd := exec.Command(binary, "serve", "webdav", "--addr", addr, "--user", "somebody", "--pass", "p:ss,word", "--dir-cache-time", "0", dir)
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CACHE_HOME="+home, "XDG_CONFIG_HOME="+home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	waitFor(t, "rclone serve webdav", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return "http://" + addr, dir
}

// obscure is how rclone wants passwords in its configuration.
func obscure(t *testing.T, binary, password string) string {
	t.Helper()
	out, err := exec.Command(binary, "obscure", password).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}
