package directory

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/targets/targetstest"
)

// Environment of re-exec'd children.
const (
	envChild = "BACKUPD_TEST_DIRECTORY_CHILD" // what the child does
	envRoot  = "BACKUPD_TEST_DIRECTORY_ROOT"  // its target
	envDeny  = "BACKUPD_TEST_DIRECTORY_DENY"  // system calls that it does not have
)

func TestMain(m *testing.M) {
	if deny := os.Getenv(envDeny); deny != "" {
		if err := denyCalls(strings.Split(deny, ",")); err != nil {
			fmt.Fprintln(os.Stderr, "deny system calls:", err)
			os.Exit(1)
		}
	}
	if act := os.Getenv(envChild); act != "" {
		child(act, os.Getenv(envRoot))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child is what a re-exec'd process does until it is killed.
func child(act, root string) {
	t, err := Open(root)
	if err != nil {
		panic(err)
	}
	kill := func() {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	ctx := context.Background()
	switch act {
	case "before link":
		t.link = func(string, string) error { kill(); return nil }
		t.Put(ctx, "dir/object", []byte("content"))
	case "after link":
		t.link = func(from, to string) error {
			if err := place(from, to); err != nil {
				panic(err)
			}
			kill()
			return nil
		}
		t.Put(ctx, "dir/object", []byte("content"))
	case "endless":
		data := make([]byte, 4<<20)
		for i := 0; ; i++ {
			key := fmt.Sprintf("dir/%d", i)
			fmt.Println("begin", key)
			if err := t.Put(ctx, key, data); err != nil {
				panic(err)
			}
			fmt.Println("done", key)
		}
	}
}

func newTarget(t *testing.T) *Target {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDirectoryKeepsTheContract(t *testing.T) {
	targetstest.Run(t, func(t *testing.T) store.Writer { return newTarget(t) })
}

// File systems without hard links: vfat, exFAT, and many a FUSE mount.
func TestDirectoryKeepsTheContractWithoutLinks(t *testing.T) {
	for name, deny := range map[string]string{"rename that refuses": "link", "rename only": "link,renameat2"} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestDirectoryKeepsTheContract$", "-test.v")
			cmd.Env = append(os.Environ(), envDeny+"="+deny)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if !bytes.Contains(out, []byte("--- PASS: TestDirectoryKeepsTheContract ")) {
				t.Errorf("the suite did not run:\n%s", out)
			}
		})
	}
}

// denyCalls makes all threads of the process get the errors of a file system
// that lacks link, or renameat2's flags.
func denyCalls(names []string) error {
	type deny struct {
		nr  int
		err syscall.Errno
	}
	var calls []deny
	for _, n := range names {
		switch n {
		case "link":
			for _, nr := range linkCalls {
				calls = append(calls, deny{nr, syscall.EPERM})
			}
		case "renameat2":
			calls = append(calls, deny{unix.SYS_RENAMEAT2, syscall.EINVAL})
		}
	}
	f := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // the call's number
	for _, c := range calls {
		f = append(f,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(c.nr), Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(c.err)})
	}
	f = append(f, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	return seccomp(f)
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

// wantNoTemp makes sure that nothing is left of what failed.
func wantNoTemp(t *testing.T, s *Target) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.root, tmpDir))
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	for _, e := range entries {
		t.Errorf("%s is left in %s", e.Name(), tmpDir)
	}
}

