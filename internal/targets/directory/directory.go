// Package directory keeps objects as files below a directory: a local disk, a
// bind mount, or anything that is mounted.
//
// An object is written under a temporary name in tmp/, synced, and linked into
// place: link(2) never replaces, so nothing is ever overwritten or seen in
// part. What a killed run leaves in tmp/ is removed a day later.
package directory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

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

	// durable has the directories whose names this process has synced. That one
	// exists says nothing: who made it may not have synced it yet, or was killed.
	durable sync.Map
	// placing keeps this process's own writers from meeting in a reservation.
	placing sync.Mutex
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
	err := os.Mkdir(path, dirMode)
	if err == nil {
		// A parent that may be written and not read cannot be synced.
		if err = syncDir(filepath.Dir(path)); errors.Is(err, fs.ErrPermission) {
			err = nil
		}
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
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
	if errors.Is(err, syscall.ESTALE) {
		data, err = get(path, off, n) // its path leads to it anew
	}
	if err != nil {
		return nil, t.explain("read", key, err)
	}
	return data, nil
}

func get(path string, off, n int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|noFollow, 0)
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

// Delete implements store.Deleter.
func (t *Target) Delete(ctx context.Context, key string) error {
	path, err := t.path(key)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	err = unlink(path)
	if absent(err) && t.gone() {
		return t.explain("delete", key, err) // absent, but so is all the rest
	}
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
	if absent(err) && t.gone() {
		return fmt.Errorf("%s %s: %w: %s is gone; is its disk still mounted?", act, key, store.ErrNoTarget, t.root)
	}
	return explain(act, key, err)
}

// gone says that the target's own directory is.
func (t *Target) gone() bool {
	st, err := os.Stat(t.root)
	return absent(err) || err == nil && !st.IsDir()
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
	case errors.Is(err, syscall.ESTALE):
		return fmt.Errorf("%s %s: %w; the NFS mount is stale: mount it again", act, what, err)
	default:
		return fmt.Errorf("%s %s: %w", act, what, err)
	}
	return fmt.Errorf("%s %s: %w (%w)", act, what, kind, err)
}
