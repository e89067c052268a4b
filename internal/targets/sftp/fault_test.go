package sftp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/testservers"
)

func put(t *testing.T, s store.Putter, key, content string) {
	t.Helper()
	if err := s.Put(context.Background(), key, []byte(content)); err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
}

func wantContent(t *testing.T, s store.Getter, key, want string) {
	t.Helper()
	if got, err := s.Get(context.Background(), key, 0, -1); err != nil || string(got) != want {
		t.Errorf("get %s: %q, %v; want %q", key, got, err, want)
	}
}

// mountTmpfs mounts a tmpfs and returns its directory.
func mountTmpfs(t *testing.T, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("CI must be able to mount: %v", err)
		}
		t.Skipf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestAFullDiskIsSaidAndLeavesNothing(t *testing.T) {
	t.Parallel()
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	for name, mount := range map[string]string{"bytes": "size=1m", "inodes": "nr_inodes=8"} {
		t.Run(name, func(t *testing.T) {
			o := options(t, s)
			o.Path = mountTmpfs(t, mount)
			target := open(t, o)
			put(t, target, "dir/first", "first")
			var err error
			for i := 0; i < 10 && err == nil; i++ {
				err = target.Put(context.Background(), fmt.Sprintf("other%d/object", i), make([]byte, 300<<10))
			}
			if !errors.Is(err, store.ErrNoSpace) {
				t.Fatalf("%v, want ErrNoSpace", err)
			}
			wantNoTemp(t, o.Path)
			wantContent(t, target, "dir/first", "first")
			if err := target.Delete(context.Background(), "other0/object"); err != nil {
				t.Errorf("delete on a full disk: %v", err)
			}
			os.Remove(filepath.Join(o.Path, "other0"))
			put(t, target, "dir/second", "second")
		})
	}
}

func TestAReadOnlyServerReadsAndRefusesToWrite(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		server testservers.SSHDOptions
		mount  bool
	}{
		"server":      {server: testservers.SSHDOptions{SFTP: "-R"}},
		"file system": {mount: true},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, testservers.StartSSHD(t, c.server))
			if c.mount {
				o.Path = mountTmpfs(t, "size=1m")
			}
			for _, dir := range []string{"dir", tmpDir} {
				if err := os.Mkdir(filepath.Join(o.Path, dir), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(o.Path, "dir/object"), []byte("content"), 0o600); err != nil {
				t.Fatal(err)
			}
			if c.mount {
				if err := unix.Mount("", o.Path, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
					t.Fatal(err)
				}
			}
			target := open(t, o)
			for _, key := range []string{"dir/second", "new/object"} {
				if err := target.Put(context.Background(), key, []byte("x")); !errors.Is(err, store.ErrAccess) {
					t.Errorf("put %s: %v, want ErrAccess", key, err)
				}
			}
			if err := target.Put(context.Background(), "dir/object", []byte("x")); !errors.Is(err, store.ErrExist) {
				t.Errorf("put over an object: %v, want ErrExist", err)
			}
			if err := target.Delete(context.Background(), "dir/object"); !errors.Is(err, store.ErrAccess) {
				t.Errorf("delete: %v, want ErrAccess", err)
			}
			wantContent(t, target, "dir/object", "content")
		})
	}
}

// A login for a server that should keep backups from whoever took the agent over.
func TestALoginThatMayNotRemoveIsGoodEnough(t *testing.T) {
	t.Parallel()
	s := testservers.StartSSHD(t, testservers.SSHDOptions{SFTP: "-P remove,rmdir,posix-rename"})
	o := options(t, s)
	target := open(t, o)
	for i := range 3 {
		put(t, target, fmt.Sprint("dir/", i), "content")
	}
	wantContent(t, target, "dir/0", "content")
	if err := target.Put(context.Background(), "dir/0", []byte("other")); !errors.Is(err, store.ErrExist) {
		t.Errorf("put over an object: %v", err)
	}
	if err := target.Delete(context.Background(), "dir/0"); !errors.Is(err, store.ErrAccess) {
		t.Errorf("delete: %v, want ErrAccess", err)
	}
	wantContent(t, target, "dir/0", "content")
	left, err := filepath.Glob(filepath.Join(o.Path, tmpDir, "*"))
	if err != nil || len(left) > 1 {
		t.Errorf("%d temporary files for 3 objects, %v", len(left), err)
	}
}

