package snapshot

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/store/storetest"
	"github.com/disko/backupd/internal/testtree"
)

// places opens the repositories of several stores, with one state directory.
func (l *lab) places(stores ...store.Writer) []Place {
	l.t.Helper()
	var all []Place
	for _, st := range stores {
		r, err := Ensure(context.Background(), st, Options{CacheDir: l.cache()})
		if err != nil {
			l.t.Fatal(err)
		}
		l.t.Cleanup(r.Close)
		all = append(all, Place{r, st})
	}
	return all
}

func (l *lab) backupAll(stores ...store.Writer) (*Summary, []PlaceResult, error) {
	l.t.Helper()
	return BackupAll(context.Background(), l.places(stores...), BackupOptions{Stack: "shop", Volumes: l.sources()})
}

// wantAll makes sure that a store has one snapshot for each state, in their
// order, and nothing else, and that all restore.
func (l *lab) wantAll(st store.Reader) {
	l.t.Helper()
	ids := map[string]string{}
	for i, id := range l.ids(st) {
		if i < len(l.states) {
			ids[id] = l.states[i]
		}
	}
	if len(ids) != len(l.states) {
		l.t.Errorf("%d snapshots are there, want %d", len(ids), len(l.states))
	}
	l.wantSnapshots(st, ids)
	l.wantClean(st)
}

func (l *lab) ids(st store.Reader) []string {
	l.t.Helper()
	r, err := Open(context.Background(), st, Options{})
	if err != nil {
		l.t.Fatal(err)
	}
	defer r.Close()
	list, err := r.List(context.Background(), "shop")
	if err != nil {
		l.t.Fatal(err)
	}
	var ids []string
	for _, s := range list {
		ids = append(ids, s.ID)
	}
	return ids
}

// packs are the packs of a store, by key.
func packsOf(m *storetest.Memory) []string {
	return slices.DeleteFunc(m.Keys(), func(k string) bool { return !strings.Contains(k, "/volumes/") })
}

func TestABackupToSeveralTargetsReadsOnceAndIsInAllOfThem(t *testing.T) {
	believeStats(t)
	l := newLab(t)
	a, b, c := storetest.NewMemory(), storetest.NewMemory(), storetest.NewMemory()
	for step := range 2 {
		if step > 0 {
			l.change()
		}
		sum, results, err := l.backupAll(a, b, c)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range results {
			if r.Err != nil || r.ID == "" || r.CaughtUp != 0 {
				t.Errorf("result %+v", r)
			}
		}
		for _, v := range sum.Volumes {
			if v.BytesRead > v.Bytes {
				t.Errorf("volume %s: read %d bytes of %d", v.Name, v.BytesRead, v.Bytes)
			}
		}
	}
	for _, st := range []*storetest.Memory{a, b, c} {
		l.wantAll(st)
		if !slices.Equal(packsOf(a), packsOf(st)) {
			t.Error("the targets have different packs: they were not compressed once")
		}
	}
}

func TestATargetThatFailsFromAnyOperationOnDoesNotStopTheOthers(t *testing.T) {
	believeStats(t)
	for _, leads := range []bool{false, true} {
		probe := newLab(t)
		count := &storetest.Faulty{Writer: storetest.NewMemory()}
		if _, _, err := probe.backupAll(storetest.NewMemory(), count); err != nil {
			t.Fatal(err)
		}
		opened := 0
		forEachOp(t, count.Ops(), func(k int) {
			l := newLab(t)
			good := storetest.NewMemory()
			bad := &storetest.Faulty{Writer: storetest.NewMemory()}
			stores := []store.Writer{good, bad}
			if leads {
				slices.Reverse(stores)
			}
			places := l.places(stores...) // a target that cannot be opened is the command's business
			opened = bad.Ops()
			bad.Hook = func(_, _ string, n int) storetest.Fault {
				if n >= opened+k {
					return storetest.FailBefore
				}
				return storetest.None
			}
			_, results, err := BackupAll(context.Background(), places, BackupOptions{Stack: "shop", Volumes: l.sources()})
			if err != nil {
				t.Fatalf("backup: %v", err)
			}
			for _, r := range results {
				if r.Target == "memory" && r.Err != nil && !errors.Is(r.Err, storetest.ErrFault) {
					t.Errorf("result: %v", r.Err)
				}
			}
			l.wantAll(good)
			bad.Hook = nil
			l.change()
			if _, results, err = l.backupAll(stores...); err != nil {
				t.Fatal(err)
			}
			for _, r := range results {
				if r.Err != nil {
					t.Errorf("next run: %v", r.Err)
				}
			}
			l.wantAll(good)
			// The failing one has the newest in any case, and the first if it
			// had any: a target that is new gets no history. If it was lost
			// after a manifest that could not be withdrawn, it has the first twice.
			ids := l.ids(bad)
			if len(ids) == 0 || len(ids) > 3 {
				t.Fatalf("%d snapshots in the target that failed", len(ids))
			}
			want := map[string]string{ids[len(ids)-1]: l.states[1]}
			for _, id := range ids[:len(ids)-1] {
				want[id] = l.states[0]
			}
			l.wantSnapshots(bad, want)
			l.wantClean(bad)
		})
	}
}

