package snapshot

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/store/storetest"
	"github.com/disko/backupd/internal/testtree"
)

// A model test of commit and prune: the engine itself, over a store in memory
// that does one operation at a time, of whichever run a random number says.
// Writers, prunes, forget, copies and restores go on at the same time; runs are
// suspended at any operation for hours or weeks; listings lag; clocks are off by
// a year. It must hold that every snapshot that was reported, and not forgotten,
// restores; that no prune disturbs a run that keeps to the rules; and that in the
// end no garbage is left.

// envSeeds is how many seeds to try, for a soak; envSeed is the first.
const (
	envSeeds = "BACKUPD_MODEL_SEEDS"
	envSeed  = "BACKUPD_MODEL_SEED"
)

const modelStack = "shop"

// request is an operation that waits for its turn.
type request struct {
	a       *actor
	op, key string
	from    time.Time // not before; zero for at once
	granted chan struct{}
}

// actor is one who does things to the target, one task after the other.
type actor struct {
	m        *model
	name     string
	rng      *rand.Rand
	skew     time.Duration // of its clock
	pending  []*request
	finished bool
	// Of the task under way.
	begun     int       // step
	since     time.Time // by the target's clock
	announced int       // step of its first intent; 0: none
	renewed   time.Time // when it put its last
	looked    int       // step at which it read the condemned lists first
	run       string
	held      bool // suspended until its intents had expired
	ops       int
	holds     []suspend
	frozen    time.Time // suspended until then
	until     string    // or until a note that has this
}

// suspend suspends an actor: at its n-th operation of a task, or before one with
// these words in it; for a time, or until something is noted.
type suspend struct {
	at     int
	before string
	how    time.Duration
	until  string
}

// model is a target and all who use it.
type model struct {
	t      testing.TB
	rng    *rand.Rand
	mem    *storetest.Memory
	lag    time.Duration // of listings
	broken broken
	root   string
	wait   time.Duration

	mu        sync.Mutex
	changed   *sync.Cond
	now       time.Time // the target's clock
	step      int
	actors    []*actor
	burst     *actor
	reported  map[string]*report
	forgotten map[string]int // by id: the step
	lists     map[string]int // condemned lists, by key: the step
	violated  []string
	log       []string
}

// report is a snapshot that was reported to whoever asked for it.
type report struct {
	state     string // a clone of what was backed up
	step      int
	announced int
	objects   []string
	held      bool
}

// note writes down what happened, and wakes who waits for it.
func (m *model) note(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	m.log = append(m.log, fmt.Sprintf("%5d %s ", m.step, m.now.Format("01-02 15:04"))+line)
	for _, a := range m.actors {
		if a.until == "" || !strings.Contains(line, a.until) {
			continue
		}
		a.until, a.frozen = "", m.now
	}
}

func (m *model) violation(format string, args ...any) {
	m.note("VIOLATION: "+format, args...)
	m.violated = append(m.violated, fmt.Sprintf(format, args...))
}

// gate is the target as one actor sees it.
type gate struct {
	*storetest.Memory
	a *actor
}

var (
	_ store.Writer = (*gate)(nil)
	_ store.Clock  = (*gate)(nil)
)

// turn waits until the operation may be done, and does it.
func (g *gate) turn(ctx context.Context, op, key string, do func() error) error {
	if err := g.a.wait(ctx, op, key, time.Time{}); err != nil {
		return err
	}
	err := do()
	m := g.a.m
	m.mu.Lock()
	defer m.mu.Unlock()
	g.a.observe(op, key, err)
	m.changed.Broadcast()
	return err
}

func (a *actor) wait(ctx context.Context, op, key string, from time.Time) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r := &request{a: a, op: op, key: key, from: from, granted: make(chan struct{})}
	a.m.mu.Lock()
	a.pending = append(a.pending, r)
	a.m.changed.Broadcast()
	a.m.mu.Unlock()
	<-r.granted
	return nil
}

// waitFor waits until something is noted.
func (a *actor) waitFor(words string) {
	a.m.mu.Lock()
	seen := slices.ContainsFunc(a.m.log, func(line string) bool { return strings.Contains(line, words) })
	if !seen {
		a.until, a.frozen = words, never
	}
	a.m.mu.Unlock()
	if !seen {
		_ = a.wait(context.Background(), "sleep", "", time.Time{})
	}
}

// never is later than anything that happens.
var never = modelEpoch.AddDate(50, 0, 0)