func TestCreateMakesTheLastComponentOnly(t *testing.T) {
	t.Parallel()
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	o := options(t, s)
	o.Path = filepath.Join(o.Path, "target")
	wantRefused(t, o, store.ErrNoTarget, o.Path)
	for range 2 {
		target, err := Create(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		target.Close()
	}
	if st, err := os.Stat(o.Path); err != nil || st.Mode().Perm() != dirMode {
		t.Errorf("%v, %v", st, err)
	}
	put(t, open(t, o), "x", "x")
	below := o
	below.Path = filepath.Join(o.Path, "none/target")
	if _, err := Create(context.Background(), below); !errors.Is(err, store.ErrNoTarget) {
		t.Errorf("%v, want ErrNoTarget", err)
	}
	below.Path = filepath.Join(o.Path, "x")
	if _, err := Create(context.Background(), below); !errors.Is(err, store.ErrNoTarget) {
		t.Errorf("at a file: %v, want ErrNoTarget", err)
	}
}

func TestAPathMayBeginAtTheLoginDirectory(t *testing.T) {
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(home, "backupd-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	o := options(t, s)
	o.Path = filepath.Base(dir)
	target := open(t, o)
	put(t, target, "a/b/object", "content")
	wantContent(t, target, "a/b/object", "content")
	if got, err := os.ReadFile(filepath.Join(dir, "a/b/object")); err != nil || string(got) != "content" {
		t.Errorf("%q, %v", got, err)
	}
	n := 0
	for info, err := range target.List(context.Background(), "a/") {
		if n++; err != nil || info.Key != "a/b/object" {
			t.Errorf("%+v, %v", info, err)
		}
	}
	if _, err := target.Stat(context.Background(), "a/b/object/below"); !errors.Is(err, store.ErrNotExist) || n != 1 {
		t.Errorf("%d objects, %v", n, err)
	}
}

func TestATargetThatVanishesIsNotMadeAnew(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	o := options(t, s)
	target := open(t, o)
	put(t, target, "dir/object", "content")
	if err := os.Rename(o.Path, o.Path+"-away"); err != nil {
		t.Fatal(err)
	}
	want := func(act string, err error) {
		t.Helper()
		if !errors.Is(err, store.ErrNoTarget) || errors.Is(err, store.ErrNotExist) {
			t.Errorf("%s: %v, want ErrNoTarget alone", act, err)
		}
	}
	want("put", target.Put(ctx, "dir/second", []byte("x")))
	want("put", target.Put(ctx, "new/second", []byte("x")))
	want("delete", target.Delete(ctx, "dir/object"))
	_, err := target.Get(ctx, "dir/object", 0, -1)
	want("get", err)
	_, err = target.Stat(ctx, "dir/object")
	want("stat", err)
	for _, prefix := range []string{"", "dir/", "none/"} {
		err = nil
		for _, err = range target.List(ctx, prefix) {
		}
		want("list "+prefix, err)
	}
	if _, err := os.Lstat(o.Path); !os.IsNotExist(err) {
		t.Errorf("the target is back: %v", err)
	}
	if err := os.Rename(o.Path+"-away", o.Path); err != nil {
		t.Fatal(err)
	}
	wantContent(t, target, "dir/object", "content")
}

func TestOfTwoProcessesPutsExactlyOneWins(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]testservers.SSHDOptions{"by link": {}, "by OpenSSH's rename": {SFTP: "-P hardlink"}} {
		t.Run(name, func(t *testing.T) {
			s := testservers.StartSSHD(t, o)
			a := options(t, s)
			both := []*Target{open(t, a), open(t, a)}
			for round := range 20 {
				key := fmt.Sprintf("race%d/object", round)
				errs := make([]error, 8)
				var wg sync.WaitGroup
				for i := range errs {
					wg.Go(func() { errs[i] = both[i%2].Put(context.Background(), key, []byte{byte(i)}) })
				}
				wg.Wait()
				won := -1
				for i, err := range errs {
					switch {
					case err == nil && won >= 0:
						t.Fatalf("both %d and %d won", won, i)
					case err == nil:
						won = i
					case !errors.Is(err, store.ErrExist):
						t.Errorf("put %d: %v", i, err)
					}
				}
				wantContent(t, both[0], key, string([]byte{byte(won)}))
			}
			wantNoTemp(t, a.Path)
		})
	}
}

func TestABrokenConnectionIsReplacedAtTheNextOperation(t *testing.T) {
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	target := open(t, options(t, s))
	put(t, target, "first", "first")
	s.Restart(t)
	waitFor(t, "the end of the old connection", func() bool {
		target.pool.mu.Lock()
		defer target.pool.mu.Unlock()
		return !target.pool.idle[0].alive()
	})
	put(t, target, "second", "second")
	wantContent(t, target, "first", "first")
}

func TestAPutThatIsCutOffLeavesNothingAndSucceedsAgain(t *testing.T) {
	t.Parallel()
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	o := options(t, s)
	target := open(t, o)
	data := make([]byte, 64<<20)
	failed := 0
	for round := range 5 {
		key := fmt.Sprintf("dir/object%d", round)
		done := make(chan error)
		go func() { done <- target.Put(context.Background(), key, data) }()
		waitFor(t, "a temporary file with content", func() bool {
			files, _ := filepath.Glob(filepath.Join(o.Path, tmpDir, "*"))
			for _, f := range files {
				if st, err := os.Stat(f); err == nil && st.Size() > int64(round)<<20 {
					return true
				}
			}
			objects, _ := filepath.Glob(filepath.Join(o.Path, "dir", "*"))
			return len(objects) > round
		})
		s.KillSessions(t)
		err := <-done
		if err != nil {
			failed++
			wantTransient(t, err, "connection")
		}
		for info, err := range target.List(context.Background(), "") {
			if err != nil || info.Size != int64(len(data)) {
				t.Errorf("seen: %+v, %v", info, err)
			}
		}
		if err := target.Put(context.Background(), key, data); err != nil && !errors.Is(err, store.ErrExist) {
			t.Errorf("again: %v", err)
		}
		wantNoTemp(t, o.Path)
	}
	if failed == 0 {
		t.Error("no put was hit")
	}
}

func TestAServerThatStandsStillEndsOperationsByTheStallTimeout(t *testing.T) {
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	o := options(t, s)
	o.StallTimeout = 500 * time.Millisecond
	target := open(t, o)
	put(t, target, "dir/object", "content")
	s.Pause(t)
	for act, f := range map[string]func(context.Context) error{
		"put":  func(ctx context.Context) error { return target.Put(ctx, "dir/new", make([]byte, 32<<20)) },
		"get":  func(ctx context.Context) error { _, err := target.Get(ctx, "dir/object", 0, -1); return err },
		"stat": func(ctx context.Context) error { _, err := target.Stat(ctx, "dir/object"); return err },
		"list": func(ctx context.Context) (err error) {
			for _, err = range target.List(ctx, "") {
			}
			return err
		},
	} {
		begin := time.Now()
		wantTransient(t, f(context.Background()), "500ms")
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("%s took %s", act, d)
		}
	}
	s.Resume(t)
	put(t, target, "dir/second", "second")
	wantContent(t, target, "dir/object", "content")
}

