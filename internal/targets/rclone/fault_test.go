package rclone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/store"
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

// wantTransient wants an error that a retry may mend, so without a sentinel.
func wantTransient(t *testing.T, err error, says string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("%v does not say %q", err, says)
	}
	for _, s := range []error{store.ErrNotExist, store.ErrExist, store.ErrNoTarget, store.ErrNoSpace, store.ErrAccess, store.ErrShort} {
		if errors.Is(err, s) {
			t.Errorf("%v is permanent: %v", err, s)
		}
	}
}

// pid is the child's; 0 where there is none.
func (t *Target) pid() int {
	t.starting <- struct{}{}
	defer func() { <-t.starting }()
	if t.child == nil || !t.child.alive() {
		return 0
	}
	return t.child.cmd.Process.Pid
}

// stop returns when a process stands still: the signal alone is only sent.
func stop(t *testing.T, pid int) {
	t.Helper()
	syscall.Kill(pid, syscall.SIGSTOP)
	waitFor(t, "rclone to stand still", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err == nil && bytes.Contains(stat, []byte(") T "))
	})
}

func wantRefused(t *testing.T, o Options, kind error, says ...string) {
	t.Helper()
	target, err := Open(context.Background(), o)
	if err == nil {
		target.Close()
		t.Fatalf("opened, want an error with %q", says)
	}
	if !errors.Is(err, kind) {
		t.Errorf("%v, want %v", err, kind)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%v\ndoes not say %q", err, s)
		}
	}
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	t.Parallel()
	for name, binary := range versions(t) {
		t.Run(name, func(t *testing.T) {
			good, dir := options(t, binary)
			for what, c := range map[string]struct {
				spoil func(*Options)
				kind  error
				says  string
			}{
				"program":                {func(o *Options) { o.Binary = filepath.Join(dir, "none") }, store.ErrNoTarget, "install it"},
				"remote":                 {func(o *Options) { o.Remote = "none:x" }, store.ErrNoTarget, "didn't find section"},
				"backend":                {func(o *Options) { o.Remote = ":none:x" }, store.ErrNoTarget, "didn't find backend"},
				"directory":              {func(o *Options) { o.Remote += "/none" }, store.ErrNoTarget, "check the path"},
				"bucket":                 {func(o *Options) { o.Remote = ":memory:none" }, store.ErrNoTarget, "check the path"},
				"configuration":          {func(o *Options) { o.ConfigFile = filepath.Join(dir, "none") }, store.ErrAccess, "no such file"},
				"a readable one":         {func(o *Options) { o.ConfigFile, o.Remote = scribble(t, "[good]\ntype\n== nonsense"), "good:x" }, store.ErrNoTarget, "config"},
				"a password":             {func(o *Options) { o.ConfigFile, o.Remote = scribble(t, "RCLONE_ENCRYPT_V0:\nbm9uc2Vuc2U="), "good:x" }, store.ErrNoTarget, "config"},
				"a flag that is known":   {func(o *Options) { o.Args = []string{"--no-such-flag"} }, store.ErrNoTarget, "unknown flag"},
				"a flag that is allowed": {func(o *Options) { o.Args = []string{"--dry-run"} }, nil, "--dry-run"},
			} {
				t.Run(what, func(t *testing.T) {
					o := good
					c.spoil(&o)
					if c.kind == nil {
						if _, err := Open(context.Background(), o); err == nil || !strings.Contains(err.Error(), c.says) {
							t.Errorf("%v", err)
						}
						return
					}
					wantRefused(t, o, c.kind, c.says)
				})
			}
		})
	}
}

