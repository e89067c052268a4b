// Package nfs keeps objects as files on an NFS version 3 server (RFC 1813),
// which it talks to itself: nothing is mounted, and no privilege is needed.
//
// An object is written under a temporary name in tmp/, committed to the
// server's stable storage, its size is checked, and it is placed by a hard
// link, which never replaces; where the server has none, by a rename after a
// look, see place. CREATE, LINK and MKDIR are durable once they are answered
// (RFC 1813, section 4.7), if the server keeps to it: exports with "async" do not.
//
// Every operation has a connection of its own while it runs, with several READs
// or WRITEs under way on it. The package repeats nothing that failed, but that
// a stale handle is looked up once more, and that what a server lost before the
// commit is sent again. It speaks neither Kerberos nor version 4, and does no
// locking. ADR 12 tells why the client is our own.
package nfs

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync/atomic"
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
	tidy atomic.Bool // one was done, or is under way
	// placing is held by the one writer of this process that places by rename.
	placing chan struct{}
}

var _ store.Writer = (*Target)(nil)

// Open mounts, and returns the target in an existing directory.
func Open(ctx context.Context, o Options) (*Target, error) {
	t, err := newTarget(o)
	if err != nil {
		return nil, err
	}
	if err := t.run(ctx, func(*session) error { return nil }); err != nil {
		return nil, t.giveUp("open", err)
	}
	return t, nil
}

// Create is Open, but makes the directory where only the last component of its
// path is missing, and an export is above it: a disk that is not mounted is not
// written beside.
func Create(ctx context.Context, o Options) (*Target, error) {
	t, err := Open(ctx, o)
	if !errors.Is(err, store.ErrNoTarget) {
		return t, err
	}
	above := o
	above.Path = path.Dir(path.Clean(o.Path))
	parent, perr := newTarget(above)
	if perr != nil || above.Path == o.Path {
		return nil, err // an export is never made
	}
	defer parent.pool.close()
	perr = parent.pool.run(ctx, func(s *session) error {
		_, err := s.mkdir(s.export.dir, path.Base(o.Path), dirMode)
		if says(err, statExist) {
			return nil
		}
		return err
	})
	switch {
	case errors.Is(perr, store.ErrNoTarget):
		return nil, err // it says what is missing
	case perr != nil:
		return nil, parent.explain("create", o.location(), perr)
	}
	return Open(ctx, o)
}

func newTarget(o Options) (*Target, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	return &Target{o: o, pool: newPool(o), placing: make(chan struct{}, 1)}, nil
}

func (t *Target) giveUp(act string, err error) error {
	t.pool.close()
	return t.explain(act, t.Location(), err)
}

// Close ends the idle connections, and refuses operations from now on. Those
// under way go on, and close theirs.
func (t *Target) Close() error {
	t.pool.close()
	return nil
}

// Location implements store.Reader.
func (t *Target) Location() string { return t.o.location() }

func checkKey(key string) error {
	if err := store.CheckKey(key); err != nil {
		return err
	}
	if key == tmpDir || strings.HasPrefix(key, tmpDir+"/") {
		return fmt.Errorf("object key %q: %s is for temporary files", key, tmpDir)
	}
	return nil
}

// do runs an operation on an object, and explains its error. Where a handle
// was stale, it is run a second time with fresh ones.
func (t *Target) do(ctx context.Context, act, key string, f func(s *session) error) error {
	if err := checkKey(key); err != nil {
		return err
	}
	return t.explain(act, key, t.run(ctx, f))
}

func (t *Target) run(ctx context.Context, f func(s *session) error) error {
	err := t.pool.run(ctx, f)
	if stale(err) {
		t.pool.forget()
		err = t.pool.run(ctx, f)
	}
	return err
}

// Get implements store.Getter.
func (t *Target) Get(ctx context.Context, key string, off, n int64) (data []byte, err error) {
	err = t.do(ctx, "read", key, func(s *session) error {
		f, err := s.find(key)
		if err != nil {
			return err
		}
		if f.kind != kindFile {
			return errors.New("is not a regular file")
		}
		data, err = s.read(f, off, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

// Stat implements store.Getter.
func (t *Target) Stat(ctx context.Context, key string) (info store.Info, err error) {
	err = t.do(ctx, "stat", key, func(s *session) error {
		f, err := s.find(key)
		if err != nil {
			return err
		}
		if f.kind != kindFile {
			return statNoEnt
		}
		info = store.Info{Key: key, Size: int64(f.size)}
		return nil
	})
	return info, err
}

// Delete implements store.Deleter.
func (t *Target) Delete(ctx context.Context, key string) error {
	return t.do(ctx, "delete", key, func(s *session) error {
		// A look first: a server may let REMOVE take an empty directory, too.
		_, err := s.find(key)
		if err == nil {
			err = s.removeAt(key)
		}
		if absent(err) {
			return nil
		}
		return err
	})
}

func (s *session) removeAt(key string) error {
	dir, name := split(key)
	d, err := s.directory(dir)
	if err != nil {
		return err
	}
	return s.remove(d, name)
}
