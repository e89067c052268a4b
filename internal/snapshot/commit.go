package snapshot

import (
	"context"
	"encoding/json"
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
		if err := w.Delete(ctx, key); err != nil {
			return "", fmt.Errorf("%w; the incomplete snapshot %s could not be withdrawn: %w", why, id, err)
		}
		return "", why
	}
	if err := r.stillInForce(ctx); err != nil {
		return withdraw(fmt.Errorf("commit the snapshot in %s: %w", r.Location(), err))
	}
	condemned, err := r.condemned(ctx, m.Stack)
	if err != nil {
		return withdraw(err)
	}
	for _, key := range m.objects() {
		if condemned[r.stored(key)] {
			return withdraw(fmt.Errorf("commit the snapshot in %s: a prune removes %s, which it needs; run the backup again", r.Location(), key))
		}
	}
	missing, err := r.missing(ctx, m)
	if err != nil {
		return withdraw(err)
	}
	if len(missing) > 0 {
		return withdraw(fmt.Errorf("commit the snapshot in %s: %s vanished or has another size than was written (%d objects in all); look after the target, then run the backup again", r.Location(), missing[0], len(missing)))
	}
	r.cache.put(key, data)
	if r.keys != nil {
		r.trust.advance(m.Stack, m.Sequence)
	}
	return id, nil
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
