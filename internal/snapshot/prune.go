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

	"github.com/disko/backupd/internal/snapshot/pack"
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
	// maxIntentLife bounds what an intent may ask for: it would else hold up prune for ever.
	maxIntentLife = 7 * 24 * time.Hour
	// claimLife is how long the claim on a list holds, and claimUse how long its
	// holder makes use of it: the difference is for a request that is under way.
	claimLife = 24 * time.Hour
	claimUse  = 12 * time.Hour
	// clockSlack is how far an object's time may be ahead of the target's clock.
	clockSlack = time.Hour
	// deleters is how many objects are deleted at a time: all of it is waiting.
	deleters = 8
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
