package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/store"
)

// A forgotten record says that a snapshot is not wanted any more. It deletes
// nothing: prune does, and takes nothing for garbage that no record names.

// record is the content of forgotten/SEQ-ID.
type record struct {
	Snapshot string    `json:"snapshot"`
	Sequence uint64    `json:"sequence"`
	Reason   string    `json:"reason"`
	Time     time.Time `json:"time"` // by the clock of who wrote it: for people
	// Withdrawn: its own writer took the snapshot back, which was never reported.
	Withdrawn bool `json:"withdrawn,omitempty"`
	// MAC, in an encrypted repository: whoever holds an agent's key cannot have
	// what others wrote deleted.
	MAC string `json:"mac,omitempty"`
}

func forgottenPrefix(stack string) string { return "stacks/" + stack + "/forgotten/" }

func forgottenKey(stack string, seq uint64, id string) string {
	return forgottenPrefix(stack) + snapshotKey(stack, seq, id)[len(snapshotsPrefix(stack)):]
}

// splitForgottenKey reads a record's key, which has the name of the manifest's.
func splitForgottenKey(key string) (stack string, seq uint64, id string, ok bool) {
	parts := strings.Split(key, "/")
	if len(parts) != 4 || parts[2] != "forgotten" {
		return "", 0, "", false
	}
	parts[2] = "snapshots"
	return splitSnapshotKey(strings.Join(parts, "/"))
}

func (r *Repository) vouchText(stack string, seq uint64, id string) string {
	return "backupd forgotten 1\n" + r.ID + "\n" + snapshotKey(stack, seq, id) + "\n"
}

// putRecord writes a record. One that is there already is as good.
func (r *Repository) putRecord(ctx context.Context, w store.Putter, stack string, rec record) error {
	rec.Time = r.now().UTC()
	if r.keys != nil && !rec.Withdrawn {
		rec.MAC = r.keys.Vouch(r.vouchText(stack, rec.Sequence, rec.Snapshot))
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	err = w.Put(ctx, forgottenKey(stack, rec.Sequence, rec.Snapshot), append(data, '\n'))
	if errors.Is(err, store.ErrExist) {
		return nil
	}
	return err
}

// readRecord reads a record and makes sure that it is the one its key says.
func (r *Repository) readRecord(ctx context.Context, key string) (*record, error) {
	stack, seq, id, ok := splitForgottenKey(key)
	if !ok {
		return nil, fmt.Errorf("%w: %s is no record of a forgotten snapshot", ErrDamaged, key)
	}
	data, err := r.store.Get(ctx, key, 0, -1)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	rec := &record{}
	if err := strictJSON(data, rec); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, key, err)
	}
	if rec.Snapshot != id || rec.Sequence != seq {
		return nil, fmt.Errorf("%w: %s belongs elsewhere: to snapshot %s, number %d", ErrDamaged, key, rec.Snapshot, rec.Sequence)
	}
	if r.keys != nil && !rec.Withdrawn && !r.keys.Vouched(r.vouchText(stack, seq, id), rec.MAC) {
		return nil, fmt.Errorf("%w: %s was not written by a holder of the repository's keys: somebody who may write there wants snapshot %.8s deleted; remove that object with the target's own tools", sealed.ErrForged, key, id)
	}
	return rec, nil
}

// hides says whether a record makes a manifest count as forgotten. A writer's
// own word is enough for what nobody vouches for anyway.
func (r *Repository) hides(rec *record) bool { return r.keys == nil || !rec.Withdrawn }

