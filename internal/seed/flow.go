package seed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
)

// flow is one run.
type flow struct {
	Options
	ledger    *Ledger
	stack     *stackRecord
	decisions []Decision
	result    *Result
	locks     []*os.File
}

func run(ctx context.Context, o Options, then func(*flow, context.Context) error) (*Result, error) {
	f := &flow{Options: o, result: newResult(&o)}
	err := f.complete()
	if err == nil {
		err = f.run(ctx, then)
	}
	if err != nil {
		err = fmt.Errorf("seed stack %s: %w", o.Stack, err)
		f.result.Error = err.Error()
	}
	f.result.summarize()
	return f.result, err
}

func (f *flow) run(ctx context.Context, then func(*flow, context.Context) error) error {
	if f.Mode == Off {
		return f.off(ctx)
	}
	if len(f.Volumes) == 0 {
		return nil
	}
	if err := f.open(ctx); err != nil {
		return err
	}
	defer f.close()
	if err := f.decide(ctx); err != nil {
		return err
	}
	if err := f.unreadable(); err != nil {
		return err // and no verdict: one of a fresh stack must not be for want of rights
	}
	if err := f.record(); err != nil {
		return err
	}
	return then(f, ctx)
}

// off leaves everything as it is, but half a restore never passes for data.
func (f *flow) off(ctx context.Context) error {
	for _, v := range f.Volumes {
		o, err := Observe(ctx, v)
		if err != nil {
			return err
		}
		d := Decision{Observation: o, Action: Leave, Why: "is not to be seeded (BACKUPD_SEED=off)"}
		if o.Mark != nil {
			c := Case{Command: f.Command}
			d.Action, d.Half, d.Why, d.Help = Doubt, true, "holds half a restore", c.restore(o)
		}
		f.decisions = append(f.decisions, d)
		f.result.add(&d)
	}
	return f.halves()
}

// open opens the ledger, and has the volumes alone among all who seed.
func (f *flow) open(ctx context.Context) error {
	if f.DryRun {
		k, err := readBook(f.StateDir)
		if err != nil {
			return err
		}
		f.stack = k.stack(f.Stack)
		return nil
	}
	var err error
	f.ledger, err = OpenLedger(ctx, f.StateDir, func() {
		f.Tell("another backupd is seeding with the same state directory; waiting until it has ended")
	})
	if err != nil {
		return err
	}
	f.stack = f.ledger.book.stack(f.Stack)
	return nil
}

func (f *flow) close() {
	for _, l := range f.locks {
		_ = l.Close() // gives its lock back
	}
	if f.ledger != nil {
		_ = f.ledger.Close()
	}
}

// decide looks at the volumes and decides. Of the engine only those are asked
// about that would be written to.
func (f *flow) decide(ctx context.Context) error {
	c := Case{Records: map[string]Record{}, Window: f.Window, Named: f.Named, Command: f.Command}
	for name, r := range f.stack.Volumes {
		c.Records[name] = *r
	}
	busy, err := f.lockVolumes(ctx)
	if err != nil {
		return err
	}
	for _, v := range f.Volumes {
		o, err := Observe(ctx, v)
		if err != nil {
			return err
		}
		o.Busy = busy[v.Name]
		c.Volumes = append(c.Volumes, o)
	}
	f.decisions = Decide(c)
	if f.Veto != nil {
		c.Started = map[string][]string{}
		for _, d := range f.decisions {
			if d.Action != Seed && d.Action != Resume {
				continue
			}
			who, err := f.Veto.EverStarted(ctx, d.Volume)
			if err != nil {
				return fmt.Errorf("ask the engine who has used volume %s: %w", d.Name, err)
			}
			c.Started[d.Name] = who
		}
		f.decisions = Decide(c)
	}
	for i := range f.decisions {
		f.result.add(&f.decisions[i])
	}
	return nil
}

