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