// markForgotten marks the manifests of a listing that have a record; keys are
// those of the records, read after the manifests. An agent, which cannot check
// records, takes no notice of them: a forgotten snapshot does as a parent.
func (r *Repository) markForgotten(ctx context.Context, list []found, keys []string) error {
	if len(keys) == 0 || r.keys != nil && !r.keys.CanRead() {
		return nil
	}
	type name struct {
		stack string
		seq   uint64
		id    string
	}
	at := map[name]int{}
	for i, f := range list {
		at[name{f.Stack, f.Sequence, f.ID}] = i
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(manifestReaders)
	for _, key := range keys {
		stack, seq, id, ok := splitForgottenKey(key)
		i, there := at[name{stack, seq, id}]
		if !ok || !there {
			continue
		}
		if r.keys == nil { // its name says it all
			list[i].Forgotten = true
			continue
		}
		g.Go(func() error {
			rec, err := r.readRecord(gctx, key)
			switch {
			case err == nil:
				list[i].Forgotten = r.hides(rec)
			case errors.Is(err, ErrDamaged), errors.Is(err, sealed.ErrForged):
				r.notice(err.Error())
			case !errors.Is(err, store.ErrNotExist):
				return err
			}
			return nil
		})
	}
	return g.Wait()
}

// ForgetOptions say what to forget.
type ForgetOptions struct {
	Stack string // empty: the only one there is
	// Policy decides, where it is not zero; else Snapshots are forgotten.
	Policy    Policy
	Snapshots []string // ids, or the beginning of one, or tags
	Zone      *time.Location
	DryRun    bool
}

// Forgot tells what forget did, or would do.
type Forgot struct {
	Stack     string     `json:"stack"`
	Policy    string     `json:"policy,omitempty"`
	DryRun    bool       `json:"dry_run,omitempty"`
	Decisions []Decision `json:"-"`
	// Forgotten are the ids that have a record now.
	Forgotten []string `json:"forgotten"`
}

// Forget marks snapshots as forgotten: from then on they are not listed, not
// latest and no parent, and prune may delete them.
func (r *Repository) Forget(ctx context.Context, w store.Writer, o ForgetOptions) (*Forgot, error) {
	if err := r.notAgent("forget snapshots"); err != nil {
		return nil, err
	}
	if o.Policy.IsZero() == (len(o.Snapshots) == 0) {
		return nil, fmt.Errorf("%w: say which snapshots to forget: name some, or give a policy, as in --keep %q", ErrUsage, "7 daily, 4 weekly")
	}
	w, err := r.writer(w)
	if err != nil {
		return nil, err
	}
	stack, err := r.oneStack(ctx, o.Stack)
	if err != nil {
		return nil, err
	}
	list, err := r.candidates(ctx, stack)
	if err != nil {
		return nil, err
	}
	out := &Forgot{Stack: stack, DryRun: o.DryRun, Forgotten: []string{}}
	if o.Zone == nil {
		o.Zone = time.UTC
	}
	reason := ""
	var vanished []record
	if o.Policy.IsZero() {
		reason = "named"
		out.Decisions, vanished, err = r.named(ctx, stack, list, o)
		if err != nil {
			return nil, err
		}
	} else {
		out.Policy = o.Policy.String()
		reason = "policy " + out.Policy
		out.Decisions = o.Policy.Keep(list, o.Zone)
	}
	for _, d := range out.Decisions {
		if d.Keep {
			continue
		}
		if !o.DryRun {
			if err := r.putRecord(ctx, w, stack, record{Snapshot: d.Snapshot.ID, Sequence: d.Snapshot.Sequence, Reason: reason}); err != nil {
				return out, fmt.Errorf("forget snapshot %.8s in %s: %w", d.Snapshot.ID, r.Location(), err)
			}
		}
		out.Forgotten = append(out.Forgotten, d.Snapshot.ID)
	}
	for _, v := range vanished {
		if !o.DryRun {
			if err := r.putRecord(ctx, w, stack, v); err != nil {
				return out, fmt.Errorf("forget snapshot %.8s in %s: %w", v.Snapshot, r.Location(), err)
			}
		}
		out.Forgotten = append(out.Forgotten, v.Snapshot)
	}
	return out, nil
}

// notAgent refuses what an agent's key is not enough for.
func (r *Repository) notAgent(act string) error {
	if r.keys == nil || r.keys.CanRead() {
		return nil
	}
	return fmt.Errorf("%s in %s: %w: an agent's key writes snapshots, and neither reads which packs they need nor has any deleted: %w", act, r.Location(), ErrKey, sealed.ErrNoIdentity)
}

// oneStack returns the stack that is meant: a policy never reaches across two.
func (r *Repository) oneStack(ctx context.Context, stack string) (string, error) {
	if stack != "" {
		return stack, CheckName("stack", stack)
	}
	list, err := r.find(ctx, "")
	if err != nil {
		return "", err
	}
	var stacks []string
	for _, f := range list {
		stacks = append(stacks, f.Stack)
	}
	stacks = slices.Compact(stacks) // they are sorted
	switch len(stacks) {
	case 0:
		return "", fmt.Errorf("%w: there is none in %s", ErrNoSnapshot, r.Location())
	case 1:
		return stacks[0], nil
	}
	return "", fmt.Errorf("%w: there are snapshots of several stacks: %s; say which with --stack", ErrAmbiguous, strings.Join(stacks, ", "))
}

// candidates are a stack's snapshots that are not forgotten, with what each lacks.
func (r *Repository) candidates(ctx context.Context, stack string) ([]Candidate, error) {
	list, err := r.List(ctx, stack)
	if err != nil {
		return nil, err
	}
	there, err := r.packsThere(ctx, stack)
	if err != nil {
		return nil, err
	}
	out := make([]Candidate, len(list))
	for i, l := range list {
		out[i].Listed = l
		if l.Err != nil {
			continue
		}
		sizes := l.Manifest.sizes()
		for _, key := range l.Manifest.objects() {
			if got, ok := there[key]; !ok || got != sizes[key] {
				out[i].Incomplete = key + " is missing or cut"
				break
			}
		}
	}
	return out, nil
}

// packsThere are the packs of a stack that there are, with their sizes.
func (r *Repository) packsThere(ctx context.Context, stack string) (map[string]int64, error) {
	there := map[string]int64{}
	for info, err := range r.store.List(ctx, volumesPrefix(stack)) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", r.Location(), err)
		}
		there[info.Key] = info.Size
	}
	return there, nil
}

