// Package seed decides whether a stack's volumes are fresh, and fills those
// that are from a snapshot.
//
// A volume is fresh by what the ledger says and by what lies in it, never by
// its name, by a clock, or because it looks empty to a container that came later.
// The invariants: data that backupd did not write is never overwritten or
// removed; what was decided is in the ledger, on disk, before the first
// write; in doubt nothing is touched, and the command that would is said.
//
// The package knows neither Docker, nor targets, nor snapshots' format, nor the
// command line: what it needs of them are the interfaces in this file.
package seed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Errors that callers ask for with errors.Is.
var (
	// ErrNoSnapshot: a Source has nothing to seed from; what it returned says why.
	ErrNoSnapshot = errors.New("nothing to seed from")
	// ErrDoubt: a volume holds half a restore that backupd cannot finish by itself.
	ErrDoubt = errors.New("in doubt")
	// ErrOptions: the caller asked for something that makes no sense.
	ErrOptions = errors.New("wrong usage")
)

// Mode is when to seed.
type Mode string

// Modes.
const (
	Auto    Mode = "auto"    // fresh volumes, if there is a snapshot
	Require Mode = "require" // fresh volumes; no snapshot is an error
	Off     Mode = "off"     // never
)

// Snapshot is a snapshot that a stack can be seeded from.
type Snapshot struct {
	ID      string
	Taken   time.Time
	Volumes []string
}

// Request is one volume to restore into.
type Request struct {
	Snapshot Snapshot
	Volume   Volume
	// Wipe are paths of the engine's copy of an image, directories before what is in them. They
	// are removed after the mark is written and before anything else is;
	// a directory only if nothing is in it by then.
	Wipe []string
	// Keep are paths of files in the root that stay as they are, and are not restored.
	Keep []string
	// Resume says that an earlier restore of the same snapshot began here: what
	// is there beyond Wipe and Keep was compared with Entries.
	Resume bool
}

// Source has the snapshots.
type Source interface {
	// Latest returns the snapshot to seed from: the latest that leads, or the one that
	// the user named. ErrNoSnapshot if there is none, or no repository yet; any other
	// error means that it could not be found out.
	Latest(ctx context.Context) (Snapshot, error)
	// Find returns the snapshot of an id; ErrNoSnapshot if it is gone.
	Find(ctx context.Context, id string) (Snapshot, error)
	// Entries calls use for each entry of a volume but its root. Inode and Born are 0;
	// of a hard link Kind is empty and Size -1: what it leads to has them.
	Entries(ctx context.Context, s Snapshot, volume string, use func(Entry) error) error
	// Restore makes a volume what it is in the snapshot. It writes tree.IncompleteMark into the root
	// first of all, saying that the volume was fresh, and removes it last, durably.
	// Files have their names only when they are whole, with all their times. A
	// later Restore of the same snapshot finishes one that ended.
	Restore(ctx context.Context, r Request) error
}

// Veto asks an engine what it knows.
type Veto interface {
	// EverStarted returns the names of containers, running or not, that mount a volume
	// and have ever been started, but for backupd's own of any project.
	EverStarted(ctx context.Context, v Volume) ([]string, error)
}

// Options are what to seed, from where, and how.
type Options struct {
	Stack    string
	StateDir string
	Volumes  []Volume
	// Named are volumes that the user asked for by name: they are seeded if
	// nothing lies in them, whatever the ledger says and other volumes hold.
	Named  []string
	Mode   Mode // empty is Auto
	Window Window
	Source Source
	Veto   Veto // nil: there is no engine to ask
	DryRun bool // decide, write nothing anywhere
	// Command is how the user calls backupd, for advice; "backupd" where empty.
	Command string
	// Tell, where set, is told what happens while it does, a line at a time.
	Tell func(line string)
	Now  func() time.Time // nil is time.Now
	// patience is how long another process's lock on a volume is waited for that is no seed's.
	patience time.Duration
}

func (o *Options) complete() error {
	if o.Mode == "" {
		o.Mode = Auto
	}
	if o.Mode != Auto && o.Mode != Require && o.Mode != Off {
		return fmt.Errorf("%w: seed mode %q: must be auto, require or off", ErrOptions, o.Mode)
	}
	if o.Command == "" {
		o.Command = "backupd"
	}
	if o.Tell == nil {
		o.Tell = func(string) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.patience == 0 {
		o.patience = 10 * time.Second
	}
	seen := map[string]bool{}
	for _, v := range o.Volumes {
		if seen[v.Name] {
			return fmt.Errorf("%w: volume %s is given twice", ErrOptions, v.Name)
		}
		seen[v.Name] = true
	}
	for _, n := range o.Named {
		if !seen[n] {
			return fmt.Errorf("%w: there is no volume %s here", ErrOptions, n)
		}
	}
	return nil
}

// Run seeds a stack's fresh volumes. The result says of every volume what was
// decided and why, also where there is an error.
func Run(ctx context.Context, o Options) (*Result, error) {
	return run(ctx, o, (*flow).seed)
}

// Note decides, and writes the verdicts into the ledger, without asking for a
// snapshot. A program that cannot go on, because its settings are wrong say, calls
// it first: so that volumes which are fresh now are still known to be when it is started
// anew, by another container, with the settings put right.
func Note(ctx context.Context, o Options) (*Result, error) {
	return run(ctx, o, func(*flow, context.Context) error { return nil })
}

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