// lockVolumes locks the roots of the volumes, because two projects may share
// one and have state directories of their own. All lock in the same order. Where
// somebody else has a lock and is no seed, it is given up after a while.
func (f *flow) lockVolumes(ctx context.Context) (busy map[string]bool, err error) {
	busy = map[string]bool{}
	if f.DryRun {
		return busy, nil
	}
	type root struct {
		Volume
		id Identity
		f  *os.File
	}
	var roots []root
	for _, v := range f.Volumes {
		d, err := openDir(v.Path)
		if err != nil {
			continue // Observe says it
		}
		f.locks = append(f.locks, d)
		id, err := identify(d)
		if err != nil {
			return nil, fmt.Errorf("look at volume %s: %w", v.Name, err)
		}
		roots = append(roots, root{v, id, d})
	}
	slices.SortFunc(roots, func(a, b root) int { return a.id.compare(b.id) })
	for i, r := range roots {
		if i > 0 && roots[i-1].id == r.id {
			continue // one volume under two names: the lock is ours
		}
		err := errBusy
		told := false
		for tries := 0; errors.Is(err, errBusy) && (tries == 0 || hasMark(r.f)); tries++ {
			err = wait(ctx, r.f, f.patience, func() {
				if !told {
					f.Tell(fmt.Sprintf("another process has a lock on volume %s; waiting for it, as it may be a backupd that seeds", r.Name))
					told = true
				}
			})
		}
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("wait for volume %s: %w", r.Name, err)
		case errors.Is(err, errBusy):
			busy[r.Name] = true
		}
		// Other errors: a file system that has no such locks.
	}
	return busy, nil
}

// record writes the verdicts into the ledger.
func (f *flow) record() error {
	for i := range f.decisions {
		d := &f.decisions[i]
		switch d.Action {
		case Seed:
			f.note(d, Pending, "", d.Wipe)
		case Resume:
			if d.Known == nil {
				f.note(d, Pending, d.Snapshot, d.Wipe)
			}
		case Leave:
			if d.Known == nil || d.Known.Verdict == Pending {
				f.note(d, Kept, "", nil)
			}
		case Doubt:
			if !d.Half && d.Unreadable == "" && (d.Known == nil || d.Known.Verdict != Done) {
				f.note(d, Kept, "", nil)
			}
		}
	}
	return f.save()
}

// note sets a volume's record; save makes it count.
func (f *flow) note(d *Decision, v Verdict, snapshot string, listing []Entry) {
	r := &Record{Identity: d.Identity, Verdict: v, Since: f.Now().UTC(), Snapshot: snapshot}
	switch v {
	case Pending:
		r.Listing = listing
		if d.Known != nil && d.Known.Verdict == Pending {
			// What is left of the first listing; and where a snapshot was begun with, it stays.
			r.Since, r.Listing = d.Known.Since, d.Known.Listing
			if snapshot == "" {
				r.Snapshot = d.Known.Snapshot
			}
		}
	case Kept:
		r.Why = d.Why
	}
	f.stack.Volumes[d.Name] = r
}

func (f *flow) save() error {
	if f.DryRun {
		return nil
	}
	return f.ledger.save()
}

// unreadable is the error of volumes that cannot be judged. To go on would let
// a fresh stack start without its data.
func (f *flow) unreadable() error {
	for i := range f.decisions {
		if d := &f.decisions[i]; d.Action == Doubt && d.Unreadable != "" {
			return fmt.Errorf("volume %s cannot be looked through, at %s, so that it is not known whether it is fresh; nothing was touched: let the backup service run as a user who may read it (root with CAP_DAC_OVERRIDE may), or set BACKUPD_SEED=off", d.Name, d.Unreadable)
		}
	}
	return nil
}

// halves is the error of volumes that hold half a restore which cannot be finished.
func (f *flow) halves() error {
	for i := range f.decisions {
		if d := &f.decisions[i]; d.Half && d.Action == Doubt {
			return fmt.Errorf("%w: volume %s %s; nothing was touched; `%s` makes it whole", ErrDoubt, d.Name, d.Why, d.Help)
		}
	}
	return nil
}