func TestACancelledOperationEndsAtOnceThoughTheServerStandsStill(t *testing.T) {
	t.Parallel()
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	target := open(t, options(t, s))
	put(t, target, "dir/object", "content")
	s.Pause(t)
	for act, f := range map[string]func(context.Context) error{
		"put": func(ctx context.Context) error { return target.Put(ctx, "dir/new", make([]byte, 32<<20)) },
		"get": func(ctx context.Context) error { _, err := target.Get(ctx, "dir/object", 0, -1); return err },
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		begin := time.Now()
		if err := f(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", act, err)
		}
		if d := time.Since(begin); d > cleanUpTime+2*time.Second {
			t.Errorf("%s took %s", act, d)
		}
		cancel()
	}
	s.Resume(t)
	put(t, target, "dir/second", "second")
}

func TestOldTemporariesAreRemoved(t *testing.T) {
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	o := options(t, s)
	dir := filepath.Join(o.Path, tmpDir)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{"old": 25 * time.Hour, "new": 23 * time.Hour} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	put(t, open(t, o), "x", "x")
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "new" {
		t.Errorf("%v, %v; want new alone", entries, err)
	}
}

func TestForeignThingsAreSeenAtTheTopOnly(t *testing.T) {
	t.Parallel()
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	o := options(t, s)
	target := open(t, o)
	put(t, target, "dir/object", "content")
	for _, name := range []string{"link", "dir/link", ".hidden", "dir/.hidden"} {
		if err := os.Symlink("object", filepath.Join(o.Path, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(o.Path, "dir/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for info, err := range target.List(context.Background(), "") {
		if err != nil {
			t.Fatal(err)
		}
		got[info.Key] = true
	}
	if len(got) != 2 || !got["dir/object"] || !got["link"] {
		t.Errorf("%v", got)
	}
	if _, err := target.Get(context.Background(), "dir/fifo", 0, -1); err == nil {
		t.Error("a FIFO was read")
	}
}

func TestOperationsMayBeNestedInAListing(t *testing.T) {
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	o := options(t, s)
	o.Concurrency = 1
	target := open(t, o)
	for i := range 5 {
		put(t, target, fmt.Sprintf("d%d/object", i), "content")
	}
	for info, err := range target.List(context.Background(), "") {
		if err != nil {
			t.Fatal(err)
		}
		wantContent(t, target, info.Key, "content")
	}
}

func TestAClosedTargetRefuses(t *testing.T) {
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	target := open(t, options(t, s))
	put(t, target, "x", "x")
	target.Close()
	if _, err := target.Stat(context.Background(), "x"); err == nil {
		t.Error("answered")
	}
}

func TestManyLargeObjectsGoBothWays(t *testing.T) {
	t.Parallel()
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	target := open(t, options(t, s))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			data := bytes.Repeat([]byte{byte(i), 1, 2, 3, 4, 5, 6}, 2<<20)
			key := fmt.Sprint("big/", i)
			if err := target.Put(context.Background(), key, data); err != nil {
				t.Error(err)
				return
			}
			if got, err := target.Get(context.Background(), key, 7, int64(len(data)-7)); err != nil || !bytes.Equal(got, data[7:]) {
				t.Errorf("%s: %d bytes, %v", key, len(got), err)
			}
		})
	}
	wg.Wait()
}