// Old versions have no operations/stat, and say so with the status 404.
func TestAVersionThatIsTooOldIsRefused(t *testing.T) {
	o, dir := options(t, debian(t))
	script := filepath.Join(dir, "rclone")
	server := `import http.server, json, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        b = json.dumps({"version": "v1.53.3", "decomposed": [1, 53, 3]}).encode()
        self.send_response(200); self.end_headers(); self.wfile.write(b)
s = http.server.HTTPServer(("127.0.0.1", 0), H)
print("NOTICE: Serving remote control on http://127.0.0.1:%d/" % s.server_port, file=sys.stderr, flush=True)
s.serve_forever()
`
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3, which plays the old version, is missing")
	}
	if err := os.WriteFile(script, []byte("#!"+python+"\n"+server), 0o700); err != nil {
		t.Fatal(err)
	}
	o.Binary = script
	wantRefused(t, o, store.ErrNoTarget, "v1.53.3", "1.60")
	if notThere(&rcError{404, `couldn't find method "operations/stat"`}) {
		t.Error("a missing function is taken for a missing object")
	}
}

func scribble(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "rclone.conf")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestARemoteOfTheConfigurationIsOpened(t *testing.T) {
	o, dir := options(t, debian(t))
	o.ConfigFile = scribble(t, "[my backups]\ntype = alias\nremote = "+dir+"\n")
	if err := os.Mkdir(filepath.Join(dir, "sub dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	parsed, err := Parse("rclone:my backups:sub dir", o)
	if err != nil {
		t.Fatal(err)
	}
	put(t, open(t, parsed), "a/b", "content")
	if got, err := os.ReadFile(filepath.Join(dir, "sub dir/a/b")); err != nil || string(got) != "content" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestCreateMakesTheLastComponentOnly(t *testing.T) {
	t.Parallel()
	for name, binary := range versions(t) {
		t.Run(name, func(t *testing.T) {
			o, dir := options(t, binary)
			below := o
			below.Remote += "/none/target"
			if _, err := Create(context.Background(), below); !errors.Is(err, store.ErrNoTarget) {
				t.Errorf("%v, want ErrNoTarget", err)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
				t.Errorf("made %v, %v", entries, err)
			}
			o.Remote += "/target"
			for _, key := range []string{"a", "b"} {
				target, err := Create(context.Background(), o)
				if err != nil {
					t.Fatal(err)
				}
				put(t, target, key, "x")
				target.Close()
			}
			file := o
			file.Remote += "/file"
			if err := os.WriteFile(filepath.Join(dir, "target/file"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			wantRefused(t, file, store.ErrNoTarget)
		})
	}
}

func TestADeadChildIsATransientErrorAndIsStartedAgain(t *testing.T) {
	t.Parallel()
	for name, binary := range versions(t) {
		t.Run(name, func(t *testing.T) {
			o, dir := options(t, binary)
			target := open(t, o)
			put(t, target, "dir/first", "first")
			data := make([]byte, 24<<20)
			failed := 0
			for round := range 4 {
				key := fmt.Sprintf("dir/object%d", round)
				done := make(chan error)
				go func() { done <- target.Put(context.Background(), key, data) }()
				waitFor(t, "an upload that has begun", func() bool {
					begun, _ := filepath.Glob(filepath.Join(dir, tmpDir, "*"))
					placed, _ := filepath.Glob(filepath.Join(dir, key))
					return len(begun)+len(placed) > 0 || round%2 == 0
				})
				if pid := target.pid(); pid != 0 {
					syscall.Kill(pid, syscall.SIGKILL)
				}
				if err := <-done; err != nil {
					failed++
					wantTransient(t, err, "rclone")
				}
				for info, err := range target.List(context.Background(), "") {
					if err != nil || info.Key != "dir/first" && info.Size != int64(len(data)) {
						t.Errorf("seen: %+v, %v", info, err)
					}
				}
				if err := target.Put(context.Background(), key, data); err != nil && !errors.Is(err, store.ErrExist) {
					t.Errorf("again: %v", err)
				}
			}
			if failed == 0 {
				t.Error("no put was hit")
			}
			wantContent(t, target, "dir/first", "first")
		})
	}
}

func TestAGetThatIsCutOffIsAnErrorAndNeverShort(t *testing.T) {
	t.Parallel()
	o, _ := options(t, debian(t))
	target := open(t, o)
	data := bytes.Repeat([]byte("0123456789"), 3<<20)
	if err := target.Put(context.Background(), "big", data); err != nil {
		t.Fatal(err)
	}
	failed := 0
	for round := range 10 {
		var wg sync.WaitGroup
		var got []byte
		var err error
		pid := target.pid()
		wg.Go(func() { got, err = target.Get(context.Background(), "big", 0, -1) })
		time.AfterFunc(time.Duration(round)*4*time.Millisecond, func() { syscall.Kill(pid, syscall.SIGKILL) })
		wg.Wait()
		if err != nil {
			failed++
			wantTransient(t, err, "")
		} else if !bytes.Equal(got, data) {
			t.Fatalf("%d bytes", len(got))
		}
		waitFor(t, "the end of rclone", func() bool { return target.pid() != pid })
		if _, err := target.Stat(context.Background(), "big"); err != nil {
			t.Fatal(err)
		}
	}
	if failed == 0 {
		t.Error("no get was hit")
	}
}

func TestAStoppedChildEndsOperationsByTheStallTimeout(t *testing.T) {
	o, _ := options(t, debian(t))
	o.StallTimeout = time.Second
	target := open(t, o)
	put(t, target, "dir/object", "content")
	for act, f := range map[string]func(context.Context) error{
		"put": func(ctx context.Context) error { return target.Put(ctx, "dir/new", make([]byte, 32<<20)) },
		"get": func(ctx context.Context) error { _, err := target.Get(ctx, "dir/object", 0, -1); return err },
		"list": func(ctx context.Context) (err error) {
			for _, err = range target.List(ctx, "") {
			}
			return err
		},
	} {
		stop(t, target.pid())
		begin := time.Now()
		err := f(context.Background())
		wantTransient(t, err, "does not answer")
		if d := time.Since(begin); d > 8*time.Second {
			t.Errorf("%s took %s", act, d)
		}
		wantContent(t, target, "dir/object", "content")
	}
}

func TestACancelledOperationEndsAtOnceThoughRcloneStandsStill(t *testing.T) {
	t.Parallel()
	o, _ := options(t, debian(t))
	target := open(t, o)
	put(t, target, "dir/object", "content")
	pid := target.pid()
	stop(t, pid)
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
	syscall.Kill(pid, syscall.SIGCONT)
	put(t, target, "dir/second", "second")
}

func TestACancelledPutLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, binary := range versions(t) {
		for _, staged := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", staged: ", staged), func(t *testing.T) {
				o, dir := options(t, binary)
				target := open(t, o)
				target.staged = staged
				for round := range 6 {
					ctx, cancel := context.WithCancel(context.Background())
					time.AfterFunc(time.Duration(round)*10*time.Millisecond, cancel)
					key := fmt.Sprint("dir/", round)
					err := target.Put(ctx, key, make([]byte, 16<<20))
					if err != nil && !errors.Is(err, context.Canceled) {
						t.Errorf("%v", err)
					}
					cancel()
					it, ferr := target.Stat(context.Background(), key)
					if err == nil && (ferr != nil || it.Size != 16<<20) || err != nil && ferr == nil && it.Size != 16<<20 {
						t.Errorf("put says %v, and stat %+v, %v", err, it, ferr)
					}
				}
				waitFor(t, "an empty "+tmpDir, func() bool {
					files, _ := filepath.Glob(filepath.Join(dir, tmpDir, "*"))
					return len(files) == 0
				})
			})
		}
	}
}

// The kernel must see to it: nothing of ours runs after a kill.
func TestTheChildDiesWithThisProcess(t *testing.T) {
	if os.Getenv("BACKUPD_TEST_RCLONE_CHILD") == "" {
		t.Skip("is run by TestNoChildOutlivesAKilledProcess")
	}
	o, _ := options(t, debian(t))
	target := open(t, o)
	fmt.Println("child", target.pid())
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

func TestAFullDiskIsSaidAndLeavesNothing(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	for name, binary := range versions(t) {
		t.Run(name, func(t *testing.T) {
			o, dir := options(t, binary)
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
				if os.Getenv("CI") != "" {
					t.Fatalf("CI must be able to mount: %v", err)
				}
				t.Skipf("mount a tmpfs: %v", err)
			}
			t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
			target := open(t, o)
			put(t, target, "dir/first", "first")
			if err := target.Put(context.Background(), "dir/big", make([]byte, 2<<20)); !errors.Is(err, store.ErrNoSpace) {
				t.Errorf("%v, want ErrNoSpace", err)
			}
			wantNoTemp(t, dir)
			put(t, target, "dir/second", "second")
		})
	}
}

func TestAServiceThatRefusesIsNoAbsence(t *testing.T) {
	t.Parallel()
	for name, binary := range versions(t) {
		t.Run(name, func(t *testing.T) {
			o, _ := webdavOptions(t, binary, "")
			target := open(t, o)
			put(t, target, "dir/object", "content")
			o.Remote = strings.Replace(o.Remote, "user=somebody", "user=nobody", 1)
			wantRefused(t, o, store.ErrAccess, "401")
		})
	}
}

func TestAServiceThatIsDownIsATransientError(t *testing.T) {
	for name, binary := range versions(t) {
		t.Run(name, func(t *testing.T) {
			o, _ := options(t, binary)
			obscured := obscure(t, binary, "hunter2")
			o.Remote = ":webdav,url='http://127.0.0.1:1/secret-path',user=me,pass=" + obscured + ":"
			_, err := Open(context.Background(), o)
			wantTransient(t, err, "connection refused")
			if strings.Contains(err.Error(), obscured) {
				t.Errorf("%v tells the password", err)
			}
		})
	}
}

func TestOldTemporariesAreRemoved(t *testing.T) {
	o, root := options(t, debian(t))
	dir := filepath.Join(root, tmpDir)
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

func TestCloseEndsTheChild(t *testing.T) {
	o, _ := options(t, debian(t))
	target := open(t, o)
	pid := target.pid()
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); !os.IsNotExist(err) {
		t.Errorf("%d still runs", pid)
	}
	if _, err := target.Stat(context.Background(), "x"); !errors.Is(err, errClosed) {
		t.Errorf("%v", err)
	}
}

func TestVariablesThatWouldHideObjectsAreNotPassedOn(t *testing.T) {
	for name, value := range map[string]string{
		"RCLONE_DRY_RUN": "true", "RCLONE_EXCLUDE": "**", "RCLONE_MAX_SIZE": "1", "RCLONE_LOG_LEVEL": "ERROR",
		"RCLONE_LOG_FILE": filepath.Join(t.TempDir(), "log"), "RCLONE_RC_ADDR": "127.0.0.1:1", "RCLONE_USE_JSON_LOG": "true",
	} {
		t.Setenv(name, value)
	}
	for name, binary := range versions(t) {
		t.Run(name, func(t *testing.T) {
			o, _ := options(t, binary)
			target := open(t, o)
			put(t, target, "dir/object", "content")
			wantContent(t, target, "dir/object", "content")
			n := 0
			for range target.List(context.Background(), "") {
				n++
			}
			if n != 1 {
				t.Errorf("%d objects", n)
			}
		})
	}
}

func TestWhatRclonePrintsIsPassedOn(t *testing.T) {
	o, _ := options(t, debian(t))
	var printed bytes.Buffer
	o.Stderr = &printed
	o.Args = []string{"-vv"}
	target := open(t, o)
	put(t, target, "dir/object", "content")
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(printed.String(), "dir/object") {
		t.Errorf("%s", printed.String())
	}
	if strings.Contains(printed.String(), target.child.password) {
		t.Error("the password of the control connection was printed")
	}
}