func TestATargetThatWasDownGetsWhatItMissed(t *testing.T) {
	believeStats(t)
	l := newLab(t)
	a, b := storetest.NewMemory(), storetest.NewMemory()
	if _, _, err := l.backupAll(a, b); err != nil {
		t.Fatal(err)
	}
	for i := range 2 { // b is down
		l.write("data", "dir/missed", noise(uint64(i), 800))
		l.keep()
		if _, _, err := l.backupAll(a); err != nil {
			t.Fatal(err)
		}
	}
	l.write("data", "dir/last", noise(77, 900))
	l.keep()
	_, results, err := l.backupAll(b, a) // the order of targets does not decide which has more
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(results, func(r PlaceResult) bool { return r.CaughtUp > 0 })
	if at < 0 || results[at].CaughtUp != 2 || results[at].Err != nil {
		t.Errorf("results %+v, want one that caught up 2", results)
	}
	l.wantAll(a)
	l.wantAll(b)
}

func TestACopyBrokenOffAtAnyOperationIsFinishedByTheNext(t *testing.T) {
	l := newLab(t)
	from := storetest.NewMemory()
	l.mustBackup(from)
	src := l.places(from)[0].Repo
	m, err := src.Find(context.Background(), "shop", "")
	if err != nil {
		t.Fatal(err)
	}
	copyTo := func(w store.Writer) (*Copied, error) {
		to, err := Ensure(context.Background(), w, Options{})
		if err != nil {
			return nil, err
		}
		defer to.Close()
		return src.CopyTo(context.Background(), to, w, m, nil)
	}
	count := &storetest.Faulty{Writer: storetest.NewMemory()}
	if _, err := copyTo(count); err != nil {
		t.Fatal(err)
	}
	for _, fault := range []storetest.Fault{storetest.FailBefore, storetest.FailAfter} {
		forEachOp(t, count.Ops(), func(k int) {
			to := storetest.NewMemory()
			_, _ = copyTo(&storetest.Faulty{Writer: to, Hook: func(_, _ string, n int) storetest.Fault {
				if n == k {
					return fault
				}
				return storetest.None
			}})
			again, err := copyTo(to)
			if err != nil {
				t.Fatal(err)
			}
			l.wantAll(to)
			third, err := copyTo(to)
			if err != nil || !third.Existed || third.ID != again.ID {
				t.Errorf("a third copy: %+v, %v", third, err)
			}
		})
	}
}

func TestACopyDoesNotSpreadDamage(t *testing.T) {
	l := newLab(t)
	from := storetest.NewMemory()
	l.mustBackup(from)
	src := l.places(from)[0].Repo
	m, err := src.Find(context.Background(), "shop", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range packsOf(from) {
		damaged := from.Clone()
		data := slices.Clone(damaged.Bytes(key))
		data[len(data)/3] ^= 4
		damaged.SetBytes(key, data)
		r := l.places(damaged)[0].Repo
		to := l.places(storetest.NewMemory())[0]
		if _, err := r.CopyTo(context.Background(), to.Repo, to.Store, m, nil); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s flipped: %v, want damage", key, err)
		}
		if ids := l.ids(to.Store); len(ids) > 0 {
			t.Errorf("%s flipped, and the copy has a snapshot", key)
		}
	}
}

func TestABackupAfterACopyIsIncrementalThere(t *testing.T) {
	believeStats(t)
	l := newLab(t)
	from, to := storetest.NewMemory(), storetest.NewMemory()
	l.mustBackup(from)
	p := l.places(from, to)
	m, err := p[0].Repo.Find(context.Background(), "shop", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p[0].Repo.CopyTo(context.Background(), p[1].Repo, to, m, nil); err != nil {
		t.Fatal(err)
	}
	s, err := l.backup(context.Background(), to)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range s.Volumes {
		if v.BytesRead != 0 || v.FramesNew != 0 {
			t.Errorf("volume %s: read %d bytes, stored %d frames", v.Name, v.BytesRead, v.FramesNew)
		}
	}
	dir := l.scratch()
	if err := l.restore(context.Background(), to, s.ID, "data", dir, false); err != nil {
		t.Fatal(err)
	}
	testtree.Compare(t, filepath.Join(l.states[0], "data"), dir, testtree.Options{})
}

func TestALatestThatIsNotTheNewestIsSaid(t *testing.T) {
	l := newLab(t)
	st := storetest.NewMemory()
	first := l.mustBackup(st)
	l.change()
	l.mustBackup(st)
	for _, key := range st.Keys() {
		if strings.Contains(key, "/snapshots/00000002-") {
			st.SetBytes(key, []byte("damaged"))
		}
	}
	var said []string
	r, err := Open(context.Background(), st, Options{Notice: func(text string) { said = append(said, text) }})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	m, err := r.Find(context.Background(), "shop", "latest")
	if err != nil || m.ID() != first {
		t.Fatalf("latest: %v, %v", m, err)
	}
	if len(said) != 1 || !strings.Contains(said[0], "number 2 of stack shop") {
		t.Errorf("said %q", said)
	}
}
