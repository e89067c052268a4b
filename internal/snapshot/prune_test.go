package snapshot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/store/storetest"
)

// later is a target on which some time has passed.
type later struct {
	store.Writer
	by       time.Duration
	hostsOwn bool
}

func (l later) Now(ctx context.Context) (time.Time, error) {
	now, err := l.Writer.(store.Clock).Now(ctx)
	return now.Add(l.by), err
}

func (l later) Modified(ctx context.Context, key string) (time.Time, error) {
	return l.Writer.(store.Clock).Modified(ctx, key)
}

func (l later) HostClock() bool { return l.hostsOwn }

const week = 8 * 24 * time.Hour

// repo opens a repository as whoever has the lab's key.
func (l *lab) repo(st store.Reader) *Repository {
	l.t.Helper()
	r, err := Open(context.Background(), st, l.options())
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(r.Close)
	return r
}

func (l *lab) mustForget(st store.Writer, ids ...string) {
	l.t.Helper()
	if _, err := l.repo(st).Forget(context.Background(), st, ForgetOptions{Stack: "shop", Snapshots: ids}); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) prune(st store.Writer, after time.Duration) (*Pruned, error) {
	return l.repo(st).Prune(context.Background(), later{st, after, false}, PruneOptions{})
}

func (l *lab) mustPrune(st store.Writer, after time.Duration) PrunedStack {
	l.t.Helper()
	done, err := l.prune(st, after)
	if err != nil {
		l.t.Fatal(err)
	}
	return done.Stacks[0]
}

// wantExactly makes sure that nothing lies there but what the snapshots need,
// and the records of parents that are gone.
func (l *lab) wantExactly(st store.Lister, r *Repository) {
	l.t.Helper()
	ctx := context.Background()
	list, err := r.List(ctx, "shop")
	if err != nil {
		l.t.Fatal(err)
	}
	want := map[string]bool{markerKey: true, restoreScriptKey: true, restoreNotesKey: true}
	add := func(key string) { want[r.stored(key)] = true }
	for _, m := range list {
		add(snapshotKey("shop", m.Sequence, m.ID))
		if m.Manifest.Parent != "" {
			if !slices.ContainsFunc(list, func(o Listed) bool { return o.ID == m.Manifest.Parent }) {
				add(forgottenKey("shop", m.Sequence-1, m.Manifest.Parent))
			}
		}
		for _, key := range m.Manifest.objects() {
			add(key)
		}
	}
	got := map[string]bool{}
	for info, err := range st.List(ctx, "") {
		if err != nil {
			l.t.Fatal(err)
		}
		if !strings.HasPrefix(info.Key, keysPrefix) && !strings.HasSuffix(info.Key, "/name") {
			got[info.Key] = true
		}
	}
	if !maps.Equal(got, want) {
		for key := range got {
			if !want[key] {
				l.t.Errorf("left over: %s", key)
			}
		}
		for key := range want {
			if !got[key] {
				l.t.Errorf("missing: %s", key)
			}
		}
	}
}

// threeStates takes a snapshot of each of three states, whose files differ, and
// returns the ids with their states.
func (l *lab) threeStates(st store.Writer) ([]string, map[string]string) {
	l.t.Helper()
	ids := []string{l.mustBackup(st)}
	l.change()
	ids = append(ids, l.mustBackup(st))
	for _, v := range labVolumes {
		for i := range 8 {
			l.write(v, fmt.Sprintf("dir/%d", i), noise(uint64(200+i), 3000))
		}
		l.write(v, "large", noise(96, 700<<10))
	}
	l.keep()
	ids = append(ids, l.mustBackup(st))
	return ids, map[string]string{ids[0]: l.states[0], ids[1]: l.states[1], ids[2]: l.states[2]}
}

