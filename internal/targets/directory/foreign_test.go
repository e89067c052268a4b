package directory

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/store"
)

func put(t *testing.T, s store.Putter, key string) {
	t.Helper()
	if err := s.Put(context.Background(), key, []byte("content")); err != nil {
		t.Fatal(err)
	}
}

func TestATargetThatIsASymbolicLinkIsAnEmptyOneLikeOthers(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	s, err := Open(link)
	if err != nil {
		t.Fatal(err)
	}
	wantObjects(t, s)
	put(t, s, "dir/object")
	wantObjects(t, s, "dir/object")
}

func TestWhatIsNoObjectIsNotListedNorFollowed(t *testing.T) {
	s := newTarget(t)
	put(t, s, "dir/object")
	for _, name := range []string{".DS_Store", "dir/.nfs0001", ".snapshots/object", "tmp/left", "lost+found/x"} {
		path := filepath.Join(s.root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("/etc/passwd", filepath.Join(s.root, "dir/link")), unix.Mkfifo(filepath.Join(s.root, "dir/fifo"), 0o600)); err != nil {
		t.Fatal(err)
	}
	wantObjects(t, s, "dir/object")
	for _, key := range []string{"dir/link", "dir/fifo"} {
		if _, err := s.Get(context.Background(), key, 0, -1); err == nil {
			t.Errorf("get %s is no error", key)
		}
	}
	// At the top it tells that the directory is somebody else's.
	if err := os.Symlink("/etc/passwd", filepath.Join(s.root, "foreign")); err != nil {
		t.Fatal(err)
	}
	wantObjects(t, s, "dir/object", "foreign")
}

func TestAPrefixDoesNotLeaveTheTarget(t *testing.T) {
	base := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(base, "other"), 0o700), os.WriteFile(filepath.Join(base, "other/secret"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	s, err := Create(filepath.Join(base, "target"))
	if err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"../other/", "a/../../other/", "/", "./", "a//"} {
		var got error
		for info, err := range s.List(context.Background(), prefix) {
			if got = err; err == nil {
				t.Errorf("list %q: %s", prefix, info.Key)
			}
		}
		if got == nil {
			t.Errorf("list %q is no error", prefix)
		}
	}
}

func TestDeleteInATargetThatVanishedIsAnError(t *testing.T) {
	s, err := Create(filepath.Join(t.TempDir(), "target"))
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "dir/object")
	if err := os.Rename(s.root, s.root+"-away"); err != nil {
		t.Fatal(err)
	}
	for _, replaced := range []bool{false, true} {
		if replaced {
			if err := os.WriteFile(s.root, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for act, err := range map[string]error{"delete": s.Delete(context.Background(), "dir/object"), "put": s.Put(context.Background(), "dir/x", nil)} {
			if !errors.Is(err, store.ErrNoTarget) {
				t.Errorf("%s, a file in its place %v: %v, want ErrNoTarget", act, replaced, err)
			}
		}
	}
}

// A killed run's reservation is not an object.
func TestAReservationThatIsLeftIsNotTakenForTheObject(t *testing.T) {
	s := newTarget(t)
	to := filepath.Join(s.root, "object")
	s.link = func(string, string) error { return errCannotPlace }
	put(t, s, "first")
	wantNoTemp(t, s)
	lock := reservation(filepath.Join(s.root, tmpDir), to)
	if err := os.Mkdir(lock, 0o700); err != nil {
		t.Fatal(err)
	}
	err := s.Put(context.Background(), "object", nil)
	if err == nil || errors.Is(err, store.ErrExist) {
		t.Errorf("put: %v, want an error that is not ErrExist", err)
	}
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	put(t, s, "object")
}

func TestALinkWhoseAnswerWasLostIsMade(t *testing.T) {
	s := newTarget(t)
	s.link = func(from, to string) error {
		if err := os.Link(from, to); err != nil {
			return err
		}
		return &os.LinkError{Op: "link", Old: from, New: to, Err: syscall.EEXIST}
	}
	put(t, s, "dir/object")
	if err := s.Put(context.Background(), "dir/object", nil); !errors.Is(err, store.ErrExist) {
		t.Errorf("put again: %v, want ErrExist", err)
	}
	wantNoTemp(t, s)
}

func TestTemporariesAreNoKeysAndModesAreTight(t *testing.T) {
	s := newTarget(t)
	put(t, s, "dir/object")
	for _, key := range []string{"tmp", "tmp/x"} {
		if err := s.Put(context.Background(), key, nil); err == nil {
			t.Errorf("put %s is no error", key)
		}
	}
	var got []os.FileMode
	for _, name := range []string{"dir", "dir/object"} {
		st, err := os.Stat(filepath.Join(s.root, name))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, st.Mode().Perm()&^0o750)
	}
	if !slices.Equal(got, []os.FileMode{0, 0}) {
		t.Errorf("modes beyond 0750 and 0640: %v", got)
	}
}