// sleep lets the target's time pass.
func (a *actor) sleep(d time.Duration) {
	a.m.mu.Lock()
	from := a.m.now.Add(d)
	a.m.mu.Unlock()
	_ = a.wait(context.Background(), "sleep", "", from)
}

func (g *gate) Put(ctx context.Context, key string, data []byte) error {
	return g.turn(ctx, "put", key, func() error { return g.Memory.Put(ctx, key, data) })
}

func (g *gate) Get(ctx context.Context, key string, off, n int64) (data []byte, err error) {
	err = g.turn(ctx, "get", key, func() error { data, err = g.Memory.Get(ctx, key, off, n); return err })
	return data, err
}

func (g *gate) Stat(ctx context.Context, key string) (info store.Info, err error) {
	err = g.turn(ctx, "stat", key, func() error { info, err = g.Memory.Stat(ctx, key); return err })
	return info, err
}

func (g *gate) Delete(ctx context.Context, key string) error {
	return g.turn(ctx, "delete", key, func() error { return g.Memory.Delete(ctx, key) })
}

func (g *gate) Now(ctx context.Context) (now time.Time, err error) {
	err = g.turn(ctx, "now", "", func() error { now, err = g.Memory.Now(ctx); return err })
	return now, err
}

func (g *gate) Modified(ctx context.Context, key string) (at time.Time, err error) {
	err = g.turn(ctx, "time", key, func() error { at, err = g.Memory.Modified(ctx, key); return err })
	return at, err
}

// List shows what there is, but for some of what is younger than the lag.
func (g *gate) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		var all []store.Info
		err := g.turn(ctx, "list", prefix, func() error {
			for info, err := range g.Memory.List(ctx, prefix) {
				if err != nil {
					return err
				}
				if m := g.a.m; m.lag > 0 {
					at, err := g.Memory.Modified(ctx, info.Key)
					m.mu.Lock()
					hidden := err == nil && m.now.Sub(at) < m.lag && m.rng.IntN(3) > 0
					m.mu.Unlock()
					if hidden {
						continue
					}
				}
				all = append(all, info)
			}
			return nil
		})
		if err != nil {
			yield(store.Info{}, err)
			return
		}
		for _, info := range all {
			if !yield(info, nil) {
				return
			}
		}
	}
}

// observe looks at what was done. The caller holds the lock.
func (a *actor) observe(op, key string, err error) {
	m := a.m
	if a.announced > 0 && m.now.Sub(a.renewed) > intentLife {
		a.held = true
	}
	if op == "list" && strings.HasSuffix(key, "/condemned/") && a.looked == 0 {
		a.looked = m.step
	}
	m.note("%s %s %s %v", a.name, op, key, err)
	if op != "put" || err != nil {
		return
	}
	name := key[strings.LastIndexByte(key, '/')+1:]
	switch {
	case strings.Contains(key, "/runs/"):
		if a.announced == 0 {
			a.announced, a.run = m.step, name[:16]
		}
		a.renewed = m.now
	case strings.Contains(key, "/forgotten/"):
		_, _, id, _ := splitForgottenKey(key)
		if m.forgotten[id] == 0 {
			m.forgotten[id] = m.step
		}
	case strings.Contains(key, "/condemned/") && !strings.Contains(name, "."):
		m.lists[key] = m.step
		a.condemned(string(m.mem.Bytes(key)))
	}
}

// condemned makes sure that a list has nothing of a run that the prune could
// have known of: one that announced itself before the prune looked, and still
// was at work then, or had reported what nobody forgot.
func (a *actor) condemned(list string) {
	m := a.m
	if m.lag > 0 {
		return // it could not know
	}
	for id, r := range m.reported {
		if f := m.forgotten[id]; f > 0 || r.held || r.announced > a.begun {
			continue
		}
		for _, key := range r.objects {
			if strings.Contains(list, `"`+key+`"`) {
				m.violation("a prune condemns %s, which reported snapshot %.8s needs", key, id)
				return
			}
		}
	}
	for _, other := range m.actors {
		if other.announced > 0 && other.announced < a.begun && !other.held && m.now.Sub(other.renewed) < 20*time.Hour && strings.Contains(list, "/"+other.run+"-") {
			m.violation("a prune condemns packs of run %s, which is at work", other.run)
			return
		}
	}
}