func TestPruneDeletesInTwoPhasesAndNothingElse(t *testing.T) {
	believeStats(t)
	l, st := newLab(t), storetest.NewMemory()
	ids, states := l.threeStates(st)
	l.wantExactly(st, l.repo(st))
	before := len(st.Keys())
	if s := l.mustPrune(st, 0); s.Condemned.Objects+s.Freed.Objects+len(s.Waiting) > 0 || len(st.Keys()) != before {
		t.Errorf("where nothing is forgotten: %+v", s)
	}
	l.mustForget(st, ids[0], ids[1])
	delete(states, ids[0])
	delete(states, ids[1])
	l.wantSnapshots(st, states)
	s := l.mustPrune(st, 0)
	if s.Condemned.Bytes < 1<<20 || len(s.Snapshots) != 2 || s.Freed.Objects > 0 {
		t.Errorf("phase one: %+v", s)
	}
	l.wantSnapshots(st, states)
	freed := s.Condemned
	if s := l.mustPrune(st, 6*24*time.Hour); s.Freed.Objects > 0 || len(s.Waiting) != 1 || s.Waiting[0].Amount != freed {
		t.Errorf("before it is due: %+v", s)
	}
	if s := l.mustPrune(st, week); s.Freed != freed || s.Spared > 0 {
		t.Errorf("phase two: %+v, want %+v", s, freed)
	}
	l.mustPrune(st, 2*week) // the first one's record: nobody names it any more
	l.wantExactly(st, l.repo(st))
	l.wantSnapshots(st, states)
	l.wantClean(st)
	states[l.mustBackup(st)] = l.states[2]
	l.wantSnapshots(st, states)
}

// A forgotten snapshot is there until it is pruned, for those who have its id.
func TestAForgottenSnapshotIsFoundByItsIdAlone(t *testing.T) {
	believeStats(t)
	l, st := newLab(t), storetest.NewMemory()
	ids, _ := l.threeStates(st)
	l.mustForget(st, ids[2])
	r := l.repo(st)
	if m, err := r.Find(context.Background(), "shop", "latest"); err != nil || m.ID() != ids[1] {
		t.Errorf("latest: %v, %v", m, err)
	}
	if m, err := r.Find(context.Background(), "shop", ids[2][:10]); err != nil || m.ID() != ids[2] {
		t.Errorf("by its id: %v", err)
	}
	id := l.mustBackup(st)
	m, err := r.Find(context.Background(), "shop", id)
	if err != nil || m.Parent != ids[1] || m.Sequence != 4 {
		t.Errorf("the next one's parent is %.8s, its number %d (%v)", m.Parent, m.Sequence, err)
	}
}

func TestAPruneKilledAtAnyOperationIsFinishedByTheNext(t *testing.T) {
	believeStats(t)
	l, st := newLab(t), storetest.NewMemory()
	ids, _ := l.threeStates(st)
	killed, err := l.backup(context.Background(), &storetest.Faulty{Writer: st, Hook: func(op, key string, _ int) storetest.Fault {
		if op == storetest.OpPut && strings.Contains(key, "/snapshots/") {
			return storetest.FailBefore
		}
		return storetest.None
	}})
	if err == nil {
		t.Fatal(killed)
	}
	l.mustForget(st, ids[0], ids[1])
	l.write("data", "dir/5", noise(5, 500)) // the killed one left packs
	l.keep()
	if _, err := l.backup(context.Background(), &storetest.Faulty{Writer: st, Hook: func(op, key string, _ int) storetest.Fault {
		if op == storetest.OpPut && strings.Contains(key, "/snapshots/") {
			return storetest.FailBefore
		}
		return storetest.None
	}}); err == nil {
		t.Fatal("the backup succeeded")
	}
	l.states = l.states[:3]
	states := map[string]string{ids[2]: l.states[2]}
	for phase, passed := range map[string]time.Duration{"one": 2 * 24 * time.Hour, "two": week + 3*24*time.Hour} {
		t.Run(phase, func(t *testing.T) {
			l := &lab{t: t, root: l.root, states: l.states}
			start := st.Clone()
			if phase == "two" {
				l.mustPrune(start, 2*24*time.Hour)
			}
			count := &storetest.Faulty{Writer: start.Clone()}
			if _, err := l.prune(count, passed); err != nil {
				t.Fatal(err)
			}
			for name, fault := range faults {
				forEachOp(t, count.Ops(), func(k int) {
					st := start.Clone()
					ctx, cancel := context.WithCancel(context.Background())
					defer cancel()
					f := &storetest.Faulty{Writer: st, Hook: func(op, key string, n int) storetest.Fault {
						if n > k {
							return storetest.FailBefore // killed: nothing is tidied up either
						}
						return at(k, fault)(op, key, n)
					}}
					if r, err := Open(ctx, f, l.options()); err == nil {
						_, _ = r.Prune(ctx, later{f, passed, false}, PruneOptions{})
						r.Close()
					}
					l.wantSnapshots(st, states)
					for i := range 5 { // a claim of the killed one holds for a day
						if _, err := l.prune(st, passed+time.Duration(i+1)*week); err != nil {
							t.Errorf("the next prune: %v", err)
						}
					}
					l.wantExactly(st, l.repo(st))
					l.wantSnapshots(st, states)
					if t.Failed() {
						t.Logf("fault %s at %d", name, k)
					}
				})
			}
		})
	}
}

