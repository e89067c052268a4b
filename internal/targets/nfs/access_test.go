package nfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/testservers"
)

// wantSaid makes sure that an error names what its reader needs.
func wantSaid(t testing.TB, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v; want %q in it", err, part)
		}
	}
}

func TestAPathThatDoesNotExistIsNoTarget(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	if err := os.WriteFile(filepath.Join(s.Dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("elsewhere", filepath.Join(s.Dir, "link")); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for below, part := range map[string]string{"/none": "no directory /export/none", "/none/none": "no directory", "/file": "not a directory", "/file/x": "", "/link": "symbolic link"} {
		_, err := Open(ctx, at(s, below))
		wantOnly(t, "open "+below, err, store.ErrNoTarget)
		wantSaid(t, err, part)
	}
	for _, below := range []string{"/none/none", "/file", "/file/x", "/link"} {
		_, err := Create(ctx, at(s, below))
		wantOnly(t, "create "+below, err, store.ErrNoTarget)
	}
	o := at(s, "")
	for _, path := range []string{"/other", "/other/below", "/"} {
		o.Path = path
		_, err := Create(ctx, o)
		wantOnly(t, "create "+path, err, store.ErrAccess) // so ganesha calls what it does not export
		wantSaid(t, err, "its exports are /export", "check the path")
	}
	o.Host = "no-such-host.invalid"
	_, err := Open(ctx, o)
	if err == nil || !strings.Contains(err.Error(), o.Host) {
		t.Errorf("%v; want the host's name", err)
	}
}

func TestCreateMakesTheLastDirectoryOnly(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	for _, below := range []string{"/one", "/one/two", "/one/two/three", "/one"} {
		target, err := Create(context.Background(), at(s, below))
		if err != nil {
			t.Fatal(err)
		}
		if err := target.Put(context.Background(), "object", []byte(below)); err != nil && below != "/one" {
			t.Error(err)
		}
		if target.Location() != (Options{Host: s.Host, Port: s.Port, Path: s.Export + below}).location() {
			t.Errorf("its location is %s", target.Location())
		}
		target.Close()
		if err := target.Put(context.Background(), "closed", nil); !errors.Is(err, errClosed) {
			t.Errorf("put to a closed target: %v", err)
		}
	}
}

func TestAnExportThatIsRefusedIsNotGoneRound(t *testing.T) {
	// On the server another disk is mounted at /export/disk, for others only:
	// below /export there is but the empty directory it is mounted on.
	s := testservers.Ganesha(t, testservers.NFSOptions{Refused: map[string]string{"/export/disk": t.TempDir(), "/alone": t.TempDir()}})
	if err := os.Mkdir(filepath.Join(s.Dir, "disk"), 0o777); err != nil {
		t.Fatal(err)
	}
	o := at(s, "")
	for _, path := range []string{"/export/disk", "/export/disk/below", "/alone", "/alone/below"} {
		o.Path = path
		for name, do := range map[string]func(context.Context, Options) (*Target, error){"open": Open, "create": Create} {
			_, err := do(context.Background(), o)
			wantOnly(t, name+" "+path, err, store.ErrAccess)
			wantSaid(t, err, "does not export", "add this machine")
		}
	}
	// Who knows that it is a plain directory may say so.
	o.Path, o.Export = "/export/disk/below", "/export"
	if _, err := Create(context.Background(), o); err != nil {
		t.Error(err)
	}
}

func TestAnExportForKerberosIsAccessDenied(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{Security: "krb5"})
	_, err := Open(context.Background(), at(s, ""))
	wantOnly(t, "open", err, store.ErrAccess)
	wantSaid(t, err, "Kerberos", "sec=sys")
}

func TestRootSquashIsExplainedAndAUserIDHelps(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{RootSquash: true})
	if err := os.Chown(s.Dir, 1234, 4321); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	o := at(s, "")
	err := open(t, o).Put(ctx, "d/object", []byte("x"))
	wantOnly(t, "put as root", err, store.ErrAccess)
	wantSaid(t, err, "root_squash", "?uid=N&gid=N")
	_, err = Create(ctx, at(s, "/new"))
	wantOnly(t, "create as root", err, store.ErrAccess)
	wantSaid(t, err, "root_squash", "?uid=N&gid=N")

	o.UID, o.GID = new(uint32(1)), new(uint32(1))
	err = open(t, o).Put(ctx, "d/object", []byte("x"))
	wantOnly(t, "put as another", err, store.ErrAccess)
	wantSaid(t, err, "user 1, group 1")

	o.UID, o.GID = new(uint32(1234)), new(uint32(4321))
	owner := open(t, o)
	if err := owner.Put(ctx, "d/object", []byte("x")); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(s.Dir, "d/object"))
	if err != nil {
		t.Fatal(err)
	}
	if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 1234 || sys.Gid != 4321 || st.Mode() != fileMode || sys.Nlink != 1 {
		t.Errorf("it is %d:%d's, with mode %s and %d links", sys.Uid, sys.Gid, st.Mode(), sys.Nlink)
	}
	_, err = open(t, at(s, "")).Get(ctx, "d/object", 0, -1)
	wantOnly(t, "get as root, who is nobody", err, store.ErrAccess)
}

