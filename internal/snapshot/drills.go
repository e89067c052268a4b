package snapshot

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/store"
)

// DrillRecord says how a drill of a snapshot ended. It lies on the target, so that
// whoever restores can see what was proven. Its JSON form is stable.
type DrillRecord struct {
	Snapshot string    `json:"snapshot"`
	Sequence uint64    `json:"sequence"`
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	Passed   bool      `json:"passed"`
	// Error says what was wrong; empty where it passed.
	Error   string         `json:"error,omitempty"`
	Volumes []DrillVolume  `json:"volumes"`
	Checks  []DrillChecked `json:"checks,omitempty"`
	Trigger string         `json:"trigger,omitempty"` // schedule, catch-up or manual
	Origin  string         `json:"origin,omitempty"`  // which installation did it
	Version string         `json:"version"`           // of backupd
	// MAC, in an encrypted repository: who cannot read it cannot say that it restores.
	MAC string `json:"mac,omitempty"`
}

// DrillVolume is a volume that was restored and compared.
type DrillVolume struct {
	Name    string `json:"name"`
	Entries int64  `json:"entries"`
	Bytes   int64  `json:"bytes"`
	Differ  int    `json:"differ"` // paths that were not as the snapshot has them
}

// DrillChecked is a service whose program was started on what was restored.
type DrillChecked struct {
	Service string  `json:"service"`
	Check   string  `json:"check"` // the kind, or the command
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error,omitempty"`
}

// Took is how long the drill lasted.
func (d *DrillRecord) Took() time.Duration { return d.Finished.Sub(d.Started) }

func drillsPrefix(stack string) string { return "stacks/" + stack + "/drills/" }

// splitDrillKey reads a record's key: the manifest's name, and a random number.
func splitDrillKey(key string) (stack string, seq uint64, id string, ok bool) {
	at := strings.LastIndexByte(key, '-')
	parts := strings.Split(key[:max(at, 0)], "/")
	if at < 0 || len(parts) != 4 || parts[2] != "drills" || !pack.ValidRun(key[at+1:]) {
		return "", 0, "", false
	}
	parts[2] = "snapshots"
	return splitSnapshotKey(strings.Join(parts, "/"))
}

func (r *Repository) drillText(key string, rec DrillRecord) (string, error) {
	rec.MAC = ""
	data, err := json.Marshal(rec)
	return "backupd drill 1\n" + r.ID + "\n" + key + "\n" + string(data) + "\n", err
}

