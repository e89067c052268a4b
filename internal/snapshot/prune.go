package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/disko/backupd/internal/store"
)

// Prune deletes what forgotten snapshots and broken runs left, without locks and
// while others write and read. docs/format.md has the rules, and model_test.go
// shows what each is good for:
//
//   - garbage is explicit: the packs of snapshots that have a record, and of runs
//     whose intents expired, if no other manifest needs them;
//   - it is condemned first, in a list that every writer looks at after its
//     manifest; deleted after a waiting time by the target's clock; and the list
//     is removed after the last of its objects;
//   - lists are read before intents, intents before manifests, manifests before records;
//   - what a manifest needs by the time of deleting is not deleted;
//   - whatever cannot be explained stops it.

const (
	// DefaultWait is how long condemned objects wait.
	DefaultWait = 7 * 24 * time.Hour
	// MinWait is the least that readers, and listings that lag, can rely on.
	MinWait = 24 * time.Hour
)

// broken are rules that a test of prune takes out, to see that it notices.
type broken struct {
	intentsLast       bool // prune reads intents after manifests
	noWait            bool // prune deletes what it has just condemned
	ignoreOlder       bool // prune does not wait for runs that are older than the list
	listFirst         bool // prune removes the list before its objects
	implicitGarbage   bool // prune takes for garbage what no manifest names
	noRescue          bool // prune deletes by the list, whatever manifests need by then
	noClaim           bool // several prunes delete by one list
	vanishedIgnored   bool // prune goes on where a manifest vanished
	relyOnCondemned   bool // a writer refers to condemned packs
	parentUnconfirmed bool // a writer does not look for its parent after its intent
	commitUnchecked   bool // a writer does not look at the lists after its manifest
	packsBeforeLists  bool // a writer looks for its packs before it looks at the lists
}

// PruneOptions say how to prune.
type PruneOptions struct {
	Stack  string        // empty: all
	Wait   time.Duration // DefaultWait where 0, MinWait at least
	DryRun bool
}

// Amount is a number of objects and their size.
type Amount struct {
	Objects int   `json:"objects"`
	Bytes   int64 `json:"bytes"`
}

func (a *Amount) add(bytes int64) { a.Objects, a.Bytes = a.Objects+1, a.Bytes+bytes }

// Pruned tells what a prune did, or would do. Its JSON form is stable.
type Pruned struct {
	DryRun bool          `json:"dry_run"`
	Stacks []PrunedStack `json:"stacks"`
}

// PrunedStack is what a prune did with one stack.
type PrunedStack struct {
	Stack string `json:"stack"`
	// Condemned is what was found now: it is deleted by a prune after Due.
	Condemned Amount    `json:"condemned"`
	Snapshots []string  `json:"snapshots"` // forgotten ones whose packs these are
	Runs      []string  `json:"runs"`      // broken ones whose packs these are
	Due       time.Time `json:"due,omitzero"`
	// Waiting was condemned earlier and is not due yet.
	Waiting []WaitingList `json:"waiting"`
	// Freed was deleted.
	Freed Amount `json:"freed"`
	// Spared is what a list had, and a snapshot needs by now.
	Spared int `json:"spared"`
	// Locked is what the target does not let anybody delete yet, or at all to us.
	Locked      Amount    `json:"locked"`
	LockedUntil time.Time `json:"locked_until,omitzero"`
}

// WaitingList is a list of condemned objects that is not due.
type WaitingList struct {
	Name string `json:"name"`
	Amount
	Due time.Time `json:"due,omitzero"`
	Why string    `json:"why"`
}

// pruner prunes one stack.
type pruner struct {
	r     *Repository
	raw   store.Writer // the target as it is: lists have its keys
	clock store.Clock
	o     PruneOptions
	id    string // of this prune
	stack string
	dir   string // of the stack, on the target
	out   *PrunedStack
}

// Prune deletes what is due, and condemns what is garbage now. A stack in which
// something cannot be explained is left as it is; the error tells it, and the
// others are pruned all the same.
func (r *Repository) Prune(ctx context.Context, w store.Writer, o PruneOptions) (*Pruned, error) {
	if err := r.notAgent("prune"); err != nil {
		return nil, err
	}
	if o.Wait == 0 {
		o.Wait = DefaultWait
	}
	if o.Wait < MinWait && !r.broken.noWait {
		return nil, fmt.Errorf("%w: wait %v: at least %v, which restores that are under way rely on", ErrUsage, o.Wait, MinWait)
	}
	clock, ok := w.(store.Clock)
	if !ok {
		return nil, fmt.Errorf("prune %s: %w: nobody knows how old anything is there", r.Location(), store.ErrNoClock)
	}
	stacks := []string{o.Stack}
	if o.Stack == "" {
		var err error
		if stacks, err = r.stacks(ctx); err != nil {
			return nil, err
		}
	} else if err := CheckName("stack", o.Stack); err != nil {
		return nil, err
	}
	out := &Pruned{DryRun: o.DryRun, Stacks: []PrunedStack{}}
	var errs []error
	id := newRun()
	for _, stack := range stacks {
		s := PrunedStack{Stack: stack, Snapshots: []string{}, Runs: []string{}, Waiting: []WaitingList{}}
		p := &pruner{r: r, raw: w, clock: clock, o: o, id: id, stack: stack, out: &s}
		p.dir = strings.TrimSuffix(r.stored("stacks/"+stack+"/runs/x"), "runs/x")
		if err := p.run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("prune stack %s in %s: %w", stack, r.Location(), err))
		}
		out.Stacks = append(out.Stacks, s)
		if ctx.Err() != nil {
			break
		}
	}
	return out, errors.Join(errs...)
}

// stacks are all of which anything lies there.
func (r *Repository) stacks(ctx context.Context) ([]string, error) {
	seen := map[string]bool{}
	for info, err := range r.store.List(ctx, "stacks/") {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", r.Location(), err)
		}
		if parts := strings.Split(info.Key, "/"); len(parts) > 2 && CheckName("stack", parts[1]) == nil {
			seen[parts[1]] = true
		}
	}
	return slices.Sorted(maps.Keys(seen)), nil
}

func (p *pruner) run(ctx context.Context) error {
	s, err := p.survey(ctx)
	if err != nil {
		return err
	}
	if err := s.explained(); err != nil && !p.r.broken.vanishedIgnored {
		return err
	}
	for _, l := range s.lists {
		if err := p.list(ctx, s, l); err != nil {
			return err
		}
	}
	return p.condemn(ctx, s)
}