func TestAReadOnlyExportReadsAndRefusesToWrite(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "there"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := testservers.Ganesha(t, testservers.NFSOptions{Dir: dir, ReadOnly: true})
	target := open(t, at(s, ""))
	wantObject(t, target, "there", []byte("content"))
	err := target.Put(context.Background(), "new", nil)
	wantOnly(t, "put", err, store.ErrAccess)
	wantSaid(t, err, "read-only")
	wantOnly(t, "delete", target.Delete(context.Background(), "there"), store.ErrAccess)
}

func TestThePortmapperTellsThePorts(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	o, err := at(s, "").complete()
	if err != nil {
		t.Fatal(err)
	}
	o.Port, o.MountPort = 0, 0
	// Another process's server may have told the portmapper of itself since, or
	// its rpcbind may have ended with it.
	for range 5 {
		nfs, err := servicePort(context.Background(), o, nfsProgram, 0, "")
		mount, merr := servicePort(context.Background(), o, mountProgram, 0, "")
		if err == nil && merr == nil && nfs == s.Port && mount == s.MountPort {
			if err := open(t, o).Put(context.Background(), "object", nil); err != nil {
				t.Error(err)
			}
			return
		}
		s.Restart(t)
	}
	t.Error("the portmapper never told of the server")
}

func TestAPortWithoutTheServiceIsSaid(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	o := at(s, "")
	o.Port, o.MountPort = s.Port, s.Port
	_, err := Open(context.Background(), o)
	wantOnly(t, "open with the wrong port for MOUNT", err, nil)
	wantSaid(t, err, "MOUNT")
}

func TestRootCallsFromAReservedPort(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	err := open(t, at(s, "")).pool.run(context.Background(), func(s *session) error {
		if !s.reserved() {
			t.Errorf("it calls from %s", s.LocalAddr())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestWhatIsNoObjectIsNotListedNorFollowed(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	target := open(t, at(s, ""))
	ctx := context.Background()
	if err := target.Put(ctx, "dir/object", nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".DS_Store", "dir/.nfs00000000a1b2c3d400000001", ".nfs01", ".snapshot/object", "tmp/left", "lost+found/x"} {
		path := filepath.Join(s.Dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("/etc/passwd", filepath.Join(s.Dir, "dir/link")), syscall.Mkfifo(filepath.Join(s.Dir, "dir/fifo"), 0o600), os.Symlink("dir", filepath.Join(s.Dir, "dir/loop"))); err != nil {
		t.Fatal(err)
	}
	if got := keys(t, target, ""); len(got) != 1 {
		t.Errorf("there are %v", got)
	}
	for _, key := range []string{"dir/link", "dir/fifo", "dir/loop/object"} {
		if _, err := target.Get(ctx, key, 0, -1); err == nil {
			t.Errorf("get %s is no error", key)
		}
		if _, err := target.Stat(ctx, key); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("stat %s: %v", key, err)
		}
	}
	// At the top it tells that the directory is somebody else's.
	if err := errors.Join(os.Symlink("/etc/passwd", filepath.Join(s.Dir, "foreign")), os.WriteFile(filepath.Join(s.Dir, "My Documents"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if got := keys(t, target, ""); len(got) != 3 {
		t.Errorf("there are %v", got)
	}
}

func TestDirectoriesThatWereRemovedAreFoundAnew(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	root := filepath.Join(s.Dir, "target")
	target, err := Create(context.Background(), at(s, "/target"))
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	ctx := context.Background()
	for i, gone := range []string{"a/b", "a", "", "tmp"} {
		if err := target.Put(ctx, "a/b/object", []byte("content")); err != nil && !errors.Is(err, store.ErrExist) {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(root, gone)); err != nil {
			t.Fatal(err)
		}
		if gone == "" {
			if err := os.Mkdir(root, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if got := keys(t, target, ""); gone != "tmp" && len(got) > 0 {
			t.Errorf("without %q there are %v", gone, got)
		}
		if _, err := target.Stat(ctx, "a/b/object"); gone != "tmp" && !errors.Is(err, store.ErrNotExist) {
			t.Errorf("without %q: %v", gone, err)
		}
		if err := target.Put(ctx, fmt.Sprint("a/b/", i), []byte("content")); err != nil {
			t.Errorf("without %q: %v", gone, err)
		}
	}
}

func TestATargetThatVanishedIsNoTarget(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	root := filepath.Join(s.Dir, "target")
	target, err := Create(context.Background(), at(s, "/target"))
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	for _, key := range []string{"there", "d/there"} {
		if err := target.Put(context.Background(), key, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, replaced := range []bool{false, true} {
		if err := os.RemoveAll(root); err != nil {
			t.Fatal(err)
		}
		if replaced {
			if err := os.WriteFile(root, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for name, do := range operations(target) {
			wantOnly(t, name, do(context.Background()), store.ErrNoTarget)
		}
		wantOnly(t, "put below", target.Put(context.Background(), "d/x", nil), store.ErrNoTarget)
		_, err := target.Get(context.Background(), "d/there", 0, 0)
		wantOnly(t, "get below", err, store.ErrNoTarget)
	}
	if _, err := os.Stat(root + "/tmp"); !errors.Is(err, syscall.ENOTDIR) && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the target was made anew: %v", err)
	}
}
