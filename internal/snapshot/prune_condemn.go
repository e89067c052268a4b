package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/disko/backupd/internal/store"
)

// condemnedList is the content of condemned/NAME, and, with Claim alone, of NAME.K.
type condemnedList struct {
	Keys  []string `json:"keys"`            // as they are on the target
	Sizes []int64  `json:"sizes,omitempty"` // of their contents, 0 where not known
	// Snapshots are those that were not forgotten when the list was made: one
	// that is gone without a record when it is due stops prune.
	Snapshots []string `json:"snapshots,omitempty"`
	// Boot and Since are the uptime of the machine that made it, for targets
	// that have no clock but that one's.
	Boot  string        `json:"boot,omitempty"`
	Since time.Duration `json:"since,omitempty"` // nanoseconds
	Claim string        `json:"claim,omitempty"` // who deletes by the list
}

// condemn lists what is garbage now, and removes what nothing depends on any more.
func (p *pruner) condemn(ctx context.Context, s *survey) error {
	g := p.garbage(s)
	if err := p.leftovers(ctx, s, g); err != nil {
		return err
	}
	p.out.Snapshots, p.out.Runs = append(p.out.Snapshots, g.snapshots...), append(p.out.Runs, g.runs...)
	l := condemnedList{Keys: slices.Sorted(maps.Keys(g.keys))}
	for _, key := range l.Keys {
		l.Sizes = append(l.Sizes, g.keys[key])
		p.out.Condemned.add(g.keys[key])
	}
	for _, m := range s.manifests {
		if !m.Forgotten {
			l.Snapshots = append(l.Snapshots, m.ID)
		}
	}
	if len(l.Keys) > 0 {
		p.out.Due = s.now.Add(p.o.Wait)
	}
	if p.o.DryRun {
		return nil
	}
	if len(l.Keys) > 0 {
		if err := p.putList(ctx, l); err != nil {
			return err
		}
	}
	return p.tidy(ctx, s, g)
}

func (p *pruner) putList(ctx context.Context, l condemnedList) error {
	l.Boot, l.Since = p.r.uptime()
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	key := p.dir + "condemned/" + newRun()
	if err := p.raw.Put(ctx, key, append(data, '\n')); err != nil {
		return fmt.Errorf("condemn: %w", err)
	}
	return nil
}

// garbage is what a prune condemns.
type garbage struct {
	keys      map[string]int64 // with sizes
	snapshots []string
	runs      []string
	spent     []string // intents of runs of which nothing is left
}

// garbage finds the packs of forgotten snapshots. One whose packs somebody
// relies on stays whole, so that it goes on telling what is garbage.
func (p *pruner) garbage(s *survey) *garbage {
	g := &garbage{keys: map[string]int64{}}
	parents, names := map[string]bool{}, map[string]bool{}
	for _, r := range s.runs {
		if s.live(r) {
			maps.Copy(parents, r.parents)
			maps.Copy(names, r.names)
		}
	}
	relied := map[string]bool{} // packs of live runs' parents, which others may have too
	for _, m := range s.manifests {
		if parents[m.ID] && m.Err == nil {
			for _, key := range m.Manifest.objects() {
				relied[p.r.stored(key)] = true
			}
		}
	}
	for _, m := range s.manifests {
		key := p.r.stored(snapshotKey(m.Stack, m.Sequence, m.ID))
		if !m.Forgotten || parents[m.ID] || s.listed[key] {
			continue
		}
		keys, held := map[string]int64{key: 0}, false
		if m.Err == nil {
			for plain, size := range m.Manifest.sizes() {
				key := p.r.stored(plain)
				if s.needed[key] || s.listed[key] {
					continue
				}
				name, err := packName(plain)
				held = held || err != nil || names[name.Run] || relied[key]
				keys[key] = size
			}
		}
		if !held {
			maps.Copy(g.keys, keys)
			g.snapshots = append(g.snapshots, m.ID)
		}
	}
	return g
}

// leftovers adds the packs of runs whose intents expired: they are named by
// what the runs announced, and looked up in a listing.
func (p *pruner) leftovers(ctx context.Context, s *survey, g *garbage) error {
	expired, live := map[string][]string{}, map[string]bool{} // runs that announced a name
	for id, r := range s.runs {
		for name := range r.names {
			if s.live(r) {
				live[name] = true
			} else {
				expired[name] = append(expired[name], id)
			}
		}
	}
	if len(expired) == 0 && !p.r.broken.implicitGarbage {
		return nil
	}
	busy, found := map[string]bool{}, map[string]bool{}
	for info, err := range p.raw.List(ctx, p.dir+"volumes/") {
		if err != nil {
			return fmt.Errorf("list %s: %w", p.dir+"volumes/", err)
		}
		name, err := packName(info.Key)
		if err != nil || !p.prunable(info.Key) || s.mentioned[info.Key] {
			continue // another's, or one that a manifest accounts for
		}
		runs := expired[name.Run]
		switch {
		case p.r.broken.implicitGarbage && !s.listed[info.Key]:
			g.keys[info.Key] = info.Size
		case len(runs) == 0:
		case s.listed[info.Key], live[name.Run]:
			for _, id := range runs {
				busy[id] = true
			}
		default:
			g.keys[info.Key] = info.Size
			for _, id := range runs {
				busy[id], found[id] = true, true
			}
		}
	}
	g.runs = slices.Sorted(maps.Keys(found))
	for id, r := range s.runs {
		if !s.live(r) && !busy[id] {
			g.spent = append(g.spent, r.keys...)
		}
	}
	return nil
}

// tidy removes intents, claims, and records of what was forgotten and drilled, that nothing depends on any more.
func (p *pruner) tidy(ctx context.Context, s *survey, g *garbage) error {
	for _, key := range g.spent {
		if err := p.raw.Delete(ctx, key); err != nil && !errors.Is(err, store.ErrAccess) {
			return err
		}
	}
	of := map[string]bool{}
	for _, l := range s.lists {
		of[l.name] = true
	}
	for _, c := range s.claims {
		if !of[c.name] && !c.at.Add(claimLife).After(s.now) {
			if err := p.raw.Delete(ctx, c.key); err != nil {
				return err
			}
		}
	}
	spoken, highest := map[string]bool{}, uint64(0) // ids that something still names
	for _, m := range s.manifests {
		spoken[m.ID] = true
		if m.Manifest != nil {
			spoken[m.Manifest.Parent] = true
		}
		if !m.Forgotten {
			highest = max(highest, m.Sequence)
		}
	}
	for _, l := range s.lists {
		for _, id := range l.Snapshots {
			spoken[id] = true
		}
	}
	for _, r := range s.runs {
		maps.Copy(spoken, r.parents)
	}
	for id, rec := range s.records {
		// The record with the highest number explains why the newest is no newer.
		if spoken[id] || rec.Sequence > highest {
			continue
		}
		at, err := p.clock.Modified(ctx, s.recordAt[id])
		if err == nil && at.Add(p.o.Wait).After(s.now) && !p.r.broken.noWait {
			continue // a listing that lags may not show yet what names it
		}
		if err == nil {
			err = p.raw.Delete(ctx, s.recordAt[id])
		}
		if err != nil && !errors.Is(err, store.ErrNotExist) {
			return err
		}
	}
	return p.tidyDrills(ctx, s)
}
