package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/disko/backupd/internal/bytesize"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/targets/directory"
)

// undoStack is the stack's name in an undo's repository.
const undoStack = "undo"

// keeper keeps what a restore takes away from one volume, in a repository of
// its own in the state directory: one restore back, no more.
type keeper struct {
	a     *app
	dir   string // the undo that can be asked for
	next  string // the one that is being written
	limit int64  // bytes
	swap  bool   // the new one replaces the old only after the restore: an undo reads the old
}

func (a *app) keeper(s snapshot.Source, f restoreFlags) *keeper {
	sum := sha256.Sum256([]byte(s.Path))
	dir := filepath.Join(a.stateDir, "undo", fmt.Sprintf("%s-%x", s.Name, sum[:6]))
	return &keeper{a: a, dir: dir, next: dir + ".next", limit: f.undoLimit << 20}
}

// keep implements snapshot.RestoreOptions.Undo.
func (k *keeper) keep(ctx context.Context, u snapshot.UndoRequest) error {
	if k.a.stateDir == "" {
		return errors.New("there is no state directory; name one with --state-dir")
	}
	if u.Bytes > k.limit {
		return fmt.Errorf("%s would have to be kept, the limit is %s; raise it with --undo-limit", bytesize.Text(u.Bytes), bytesize.Text(k.limit))
	}
	if err := os.RemoveAll(k.next); err != nil {
		return err
	}
	if err := os.MkdirAll(k.next, 0o700); err != nil {
		return err
	}
	if free, known := freeSpace(k.next); known && free < u.Bytes {
		return fmt.Errorf("%s would have to be kept, and %s has %s left; free space, or name another with --state-dir", bytesize.Text(u.Bytes), k.next, bytesize.Text(free))
	}
	st, err := directory.Open(k.next)
	if err != nil {
		return err
	}
	lock, err := k.a.undoLock()
	if err != nil {
		return err
	}
	repo, err := snapshot.Ensure(ctx, st, snapshot.Options{Credentials: lock})
	if err != nil {
		return err
	}
	defer collect(collectPacking)()
	sum, err := repo.Backup(ctx, st, snapshot.BackupOptions{
		Stack: undoStack, Volumes: []snapshot.Source{{Name: u.Volume, Path: u.Path}}, Pick: u.Pick, Trigger: "undo", Version: version,
	})
	if err != nil {
		return err
	}
	if sum.Warned() {
		return fmt.Errorf("some files cannot be read, first %s", sum.Volumes[0].Warnings[0])
	}
	if k.swap {
		return nil
	}
	return k.replace()
}

// undoLock is what an undo is encrypted with: as the target is, for whoever restores.
func (a *app) undoLock() (*snapshot.Credentials, error) {
	c, err := a.secrets.credentials()
	if c != nil {
		c.Agent = nil // it has the target's repository only
	}
	return c, err
}

// replace makes the undo just written the one that can be asked for.
func (k *keeper) replace() error {
	if err := os.RemoveAll(k.dir); err != nil {
		return err
	}
	return os.Rename(k.next, k.dir)
}

// restoreUndo brings back what was there before the last restore. It can be undone itself.
func (a *app) restoreUndo(ctx context.Context, name string, f restoreFlags) error {
	if name != "" || len(f.include) > 0 {
		return fmt.Errorf("%w: --undo takes neither a snapshot nor --include: it brings back all that the last restore took away", snapshot.ErrUsage)
	}
	ag, err := a.agent(ctx)
	if err != nil {
		return err
	}
	defer ag.Close()
	if done, err := a.restoreByWorker(ctx, ag, "", f); done || err != nil {
		return err
	}
	sources, err := volumes(f.volumes)
	if err != nil {
		return err
	}
	if sources, err = a.kept(sources, f); err != nil { // before anything is stopped for it
		return err
	}
	f.force = true
	return a.restoreAll(ctx, ag, sources, f, func(s snapshot.Source, o snapshot.RestoreOptions) (*snapshot.RestoreStats, error) {
		k := a.keeper(s, f)
		k.swap = true
		st, err := directory.Open(k.dir)
		if err != nil {
			return nil, err
		}
		lock, err := a.undoLock()
		if err != nil {
			return nil, err
		}
		repo, err := snapshot.Open(ctx, st, snapshot.Options{Credentials: lock})
		if errors.Is(err, snapshot.ErrKey) && lock != nil { // perhaps kept by a restore from a target that is not encrypted
			if plain, perr := snapshot.Open(ctx, st, snapshot.Options{}); perr == nil {
				repo, err = plain, nil
			}
		}
		if err != nil {
			return nil, err
		}
		m, err := repo.Find(ctx, undoStack, "")
		if err != nil {
			return nil, err
		}
		o.Undo = k.keep
		stats, err := repo.Restore(ctx, m, o)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(k.next); errors.Is(err, fs.ErrNotExist) {
			return stats, nil
		}
		return stats, k.replace()
	})
}

// kept are the volumes for which there is something to bring back. One that was
// named must have it.
func (a *app) kept(sources []snapshot.Source, f restoreFlags) ([]snapshot.Source, error) {
	var out []snapshot.Source
	for _, s := range sources {
		_, err := os.Stat(a.keeper(s, f).dir)
		if err == nil {
			out = append(out, s)
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("look for what is kept of volume %s: %w", s.Name, err)
		}
		if len(f.volumes) > 0 && !f.ifThere {
			return nil, fmt.Errorf("%w: nothing is kept for volume %s in %s: no restore changed it from here, or with another --state-dir", snapshot.ErrNoSnapshot, s.Name, s.Path)
		}
	}
	if len(out) == 0 && len(sources) > 0 {
		return nil, fmt.Errorf("%w: nothing is kept for any volume: no restore changed one from here, or with another --state-dir", snapshot.ErrNoSnapshot)
	}
	return out, nil
}