// schedule grants operations until all actors are through.
func (m *model) schedule() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		for !m.quiet() {
			m.changed.Wait()
		}
		r := m.choose()
		if r == nil {
			return
		}
		m.step++
		r.a.pending = slices.DeleteFunc(r.a.pending, func(x *request) bool { return x == r })
		r.a.ops++
		if r.op != "sleep" {
			m.now = m.now.Add(time.Duration(1+m.rng.IntN(120)) * time.Second)
		}
		close(r.granted)
		// The actor does it before anybody else is asked.
		if r.op != "sleep" {
			step := len(m.log)
			for len(m.log) == step {
				m.changed.Wait()
			}
		}
	}
}

// quiet says whether every actor waits for its turn, or is through.
func (m *model) quiet() bool {
	for _, a := range m.actors {
		if !a.finished && len(a.pending) == 0 {
			return false
		}
	}
	return true
}

// choose picks an operation; time passes where all wait for it.
func (m *model) choose() *request {
	for {
		var ready []*actor
		var next time.Time
		for _, a := range m.actors {
			if !a.finished {
				m.suspend(a)
			}
		}
		for _, a := range m.actors {
			if a.finished {
				continue
			}
			from := a.pending[0].from
			for _, r := range a.pending {
				if r.from.Before(from) {
					from = r.from
				}
			}
			if a.frozen.After(from) {
				from = a.frozen
			}
			if !from.After(m.now) {
				ready = append(ready, a)
			} else if next.IsZero() || from.Before(next) {
				next = from
			}
		}
		if len(ready) == 0 {
			if next.IsZero() {
				return nil
			}
			if !next.Before(never) {
				m.t.Errorf("nobody goes on")
			}
			m.now = next
			continue
		}
		if !slices.Contains(ready, m.burst) || m.rng.IntN(6) == 0 {
			m.burst = ready[m.rng.IntN(len(ready))]
		}
		var may []*request
		for _, r := range m.burst.pending {
			if !r.from.After(m.now) {
				may = append(may, r)
			}
		}
		return may[m.rng.IntN(len(may))]
	}
}

// suspend suspends an actor that has come to where it is to be.
func (m *model) suspend(a *actor) {
	if len(a.holds) == 0 || a.until != "" || a.pending[0].op == "sleep" {
		return
	}
	h := a.holds[0]
	what := ""
	for _, r := range a.pending {
		if act := r.op + " " + r.key; h.before == "" && a.ops >= h.at || h.before != "" && strings.Contains(act, h.before) {
			what = act
		}
	}
	if what == "" {
		return
	}
	a.holds, a.until, a.frozen = a.holds[1:], h.until, m.now.Add(h.how)
	if h.until != "" {
		a.frozen = never
	}
	m.note("%s is suspended before %s", a.name, what)
}

// task begins a task of an actor, and may plan a suspension.
func (a *actor) task(holds ...suspend) {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	a.begun, a.since, a.announced, a.looked, a.run, a.held, a.ops, a.holds = a.m.step, a.m.now, 0, 0, "", false, 0, holds
}

// over ends a task, so that nothing is said of it any more.
func (a *actor) over() {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	a.announced, a.holds = 0, nil
}

func (a *actor) repo() (*Repository, error) {
	r, err := Open(context.Background(), a.m.mem, Options{Now: func() time.Time {
		a.m.mu.Lock()
		defer a.m.mu.Unlock()
		return a.m.now.Add(a.skew)
	}})
	if err != nil {
		return nil, err
	}
	r.store, r.broken = &gate{a.m.mem, a}, a.m.broken
	r.uptime = func() (string, time.Duration) {
		a.m.mu.Lock()
		defer a.m.mu.Unlock()
		return "model", a.m.now.Sub(modelEpoch)
	}
	return r, nil
}

func (a *actor) store() store.Writer { return &gate{a.m.mem, a} }

var modelEpoch = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// newModel makes a model with some snapshots.
func newModel(t testing.TB, seed uint64, b broken) *model {
	m := &model{
		t: t, rng: rand.New(rand.NewPCG(seed, 5)), mem: storetest.NewMemory(), broken: b, root: fastDir(t), now: modelEpoch,
		reported: map[string]*report{}, forgotten: map[string]int{}, lists: map[string]int{},
	}
	m.changed = sync.NewCond(&m.mu)
	m.mem.Clock = func() time.Time { return m.now }
	m.lag = []time.Duration{0, 0, 0, time.Hour, 10 * time.Hour}[m.rng.IntN(5)]
	m.wait = []time.Duration{MinWait, 3 * 24 * time.Hour}[m.rng.IntN(2)]
	return m
}

