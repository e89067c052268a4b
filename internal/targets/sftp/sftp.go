// Package sftp keeps objects as files on an SSH server, through the SFTP
// subsystem and nothing else: no shell, no program on either side.
//
// An object is written under a temporary name in tmp/, synced, its size is
// checked, and it is placed by a hard link, which never replaces; where the
// server has none, by a rename after a look, see place. A server's key is
// always verified. Every operation has a connection of its own while it runs.
//
// It does not try again what failed, and it cannot sync a directory: the
// protocol has no such request. See put for what is done instead.
package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"strings"
	"sync"
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

// Target is a directory of objects on a server. It implements store.Writer,
// and is safe for concurrent use.
type Target struct {
	o    Options
	pool *pool
	tidy sync.Once

	// placing has a lock for each key that this process is placing: where the
	// server cannot place without replacing, its own writers must not meet.
	placing sync.Map

	linking sync.Mutex
	links   *bool // whether the server makes hard links; nil: not tried yet
}

var _ store.Writer = (*Target)(nil)

// Open connects and returns the target in an existing directory.
func Open(ctx context.Context, o Options) (*Target, error) {
	t, err := newTarget(o)
	if err != nil {
		return nil, err
	}
	err = t.pool.run(ctx, t.exists)
	if err != nil {
		return nil, t.giveUp("open", err)
	}
	return t, nil
}

// Create is Open, but makes the directory where only its last component is
// missing: a disk that is not mounted is not written beside.
func Create(ctx context.Context, o Options) (*Target, error) {
	t, err := newTarget(o)
	if err != nil {
		return nil, err
	}
	err = t.pool.run(ctx, func(s *session) error {
		err := t.exists(s)
		if !errors.Is(err, store.ErrNoTarget) {
			return err
		}
		if err := s.Mkdir(t.o.Path); err != nil {
			if _, perr := s.Stat(path.Dir(t.o.Path)); errors.Is(perr, fs.ErrNotExist) {
				return fmt.Errorf("%w: there is no directory %s to make %s in; check the path, or whether its disk is mounted", store.ErrNoTarget, path.Dir(t.o.Path), path.Base(t.o.Path))
			}
			if _, serr := s.Stat(t.o.Path); serr != nil {
				return err
			}
			return t.exists(s) // somebody else made it, or it is a file
		}
		_ = s.Chmod(t.o.Path, dirMode) // a server may have its own idea of modes
		return t.exists(s)
	})
	if err != nil {
		return nil, t.giveUp("create", err)
	}
	return t, nil
}

func newTarget(o Options) (*Target, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	return &Target{o: o, pool: newPool(o)}, nil
}

func (t *Target) giveUp(act string, err error) error {
	t.pool.close()
	return explain(act, t.Location(), err)
}

// exists says ErrNoTarget unless there is a directory.
func (t *Target) exists(s *session) error {
	st, err := s.Stat(t.o.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: there is no directory %s on %s; check the path, or whether its disk is mounted", store.ErrNoTarget, t.o.Path, t.o.Host)
	case err != nil:
		return err
	case !st.IsDir():
		return fmt.Errorf("%w: %s on %s is not a directory", store.ErrNoTarget, t.o.Path, t.o.Host)
	}
	return nil
}

// Close ends the idle connections, and refuses operations from now on. Those
// under way go on, and close theirs.
func (t *Target) Close() error {
	t.pool.close()
	return nil
}

// Location implements store.Reader.
func (t *Target) Location() string { return t.o.location() }

func (t *Target) path(key string) (string, error) {
	if err := store.CheckKey(key); err != nil {
		return "", err
	}
	if key == tmpDir || strings.HasPrefix(key, tmpDir+"/") {
		return "", fmt.Errorf("object key %q: %s is for temporary files", key, tmpDir)
	}
	return path.Join(t.o.Path, key), nil
}

// do runs an operation on an object, and explains its error.
func (t *Target) do(ctx context.Context, act, key string, f func(s *session, file string) error) error {
	file, err := t.path(key)
	if err != nil {
		return err
	}
	err = t.pool.run(ctx, func(s *session) error { return t.diagnose(s, f(s, file)) })
	return explain(act, key, err)
}

// Get implements store.Getter.
func (t *Target) Get(ctx context.Context, key string, off, n int64) (data []byte, err error) {
	err = t.do(ctx, "read", key, func(s *session, file string) error {
		data, err = t.get(s, file, off, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

func (t *Target) get(s *session, file string, off, n int64) ([]byte, error) {
	// Not after opening: to open a FIFO waits for its writer.
	st, err := t.lstat(s, file)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	size := st.Size()
	if n < 0 {
		n = max(size-off, 0)
	}
	if off < 0 || off > size || n > size-off || n > math.MaxInt {
		return nil, fmt.Errorf("%w: has %d bytes, wanted %d from %d", store.ErrShort, size, n, off)
	}
	data := make([]byte, n)
	if n == 0 {
		return data, nil
	}
	f, err := s.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if got, err := f.ReadAt(data, off); int64(got) != n {
		if err == nil || errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: it was cut while it was read", store.ErrShort)
		}
		return nil, err
	}
	return data, nil
}

// Stat implements store.Getter.
func (t *Target) Stat(ctx context.Context, key string) (info store.Info, err error) {
	err = t.do(ctx, "stat", key, func(s *session, file string) error {
		st, err := t.lstat(s, file)
		if err != nil {
			return err
		}
		if !st.Mode().IsRegular() {
			return fs.ErrNotExist
		}
		info = store.Info{Key: key, Size: st.Size()}
		return nil
	})
	return info, err
}

// Delete implements store.Deleter.
func (t *Target) Delete(ctx context.Context, key string) error {
	return t.do(ctx, "delete", key, func(s *session, file string) error {
		// A look first: the client's Remove would take an empty directory, too,
		// and a directory is a prefix of keys and no object.
		_, err := t.lstat(s, file)
		if err == nil {
			if err = s.Remove(file); err != nil {
				err = writeError{err, 0}
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return t.exists(s) // absent, or is all the rest as well?
		}
		return err
	})
}

// lstat says fs.ErrNotExist of whatever cannot be an object: a directory, or a
// name below a file.
func (t *Target) lstat(s *session, file string) (fs.FileInfo, error) {
	st, err := s.Lstat(file)
	if err == nil && st.IsDir() || err != nil && t.belowFile(s, file, err) {
		return nil, fs.ErrNotExist
	}
	return st, err
}

// belowFile says that a component of a path is a file. Servers call that a
// mere failure, as so many other things.
func (t *Target) belowFile(s *session, file string, err error) bool {
	if !unspecific(err) {
		return false
	}
	for dir := path.Dir(file); len(dir) > len(t.o.Path); dir = path.Dir(dir) {
		if st, err := s.Lstat(dir); err == nil {
			return !st.IsDir() && st.Mode()&fs.ModeSymlink == 0
		}
	}
	return false
}
