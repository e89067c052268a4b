package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/store"
)

// Copied tells what a copy did.
type Copied struct {
	Source   string `json:"source"` // id of the snapshot that was copied
	ID       string `json:"id"`     // id that it has in the other repository
	Stack    string `json:"stack"`
	Sequence uint64 `json:"sequence"`
	Objects  int    `json:"objects"` // packs that were not there yet
	Bytes    int64  `json:"bytes"`   // of them
	Existed  bool   `json:"existed"` // it had been copied before: nothing was done
}

// copiers is how many packs are copied at a time; each takes 16 MiB.
const copiers = 3

// lineage is what a snapshot is known by in every repository: the id that it
// was first given.
func (m *Manifest) lineage() string { return cmp.Or(m.CopyOf, m.id) }

// CopyTo copies a snapshot into another repository, as it is stored: frames
// are checked and not compressed again. It is there or it is not, as after a
// backup; a copy that was broken off leaves the packs it wrote, and the next finds them.
func (r *Repository) CopyTo(ctx context.Context, to *Repository, w store.Writer, m *Manifest, p *Progress) (*Copied, error) {
	done, err := r.copyTo(ctx, to, w, m, p.orNew())
	if err != nil {
		return nil, fmt.Errorf("copy snapshot %.8s to %s: %w", m.id, to.Location(), err)
	}
	return done, nil
}

func (r *Repository) copyTo(ctx context.Context, to *Repository, w store.Writer, m *Manifest, p *Progress) (*Copied, error) {
	w, err := to.writer(w)
	if err != nil {
		return nil, err
	}
	list, err := to.find(ctx, m.Stack)
	if err != nil {
		return nil, err
	}
	out := &Copied{Source: m.id, Stack: m.Stack, Sequence: 1}
	parent, parentKey := "", ""
	for i := len(list) - 1; i >= 0; i-- {
		there := &list[i]
		if i == len(list)-1 {
			out.Sequence = there.Sequence + 1
		}
		if there.Forgotten {
			continue
		}
		if parent == "" {
			parent, parentKey = there.ID, there.info.Key
		}
		if err := there.read(ctx, to); err != nil {
			return nil, err
		}
		if there.Err == nil && there.Manifest.lineage() == m.lineage() {
			missing, err := to.missing(ctx, there.Manifest)
			if err != nil {
				return nil, err
			}
			if len(missing) == 0 {
				out.ID, out.Sequence, out.Existed = there.ID, there.Sequence, true
				return out, nil
			}
		}
	}
	if to.keys != nil {
		out.Sequence = max(out.Sequence, to.trust.highest(m.Stack)+1)
	}
	in := &intents{r: to, w: w, stack: m.Stack, run: newRun(), copies: m.runs(), parent: parent}
	defer in.end(ctx)
	if err := in.begin(ctx); err != nil {
		return nil, err
	}
	if parent != "" {
		if _, err := w.Stat(ctx, parentKey); errors.Is(err, store.ErrNotExist) {
			parent = ""
		} else if err != nil {
			return nil, err
		}
	}
	// A pack keeps its name: one that is condemned can neither be relied on nor
	// put again until the prune is through with it.
	if err := to.noneCondemned(ctx, m); err != nil && !to.broken.relyOnCondemned {
		return nil, err
	}
	if err := r.copyPacks(ctx, to, w, m, in, out, p); err != nil {
		return nil, err
	}
	twin := *m
	twin.Repository, twin.Sequence, twin.Parent, twin.CopyOf, twin.Salt = to.ID, out.Sequence, parent, m.lineage(), randomID()
	if out.ID, err = to.commit(ctx, w, &twin); err != nil {
		return nil, err
	}
	in.succeeded(m)
	return out, nil
}

// runs are the runs that a snapshot has packs of.
func (m *Manifest) runs() []string {
	var runs []string
	for i := range m.Volumes {
		for _, r := range slices.Concat(m.Volumes[i].Packs, m.Volumes[i].Index) {
			runs = append(runs, r.Run)
		}
	}
	slices.Sort(runs)
	return slices.Compact(runs)
}

// copyPacks copies the packs that the other repository lacks.
func (r *Repository) copyPacks(ctx context.Context, to *Repository, w store.Writer, m *Manifest, in *intents, out *Copied, p *Progress) error {
	missing, err := to.missing(ctx, m)
	if err != nil {
		return err
	}
	sizes := m.sizes()
	for _, key := range missing {
		out.Objects++
		out.Bytes += sizes[key]
	}
	p.TotalBytes.Add(out.Bytes)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(copiers)
	for _, key := range missing {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			data, err := r.store.Get(ctx, key, 0, sizes[key])
			if err != nil {
				return fmt.Errorf("read %s from %s: %w", key, r.Location(), err)
			}
			if err := checkPack(key, data); err != nil {
				return fmt.Errorf("%s in %s: %w", key, r.Location(), err)
			}
			err = in.put(ctx, key, data)
			if errors.Is(err, store.ErrExist) {
				return fmt.Errorf("%w: %s in %s has another size than in %s; remove it, after `backupd verify` told what needs it", ErrDamaged, key, to.Location(), r.Location())
			}
			if err != nil {
				return fmt.Errorf("write to %s: %w", to.Location(), err)
			}
			if isIndexKey(key) {
				to.cache.put(key, data)
			}
			p.Bytes.Add(int64(len(data)))
			return nil
		})
	}
	return g.Wait()
}

// checkPack makes sure that every frame of a pack is what its id says.
func checkPack(key string, data []byte) error {
	name, err := packName(key)
	if err != nil {
		return err
	}
	refs, err := pack.Parse(name, data)
	var raw []byte
	for _, ref := range refs {
		if err == nil {
			raw, err = pack.Decode(raw, data[ref.Off:][:ref.Len], ref)
		}
	}
	return err
}
