package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/store"
)

// Place is one of several targets of a backup: its repository, and the store
// to write through.
type Place struct {
	Repo  *Repository
	Store store.Writer
}

// PlaceResult tells what became of a backup in one of its places.
type PlaceResult struct {
	Target   string `json:"target"`
	ID       string `json:"id,omitempty"` // the snapshot's id there
	CaughtUp int    `json:"caught_up"`    // earlier snapshots that were missing there and were copied
	Err      error  `json:"-"`
	Error    string `json:"error,omitempty"`
}

// tee takes what a backup writes to a second place as well. The first error
// ends it: what it misses is copied afterwards.
type tee struct {
	place  Place
	w      store.Writer
	intent *intents

	mu  sync.Mutex
	err error
}

func (t *tee) failed() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

func (t *tee) fail(err error) {
	t.mu.Lock()
	if t.err == nil {
		t.err = err
	}
	t.mu.Unlock()
}

func (t *tee) put(ctx context.Context, key string, data []byte, cached bool) {
	if t.failed() != nil {
		return
	}
	if cached {
		t.place.Repo.cache.put(key, data)
	}
	if t.place.Repo.keys == nil {
		// A failure here does not end the run, and the memory is used again: a
		// connection that was given up may still be sending from it.
		data = slices.Clone(data)
	}
	if err := t.intent.put(ctx, key, data); err != nil {
		t.fail(err)
	}
}

// put writes an object to the target, and to the other places at the same time.
func (b *backupRun) put(ctx context.Context, key string, data []byte, cached bool) error {
	var wg sync.WaitGroup
	for _, t := range b.tees {
		wg.Go(func() { t.put(ctx, key, data, cached) })
	}
	if cached {
		b.r.cache.put(key, data)
	}
	err := b.intent.put(ctx, key, data)
	wg.Wait()
	if errors.Is(err, store.ErrNoSpace) {
		err = fmt.Errorf("%w; free space there, or have `backupd forget` and `backupd prune` delete old snapshots", err)
	}
	if err != nil {
		return &placeError{fmt.Errorf("write to %s: %w", b.r.Location(), err)}
	}
	return nil
}

// placeError is the failure of a place, which another one may not have.
type placeError struct{ err error }

func (e *placeError) Error() string { return e.err.Error() }
func (e *placeError) Unwrap() error { return e.err }

// openTees announces the run in the other places.
func (b *backupRun) openTees(ctx context.Context, tees []*tee) {
	for _, t := range tees {
		var err error
		if t.w, err = t.place.Repo.writer(t.place.Store); err == nil {
			t.intent = &intents{r: t.place.Repo, w: t.w, stack: b.o.Stack, run: b.run}
			err = t.intent.begin(ctx)
		}
		if err != nil {
			t.fail(err)
		}
		b.tees = append(b.tees, t)
	}
}

// copied takes back the intents of a place whose packs are in a snapshot now.
func (t *tee) copied(ctx context.Context, m *Manifest) {
	if t.intent != nil {
		t.intent.succeeded(m)
		t.intent.end(ctx)
	}
}

func (b *backupRun) closeTees(ctx context.Context) {
	for _, t := range b.tees {
		if t.intent != nil {
			t.intent.end(ctx)
		}
	}
}

// BackupAll takes one snapshot into several places: the volumes are read and
// compressed once. A place that fails does not stop the others; what it misses
// is copied into it at the end, or by the next run. The error is of a backup
// that succeeded nowhere, or a ThawError. The summary is that of the first place in which it did.
func BackupAll(ctx context.Context, places []Place, o BackupOptions) (*Summary, []PlaceResult, error) {
	places = leadersFirst(ctx, places, o.Stack)
	results := make([]PlaceResult, len(places))
	for i, p := range places {
		results[i].Target = p.Repo.Location()
	}
	var errs []error
	froze := &countedFreezer{Freezer: o.Freeze}
	if o.Freeze != nil {
		o.Freeze = froze
	}
	for i, p := range places {
		others := make([]*tee, len(places))
		for k := i + 1; k < len(places); k++ {
			others[k] = &tee{place: places[k]}
		}
		sum, m, err := p.Repo.backup(ctx, p.Store, o, others[i+1:])
		if sum == nil {
			results[i].Err = err
			errs = append(errs, err)
			if ctx.Err() != nil || !mayPass(err, froze.n > 0) {
				break
			}
			continue
		}
		results[i].ID = sum.ID
		for k := range places {
			if k == i || results[k].Err != nil {
				continue
			}
			if catchUp(ctx, p, places[k], m, o, &results[k]) && others[k] != nil {
				others[k].copied(ctx, m)
			}
		}
		return sum, results, err
	}
	return nil, results, errors.Join(errs...)
}

