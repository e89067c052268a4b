package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/store"
)

// maxIntentLife bounds what an intent may ask for: it would else hold up prune for ever.
const maxIntentLife = 7 * 24 * time.Hour

// survey is what a prune knows of a stack.
type survey struct {
	now       time.Time // before all that follows was read
	lists     []list
	claims    []list
	runs      map[string]*pruneRun
	manifests []Listed
	records   map[string]*record // by id
	recordAt  map[string]string  // their keys
	needed    map[string]bool    // by manifests that are not forgotten
	mentioned map[string]bool    // by any manifest
	listed    map[string]bool    // by any list
}

type list struct {
	condemnedList
	name, key string
	at        time.Time
}

// pruneRun is a run that announced itself.
type pruneRun struct {
	first, until time.Time // by the target's clock
	names        map[string]bool
	parents      map[string]bool
	keys         []string
}

func (s *survey) live(r *pruneRun) bool {
	// An intent from the future was put before the clock was set back.
	return r.until.After(s.now) && r.until.Before(s.now.Add(maxIntentLife+2*intentLife))
}

// survey reads in the order that the rules want.
func (p *pruner) survey(ctx context.Context) (*survey, error) {
	s := &survey{
		runs: map[string]*pruneRun{}, records: map[string]*record{}, recordAt: map[string]string{},
		needed: map[string]bool{}, mentioned: map[string]bool{}, listed: map[string]bool{},
	}
	var err error
	if s.now, err = p.clock.Now(ctx); err != nil {
		return nil, err
	}
	steps := []func(context.Context, *survey) error{p.readLists, p.readIntents, p.readManifests, p.readRecords}
	if p.r.broken.intentsLast {
		steps = []func(context.Context, *survey) error{p.readLists, p.readManifests, p.readRecords, p.readIntents}
	}
	for _, step := range steps {
		if err := step(ctx, s); err != nil {
			return nil, err
		}
	}
	for i := range s.manifests {
		m := &s.manifests[i]
		rec := s.records[m.ID]
		m.Forgotten = rec != nil && p.r.hides(rec)
		switch {
		case m.Err != nil && m.Forgotten:
			continue // whoever forgot it knew that nobody can tell what it needs
		case m.Err != nil:
			return nil, fmt.Errorf("snapshot %s cannot be read, so nobody knows what it needs; nothing was deleted. Bring it back from another copy, or forget it by its id: %w", m.ID, m.Err)
		}
		for _, key := range m.Manifest.objects() {
			key = p.r.stored(key)
			s.mentioned[key] = true
			if !m.Forgotten {
				s.needed[key] = true
			}
		}
	}
	return s, nil
}

// below yields the names in a directory of the stack, as they are on the target.
func (p *pruner) below(ctx context.Context, dir string, do func(name, key string) error) error {
	for info, err := range p.raw.List(ctx, p.dir+dir) {
		if err != nil {
			return fmt.Errorf("list %s: %w", p.dir+dir, err)
		}
		if err := do(info.Key[len(p.dir+dir):], info.Key); err != nil {
			return err
		}
	}
	return nil
}

func unexplained(key string, err error) error {
	return fmt.Errorf("%w: %s is not what belongs there (%w); nothing was deleted. Look at it, and remove it with the target's own tools if it is nobody's", ErrDamaged, key, err)
}

// fetch reads an object and when it was put; found is false for one that was
// removed since it was listed.
func (p *pruner) fetch(ctx context.Context, key string, v any) (at time.Time, found bool, err error) {
	data, err := p.raw.Get(ctx, key, 0, -1)
	if err == nil {
		at, err = p.clock.Modified(ctx, key)
	}
	if errors.Is(err, store.ErrNotExist) {
		return at, false, nil
	}
	if err != nil {
		return at, false, err
	}
	if err := strictJSON(data, v); err != nil {
		return at, false, unexplained(key, err)
	}
	return at, true, nil
}