func TestBrokenRunsAreGarbageOnceTheirIntentsExpired(t *testing.T) {
	believeStats(t)
	l, st := newLab(t), storetest.NewMemory()
	ids := map[string]string{l.mustBackup(st): l.states[0]}
	l.change()
	if _, err := l.backup(context.Background(), &storetest.Faulty{Writer: st, Hook: func(op, key string, _ int) storetest.Fault {
		if op == storetest.OpPut && strings.Contains(key, "/snapshots/") {
			return storetest.FailBefore
		}
		return storetest.None
	}}); err == nil {
		t.Fatal("the backup succeeded")
	}
	if s := l.mustPrune(st, 23*time.Hour); s.Condemned.Objects > 0 {
		t.Errorf("while its intent holds: %+v", s)
	}
	s := l.mustPrune(st, 25*time.Hour)
	if s.Condemned.Objects == 0 || len(s.Runs) != 1 {
		t.Errorf("after that: %+v", s)
	}
	l.mustPrune(st, 2*week)
	l.wantExactly(st, l.repo(st))
	l.wantSnapshots(st, ids)
}

// A list of everything the parent needs: the next snapshot refers to none of it.
func TestCondemnedPacksAreStoredAgain(t *testing.T) {
	believeStats(t)
	l, st := newLab(t), storetest.NewMemory()
	first := l.mustBackup(st)
	list := condemnedList{Keys: packsOf(st)}
	data, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	st.SetBytes(condemnedPrefix("shop")+"0123456789abcdef", data)
	second := l.mustBackup(st)
	m, err := l.repo(st).Find(context.Background(), "shop", second)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range m.objects() {
		if slices.Contains(list.Keys, key) {
			t.Errorf("%s is condemned, and needed", key)
		}
	}
	for _, key := range list.Keys {
		st.Remove(key)
	}
	if err := l.restore(context.Background(), st, second, "data", l.scratch(), false); err != nil {
		t.Error(err)
	}
	_ = first
}

// What cannot be explained stops prune, and nothing is deleted or condemned.
func TestPruneStopsAtWhatItCannotExplain(t *testing.T) {
	believeStats(t)
	l, start := newLab(t), storetest.NewMemory()
	ids, _ := l.threeStates(start)
	l.mustForget(start, ids[0])
	l.mustPrune(start, 0)
	manifest := func(st *storetest.Memory, id string) string {
		for _, key := range st.Keys() {
			if strings.HasSuffix(key, "-"+id) && strings.Contains(key, "/snapshots/") {
				return key
			}
		}
		t.Fatal("no manifest")
		return ""
	}
	for what, spoil := range map[string]func(st *storetest.Memory){
		"a parent that vanished":          func(st *storetest.Memory) { st.Remove(manifest(st, ids[1])) },
		"a newest that vanished":          func(st *storetest.Memory) { st.Remove(manifest(st, ids[2])) },
		"a damaged manifest":              func(st *storetest.Memory) { st.SetBytes(manifest(st, ids[1]), []byte("x")) },
		"a cut manifest":                  func(st *storetest.Memory) { k := manifest(st, ids[2]); st.SetBytes(k, st.Bytes(k)[:40]) },
		"a stranger beside the manifests": func(st *storetest.Memory) { st.SetBytes("stacks/shop/snapshots/notes.txt", []byte("x")) },
		"a damaged record":                func(st *storetest.Memory) { st.SetBytes(forgottenKey("shop", 2, ids[1]), []byte("{}")) },
		"a stranger beside the records":   func(st *storetest.Memory) { st.SetBytes("stacks/shop/forgotten/all", []byte("{}")) },
		"a cut intent":                    func(st *storetest.Memory) { st.SetBytes("stacks/shop/runs/0123456789abcdef.0", []byte(`{"run":`)) },
		"a stranger beside the intents":   func(st *storetest.Memory) { st.SetBytes("stacks/shop/runs/x", []byte("{}")) },
		"a cut list": func(st *storetest.Memory) {
			st.SetBytes("stacks/shop/condemned/0123456789abcdef", []byte(`{"keys":["st`))
		},
		"a list of the keys": func(st *storetest.Memory) {
			st.SetBytes("stacks/shop/condemned/0123456789abcdef", []byte(`{"keys":["backupd.json"],"sizes":[0]}`))
		},
		"a list of a neighbour's packs": func(st *storetest.Memory) {
			st.SetBytes("stacks/shop/condemned/0123456789abcdef", []byte(`{"keys":["stacks/shop2/volumes/data/packs/0123456789abcdef-0"],"sizes":[0]}`))
		},
	} {
		t.Run(what, func(t *testing.T) {
			st := start.Clone()
			spoil(st)
			before := st.Clone()
			_, err := l.prune(st, week)
			if err == nil || !strings.Contains(err.Error(), "nothing was deleted") {
				t.Errorf("%v", err)
			}
			if !slices.Equal(before.Keys(), st.Keys()) {
				t.Error("something was deleted or written")
			}
		})
	}
	// What is meant can be said.
	st := start.Clone()
	st.Remove(manifest(st, ids[1]))
	l.mustForget(st, ids[1])
	l.mustPrune(st, week)
	st = start.Clone()
	st.SetBytes(manifest(st, ids[1]), []byte("x"))
	l.mustForget(st, ids[1])
	l.mustPrune(st, week)
}