// named decides by name. The last good snapshot of a line that leads stays,
// whoever names it. An id of which only a child is left is a record to write.
func (r *Repository) named(ctx context.Context, stack string, list []Candidate, o ForgetOptions) ([]Decision, []record, error) {
	out := (Policy{}).Keep(list, o.Zone)
	drop := map[string]bool{}
	var vanished []record
	for _, name := range o.Snapshots {
		var hits []Candidate
		for _, c := range list {
			if strings.HasPrefix(c.ID, name) || c.Manifest != nil && slices.Contains(c.Manifest.Tags, name) {
				hits = append(hits, c)
			}
		}
		byID := slices.ContainsFunc(hits, func(c Candidate) bool { return strings.HasPrefix(c.ID, name) })
		switch {
		case name == "" || name == "latest":
			return nil, nil, fmt.Errorf("%w: name the snapshots to forget by their ids or tags, not as %q", ErrUsage, name)
		case len(hits) > 1 && byID:
			return nil, nil, fmt.Errorf("%w: %q is the beginning of %d snapshots; give more of the id", ErrAmbiguous, name, len(hits))
		case len(hits) == 0:
			rec, err := r.vanishedParent(ctx, stack, list, name)
			if err != nil {
				return nil, nil, err
			}
			vanished = append(vanished, rec)
			continue
		}
		for _, h := range hits {
			drop[h.ID] = true
		}
	}
	left := map[string]bool{} // lines that keep a good one
	for _, d := range out {
		if d.Good && !drop[d.Snapshot.ID] {
			left[d.Snapshot.Manifest.line()] = true
		}
	}
	for i := range out {
		d := &out[i]
		if !drop[d.Snapshot.ID] {
			d.Keep, d.Reasons = true, []string{"was not named"}
			continue
		}
		if d.Good && d.Snapshot.Manifest.line() == stack && !left[stack] {
			return nil, nil, fmt.Errorf("%w: with snapshot %.8s the last good one of stack %s would go; nothing was forgotten. Take a new one first, or remove the repository with the target's own tools", ErrUsage, d.Snapshot.ID, stack)
		}
		d.Keep, d.Reasons = false, []string{"was named"}
	}
	return out, vanished, nil
}

// vanishedParent is the record of a snapshot that somebody deleted without one:
// prune stops at it until it is said that this was meant.
func (r *Repository) vanishedParent(ctx context.Context, stack string, list []Candidate, name string) (record, error) {
	all, err := r.ListAll(ctx, stack)
	if err != nil {
		return record{}, err
	}
	there := map[string]bool{}
	for _, l := range all {
		there[l.ID] = true
		if l.Forgotten && strings.HasPrefix(l.ID, name) {
			return record{}, fmt.Errorf("%w: snapshot %.8s is forgotten already; `backupd prune` deletes it", ErrNoSnapshot, l.ID)
		}
	}
	if validID(name) && !there[name] {
		if seq, known := r.vanishedSequence(ctx, stack, all, name); known {
			return record{Snapshot: name, Sequence: seq, Reason: "named, after it was gone"}, nil
		}
	}
	return record{}, fmt.Errorf("%w: no id begins with %q and no tag is %q in stack %s of %s; `backupd snapshots` lists what there is", ErrNoSnapshot, name, name, stack, r.Location())
}

// vanishedSequence says whether something that is there still names a snapshot,
// and what its number was, as far as that is known.
func (r *Repository) vanishedSequence(ctx context.Context, stack string, all []Listed, id string) (uint64, bool) {
	for _, l := range all {
		if l.Manifest != nil && l.Manifest.Parent == id {
			return max(l.Sequence, 2) - 1, true
		}
	}
	for info, err := range r.store.List(ctx, condemnedPrefix(stack)) {
		if err != nil {
			return 0, false
		}
		data, err := r.store.Get(ctx, info.Key, 0, -1)
		var c condemnedList
		if err == nil && json.Unmarshal(data, &c) == nil && slices.Contains(c.Snapshots, id) {
			return 1, true
		}
	}
	return 0, false
}