func wantObjects(t *testing.T, s *Target, want ...string) {
	t.Helper()
	n := 0
	for info, err := range s.List(context.Background(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n > len(want) || !strings.Contains("\n"+strings.Join(want, "\n")+"\n", "\n"+info.Key+"\n") {
			t.Errorf("unexpected object %s", info.Key)
		}
	}
	if n != len(want) {
		t.Errorf("%d objects, want %q", n, want)
	}
}

func TestAFullDiskIsSaidAndLeavesNothing(t *testing.T) {
	ctx := context.Background()
	for name, options := range map[string]string{"bytes": "size=1m", "inodes": "nr_inodes=8"} {
		t.Run(name, func(t *testing.T) {
			s, err := Open(mountTmpfs(t, options))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Put(ctx, "dir/first", []byte("first")); err != nil {
				t.Fatal(err)
			}
			want := []string{"dir/first"}
			for i := range 10 {
				key := fmt.Sprintf("other%d/object", i)
				if err = s.Put(ctx, key, make([]byte, 300<<10)); err != nil {
					break
				}
				want = append(want, key)
			}
			if !errors.Is(err, store.ErrNoSpace) {
				t.Fatalf("%v, want ErrNoSpace", err)
			}
			wantNoTemp(t, s)
			wantObjects(t, s, want...)
			if data, err := s.Get(ctx, "dir/first", 0, -1); err != nil || string(data) != "first" {
				t.Errorf("the object before reads %q, %v", data, err)
			}
			for _, key := range want[1:] {
				if err := s.Delete(ctx, key); err != nil {
					t.Errorf("delete on a full disk: %v", err)
				}
				os.Remove(filepath.Dir(filepath.Join(s.root, key)))
			}
			os.Remove(filepath.Join(s.root, fmt.Sprintf("other%d", len(want)-1)))
			if err := s.Put(ctx, "dir/second", []byte("second")); err != nil {
				t.Errorf("put after making room: %v", err)
			}
		})
	}
}

func TestAReadOnlyTargetReadsAndRefusesToWrite(t *testing.T) {
	ctx := context.Background()
	dir := mountTmpfs(t, "size=1m")
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(ctx, "dir/object", []byte("content")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"dir/second", "new/object"} {
		if err := s.Put(ctx, key, []byte("x")); !errors.Is(err, store.ErrAccess) {
			t.Errorf("put %s: %v, want ErrAccess", key, err)
		}
	}
	if err := s.Put(ctx, "dir/object", []byte("x")); !errors.Is(err, store.ErrExist) {
		t.Errorf("put over an object: %v, want ErrExist", err)
	}
	if err := s.Delete(ctx, "dir/object"); !errors.Is(err, store.ErrAccess) {
		t.Errorf("delete: %v, want ErrAccess", err)
	}
	if data, err := s.Get(ctx, "dir/object", 0, -1); err != nil || string(data) != "content" {
		t.Errorf("get: %q, %v", data, err)
	}
	wantObjects(t, s, "dir/object")
}

func TestATargetThatVanishesIsNotMadeAnew(t *testing.T) {
	ctx := context.Background()
	root := filepath.Join(t.TempDir(), "target")
	s, err := Create(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(ctx, "dir/object", []byte("content")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(root, root+"-away"); err != nil {
		t.Fatal(err)
	}
	want := func(act string, err error) {
		t.Helper()
		if !errors.Is(err, store.ErrNoTarget) || errors.Is(err, store.ErrNotExist) {
			t.Errorf("%s: %v, want ErrNoTarget alone", act, err)
		}
	}
	want("put", s.Put(ctx, "dir/second", []byte("x")))
	want("put", s.Put(ctx, "new/second", []byte("x")))
	_, err = s.Get(ctx, "dir/object", 0, -1)
	want("get", err)
	_, err = s.Stat(ctx, "dir/object")
	want("stat", err)
	for _, prefix := range []string{"", "dir/", "none/"} {
		err = nil
		for _, err = range s.List(ctx, prefix) {
		}
		want("list "+prefix, err)
	}
	if _, err := os.Lstat(root); !os.IsNotExist(err) {
		t.Errorf("the target is back: %v", err)
	}
	_, err = Open(root)
	want("open", err)
	_, err = Create(filepath.Join(root, "below"))
	want("create", err)
	if err := os.Rename(root+"-away", root); err != nil {
		t.Fatal(err)
	}
	wantObjects(t, s, "dir/object")
}

func TestAFailedPutLeavesNothing(t *testing.T) {
	ctx := context.Background()
	for _, cause := range []error{syscall.EIO, syscall.EACCES, syscall.ENOSPC, syscall.ENOENT} {
		s := newTarget(t)
		s.link = func(from, to string) error { return &os.LinkError{Op: "link", Old: from, New: to, Err: cause} }
		if err := s.Put(ctx, "dir/object", []byte("content")); !errors.Is(err, cause) {
			t.Errorf("put: %v, want %v", err, cause)
		}
		wantNoTemp(t, s)
		wantObjects(t, s)
		s.link = place
		if err := s.Put(ctx, "dir/object", []byte("content")); err != nil {
			t.Errorf("put again after %v: %v", cause, err)
		}
		wantNoTemp(t, s)
	}
	// A directory where the object's own would be.
	s := newTarget(t)
	if err := os.WriteFile(filepath.Join(s.root, "dir"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(ctx, "dir/object", []byte("content")); err == nil {
		t.Error("put below a file is no error")
	}
	wantNoTemp(t, s)
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Put(ctx, "x", []byte("content")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled put: %v", err)
	}
	wantNoTemp(t, s)
}

func TestOldTemporaryFilesGoAndFreshOnesStay(t *testing.T) {
	s := newTarget(t)
	tmp := filepath.Join(s.root, tmpDir)
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for name, age := range map[string]time.Duration{"old": 25 * time.Hour, "fresh": time.Hour, "future": -time.Hour} {
		path := filepath.Join(tmp, name)
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now, now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Put(context.Background(), "x", nil); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"old": false, "fresh": true, "future": true} {
		if _, err := os.Lstat(filepath.Join(tmp, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func reexec(t *testing.T, act, root string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), envChild+"="+act, envRoot+"="+root)
	cmd.Stderr = os.Stderr
	return cmd
}

func wantKilled(t *testing.T, err error) {
	t.Helper()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("child: %v, want it killed", err)
	}
}

func TestAPutThatIsKilledIsWholeOrNotThere(t *testing.T) {
	ctx := context.Background()
	t.Run("before link", func(t *testing.T) {
		s := newTarget(t)
		wantKilled(t, reexec(t, "before link", s.root).Run())
		wantObjects(t, s)
		if err := s.Put(ctx, "dir/object", []byte("other")); err != nil {
			t.Errorf("put after it: %v", err)
		}
		wantObjects(t, s, "dir/object")
	})
	t.Run("after link", func(t *testing.T) {
		s := newTarget(t)
		wantKilled(t, reexec(t, "after link", s.root).Run())
		wantObjects(t, s, "dir/object")
		if data, err := s.Get(ctx, "dir/object", 0, -1); err != nil || string(data) != "content" {
			t.Errorf("%q, %v", data, err)
		}
		if err := s.Put(ctx, "dir/object", []byte("other")); !errors.Is(err, store.ErrExist) {
			t.Errorf("put after it: %v, want ErrExist", err)
		}
	})
	t.Run("somewhere", func(t *testing.T) {
		for round := range 5 {
			s := newTarget(t)
			cmd := reexec(t, "endless", s.root)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			begun, done := map[string]bool{}, map[string]bool{}
			for lines := bufio.NewScanner(out); lines.Scan(); {
				what, key, _ := strings.Cut(lines.Text(), " ")
				begun[key] = true
				if what == "done" {
					done[key] = true
				}
				// After an odd number of lines it is inside of a Put.
				if len(begun)+len(done) == 2*round+3 {
					cmd.Process.Kill()
				}
			}
			wantKilled(t, cmd.Wait())
			found := map[string]bool{}
			for info, err := range s.List(ctx, "") {
				if err != nil {
					t.Fatal(err)
				}
				found[info.Key] = true
				if info.Size != 4<<20 || !begun[info.Key] {
					t.Errorf("%s of %d bytes", info.Key, info.Size)
				}
			}
			for key := range done {
				if !found[key] {
					t.Errorf("%s was put and is not there", key)
				}
			}
			if len(done) == 0 {
				t.Error("the child put nothing")
			}
		}
	})
}