func TestAForgedListDeletesNothingThatIsNeeded(t *testing.T) {
	believeStats(t)
	l, st := newLab(t), storetest.NewMemory()
	_, states := l.threeStates(st)
	list := condemnedList{}
	for _, key := range st.Keys() {
		if strings.Contains(key, "/volumes/") || strings.Contains(key, "/snapshots/") {
			list.Keys, list.Sizes = append(list.Keys, key), append(list.Sizes, 0)
		}
	}
	data, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	st.SetBytes("stacks/shop/condemned/0123456789abcdef", data)
	if s := l.mustPrune(st, week); s.Freed.Objects > 0 || s.Spared == 0 {
		t.Errorf("%+v", s)
	}
	l.wantSnapshots(st, states)
	l.wantExactly(st, l.repo(st))
}

func TestEncryptedRepositoriesAreForgottenAndPruned(t *testing.T) {
	believeStats(t)
	l, st := newLab(t), storetest.NewMemory()
	l.credentials, _ = newIdentity(t)
	ids, states := l.threeStates(st)
	r := l.repo(st)
	text, err := r.keys.AgentKey()
	if err != nil {
		t.Fatal(err)
	}
	// An agent forgets and prunes nothing, and says what would.
	agent, err := Open(context.Background(), st, Options{Credentials: agentOf(t, text)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := agent.Forget(context.Background(), st, ForgetOptions{Stack: "shop", Snapshots: ids[:1]}); !errors.Is(err, sealed.ErrNoIdentity) {
		t.Errorf("forget by an agent: %v", err)
	}
	if _, err := agent.Prune(context.Background(), st, PruneOptions{}); !errors.Is(err, sealed.ErrNoIdentity) {
		t.Errorf("prune by an agent: %v", err)
	}
	// Nor does whoever stole its key: a record that he writes hides nothing.
	for seq, id := range ids {
		if err := agent.putRecord(context.Background(), mustWriter(t, agent, st), "shop", record{Snapshot: id, Sequence: uint64(seq + 1)}); err != nil {
			t.Fatal(err)
		}
	}
	l.wantSnapshots(st, states)
	if _, err := l.prune(st, week); !errors.Is(err, sealed.ErrForged) {
		t.Errorf("prune beside forged records: %v", err)
	}
	for _, key := range st.Keys() {
		if strings.Contains(key, "/forgotten/") {
			st.Remove(key)
		}
	}
	l.mustForget(st, ids[0], ids[1])
	s := l.mustPrune(st, 0)
	l.mustPrune(st, week)
	l.mustPrune(st, 2*week)
	if s.Condemned.Bytes < 1<<20 {
		t.Errorf("%+v", s)
	}
	for _, key := range st.Keys() {
		if strings.Contains(key, "shop") || bytes.Contains(st.Bytes(key), []byte("shop")) {
			t.Errorf("%s tells the stack's name", key)
		}
	}
	l.wantExactly(st, l.repo(st))
	l.wantSnapshots(st, map[string]string{ids[2]: l.states[2]})
	l.wantClean(st)
}

func mustWriter(t *testing.T, r *Repository, st store.Writer) store.Writer {
	t.Helper()
	w, err := r.writer(st)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// The clock of a directory is the host's, which somebody may set.
func TestAHostsClockThatWasSetDeletesNothing(t *testing.T) {
	believeStats(t)
	l, st := newLab(t), storetest.NewMemory()
	ids, _ := l.threeStates(st)
	l.mustForget(st, ids[0], ids[1])
	uptimes := func(boot string, since time.Duration) func() (string, time.Duration) {
		return func() (string, time.Duration) { return boot, since }
	}
	prune := func(after time.Duration, up func() (string, time.Duration)) PrunedStack {
		t.Helper()
		r := l.repo(st)
		r.uptime = up
		done, err := r.Prune(context.Background(), later{st, after, true}, PruneOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return done.Stacks[0]
	}
	prune(0, uptimes("one", time.Hour))
	if s := prune(365*24*time.Hour, uptimes("one", 2*time.Hour)); s.Freed.Objects > 0 || len(s.Waiting) != 1 || !strings.Contains(s.Waiting[0].Why, "whatever its clock says") {
		t.Errorf("the clock was set on by a year: %+v", s)
	}
	trial := st.Clone()
	if s := prune(week, uptimes("two", time.Minute)); s.Freed.Objects == 0 {
		t.Errorf("after another boot: %+v", s)
	}
	st = trial
	// Set back: the list is of the future, and waits anew instead of for ever.
	before := slices.DeleteFunc(st.Keys(), func(k string) bool { return !strings.Contains(k, "/condemned/") })
	if s := prune(-365*24*time.Hour, uptimes("one", 3*time.Hour)); s.Freed.Objects > 0 {
		t.Errorf("the clock was set back: %+v", s)
	}
	after := slices.DeleteFunc(st.Keys(), func(k string) bool { return !strings.Contains(k, "/condemned/") })
	if len(before) != 1 || len(after) != 1 || before[0] == after[0] {
		t.Errorf("the list was not written anew: %v, %v", before, after)
	}
	if s := prune(week, uptimes("one", week+4*time.Hour)); s.Freed.Objects == 0 {
		t.Errorf("after the waiting time: %+v", s)
	}
}

// vault is a target on which nothing can be deleted for a time.
type vault struct {
	later
	until   time.Time
	refuses bool
}

func (v vault) LockedUntil(_ context.Context, key string) (time.Time, error) {
	if strings.Contains(key, "/packs/") {
		return v.until, nil
	}
	return time.Time{}, nil
}

func (v vault) Delete(ctx context.Context, key string) error {
	if v.refuses && strings.Contains(key, "/packs/") {
		return fmt.Errorf("delete %s: %w", key, store.ErrAccess)
	}
	return v.later.Delete(ctx, key)
}

func TestLockedObjectsStayCondemned(t *testing.T) {
	believeStats(t)
	for name, v := range map[string]vault{"until a day": {until: time.Now().AddDate(0, 1, 0)}, "without a word": {refuses: true}} {
		t.Run(name, func(t *testing.T) {
			l, st := newLab(t), storetest.NewMemory()
			ids, _ := l.threeStates(st)
			l.mustForget(st, ids[0], ids[1])
			all := l.mustPrune(st, 0).Condemned
			v.later = later{st, week, false}
			done, err := l.repo(st).Prune(context.Background(), v, PruneOptions{})
			if err != nil {
				t.Fatal(err)
			}
			s := done.Stacks[0]
			if s.Locked.Objects == 0 || s.Freed.Objects+s.Locked.Objects != all.Objects || !s.LockedUntil.Equal(v.until) {
				t.Errorf("%+v of %+v", s, all)
			}
			l.mustPrune(st, 5*week)
			l.mustPrune(st, 6*week)
			l.wantExactly(st, l.repo(st))
		})
	}
}

func TestUsageCountsEachPackOnce(t *testing.T) {
	believeStats(t)
	l, st := newLab(t), storetest.NewMemory()
	ids, _ := l.threeStates(st)
	sum := func(keys []string) (n int64) {
		for _, k := range keys {
			n += int64(len(st.Bytes(k)))
		}
		return n
	}
	u, err := l.repo(st).Usage(context.Background(), "")
	if err != nil || len(u.Stacks) != 1 {
		t.Fatalf("%+v, %v", u, err)
	}
	s := u.Stacks[0]
	if s.Bytes != sum(packsOf(st)) || s.Forgotten != 0 || len(s.Volumes) != 2 || s.Volumes[0].Bytes+s.Volumes[1].Bytes != s.Bytes || len(s.Snapshots) != 3 {
		t.Errorf("%+v, and all packs have %d bytes", s, sum(packsOf(st)))
	}
	own := s.Snapshots[0].Own + s.Snapshots[1].Own
	l.mustForget(st, ids[0], ids[1])
	u, err = l.repo(st).Usage(context.Background(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	s = u.Stacks[0]
	if s.Forgotten < own || s.Bytes+s.Forgotten != sum(packsOf(st)) || len(s.Snapshots) != 1 || s.Snapshots[0].Shared != 0 || s.Snapshots[0].Own != s.Bytes {
		t.Errorf("%+v", s)
	}
	if freed := l.mustPrune(st, 0).Condemned.Bytes; freed != s.Forgotten {
		t.Errorf("prune condemns %d bytes, and %d were promised", freed, s.Forgotten)
	}
}

// A snapshot that is copied to where a prune is removing its packs waits, and
// a backup to both places goes on all the same.
func TestACopyDoesNotRelyOnWhatIsCondemned(t *testing.T) {
	believeStats(t)
	l := newLab(t)
	a, b := storetest.NewMemory(), storetest.NewMemory()
	for range 3 {
		if _, _, err := l.backupAll(a, b); err != nil {
			t.Fatal(err)
		}
		for _, v := range labVolumes {
			for i := range 8 {
				l.write(v, fmt.Sprintf("dir/%d", i), noise(uint64(10*len(l.states)+i), 3000))
			}
			l.write(v, "large", noise(uint64(len(l.states)), 900<<10))
		}
		l.keep()
	}
	ids := l.ids(b)
	l.mustForget(b, ids[0], ids[1])
	l.mustPrune(b, 0)
	from, to := l.repo(a), l.repo(b)
	list, err := from.List(context.Background(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := from.CopyTo(context.Background(), to, b, list[0].Manifest, nil); !errors.Is(err, ErrCondemned) {
		t.Errorf("a copy of what is condemned: %v", err)
	}
	_, results, err := l.backupAll(a, b)
	if err != nil || results[0].Err != nil || results[1].Err != nil {
		t.Errorf("%+v, %v", results, err)
	}
	l.mustPrune(b, week)
	if _, err := from.CopyTo(context.Background(), to, b, list[0].Manifest, nil); err != nil {
		t.Errorf("after the prune: %v", err)
	}
	l.wantClean(b)
}

// A run may put packs that its manifest does not name, where it went over a
// volume again. Its intent stays then, and prune finds them.
func TestPacksThatASuccessfulRunDoesNotNeedAreGarbage(t *testing.T) {
	st := storetest.NewMemory()
	m := &Manifest{Stack: "shop", Run: "0123456789abcdef", Volumes: []Volume{{Name: "data", Packs: []PackRange{{Run: "0123456789abcdef", Sizes: []uint32{1}}}}}}
	for name, c := range map[string]struct {
		packs []string
		left  bool
	}{
		"all are needed":      {m.objects(), false},
		"one is not":          {append(m.objects(), "stacks/shop/volumes/data/packs/0123456789abcdef-1"), true},
		"none was put at all": {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			st := st.Clone()
			in := &intents{r: &Repository{store: st, now: time.Now}, w: st, stack: "shop", run: m.Run}
			if err := in.begin(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, key := range c.packs {
				if err := in.put(t.Context(), key, []byte("x")); err != nil {
					t.Fatal(err)
				}
			}
			in.succeeded(m)
			in.end(t.Context())
			if left := st.Bytes(runKey("shop", m.Run, 0)) != nil; left != c.left {
				t.Errorf("the intent is left: %v, want %v", left, c.left)
			}
		})
	}
}