// actor adds an actor, which does its work when the model runs.
func (m *model) actor(name string, wg *sync.WaitGroup, work func(a *actor)) {
	a := &actor{m: m, name: name, rng: rand.New(rand.NewPCG(m.rng.Uint64(), 6)), skew: time.Duration(m.rng.IntN(3)-1) * 365 * 24 * time.Hour}
	m.actors = append(m.actors, a)
	wg.Go(func() {
		work(a)
		m.mu.Lock()
		defer m.mu.Unlock()
		a.finished = true
		m.changed.Broadcast()
	})
}

// random is the actor's own, for its calls may come at any time.
func (a *actor) random(n int) int { return a.rng.IntN(n) }

// change makes a writer's volume another one.
func (a *actor) change(dir string) {
	for range 1 + a.random(3) {
		n := a.random(12)
		if err := os.WriteFile(filepath.Join(dir, "data", fmt.Sprint("f", n)), noise(uint64(a.random(1<<30)), 100+a.random(90000)), 0o644); err != nil {
			panic(err)
		}
	}
}

// backup takes a snapshot, and judges what comes of it.
func (a *actor) backup(dir string) {
	r, err := a.repo()
	if err == nil {
		_, err = r.backupModel(a, dir)
	}
	a.judge(err)
	a.over()
}

func (r *Repository) backupModel(a *actor, dir string) (*Summary, error) {
	sum, man, err := r.backup(context.Background(), a.store(), BackupOptions{Stack: modelStack, Volumes: modelVolumes(dir)}, nil)
	if err != nil {
		return nil, err
	}
	state := filepath.Join(a.m.root, "state-"+sum.ID)
	testtree.Clone(a.m.t, dir, state)
	a.report(sum.ID, state, man.objects())
	return sum, nil
}

func (a *actor) report(id, state string, objects []string) {
	m := a.m
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reported[id] = &report{state: state, step: m.step, announced: a.announced, objects: objects, held: a.held}
	m.note("%s reports %.8s", a.name, id)
}

// judge says whether a writer was disturbed though it kept to the rules.
func (a *actor) judge(err error) {
	m := a.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		return
	}
	m.note("%s fails: %v", a.name, err)
	if a.held || m.lag > 0 {
		return // its intents had expired, or the target said otherwise than it is
	}
	if !errors.Is(err, ErrCondemned) {
		m.violation("%s fails: %v", a.name, err)
		return
	}
	if a.name == "copy" {
		return // it can store nothing again, under the names that its packs have
	}
	for _, at := range m.lists {
		if at > a.looked {
			return
		}
	}
	m.violation("%s fails for a list that it could see when it began: %v", a.name, err)
}

