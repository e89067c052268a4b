package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/disko/backupd/internal/store"
)

const (
	// claimLife is how long the claim on a list holds, and claimUse how long its
	// holder makes use of it: the difference is for a request that is under way.
	claimLife = 24 * time.Hour
	claimUse  = 12 * time.Hour
	// clockSlack is how far an object's time may be ahead of the target's clock.
	clockSlack = time.Hour
	// deleters is how many objects are deleted at a time: all of it is waiting.
	deleters = 8
)

// list deletes what a list condemned, if it is due.
func (p *pruner) list(ctx context.Context, s *survey, l list) error {
	if l.at.After(s.now.Add(clockSlack)) {
		return p.again(ctx, l)
	}
	var amount Amount
	for i := range l.Keys {
		amount.add(l.Sizes[i])
	}
	wait := func(due time.Time, why string) error {
		p.out.Waiting = append(p.out.Waiting, WaitingList{Name: l.name, Amount: amount, Due: due, Why: why})
		return nil
	}
	if due := l.at.Add(p.o.Wait); due.After(s.now) && !p.r.broken.noWait {
		return wait(due, "the waiting time is not over")
	}
	if p.clock.HostClock() && l.Boot != "" {
		// That clock may have been set; how long the machine runs cannot.
		boot, since := p.r.uptime()
		if left := p.o.Wait - (since - l.Since); boot == l.Boot && left > 0 {
			return wait(s.now.Add(left), "the machine has not run for the waiting time since, whatever its clock says")
		}
	}
	for _, id := range slices.Sorted(maps.Keys(s.runs)) {
		if r := s.runs[id]; s.live(r) && !r.first.After(l.at) && !p.r.broken.ignoreOlder {
			return wait(r.until, "run "+id+" began before, and has not ended")
		}
	}
	if p.o.DryRun {
		return p.delete(ctx, s, l, func() bool { return true })
	}
	return p.claimed(ctx, s, l)
}

// again writes a list anew whose time lies in the future: the clock was set
// back since, and its age would mean nothing for as long.
func (p *pruner) again(ctx context.Context, l list) error {
	if p.o.DryRun {
		return nil
	}
	if err := p.putList(ctx, l.condemnedList); err != nil {
		return err
	}
	return p.raw.Delete(ctx, l.key)
}

// claimed deletes by a list as the only one who does. A copy may put a pack of
// the same name again once the list is gone: nobody may then still be about to
// delete it. A claim holds nobody up but other prunes, and those for a day.
func (p *pruner) claimed(ctx context.Context, s *survey, l list) (err error) {
	if p.r.broken.noClaim {
		return p.delete(ctx, s, l, func() bool { return true })
	}
	body, err := json.Marshal(condemnedList{Keys: []string{}, Claim: p.id})
	if err != nil {
		return err
	}
	begun := p.elapsed()
	var mine string
	for k := 0; mine == ""; {
		key := l.key + "." + strconv.Itoa(k)
		err := p.raw.Put(ctx, key, append(slices.Clone(body), '\n'))
		if err == nil {
			mine = key
			break
		}
		if !errors.Is(err, store.ErrExist) {
			return fmt.Errorf("claim %s: %w", l.key, err)
		}
		at, err := p.clock.Modified(ctx, key)
		switch {
		case errors.Is(err, store.ErrNotExist):
			return nil // its holder is just through with it
		case err != nil:
			return err
		case at.Add(claimLife).After(s.now):
			p.out.Waiting = append(p.out.Waiting, WaitingList{Name: l.name, Amount: Amount{Objects: len(l.Keys)}, Due: at.Add(claimLife), Why: "another prune deletes it, or was killed while it did"})
			return nil
		}
		k++
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if derr := p.raw.Delete(ctx, mine); err == nil {
			err = derr
		}
	}()
	if _, err := p.raw.Stat(ctx, l.key); errors.Is(err, store.ErrNotExist) {
		return nil // another one was through with it
	} else if err != nil {
		return err
	}
	return p.delete(ctx, s, l, func() bool { return p.elapsed()-begun < claimUse })
}

// elapsed is a clock that only runs, through suspensions too where the system tells.
func (p *pruner) elapsed() time.Duration {
	if boot, since := p.r.uptime(); boot != "" {
		return since
	}
	return time.Duration(p.r.now().UnixNano())
}

var errClaimOver = errors.New("deleting took longer than a prune may make use of its claim; run it again, it goes on from there")

// delete deletes a list's objects, manifests first, and then the list. What a
// snapshot needs by now is spared: its writer committed before it could see the list.
func (p *pruner) delete(ctx context.Context, s *survey, l list, mayGoOn func() bool) error {
	forgotten := map[string]bool{}
	for _, m := range s.manifests {
		if m.Forgotten {
			forgotten[p.r.stored(snapshotKey(m.Stack, m.Sequence, m.ID))] = true
		}
	}
	if p.r.broken.listFirst {
		if err := p.raw.Delete(ctx, l.key); err != nil {
			return err
		}
	}
	var mu sync.Mutex
	left := false
	one := func(ctx context.Context, i int) error {
		if !mayGoOn() {
			return errClaimOver
		}
		key := l.Keys[i]
		until, err := p.lockedUntil(ctx, key)
		if err == nil && !until.After(s.now) && !p.o.DryRun {
			err = p.raw.Delete(ctx, key)
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case errors.Is(err, store.ErrAccess) || err == nil && until.After(s.now):
			left = true
			p.out.Locked.add(l.Sizes[i])
			if until.After(p.out.LockedUntil) {
				p.out.LockedUntil = until
			}
		case err != nil:
			return err
		default:
			p.out.Freed.add(l.Sizes[i])
		}
		return nil
	}
	var packs []int
	for i, key := range l.Keys {
		switch isManifest := strings.HasPrefix(key, p.dir+"snapshots/"); {
		case isManifest && !forgotten[key]:
			// Deleted already, or not forgotten: then it is not garbage.
		case !isManifest && s.needed[key] && !p.r.broken.noRescue:
			p.out.Spared++
		case isManifest:
			if err := one(ctx, i); err != nil {
				return err
			}
		default:
			packs = append(packs, i)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(deleters)
	for _, i := range packs {
		g.Go(func() error { return one(gctx, i) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if left || p.o.DryRun || p.r.broken.listFirst {
		return nil
	}
	if err := p.raw.Delete(ctx, l.key); err != nil {
		return err
	}
	for _, c := range s.claims {
		if c.name == l.name {
			if err := p.raw.Delete(ctx, c.key); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *pruner) lockedUntil(ctx context.Context, key string) (time.Time, error) {
	if l, ok := p.raw.(store.Locker); ok {
		return l.LockedUntil(ctx, key)
	}
	return time.Time{}, nil
}
