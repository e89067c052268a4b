package seed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// seed does what was decided.
func (f *flow) seed(ctx context.Context) error {
	if err := f.halves(); err != nil {
		return err
	}
	todo := f.todo()
	if len(todo) == 0 {
		return nil // the target is not asked: it may be away
	}
	s, err := f.snapshot(ctx, todo)
	if errors.Is(err, ErrNoSnapshot) {
		return f.nothing(todo, err)
	}
	if err != nil {
		return err
	}
	f.result.Snapshot = s.ID
	if err := f.check(ctx, s); err != nil {
		return err
	}
	for _, d := range f.todo() {
		if err := f.one(ctx, s, d); err != nil {
			return err
		}
	}
	if f.stack.Seeding != "" && !f.DryRun {
		f.stack.Seeding = ""
		return f.save()
	}
	return nil
}

// todo are the decisions that write.
func (f *flow) todo() (list []*Decision) {
	for i := range f.decisions {
		if d := &f.decisions[i]; d.Action == Seed || d.Action == Resume {
			list = append(list, d)
		}
	}
	return list
}

func names(list []*Decision) string {
	var out []string
	for _, d := range list {
		out = append(out, d.Name)
	}
	return strings.Join(out, ", ")
}

// snapshot finds what to seed from: what an unfinished seed began with, else the latest.
func (f *flow) snapshot(ctx context.Context, todo []*Decision) (Snapshot, error) {
	begun, half := f.stack.Seeding, ""
	for _, d := range todo {
		if d.Action == Resume {
			if half != "" && half != d.Snapshot {
				return Snapshot{}, fmt.Errorf("%w: volumes hold halves of different snapshots, %.8s and %.8s; `%s restore SNAPSHOT --force` makes them whole", ErrDoubt, half, d.Snapshot, f.Command)
			}
			half, begun = d.Snapshot, d.Snapshot
		}
	}
	if begun != "" {
		s, err := f.Source.Find(ctx, begun)
		if err == nil || !errors.Is(err, ErrNoSnapshot) {
			return s, f.unreachable(err, todo)
		}
		if half != "" {
			return Snapshot{}, fmt.Errorf("%w: seeding began from snapshot %.8s, which is gone, so that volume %s cannot be finished; nothing was touched; `%s restore --force` restores the latest", ErrDoubt, half, names(todo), f.Command)
		}
		f.Tell(fmt.Sprintf("snapshot %.8s, which seeding began with, is gone; going on with the latest", begun))
	}
	s, err := f.Source.Latest(ctx)
	return s, f.unreachable(err, todo)
}

// unreachable says why no snapshot at hand is an error.
func (f *flow) unreachable(err error, todo []*Decision) error {
	if err == nil || errors.Is(err, ErrNoSnapshot) {
		return err
	}
	return fmt.Errorf("look for the snapshot to seed from: %w; nothing was touched, and %s left without data, because to start so would hide that there are some: put it right and start again, or set BACKUPD_SEED=off to start without", err, plural(todo))
}

func plural(list []*Decision) string {
	if len(list) == 1 {
		return "volume " + list[0].Name + " was"
	}
	return "volumes " + names(list) + " were"
}

// nothing ends a run for which there is no snapshot. What the project writes from now on is its own.
func (f *flow) nothing(todo []*Decision, err error) error {
	if f.Mode == Require {
		return fmt.Errorf("%w; BACKUPD_SEED=require asks for one: take a snapshot first, or set BACKUPD_SEED=auto to start without data", err)
	}
	for _, d := range todo {
		if d.Half {
			return fmt.Errorf("%w: volume %s holds half a restore of snapshot %.8s, and %w", ErrDoubt, d.Name, d.Snapshot, err)
		}
		f.leave(d, "is fresh, but there was no snapshot to seed it from")
	}
	f.stack.Seeding = ""
	return f.save()
}

// leave keeps a fresh volume as it is, for good.
func (f *flow) leave(d *Decision, why string) {
	d.Action, d.Why, d.Wipe, d.Check = Leave, why, nil, nil
	f.note(d, Kept, "", nil)
	f.result.set(d)
}

