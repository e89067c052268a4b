// Package snapshots lets the engine's repositories be what stacks are seeded
// from: seed.Source over snapshot.Repository. It decides nothing.
package snapshots

import (
	"context"
	"errors"
	"fmt"

	"github.com/disko/backupd/internal/seed"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// Source implements seed.Source. The repository is opened when something is
// asked for first: a stack with nothing fresh does not need its target.
type Source struct {
	// Open opens the repository. snapshot.ErrNoRepository means that there is none yet.
	Open  func(ctx context.Context) (*snapshot.Repository, error)
	Stack string // whose snapshots
	// From is the snapshot that the user wants: as Repository.Find understands
	// it. Empty and "latest" are the same, and then that there is none is no error of the user's.
	From string
	// Pick finds From; nil is Repository.Find.
	Pick func(ctx context.Context, r *snapshot.Repository) (*snapshot.Manifest, error)
	// NoOwner leaves owners as they come, for users who may not set them.
	NoOwner  bool
	Progress *snapshot.Progress
	Warn     func(volume string, w snapshot.Warning)
	// Restored, where set, is told what each restore did.
	Restored func(*snapshot.RestoreStats)

	repo      *snapshot.Repository
	manifests map[string]*snapshot.Manifest
}

var _ seed.Source = (*Source)(nil)

// Close closes the repository, if it was opened.
func (s *Source) Close() {
	if s.repo != nil {
		s.repo.Close()
	}
}

func (s *Source) open(ctx context.Context) (*snapshot.Repository, error) {
	if s.repo == nil {
		repo, err := s.Open(ctx)
		if err != nil {
			return nil, err
		}
		s.repo = repo
	}
	return s.repo, nil
}

func (s *Source) latest() bool { return s.From == "" || s.From == "latest" }

// Latest implements seed.Source.
func (s *Source) Latest(ctx context.Context) (seed.Snapshot, error) {
	repo, err := s.open(ctx)
	var m *snapshot.Manifest
	switch {
	case err != nil:
	case s.Pick != nil:
		m, err = s.Pick(ctx, repo)
	default:
		m, err = repo.Find(ctx, s.Stack, s.From)
	}
	if err != nil {
		// One that the user named must be there; the latest need not be yet.
		if none := errors.Is(err, snapshot.ErrNoSnapshot) || errors.Is(err, snapshot.ErrNoRepository); none && s.latest() {
			return seed.Snapshot{}, fmt.Errorf("%w: %w", seed.ErrNoSnapshot, err)
		}
		return seed.Snapshot{}, err
	}
	return s.note(m), nil
}

// Find implements seed.Source.
func (s *Source) Find(ctx context.Context, id string) (seed.Snapshot, error) {
	repo, err := s.open(ctx)
	var m *snapshot.Manifest
	if err == nil {
		m, err = repo.Find(ctx, s.Stack, id)
	}
	if errors.Is(err, snapshot.ErrNoSnapshot) || errors.Is(err, snapshot.ErrNoRepository) {
		return seed.Snapshot{}, fmt.Errorf("%w: %w", seed.ErrNoSnapshot, err)
	}
	if err != nil {
		return seed.Snapshot{}, err
	}
	return s.note(m), nil
}

func (s *Source) note(m *snapshot.Manifest) seed.Snapshot {
	if s.manifests == nil {
		s.manifests = map[string]*snapshot.Manifest{}
	}
	s.manifests[m.ID()] = m
	out := seed.Snapshot{ID: m.ID(), Taken: m.Finished}
	for _, v := range m.Volumes {
		out.Volumes = append(out.Volumes, v.Name)
	}
	return out
}

// Entries implements seed.Source.
func (s *Source) Entries(ctx context.Context, from seed.Snapshot, volume string, use func(seed.Entry) error) error {
	return s.repo.Walk(ctx, s.manifests[from.ID], volume, index.Root, func(e *index.Entry) error {
		if e.Path == index.Root || e.Kind.Section() == index.Absent {
			return nil
		}
		return use(seed.Entry{Path: e.Path, Kind: kind(e.Kind), Mtime: nanoseconds(e.Mtime), Size: size(e)})
	})
}

func kind(k index.Kind) seed.Kind {
	switch k {
	case index.File:
		return seed.File
	case index.Link:
		return "" // to whatever its holder is
	case index.Dir:
		return seed.Dir
	case index.Symlink:
		return seed.Symlink
	}
	return seed.Other
}

// size is unknown of a hard link: the path that holds the content has it.
func size(e *index.Entry) int64 {
	switch e.Kind {
	case index.File:
		return e.Size
	case index.Link:
		return -1
	}
	return 0
}

func nanoseconds(t tarstream.Time) int64 { return t.Sec*1e9 + int64(t.Nsec) }

// Restore implements seed.Source.
func (s *Source) Restore(ctx context.Context, r seed.Request) error {
	warn := func(snapshot.Warning) {}
	if s.Warn != nil {
		warn = func(w snapshot.Warning) { s.Warn(r.Volume.Name, w) }
	}
	stats, err := s.repo.Restore(ctx, s.manifests[r.Snapshot.ID], snapshot.RestoreOptions{
		Volume: r.Volume.Name, Path: r.Volume.Path, NoOwner: s.NoOwner, Progress: s.Progress, Warn: warn,
		Fresh: &snapshot.Fresh{Discard: r.Wipe, Keep: r.Keep},
	})
	if err == nil && s.Restored != nil {
		s.Restored(stats)
	}
	return err
}
