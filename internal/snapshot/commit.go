package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/store"
)

// commit writes the manifest, and makes sure that what it needs is there and stays.
func (r *Repository) commit(ctx context.Context, w store.Writer, m *Manifest) (string, error) {
	data, id, err := m.encode(pack.NewEncoder(pack.Dense))
	if err != nil {
		return "", err
	}
	m.id = id
	if m.Sequence > maxSequence {
		return "", fmt.Errorf("commit the snapshot in %s: %w: somebody planted a snapshot with number %d there; remove it with the target's own tools", r.Location(), ErrDamaged, m.Sequence-1)
	}
	// Before the manifest: a locked one could not be withdrawn.
	if err := r.retain(ctx, w, m); err != nil {
		return "", err
	}
	key := snapshotKey(m.Stack, m.Sequence, id)
	if err := w.Put(ctx, key, data); err != nil {
		return "", fmt.Errorf("commit the snapshot in %s: %w", r.Location(), err)
	}
	withdraw := func(why error) (string, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		// By a record: the manifest goes on telling prune which packs are its, and
		// another run may have it as its parent by now. An agent's record hides
		// nothing, and not all may write one.
		err := r.putRecord(ctx, w, m.Stack, record{Snapshot: id, Sequence: m.Sequence, Reason: "withdrawn by its writer", Withdrawn: r.keys != nil && !r.keys.CanRead()})
		if err == nil && (r.keys == nil || r.keys.CanRead()) && r.stillInForce(ctx) == nil {
			return "", why
		}
		if err := w.Delete(ctx, key); err != nil {
			return "", fmt.Errorf("%w; the incomplete snapshot %s could not be withdrawn: %w", why, id, err)
		}
		return "", why
	}
	if err := r.stillInForce(ctx); err != nil {
		return withdraw(fmt.Errorf("commit the snapshot in %s: %w", r.Location(), err))
	}
	if err := r.stillThere(ctx, m); err != nil {
		return withdraw(fmt.Errorf("commit the snapshot in %s: %w", r.Location(), err))
	}
	r.cache.put(key, data)
	if r.keys != nil {
		r.trust.advance(m.Stack, m.Sequence)
	}
	return id, nil
}

// stillThere makes sure, after the manifest was put, that all it needs is there
// and stays. The order counts: a list is removed after the last of its objects,
// so that what is condemned and not listed any more is missing.
func (r *Repository) stillThere(ctx context.Context, m *Manifest) error {
	if r.broken.packsBeforeLists {
		if missing, err := r.missing(ctx, m); err != nil || len(missing) > 0 {
			return fmt.Errorf("%s vanished: %w", missing, err)
		}
	}
	if !r.broken.commitUnchecked {
		if err := r.noneCondemned(ctx, m); err != nil {
			return err
		}
	}
	if r.broken.packsBeforeLists {
		return nil
	}
	missing, err := r.missing(ctx, m)
	if err != nil {
		return err
	}
	if missing, err = r.reallyMissing(ctx, m, missing); err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("%s vanished or has another size than was written (%d objects in all); look after the target, then run the backup again", missing[0], len(missing))
	}
	if m.Parent == "" || r.now().Sub(m.Started) < intentLife/2 {
		return nil
	}
	// A run that lasted longer than its intents may have outlived its parent.
	for info, err := range r.store.List(ctx, snapshotsPrefix(m.Stack)) {
		if err != nil {
			return err
		}
		if _, _, id, ok := splitSnapshotKey(info.Key); ok && id == m.Parent {
			return nil
		}
	}
	return fmt.Errorf("%w: its parent, snapshot %.8s, is gone; run the backup again", ErrCondemned, m.Parent)
}