// check looks, before anything is written, whether the snapshot has the
// volumes, and whether what lies in those that were begun is the snapshot's.
func (f *flow) check(ctx context.Context, s Snapshot) error {
	for _, d := range f.todo() {
		if !slices.Contains(s.Volumes, d.Name) {
			if d.Half {
				return fmt.Errorf("%w: volume %s holds half a restore of snapshot %.8s, which has no such volume; `%s restore --force` restores the latest", ErrDoubt, d.Name, s.ID, f.Command)
			}
			f.leave(d, fmt.Sprintf("is fresh, but snapshot %.8s has no volume of that name; it has %s", s.ID, strings.Join(s.Volumes, ", ")))
			continue
		}
		if d.ReadOnly && !d.Complete {
			return fmt.Errorf("volume %s is fresh but mounted read-only, so it cannot be seeded: remove `:ro` from its mount in the backup service, or set BACKUPD_SEED=off to start without data", d.Name)
		}
		if len(d.Check) == 0 {
			continue
		}
		path, err := f.stranger(ctx, s, d)
		if err != nil {
			return err
		}
		if path != "" {
			c := Case{Command: f.Command}
			c.foreign(d, path)
			f.result.set(d)
		}
	}
	if err := f.halves(); err != nil {
		return err
	}
	// What was in doubt is the project's own now, and then the rest is not seeded either.
	c := Case{Named: f.Named, Command: f.Command}
	before := len(f.todo())
	c.wholeStack(f.decisions)
	for i := range f.decisions {
		f.result.set(&f.decisions[i])
	}
	if before != len(f.todo()) || slices.ContainsFunc(f.decisions, func(d Decision) bool { return d.Action == Doubt }) {
		return f.record()
	}
	return f.save()
}

// stranger returns a path, of those to be checked, that the snapshot does not
// have like that; empty if it has them all. A restore leaves files whole or
// under a temporary name, so that one of another time was written by somebody else.
func (f *flow) stranger(ctx context.Context, s Snapshot, d *Decision) (string, error) {
	open := make(map[string]*Entry, len(d.Check))
	for i := range d.Check {
		if e := &d.Check[i]; d.Complete || !e.temporary() {
			open[e.Path] = e
		}
	}
	err := f.Source.Entries(ctx, s, d.Name, func(e Entry) error {
		if have := open[e.Path]; have != nil && have.restoredFrom(&e) {
			delete(open, e.Path)
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("compare volume %s with snapshot %.8s: %w; nothing was touched", d.Name, s.ID, err)
	}
	for i := range d.Check {
		if open[d.Check[i].Path] != nil {
			return d.Check[i].Path, nil
		}
	}
	return "", nil
}

// restoredFrom says whether an entry of a volume is what a restore makes of one of a snapshot.
func (e *Entry) restoredFrom(from *Entry) bool {
	if e.Kind != from.Kind && (from.Kind != "" || e.Kind == Dir) {
		return false
	}
	return e.Kind != File || sameTime(e.Mtime, from.Mtime) && (from.Size < 0 || e.Size == from.Size)
}

// sameTime compares times in nanoseconds; the first may have come from a file
// system that keeps seconds, or microseconds.
func sameTime(have, want int64) bool {
	const second, micro = int64(time.Second), int64(time.Microsecond)
	return have == want || have%second == 0 && have == want-want%second || have%micro == 0 && have == want-want%micro
}

// one seeds one volume.
func (f *flow) one(ctx context.Context, s Snapshot, d *Decision) error {
	if f.DryRun {
		f.result.would(d, s)
		return nil
	}
	if !d.Complete {
		f.stack.Seeding = s.ID
		f.note(d, Pending, s.ID, d.Wipe)
		if err := f.save(); err != nil {
			return err
		}
		f.Tell(fmt.Sprintf("volume %s %s: seeding it from snapshot %.8s, taken %s", d.Name, d.Why, s.ID, s.Taken.UTC().Format("2006-01-02 15:04:05 MST")))
		r := Request{Snapshot: s, Volume: d.Volume, Keep: d.Placeholders, Resume: d.Action == Resume}
		for _, e := range d.Wipe {
			r.Wipe = append(r.Wipe, e.Path)
		}
		if err := f.Source.Restore(ctx, r); err != nil {
			f.result.failed(d, s)
			return fmt.Errorf("seed volume %s from snapshot %.8s: %w; it is not complete, and no service should be started with it: start again, and seeding goes on where it ended", d.Name, s.ID, err)
		}
	}
	f.stack.Seeded = s.ID
	f.stack.Volumes[d.Name] = &Record{Identity: d.Identity, Verdict: Done, Since: f.Now().UTC(), Snapshot: s.ID}
	if err := f.save(); err != nil {
		return err
	}
	f.result.seeded(d, s)
	return nil
}