// prune prunes once.
func (a *actor) prune() {
	m := a.m
	r, err := a.repo()
	if err == nil {
		_, err = r.Prune(context.Background(), a.store(), PruneOptions{Stack: modelStack, Wait: m.wait})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note("%s is through: %v", a.name, err)
	if err != nil && m.lag == 0 && !errors.Is(err, errClaimOver) {
		m.violation("%s: %v", a.name, err)
	}
}

// forget forgets snapshots by their names, or by a policy.
func (a *actor) forget(ids ...string) {
	m := a.m
	r, err := a.repo()
	if err != nil {
		panic(err)
	}
	o := ForgetOptions{Stack: modelStack, Snapshots: ids}
	if len(ids) == 0 {
		o.Policy.Last = 1 + a.random(2)
	}
	_, err = r.Forget(context.Background(), a.store(), o)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note("%s is through: %v", a.name, err)
	if err != nil {
		m.violation("forget: %v", err)
	}
}

// wanted picks a snapshot that was reported and is not forgotten.
func (a *actor) wanted() string {
	m := a.m
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []string
	for id := range m.reported {
		if m.forgotten[id] == 0 {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return ""
	}
	slices.SortFunc(ids, func(x, y string) int { return m.reported[x].step - m.reported[y].step })
	return ids[a.rng.IntN(len(ids))]
}

// restore restores a snapshot that is not forgotten when it begins: any where
// none is named.
func (a *actor) restore(id string) {
	m := a.m
	if id == "" {
		id = a.wanted()
	}
	if id == "" {
		return
	}
	m.mu.Lock()
	a.begun, a.since = m.step, m.now
	m.mu.Unlock()
	r, err := a.repo()
	var man *Manifest
	if err == nil {
		man, err = r.Find(context.Background(), modelStack, id)
	}
	dir := filepath.Join(m.root, fmt.Sprintf("restored-%s-%d", id, a.begun))
	if err == nil {
		_, err = r.Restore(context.Background(), man, RestoreOptions{Volume: "data", Path: dir})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note("%s restored %.8s: %v", a.name, id, err)
	switch {
	case err == nil:
		testtree.Compare(m.t, filepath.Join(m.reported[id].state, "data"), dir, testtree.Options{})
	case m.now.Sub(a.since) < 20*time.Hour && m.lag == 0:
		m.violation("a restore of %.8s, which was not forgotten when it began, fails after %v: %v", id, m.now.Sub(a.since), err)
	}
	os.RemoveAll(dir)
}

// copyBack copies the n-th snapshot that another repository has, forgotten here
// or not; any where n is negative.
func (a *actor) copyBack(other *Repository, n int) {
	m := a.m
	list, err := other.List(context.Background(), modelStack)
	if err != nil || len(list) == 0 {
		panic(fmt.Sprint(len(list), err))
	}
	if n < 0 {
		n = a.random(len(list))
	}
	src := list[n]
	r, err := a.repo()
	var c *Copied
	if err == nil {
		c, err = other.CopyTo(context.Background(), r, a.store(), src.Manifest, nil)
	}
	if err == nil && !c.Existed {
		a.report(c.ID, m.reported[src.Manifest.lineage()].state, src.Manifest.objects())
	}
	a.judge(err)
	a.over()
}

// someHolds plans suspensions of a task with about n operations.
func (a *actor) someHolds(n int, longest time.Duration, chance int) []suspend {
	if a.random(100) >= chance {
		return nil
	}
	long := []time.Duration{time.Hour, 10 * time.Hour, 30 * time.Hour, 4 * 24 * time.Hour, 9 * 24 * time.Hour, 40 * 24 * time.Hour}
	h := suspend{at: a.random(n), how: min(long[a.random(len(long))], longest)}
	h.how += time.Duration(a.random(7200)) * time.Second
	return []suspend{h}
}

// modelVolumes are the volumes of a writer: two, so that a run puts packs, and
// reads its parent's index after that.
func modelVolumes(dir string) []Source {
	var s []Source
	for _, v := range []string{"data", "more"} {
		if _, err := os.Stat(filepath.Join(dir, v)); err == nil {
			s = append(s, Source{Name: v, Path: filepath.Join(dir, v)})
		}
	}
	return s
}

// history takes three snapshots, which another repository has too, with a change
// between them, and returns two writers' trees and the snapshots' ids.
func (m *model) history(volumes []string, change func(a *actor, dir string)) (dirs []string, other *Repository, ids []string) {
	t := m.t
	dirs = []string{filepath.Join(m.root, "one"), filepath.Join(m.root, "two")}
	for k, v := range volumes {
		if err := os.MkdirAll(filepath.Join(dirs[0], v), 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range 12 {
			if err := os.WriteFile(filepath.Join(dirs[0], v, fmt.Sprint("f", i)), noise(m.rng.Uint64(), 1000+7000*i/(k+1)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	back := storetest.NewMemory()
	now := Options{Now: func() time.Time { return m.now }}
	first, err := Ensure(context.Background(), m.mem, now)
	if err != nil {
		t.Fatal(err)
	}
	if other, err = Ensure(context.Background(), back, now); err != nil {
		t.Fatal(err)
	}
	setup := &actor{m: m, name: "setup", rng: m.rng}
	for range 3 {
		sum, man, err := first.backup(context.Background(), m.mem, BackupOptions{Stack: modelStack, Volumes: modelVolumes(dirs[0])}, nil)
		if err != nil {
			t.Fatal(err)
		}
		state := filepath.Join(m.root, "state-"+sum.ID)
		testtree.Clone(t, dirs[0], state)
		setup.report(sum.ID, state, man.objects())
		if _, err := first.CopyTo(context.Background(), other, back, man, nil); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, sum.ID)
		change(setup, dirs[0])
		m.now = m.now.Add(24 * time.Hour)
	}
	testtree.Clone(t, dirs[0], dirs[1])
	return dirs, other, ids
}

// play runs the whole piece with one seed, and returns what was violated.
func play(t testing.TB, seed uint64, b broken) (violated, log []string) {
	m := newModel(t, seed, b)
	dirs, other, _ := m.history([]string{"data"}, (*actor).change)
	const day = 24 * time.Hour
	// Most wake at the same hours, so that they meet.
	until := func(a *actor, most int) { a.sleep(time.Duration(1+a.random(most)) * day) }
	var wg sync.WaitGroup
	for i, dir := range dirs {
		m.actor(fmt.Sprint("writer", i), &wg, func(a *actor) {
			for range 3 {
				until(a, 4)
				a.change(dir)
				a.task(a.someHolds(36, 40*day, 50)...)
				a.backup(dir)
			}
		})
		m.actor(fmt.Sprint("prune", i), &wg, func(a *actor) {
			for range 5 {
				until(a, 5)
				a.task(a.someHolds(40, 10*time.Hour, 50)...)
				a.prune()
			}
		})
	}
	m.actor("forget", &wg, func(a *actor) {
		for range 4 {
			until(a, 4)
			a.task()
			a.forget()
		}
	})
	m.actor("copy", &wg, func(a *actor) {
		for range 3 {
			until(a, 6)
			a.task(a.someHolds(20, 40*day, 40)...)
			a.copyBack(other, -1)
		}
	})
	m.actor("restore", &wg, func(a *actor) {
		for range 4 {
			until(a, 4)
			a.task(a.someHolds(10, 10*time.Hour, 60)...)
			a.restore("")
		}
	})
	m.schedule()
	wg.Wait()
	m.ending()
	return m.violated, m.log
}

// ending lets time pass, prunes until nothing changes, and looks at what is left.
func (m *model) ending() {
	ctx := context.Background()
	r, err := Open(ctx, m.mem, Options{Now: func() time.Time { return m.now }})
	if err != nil {
		m.t.Fatal(err)
	}
	r.uptime = func() (string, time.Duration) { return "", 0 }
	for range 6 {
		m.now = m.now.Add(8 * 24 * time.Hour)
		if _, err := r.Prune(ctx, m.mem, PruneOptions{Stack: modelStack}); err != nil {
			m.violation("the last prune: %v", err)
			break
		}
	}
	list, err := r.List(ctx, modelStack)
	if err != nil {
		m.t.Fatal(err)
	}
	there := map[string]*Manifest{}
	want := map[string]bool{markerKey: true, restoreScriptKey: true, restoreNotesKey: true}
	parents := map[string]bool{}
	highest := uint64(0)
	for _, l := range list {
		if l.Err != nil {
			m.violation("snapshot %.8s: %v", l.ID, l.Err)
			continue
		}
		there[l.ID] = l.Manifest
		want[snapshotKey(modelStack, l.Sequence, l.ID)] = true
		parents[l.Manifest.Parent] = true
		highest = max(highest, l.Sequence)
		for _, key := range l.Manifest.objects() {
			want[key] = true
		}
	}
	for id, rep := range m.reported {
		if m.forgotten[id] > 0 {
			continue
		}
		if there[id] == nil {
			m.violation("reported snapshot %.8s is gone", id)
			continue
		}
		v, err := r.Verify(ctx, []Listed{{Stack: modelStack, Sequence: there[id].Sequence, ID: id, Manifest: there[id]}}, true, nil)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, d := range v.Damage {
			m.violation("reported snapshot does not restore: %s", d)
		}
		if len(v.Damage) == 0 {
			dir := filepath.Join(m.root, "last-"+id)
			if _, err := r.Restore(ctx, there[id], RestoreOptions{Volume: "data", Path: dir}); err != nil {
				m.violation("reported snapshot %.8s does not restore: %v", id, err)
				continue
			}
			testtree.Compare(m.t, filepath.Join(rep.state, "data"), dir, testtree.Options{})
			os.RemoveAll(dir)
		}
	}
	for _, key := range m.mem.Keys() {
		_, seq, id, isRecord := splitForgottenKey(key)
		if !want[key] && !(isRecord && (parents[id] || seq > highest)) {
			m.violation("%s is left over", key)
		}
	}
}

func seeds(t testing.TB, usual int) (first, n uint64) {
	n = uint64(usual)
	for env, to := range map[string]*uint64{envSeed: &first, envSeeds: &n} {
		if text := os.Getenv(env); text != "" {
			v, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			*to = v
		}
	}
	if testing.Short() && os.Getenv(envSeeds) == "" {
		n = min(n, 15)
	}
	return first, n
}

func TestEverySnapshotThatWasReportedRestores(t *testing.T) {
	believeStats(t)
	first, n := seeds(t, 50)
	for seed := first; seed < first+n; seed++ {
		violated, log := play(t, seed, broken{})
		if len(violated) > 0 {
			t.Fatalf("seed %d:\n%s\n\n%s", seed, strings.Join(violated, "\n"), strings.Join(log, "\n"))
		}
		if t.Failed() {
			t.Fatalf("seed %d:\n%s", seed, strings.Join(log, "\n"))
		}
	}
}

// course is a course of events in which a rule is needed.
type course struct {
	rule  string
	out   broken    // the rule taken out
	write []suspend // of the writer, whose parent is the newest snapshot
	// forget, which forgets the parent, waits for this; "" for no forgetting.
	forget string
	// Prunes begin when this was noted, after days, and are suspended so.
	prunes []planned
	// restore and copies begin when this was noted, or not at all. They are of the
	// first snapshot; without a writer it is forgotten, and not the newest.
	restore, copies string
	holds           []suspend // of the restore
}

type planned struct {
	after string
	days  int
	holds []suspend
}

const (
	beforePut    = "put stacks/shop/snapshots/"
	beforeIntent = "put stacks/shop/runs/"
	beforeDelete = "delete stacks/shop/volumes/"
)

// courses has one for each rule. In each the parent is forgotten after the writer
// chose it, or the first snapshot is.
func courses() []course {
	intent := suspend{before: beforeIntent, until: "forget is through"}
	return []course{
		{
			rule: "prune reads intents before manifests", out: broken{intentsLast: true},
			write: []suspend{intent, {before: beforePut, until: "prune0 is suspended"}}, forget: "writer is suspended before " + beforeIntent,
			prunes: []planned{{after: "writer is suspended before " + beforePut, holds: []suspend{{before: "list stacks/shop/runs/", until: "writer reports"}}}},
		},
		{
			rule: "prune waits before it deletes", out: broken{noWait: true},
			restore: "setup", holds: []suspend{{before: "get stacks/shop/volumes/data/packs", until: "prune1 is through"}}, forget: "restore is suspended",
			prunes: []planned{{after: "forget is through"}, {after: "prune0 is through"}},
		},
		{
			rule: "prune waits for runs older than its list", out: broken{ignoreOlder: true},
			write: []suspend{
				{before: beforeIntent, until: "prune0 is suspended"},
				{before: "get stacks/shop/volumes/data/index", until: "prune0 is through"},
				{before: "get stacks/shop/volumes/data/index", how: 13 * time.Hour},
				{before: "get stacks/shop/volumes/more/index", until: "prune1 is through"},
			},
			forget: "writer is suspended before " + beforeIntent,
			prunes: []planned{
				{after: "forget is through", holds: []suspend{{before: "list stacks/shop/snapshots/", until: "writer list stacks/shop/condemned/"}}},
				{after: "prune0 is through", days: 1, holds: []suspend{{before: "now", how: time.Hour}}},
			},
		},
		{
			rule: "the list is removed after its last object", out: broken{listFirst: true},
			write: []suspend{intent, {before: beforePut, until: "prune1 is suspended"}}, forget: "writer is suspended before " + beforeIntent,
			prunes: []planned{{after: "writer is suspended before " + beforePut, days: 2}, {after: "prune0 is through", days: 8, holds: []suspend{{before: "delete stacks/shop/snapshots/", until: "writer is through"}}}},
		},
		{
			rule: "garbage is explicit", out: broken{implicitGarbage: true},
			write:  []suspend{{before: beforePut, until: "prune0 is through"}},
			prunes: []planned{{after: "writer is suspended before " + beforePut}},
		},
		{
			rule: "what a manifest needs by then is spared", out: broken{noRescue: true},
			write:  []suspend{{before: beforeIntent, until: "prune0 is suspended"}, {before: beforePut, until: "prune0 is suspended before put"}},
			forget: "writer is suspended before " + beforeIntent,
			prunes: []planned{
				{after: "forget is through", holds: []suspend{{before: "list stacks/shop/snapshots/", until: "writer list stacks/shop/condemned/"}, {before: "put stacks/shop/condemned/", until: "writer reports"}}},
				{after: "prune0 is through", days: 8},
			},
		},
		{
			rule: "one prune at a time deletes by a list", out: broken{noClaim: true},
			forget: "setup", copies: "prune1 is through",
			prunes: []planned{
				{after: "forget is through"},
				{after: "prune2 is suspended"},
				{after: "prune0 is through", days: 8, holds: []suspend{{before: beforeDelete, until: "copy is through"}}},
			},
		},
		{
			rule: "a condemned pack is not relied on", out: broken{relyOnCondemned: true},
			write: []suspend{{before: beforeIntent, until: "prune0 is through"}}, forget: "writer is suspended before " + beforeIntent,
			prunes: []planned{{after: "forget is through"}},
		},
		{
			rule: "a writer confirms its parent after its intent", out: broken{parentUnconfirmed: true},
			write: []suspend{{before: beforeIntent, until: "prune1 is through"}}, forget: "writer is suspended before " + beforeIntent,
			prunes: []planned{{after: "forget is through"}, {after: "prune0 is through", days: 8}},
		},
		{
			rule: "a writer reads the lists after its manifest", out: broken{commitUnchecked: true},
			write: []suspend{intent, {before: beforePut, until: "prune1 is suspended"}}, forget: "writer is suspended before " + beforeIntent,
			prunes: []planned{{after: "writer is suspended before " + beforePut, days: 2}, {after: "prune0 is through", days: 8, holds: []suspend{{before: "delete stacks/shop/snapshots/", until: "writer is through"}}}},
		},
		{
			rule: "a writer reads the lists before it looks for its packs", out: broken{packsBeforeLists: true},
			write: []suspend{
				intent,
				{before: beforePut, until: "prune1 is suspended before " + beforeDelete},
				{before: "list stacks/shop/condemned/", until: "prune1 is through"},
			},
			forget: "writer is suspended before " + beforeIntent,
			prunes: []planned{
				{after: "writer is suspended before " + beforePut, days: 2},
				{after: "prune0 is through", days: 8, holds: []suspend{{before: beforeDelete, until: "writer is suspended before list stacks/shop/condemned/"}}},
			},
		},
	}
}

// run plays it.
func (s course) run(t testing.TB, b broken) (violated, log []string) {
	m := newModel(t, 1, b)
	m.lag, m.wait = 0, MinWait
	everything := func(a *actor, dir string) {
		for _, v := range modelVolumes(dir) {
			for i := range 12 {
				if err := os.WriteFile(filepath.Join(v.Path, fmt.Sprint("f", i)), noise(m.rng.Uint64(), 1000+5000*i), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	dirs, other, ids := m.history([]string{"data", "more"}, everything)
	// The newest snapshot's tree, so that the writer relies on that.
	if err := os.RemoveAll(dirs[0]); err != nil {
		t.Fatal(err)
	}
	testtree.Clone(t, m.reported[ids[2]].state, dirs[0])
	var wg sync.WaitGroup
	if s.write != nil {
		m.actor("writer", &wg, func(a *actor) {
			a.change(dirs[0])
			a.task(s.write...)
			a.backup(dirs[0])
			m.mu.Lock()
			defer m.mu.Unlock()
			m.note("writer is through")
		})
	}
	if s.forget != "" {
		m.actor("forget", &wg, func(a *actor) {
			a.waitFor(s.forget)
			a.task()
			if s.write != nil {
				a.forget(ids[2])
			} else {
				a.forget(ids[:2]...) // the second needs some of the first's
			}
		})
	}
	for i, p := range s.prunes {
		m.actor(fmt.Sprint("prune", i), &wg, func(a *actor) {
			a.waitFor(p.after)
			a.sleep(time.Duration(p.days) * 24 * time.Hour)
			a.task(p.holds...)
			a.prune()
		})
	}
	if s.restore != "" {
		m.actor("restore", &wg, func(a *actor) {
			a.task(s.holds...)
			a.restore(ids[0])
		})
	}
	if s.copies != "" {
		m.actor("copy", &wg, func(a *actor) {
			a.waitFor(s.copies)
			a.task()
			a.copyBack(other, 0)
			m.mu.Lock()
			defer m.mu.Unlock()
			m.note("copy is through")
		})
	}
	m.schedule()
	wg.Wait()
	m.ending()
	return m.violated, m.log
}

// Each rule is needed: in its course all is well with it, and nothing is without.
func TestEachRuleOfPruneIsNeeded(t *testing.T) {
	believeStats(t)
	for _, s := range courses() {
		t.Run(s.rule, func(t *testing.T) {
			if violated, log := s.run(t, broken{}); len(violated) > 0 {
				t.Errorf("with the rule:\n%s\n\n%s", strings.Join(violated, "\n"), strings.Join(log, "\n"))
			}
			violated, log := s.run(t, s.out)
			if len(violated) == 0 {
				t.Fatalf("nobody noticed that it was taken out:\n%s", strings.Join(log, "\n"))
			}
			t.Log(violated[0])
		})
	}
}