// reallyMissing looks for each of the objects that a listing lacked: there are
// services whose listings lag behind.
func (r *Repository) reallyMissing(ctx context.Context, m *Manifest, keys []string) ([]string, error) {
	sizes := m.sizes()
	for i, key := range keys {
		info, err := r.store.Stat(ctx, key)
		if err == nil && info.Size == sizes[key] {
			continue
		}
		if err != nil && !errors.Is(err, store.ErrNotExist) {
			return nil, err
		}
		return keys[i:], nil // one is enough
	}
	return nil, nil
}

// noneCondemned makes sure that no prune is removing what a snapshot needs.
func (r *Repository) noneCondemned(ctx context.Context, m *Manifest) error {
	condemned, err := r.condemned(ctx, m.Stack)
	if err != nil {
		return err
	}
	for _, key := range m.objects() {
		if condemned[r.stored(key)] {
			return fmt.Errorf("%w: %s; run it again", ErrCondemned, key)
		}
	}
	return nil
}

// stored is the key that an object really has on the target.
func (r *Repository) stored(key string) string {
	if r.keys == nil {
		return key
	}
	return r.keys.Hide(key)
}

// condemned returns the keys that a prune is about to delete, as they are on the target.
func (r *Repository) condemned(ctx context.Context, stack string) (map[string]bool, error) {
	all := map[string]bool{}
	for info, err := range r.store.List(ctx, condemnedPrefix(stack)) {
		if err != nil {
			return nil, fmt.Errorf("list what is condemned in %s: %w", r.Location(), err)
		}
		data, err := r.store.Get(ctx, info.Key, 0, info.Size)
		if errors.Is(err, store.ErrNotExist) {
			continue // removed since it was listed: all in it is gone
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", info.Key, err)
		}
		var list struct {
			Keys []string `json:"keys"`
		}
		if err := json.Unmarshal(data, &list); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, info.Key, err)
		}
		for _, k := range list.Keys {
			all[k] = true
		}
	}
	return all, nil
}

// objects returns the keys of all packs that a snapshot needs, sorted.
func (m *Manifest) objects() []string { return slices.Sorted(maps.Keys(m.sizes())) }

// sizes returns the packs that a snapshot needs, by key, with their sizes in bytes.
func (m *Manifest) sizes() map[string]int64 {
	all := map[string]int64{}
	for i := range m.Volumes {
		v := &m.Volumes[i]
		add := func(ranges []PackRange, key func(string, string, pack.Name) string) {
			for _, r := range ranges {
				for k, size := range r.Sizes {
					all[key(m.Stack, v.Name, pack.Name{Run: r.Run, N: r.First + uint32(k)})] = int64(size)
				}
			}
		}
		add(v.Packs, packKey)
		add(v.Index, indexKey)
	}
	return all
}

// missing lists the objects that a snapshot needs and that are not on the
// target, or not of their size: by one listing.
func (r *Repository) missing(ctx context.Context, m *Manifest) ([]string, error) {
	want := m.sizes()
	if inside, ok := r.store.(*sealed.Reader); ok {
		for i := range m.Volumes { // an agent cannot read their names
			inside.Know(volumesPrefix(m.Stack) + m.Volumes[i].Name + "/")
		}
	}
	for info, err := range r.store.List(ctx, volumesPrefix(m.Stack)) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", r.Location(), err)
		}
		if size, ok := want[info.Key]; ok && size == info.Size {
			delete(want, info.Key)
		}
	}
	return slices.Sorted(maps.Keys(want)), nil
}

// retainers is how many locks are renewed at a time: all of it is waiting.
const retainers = 16

// retain renews the lock of objects that a snapshot relies on and did not
// write, where the target locks objects.
func (r *Repository) retain(ctx context.Context, w store.Writer, m *Manifest) error {
	locker, ok := w.(store.Retainer)
	if !ok {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(retainers)
	for _, key := range m.objects() {
		if name, err := packName(key); err == nil && name.Run != m.Run {
			g.Go(func() error { return locker.Retain(ctx, key) })
		}
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("renew the locks in %s: %w", r.Location(), err)
	}
	return nil
}