func (p *pruner) readLists(ctx context.Context, s *survey) error {
	err := p.below(ctx, "condemned/", func(name, key string) error {
		base, claim, isClaim := strings.Cut(name, ".")
		if _, err := strconv.ParseUint(claim, 10, 32); !pack.ValidRun(base) || isClaim && err != nil {
			return unexplained(key, errors.New("its name is no list's"))
		}
		l := list{name: base, key: key}
		at, found, err := p.fetch(ctx, key, &l.condemnedList)
		if err != nil || !found {
			return err
		}
		l.at = at
		if isClaim {
			s.claims = append(s.claims, l)
			return nil
		}
		if len(l.Sizes) != len(l.Keys) {
			return unexplained(key, errors.New("it has another number of sizes than of keys"))
		}
		for _, k := range l.Keys {
			if !p.prunable(k) {
				return unexplained(key, fmt.Errorf("it condemns %q", k))
			}
			s.listed[k] = true
		}
		s.lists = append(s.lists, l)
		return nil
	})
	slices.SortFunc(s.lists, func(a, b list) int { return a.at.Compare(b.at) })
	return err
}

// prunable says whether a list may have a key: no list, whoever wrote it, makes
// prune delete anything but packs and manifests of the stack.
func (p *pruner) prunable(key string) bool {
	rest, ok := strings.CutPrefix(key, p.dir)
	if !ok || store.CheckKey(key) != nil {
		return false
	}
	if strings.HasPrefix(rest, "snapshots/") {
		_, _, _, ok := splitSnapshotKey(key)
		return ok
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 4 || parts[0] != "volumes" || parts[2] != "packs" && parts[2] != "index" {
		return false
	}
	_, err := pack.ParseName(parts[3])
	return err == nil
}

func (p *pruner) readIntents(ctx context.Context, s *survey) error {
	return p.below(ctx, "runs/", func(name, key string) error {
		run, k, _ := strings.Cut(name, ".")
		if _, err := strconv.ParseUint(k, 10, 32); err != nil || !pack.ValidRun(run) {
			return unexplained(key, errors.New("its name is no intent's"))
		}
		var in intent
		at, found, err := p.fetch(ctx, key, &in)
		if err != nil || !found {
			return err
		}
		if in.Run != run {
			return unexplained(key, errors.New("it is another run's"))
		}
		life := in.Expires.Sub(in.Started)
		if life <= 0 || life > maxIntentLife {
			life = maxIntentLife
		}
		r := s.runs[run]
		if r == nil {
			r = &pruneRun{first: at, names: map[string]bool{run: true}, parents: map[string]bool{}}
			s.runs[run] = r
		}
		if at.Before(r.first) {
			r.first = at
		}
		if until := at.Add(life); until.After(r.until) {
			r.until = until
		}
		for _, c := range in.Copies {
			r.names[c] = true
		}
		if in.Parent != "" {
			r.parents[in.Parent] = true
		}
		r.keys = append(r.keys, key)
		return nil
	})
}

func (p *pruner) readManifests(ctx context.Context, s *survey) (err error) {
	err = p.below(ctx, "snapshots/", func(_, key string) error {
		if _, _, _, ok := splitSnapshotKey(key); !ok {
			return unexplained(key, errors.New("its name is no snapshot's"))
		}
		return nil
	})
	if err == nil {
		s.manifests, err = p.r.ListAll(ctx, p.stack)
	}
	return err
}

func (p *pruner) readRecords(ctx context.Context, s *survey) error {
	return p.below(ctx, "forgotten/", func(name, key string) error {
		rec, err := p.r.readRecord(ctx, forgottenPrefix(p.stack)+name)
		if errors.Is(err, store.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w; nothing was deleted", err)
		}
		s.records[rec.Snapshot], s.recordAt[rec.Snapshot] = rec, key
		return nil
	})
}

// explained makes sure that no manifest vanished: every parent, and every
// snapshot that was there when something was condemned, is there or has a record.
func (s *survey) explained() error {
	there := map[string]bool{}
	for _, m := range s.manifests {
		there[m.ID] = true
	}
	gone := func(id, of string) error {
		if id == "" || there[id] || s.records[id] != nil {
			return nil
		}
		return fmt.Errorf("%w: snapshot %s, %s, is not there, and no record says that it was forgotten: somebody deleted it, or the target's listing lacks it; nothing was deleted. Bring it back, or say that it is meant: `backupd forget %s`", ErrDamaged, id, of, id)
	}
	for _, m := range s.manifests {
		if m.Manifest != nil && !m.Forgotten {
			if err := gone(m.Manifest.Parent, fmt.Sprintf("the parent of %.8s", m.ID)); err != nil {
				return err
			}
		}
	}
	for _, l := range s.lists {
		for _, id := range l.Snapshots {
			if err := gone(id, "which there was when "+l.key+" was written"); err != nil {
				return err
			}
		}
	}
	return nil
}