// countedFreezer counts how often the services were frozen.
type countedFreezer struct {
	Freezer
	n int
}

func (f *countedFreezer) Freeze(ctx context.Context) error {
	f.n++
	return f.Freezer.Freeze(ctx)
}

// mayPass says whether another place may do better. Nothing that is wrong with
// the volumes or the services is better elsewhere; and services that were frozen
// already are frozen again only where the place itself failed.
func mayPass(err error, frozen bool) bool {
	for _, final := range []error{ErrUsage, ErrNoVolume, ErrFreeze, ErrDump} {
		if errors.Is(err, final) {
			return false
		}
	}
	var thaw *ThawError
	var place *placeError
	return !errors.As(err, &thaw) && (!frozen || errors.As(err, &place))
}

// leadersFirst sorts places by how new their newest snapshot is: the first
// place's parent decides what is read and stored, and the others are brought to it.
func leadersFirst(ctx context.Context, places []Place, stack string) []Place {
	newest := map[*Repository]time.Time{}
	for _, p := range places {
		list, err := p.Repo.find(ctx, stack)
		if err != nil || len(list) == 0 {
			continue // it will say so when it is written to
		}
		last := &list[len(list)-1]
		if last.read(ctx, p.Repo) == nil && last.Err == nil {
			newest[p.Repo] = last.Manifest.Finished
		}
	}
	places = slices.Clone(places)
	slices.SortStableFunc(places, func(a, b Place) int { return newest[b.Repo].Compare(newest[a.Repo]) })
	return places
}

// catchUp brings a place to where another one is: the snapshots of the stack
// that it lacks are copied, the oldest first. An agent cannot read what it
// would have to copy; it reads the volumes again. So it goes where a prune is
// removing what a copy would need. It says whether m was copied.
func catchUp(ctx context.Context, from, to Place, m *Manifest, o BackupOptions, out *PlaceResult) bool {
	err := func() error {
		behind, err := from.Repo.missingFrom(ctx, to.Repo, m)
		if err != nil {
			return err
		}
		for _, b := range behind {
			c, err := from.Repo.CopyTo(ctx, to.Repo, to.Store, b, nil)
			if err != nil {
				return err
			}
			out.ID = c.ID
			if b != m {
				out.CaughtUp++
			}
		}
		return nil
	}()
	copied := err == nil
	if errors.Is(err, sealed.ErrNoIdentity) || errors.Is(err, ErrCondemned) {
		var sum *Summary
		if sum, _, err = to.Repo.backup(ctx, to.Store, o, nil); sum != nil {
			out.ID = sum.ID
		}
	}
	out.Err = err
	return copied
}

// missingFrom returns the snapshots of m's stack, m the last, that came after
// the newest one that both repositories have. Earlier ones that cannot be read are left out.
func (r *Repository) missingFrom(ctx context.Context, to *Repository, m *Manifest) ([]*Manifest, error) {
	there, err := to.ListAll(ctx, m.Stack) // what was forgotten there is not copied back
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, l := range there {
		if l.Err == nil {
			known[l.Manifest.lineage()] = true
		}
	}
	behind := []*Manifest{m}
	here, err := r.find(ctx, m.Stack)
	if err != nil {
		// The first place went away after all was written: the newest snapshot
		// needs nothing more of it.
		return behind, ctx.Err()
	}
	for i := len(here) - 1; i >= 0 && len(known) > 0; i-- {
		f := &here[i]
		if f.Sequence >= m.Sequence || f.Forgotten {
			continue
		}
		if err := f.read(ctx, r); err != nil {
			return nil, err
		}
		if f.Err != nil {
			continue
		}
		if known[f.Manifest.lineage()] {
			break
		}
		behind = append(behind, f.Manifest)
	}
	slices.Reverse(behind)
	return behind, nil
}
