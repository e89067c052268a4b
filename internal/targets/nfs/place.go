package nfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/disko/backupd/internal/store"
)

// place gives a temporary file its name without replacing another: by link,
// or where the server's file system has no links by rename after a look.
func (t *Target) place(ctx context.Context, s *session, tmp *temporary, dir handle, name, key string) error {
	err := s.link(tmp.handle, dir, name)
	switch {
	case says(err, statExist):
		// A server that gets the call twice says so of its own link, too.
		n, err := s.lookup(dir, name)
		if err != nil {
			return err
		}
		if n.fsid == tmp.fsid && n.file == tmp.file {
			return nil
		}
		return store.ErrExist
	case says(err, statNoEnt):
		return statStale // the directory was removed since it was looked up
	case says(err, statNotSupp, statPerm, statMLink):
		return t.reserve(ctx, s, tmp, dir, name, key)
	}
	return err
}

// reserve is place without links. A rename replaces, so whoever made the
// reservation, a directory, looks and renames; others must not.
func (t *Target) reserve(ctx context.Context, s *session, tmp *temporary, dir handle, name, key string) error {
	select {
	case t.placing <- struct{}{}: // this process's own writers do not meet in a reservation
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-t.placing }()
	lock := reservation(key)
	_, taken := s.mkdir(tmp.dir, lock, dirMode)
	if taken != nil && !says(taken, statExist) {
		return taken
	}
	if taken == nil {
		defer func() { _ = s.rmdir(tmp.dir, lock) }() // if not, tidy does it a day later
	}
	_, err := s.lookup(dir, name)
	switch {
	case err == nil:
		return store.ErrExist
	case !absent(err):
		return err
	case taken != nil:
		// Not ErrExist: there is no object, and if the holder was killed there
		// will be none.
		return fmt.Errorf("another process is writing it, or was killed while it did; try again, or remove %s/%s from the target once no backup runs", tmpDir, lock)
	}
	if err := s.rename(tmp.dir, tmp.name, dir, name); err != nil {
		return err
	}
	tmp.made = false
	return nil
}

// reservation is named after the whole key: a run's packs and index packs
// share their last components.
func reservation(key string) string {
	sum := sha256.Sum256([]byte(key))
	return "lock-" + hex.EncodeToString(sum[:16])
}
