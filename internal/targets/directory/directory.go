// Package directory keeps objects as files below a directory: a local disk, a
// bind mount, or anything that is mounted.
//
// An object is written under a temporary name in tmp/, synced, and linked into
// place: link(2) never replaces, so nothing is ever overwritten or seen in
// part. What a killed run leaves in tmp/ is removed a day later.
package directory

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/store"
)

const (
	tmpDir   = "tmp"
	dirMode  = 0o750
	fileMode = 0o640
	// leftoverAge is when a temporary file belongs to nobody any more.
	leftoverAge = 24 * time.Hour
)

// Target is a directory of objects. It implements store.Writer.
type Target struct {
	root string
	link func(from, to string) error // place without replacing; a test's hook
	tidy sync.Once
}

// Open returns the target in an existing directory.
func Open(path string) (*Target, error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: there is no directory %s; check the path, or whether its disk is mounted", store.ErrNoTarget, path)
	case err != nil:
		return nil, explain("open", path, err)
	case !st.IsDir():
		return nil, fmt.Errorf("%w: %s is not a directory", store.ErrNoTarget, path)
	}
	return &Target{root: path, link: place}, nil
}

// Create returns the target in a directory that it makes where only its last
// component is missing: a disk that is not mounted is not written beside.
func Create(path string) (*Target, error) {
	if err := os.Mkdir(path, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: there is no directory %s to make %s in; check the path, or whether its disk is mounted", store.ErrNoTarget, filepath.Dir(path), filepath.Base(path))
		}
		return nil, explain("create", path, err)
	}
	return Open(path)
}

// Location implements store.Reader.
func (t *Target) Location() string { return t.root }

func (t *Target) path(key string) (string, error) {
	if err := store.CheckKey(key); err != nil {
		return "", err
	}
	if key == tmpDir || strings.HasPrefix(key, tmpDir+"/") {
		return "", fmt.Errorf("object key %q: %s is for temporary files", key, tmpDir)
	}
	return filepath.Join(t.root, filepath.FromSlash(key)), nil
}

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

func (t *Target) put(ctx context.Context, path string, data []byte) (err error) {
	if _, err := os.Lstat(path); err == nil {
		return store.ErrExist // before its content is written for nothing
	}
	tmp, err := t.temp(data)
	if err != nil {
		return err
	}
	defer func() {
		if rerr := os.Remove(tmp); err == nil && rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = rerr
		}
	}()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := makeDirs(t.root, filepath.Dir(path)); err != nil {
		return err
	}
	if err := t.link(tmp, path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return store.ErrExist
		}
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
	_, err = f.Write(data)
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

// place gives a file its name without replacing another: by link, or where the file
// system has no links by a rename that refuses, or behind a reservation.
func place(from, to string) error {
	err := os.Link(from, to)
	if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EOPNOTSUPP) && !errors.Is(err, syscall.EMLINK) && !errors.Is(err, syscall.ENOSYS) {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOSYS) && !errors.Is(err, syscall.EOPNOTSUPP) {
		if err != nil {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
		return nil
	}
	// Whoever makes the reservation may rename; a killed one blocks this name only.
	// Its name is the whole path's: a run's packs and index packs share their last components.
	sum := sha256.Sum256([]byte(to))
	lock := filepath.Join(filepath.Dir(from), "lock-"+hex.EncodeToString(sum[:16]))
	if err := os.Mkdir(lock, dirMode); err != nil {
		return err
	}
	defer os.Remove(lock)
	if _, err := os.Lstat(to); err == nil {
		return fs.ErrExist
	}
	return os.Rename(from, to)
}

// makeDirs makes the directories down to dir, each durable before it is used.
func makeDirs(root, dir string) error {
	if dir == root {
		return nil
	}
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	if _, err := os.Stat(root); err != nil {
		return err // a target that vanished is not made anew
	}
	if err := makeDirs(root, filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func syncDir(dir string) error {
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

// Get implements store.Getter.
func (t *Target) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	path, err := t.path(key)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	data, err := get(path, off, n)
	if err != nil {
		return nil, t.explain("read", key, err)
	}
	return data, nil
}

func get(path string, off, n int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ENOTDIR) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		return nil, fs.ErrNotExist // a prefix of keys
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	if n < 0 {
		n = max(st.Size()-off, 0)
	}
	if off < 0 || off > st.Size() || n > st.Size()-off {
		return nil, fmt.Errorf("%w: has %d bytes, wanted %d from %d", store.ErrShort, st.Size(), n, off)
	}
	data := make([]byte, n)
	if _, err := f.ReadAt(data, off); err != nil {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: it was cut while it was read", store.ErrShort)
		}
		return nil, err
	}
	return data, nil
}

// Stat implements store.Getter.
func (t *Target) Stat(ctx context.Context, key string) (store.Info, error) {
	path, err := t.path(key)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return store.Info{}, err
	}
	st, err := os.Lstat(path)
	if errors.Is(err, syscall.ENOTDIR) || err == nil && !st.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return store.Info{}, t.explain("stat", key, err)
	}
	return store.Info{Key: key, Size: st.Size()}, nil
}

// List implements store.Lister. What is not a regular file with an object's
// name is none of ours, except at the top, where it tells a foreign directory.
func (t *Target) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		if prefix != "" && !strings.HasSuffix(prefix, "/") {
			yield(store.Info{}, fmt.Errorf("list %q: a prefix ends in a slash", prefix))
			return
		}
		top := filepath.Join(t.root, filepath.FromSlash(prefix))
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if absent(err) {
				if path == top {
					_, err := os.Stat(t.root)
					return err
				}
				return nil
			}
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(t.root, path)
			if err != nil {
				return err
			}
			if path == top && prefix != "" && !d.IsDir() {
				return nil // an object's key and a slash
			}
			if d.IsDir() {
				if rel == tmpDir || rel == "lost+found" {
					return fs.SkipDir
				}
				return nil
			}
			st, err := d.Info()
			if err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				return err
			}
			if !yield(store.Info{Key: filepath.ToSlash(rel), Size: st.Size()}, nil) {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			yield(store.Info{}, t.explain("list", prefix, err))
		}
	}
}

// Delete implements store.Deleter.
func (t *Target) Delete(ctx context.Context, key string) error {
	path, err := t.path(key)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	// Not os.Remove: a directory is a prefix of keys and no object.
	err = unix.Unlink(path)
	if absent(err) || errors.Is(err, syscall.EISDIR) {
		return nil
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil && !absent(err) {
		return t.explain("delete", key, err)
	}
	return nil
}

// absent says that there is nothing of a name, a part of which may be a file's.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// explain is the package's explain for an object; where the target itself is
// gone it says that.
func (t *Target) explain(act, key string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		if _, rerr := os.Stat(t.root); rerr != nil {
			return fmt.Errorf("%s %s: %w: %s is gone; is its disk still mounted?", act, key, store.ErrNoTarget, t.root)
		}
	}
	return explain(act, key, err)
}

// explain gives an error the sentinel that callers ask for, and says the act.
func explain(act, what string, err error) error {
	var kind error
	switch {
	case errors.Is(err, store.ErrShort), errors.Is(err, store.ErrExist), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s %s: %w", act, what, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		kind = store.ErrNoSpace
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EROFS):
		kind = store.ErrAccess
	case errors.Is(err, fs.ErrNotExist):
		kind = store.ErrNotExist
	default:
		return fmt.Errorf("%s %s: %w", act, what, err)
	}
	return fmt.Errorf("%s %s: %w (%w)", act, what, kind, err)
}
