package directory

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/disko/backupd/internal/store"
)

// Put implements store.Putter.
func (t *Target) Put(ctx context.Context, key string, data []byte) error {
	path, err := t.path(key)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	if err := t.put(ctx, path, data); err != nil {
		return t.explain("write", key, err)
	}
	return nil
}

func (t *Target) put(ctx context.Context, path string, data []byte) error {
	if _, err := os.Lstat(path); err == nil {
		return store.ErrExist // before its content is written for nothing
	}
	tmp, err := t.temp(data)
	if err != nil {
		return err
	}
	// Where the object is in place, a name that stays is tidied a day later: a
	// mount's time-out must not turn that into an error.
	defer os.Remove(tmp)
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := t.makeDirs(filepath.Dir(path)); err != nil {
		return err
	}
	err = t.link(tmp, path)
	if errors.Is(err, errCannotPlace) {
		err = t.reserve(tmp, path)
	}
	if errors.Is(err, fs.ErrExist) && !same(tmp, path) {
		return store.ErrExist
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// temp writes data to a synced temporary file.
func (t *Target) temp(data []byte) (name string, err error) {
	dir := filepath.Join(t.root, tmpDir)
	if err := os.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	var b [12]byte
	rand.Read(b[:])
	name = filepath.Join(dir, hex.EncodeToString(b[:]))
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return "", err
	}
	err = write(f, data)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		t.tidy.Do(func() { tidy(dir, f) })
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(name)
	}
	return name, err
}

// tidy removes temporary files that are a day older than one just written, by
// the file system's clock alone.
func tidy(dir string, fresh *os.File) {
	now, err := fresh.Stat()
	if err != nil {
		return
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if st, err := e.Info(); err == nil && now.ModTime().Sub(st.ModTime()) > leftoverAge {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// same says that both names are one file's: an NFS server that gets a link
// call twice, because its answer was lost, says EEXIST of what it linked itself.
func same(a, b string) bool {
	sa, erra := os.Lstat(a)
	sb, errb := os.Lstat(b)
	return erra == nil && errb == nil && os.SameFile(sa, sb)
}

// errCannotPlace: the file system has neither links nor a rename that refuses.
var errCannotPlace = errors.New("the file system cannot place a file without replacing")

// enotsupp is the kernel's own number for "not supported", which its NFS client
// lets through to programs (include/linux/errno.h).
const enotsupp = syscall.Errno(524)

// place gives a file its name without replacing another: by link, or where the
// file system has no links by a rename that refuses.
func place(from, to string) error {
	err := os.Link(from, to)
	if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EOPNOTSUPP) && !errors.Is(err, syscall.EMLINK) && !errors.Is(err, syscall.ENOSYS) && !errors.Is(err, enotsupp) {
		return err
	}
	err = renameNew(from, to)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, enotsupp) {
		return errCannotPlace
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// reserve is place for a file system that cannot: whoever makes the
// reservation may rename.
func (t *Target) reserve(from, to string) error {
	t.placing.Lock()
	defer t.placing.Unlock()
	lock := reservation(filepath.Dir(from), to)
	err := os.Mkdir(lock, dirMode)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err == nil {
		defer os.Remove(lock)
	}
	if _, serr := os.Lstat(to); serr == nil {
		return fs.ErrExist
	}
	if err != nil {
		// Not ErrExist: there is no object, and if the holder was killed there
		// will be none. tidy removes its reservation as it removes its file.
		return fmt.Errorf("another process is writing it, or was killed while it did; try again, or remove %s once no backup runs", lock)
	}
	return os.Rename(from, to)
}

// reservation is named after the whole path: a run's packs and index packs
// share their last components.
func reservation(tmp, to string) string {
	sum := sha256.Sum256([]byte(to))
	return filepath.Join(tmp, "lock-"+hex.EncodeToString(sum[:16]))
}

// makeDirs makes the directories down to dir, each durable before it is used.
func (t *Target) makeDirs(dir string) error {
	if dir == t.root {
		return nil
	}
	if _, ok := t.durable.Load(dir); ok {
		if st, err := os.Stat(dir); err == nil && st.IsDir() {
			return nil
		}
	}
	if _, err := os.Stat(t.root); err != nil {
		return err // a target that vanished is not made anew
	}
	if err := t.makeDirs(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return err
	}
	t.durable.Store(dir, nil)
	return nil
}

func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // there is no such thing: names are durable with the journal
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = f.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EOPNOTSUPP) {
		err = nil // some network and FUSE file systems cannot, and have nothing to sync
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