// PutDrill writes how a drill of a stack's snapshot ended.
func (r *Repository) PutDrill(ctx context.Context, w store.Writer, stack string, rec DrillRecord) error {
	w, err := r.writer(w)
	if err != nil {
		return err
	}
	key := drillsPrefix(stack) + snapshotKey(stack, rec.Sequence, rec.Snapshot)[len(snapshotsPrefix(stack)):] + "-" + newRun()
	// Without what JSON does not bring back: the text that is vouched for is made again by readers.
	rec.Started, rec.Finished = rec.Started.UTC().Round(time.Millisecond), rec.Finished.UTC().Round(time.Millisecond)
	rec.Error = strings.ToValidUTF8(rec.Error, "?")
	if rec.Volumes == nil {
		rec.Volumes = []DrillVolume{}
	}
	for i := range rec.Checks {
		rec.Checks[i].Error = strings.ToValidUTF8(rec.Checks[i].Error, "?")
	}
	if r.keys != nil {
		text, err := r.drillText(key, rec)
		if err != nil {
			return err
		}
		rec.MAC = r.keys.Vouch(text)
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if err := w.Put(ctx, key, append(data, '\n')); err != nil {
		return fmt.Errorf("note the drill of snapshot %.8s in %s: %w", rec.Snapshot, r.Location(), err)
	}
	return nil
}

// Drills returns what drills of a stack's snapshots were noted, the oldest first.
// A record that cannot be believed is left out, with a notice.
func (r *Repository) Drills(ctx context.Context, stack string) ([]DrillRecord, error) {
	if err := CheckName("stack", stack); err != nil {
		return nil, err
	}
	if r.keys != nil && !r.keys.CanRead() {
		return nil, fmt.Errorf("list drills in %s: %w", r.Location(), sealed.ErrNoIdentity)
	}
	var keys []string
	for info, err := range r.store.List(ctx, drillsPrefix(stack)) {
		if err != nil {
			return nil, fmt.Errorf("list drills in %s: %w", r.Location(), err)
		}
		if _, _, _, ok := splitDrillKey(info.Key); ok {
			keys = append(keys, info.Key)
		}
	}
	slices.Sort(keys)
	all := make([]*DrillRecord, len(keys))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(manifestReaders)
	for i, key := range keys {
		g.Go(func() error {
			rec, err := r.readDrill(gctx, key)
			switch {
			case err == nil:
				all[i] = rec
			case errors.Is(err, ErrDamaged), errors.Is(err, sealed.ErrForged):
				r.notice(err.Error())
			case !errors.Is(err, store.ErrNotExist):
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := []DrillRecord{}
	for _, rec := range all {
		if rec != nil {
			out = append(out, *rec)
		}
	}
	slices.SortStableFunc(out, func(a, b DrillRecord) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Sequence, b.Sequence))
	})
	return out, nil
}

// maxDrill bounds a record: errors hold the last words of programs.
const maxDrill = 1 << 20

func (r *Repository) readDrill(ctx context.Context, key string) (*DrillRecord, error) {
	_, seq, id, ok := splitDrillKey(key)
	if !ok {
		return nil, fmt.Errorf("%w: %s is no record of a drill", ErrDamaged, key)
	}
	info, err := r.store.Stat(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	if info.Size < 0 || info.Size > maxDrill {
		return nil, fmt.Errorf("%w: %s has %d bytes, which is no record of a drill", ErrDamaged, key, info.Size)
	}
	data, err := r.store.Get(ctx, key, 0, info.Size)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	rec := &DrillRecord{}
	if err := strictJSON(data, rec); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, key, err)
	}
	if rec.Snapshot != id || rec.Sequence != seq {
		return nil, fmt.Errorf("%w: %s belongs elsewhere: to snapshot %s, number %d", ErrDamaged, key, rec.Snapshot, rec.Sequence)
	}
	if r.keys != nil {
		text, err := r.drillText(key, *rec)
		if err != nil {
			return nil, err
		}
		if !r.keys.Vouched(text, rec.MAC) {
			return nil, fmt.Errorf("%w: %s was not written by a holder of the repository's keys, and counts for nothing", sealed.ErrForged, key)
		}
	}
	return rec, nil
}

// tidyDrills removes the records of drills whose snapshots are gone for longer
// than prune waits.
func (p *pruner) tidyDrills(ctx context.Context, s *survey) error {
	there := map[string]bool{}
	for _, m := range s.manifests {
		there[m.ID] = true
	}
	return p.below(ctx, "drills/", func(name, key string) error {
		_, _, id, ok := splitDrillKey(drillsPrefix(p.stack) + name)
		if !ok || there[id] {
			return nil
		}
		at, err := p.clock.Modified(ctx, key)
		if err == nil && at.Add(p.o.Wait).After(s.now) && !p.r.broken.noWait {
			return nil // a listing that lags may not show its snapshot
		}
		if err == nil {
			err = p.raw.Delete(ctx, key)
		}
		if errors.Is(err, store.ErrNotExist) || errors.Is(err, store.ErrAccess) {
			return nil
		}
		return err
	})
}

// Older chooses a complete snapshot at random among those before the latest, to
// drill: the more often, the surer it is that old ones restore as well. The latest
// where there is no other.
func (r *Repository) Older(ctx context.Context, stack string) (*Manifest, error) {
	latest, err := r.Find(ctx, stack, "")
	if err != nil {
		return nil, err
	}
	list, err := r.candidates(ctx, latest.Stack)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(c Candidate) bool { return c.Err != nil || c.Incomplete != "" || c.ID == latest.id })
	if len(list) == 0 {
		return latest, nil
	}
	n, err := randomBelow(len(list))
	if err != nil {
		return nil, err
	}
	return list[n].Manifest, nil
}

func randomBelow(n int) (int, error) {
	k, err := rand.Int(rand.Reader, big.NewInt(int64(n)))
	if err != nil {
		return 0, fmt.Errorf("choose a snapshot: %w", err)
	}
	return int(k.Int64()), nil
}
