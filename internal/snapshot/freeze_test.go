package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/disko/backupd/internal/store/storetest"
	"github.com/disko/backupd/internal/testtree"
)

// freezer is a Freezer that counts, and does what a test has for it.
type freezer struct {
	freeze, thaw func(ctx context.Context) error
	frozen       atomic.Int32 // calls of Freeze
	thawed       atomic.Int32
	settle       func() bool
	settled      atomic.Int32
}

func (f *freezer) Settle(context.Context) bool {
	f.settled.Add(1)
	return f.settle != nil && f.settle()
}

func (f *freezer) Freeze(ctx context.Context) error {
	f.frozen.Add(1)
	if f.freeze != nil {
		return f.freeze(ctx)
	}
	return nil
}

func (f *freezer) Thaw(ctx context.Context) error {
	f.thawed.Add(1)
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("the context to thaw in has ended: %w", err)
	}
	if f.thaw != nil {
		return f.thaw(ctx)
	}
	return nil
}

// wantThawed makes sure that no service stands still, and that none was
// stopped more often than it may be.
func (f *freezer) wantThawed(t testing.TB, most int32) {
	t.Helper()
	if n, m := f.frozen.Load(), f.thawed.Load(); n != m || n > most {
		t.Errorf("frozen %d times, thawed %d times, want the same and %d at most", n, m, most)
	}
}

// liveWriter changes a tree without a pause, until it is stopped for good or for a while.
type liveWriter struct {
	step  func(n int)
	mu    sync.Mutex // held while a step is done, and while frozen
	moved *sync.Cond // over mu: n has grown, or the writer has ended
	n     int
	ended bool
	done  chan struct{}
	end   atomic.Bool
}

func startWriter(t *testing.T, step func(n int)) *liveWriter {
	w := &liveWriter{step: step, done: make(chan struct{})}
	w.moved = sync.NewCond(&w.mu)
	go func() {
		defer close(w.done)
		defer func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.ended = true
			w.moved.Broadcast()
		}()
		for !w.end.Load() {
			w.write()
		}
	}()
	t.Cleanup(w.stop)
	return w
}

func (w *liveWriter) write() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.step(w.n)
	w.n++
	w.moved.Broadcast()
}

// freeze holds the writer after some more steps of it: what was read before
// then is not what is there.
func (w *liveWriter) freeze(more int) {
	w.mu.Lock()
	for until := w.n + more; w.n < until && !w.ended; {
		w.moved.Wait()
	}
}

func (w *liveWriter) thaw() { w.mu.Unlock() }

func (w *liveWriter) stop() {
	w.end.Store(true)
	<-w.done
}

// Everything in a snapshot is as it was while the services stood still, though
// they wrote before, and went on afterwards.
func TestASnapshotIsTheTreeAtTheFreeze(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWorld(t)
			testtree.Random(t, w.volume, seed, testtree.RandomOptions{Files: 60, NoLarge: true})
			table := filepath.Join(w.volume, "table")
			if err := testtree.Pages(table, 6<<20, seed); err != nil {
				t.Fatal(err)
			}
			for round := range 3 {
				live := startWriter(t, func(n int) {
					testtree.Mutate(t, w.volume, seed<<32+uint64(round)<<16+uint64(n))
					if _, err := os.Lstat(table); err == nil {
						scribble(t, table, seed+uint64(n))
					}
				})
				state := filepath.Join(w.root, fmt.Sprint("state", round))
				f := &freezer{
					freeze: func(context.Context) error {
						live.freeze(2)
						testtree.Clone(t, w.volume, state)
						return nil
					},
					thaw: func(context.Context) error {
						live.thaw()
						return nil
					},
				}
				var warned []Warning
				s, err := w.repo.Backup(context.Background(), w.target, BackupOptions{
					Stack: "shop", Volumes: []Source{{Name: "data", Path: w.volume}}, Freeze: f, FreezeLimit: time.Minute,
					Warn: func(_ string, w Warning) { warned = append(warned, w) },
				})
				live.stop()
				if err != nil {
					t.Fatal(err)
				}
				f.wantThawed(t, 1)
				for _, w := range warned {
					if strings.Contains(w.What, "changed while") {
						t.Errorf("warned of what was over when it counted: %s", w)
					}
				}
				if s.Volumes[0].WarningCount != 0 || s.FrozenSeconds <= 0 {
					t.Errorf("summary: %+v", s)
				}
				testtree.Compare(t, state, w.restoreNew(s.ID), testtree.Options{})
				testtree.Compare(t, state, w.exportNew(s.ID), testtree.Options{})
				testtree.Compare(t, state, w.scriptNew(s.ID), testtree.Options{})
			}
			w.verify()
			// What the next backup finds unchanged is so.
			s := w.backup()
			testtree.Compare(t, w.volume, w.restoreNew(s.ID), testtree.Options{})
		})
	}
}

// scribble does to a file of pages what a database does.
func scribble(t testing.TB, path string, seed uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 3))
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() {
		return
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	size := max(st.Size(), 1)
	switch r.IntN(8) {
	case 0:
		err = f.Truncate(size - r.Int64N(min(size, 300<<10)))
	case 1, 2:
		_, err = f.WriteAt(noise(seed, r.IntN(300<<10)), size)
	default:
		_, err = f.WriteAt(noise(seed, 8192), r.Int64N(size)&^8191)
	}
	if err != nil {
		t.Error(err)
	}
}

// Every way in which a large file may change between the passes, with what
// is frozen read in pieces.
func TestLargeFilesThatChangedBeforeTheFreezeAreStoredAsTheyAre(t *testing.T) {
	const size = 3<<20 + 777
	write := func(t *testing.T, path string, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	edit := func(t *testing.T, path string, off int64, data []byte) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt(data, off)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(t *testing.T, path string){
		"untouched":            func(*testing.T, string) {},
		"first byte":           func(t *testing.T, p string) { edit(t, p, 0, []byte{1}) },
		"last byte":            func(t *testing.T, p string) { edit(t, p, size-1, []byte{1}) },
		"one page":             func(t *testing.T, p string) { edit(t, p, 1<<20, noise(5, 8192)) },
		"many pages":           func(t *testing.T, p string) { edit(t, p, 100<<10, noise(5, 2<<20)) },
		"appended":             func(t *testing.T, p string) { edit(t, p, size, noise(6, 700<<10)) },
		"appended one byte":    func(t *testing.T, p string) { edit(t, p, size, []byte{7}) },
		"appended and changed": func(t *testing.T, p string) { edit(t, p, 1<<20, noise(5, 8)); edit(t, p, size, noise(6, 700<<10)) },
		"appended with a hole": func(t *testing.T, p string) { edit(t, p, size+1<<20, noise(6, 70<<10)) },
		"truncated":            func(t *testing.T, p string) { mustTruncate(t, p, 2<<20+5) },
		"truncated to a block": func(t *testing.T, p string) { mustTruncate(t, p, 2<<20) },
		"truncated by a byte":  func(t *testing.T, p string) { mustTruncate(t, p, size-1) },
		"made small":           func(t *testing.T, p string) { mustTruncate(t, p, 1000) },
		"emptied":              func(t *testing.T, p string) { mustTruncate(t, p, 0) },
		"one hole":             func(t *testing.T, p string) { mustTruncate(t, p, 0); mustTruncate(t, p, size) },
		"replaced": func(t *testing.T, p string) {
			write(t, p+".new", noise(9, size))
			if err := os.Rename(p+".new", p); err != nil {
				t.Fatal(err)
			}
		},
		"rewritten the same": func(t *testing.T, p string) { write(t, p, noise(1, size)) },
		"removed": func(t *testing.T, p string) {
			if err := os.Remove(p); err != nil {
				t.Fatal(err)
			}
		},
		"moved": func(t *testing.T, p string) {
			if err := os.Rename(p, p+".old"); err != nil {
				t.Fatal(err)
			}
		},
		"shifted": func(t *testing.T, p string) { write(t, p, append([]byte("shifted"), noise(1, size)...)) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			path := filepath.Join(w.volume, "large")
			write(t, path, noise(1, size))
			state := filepath.Join(w.root, "state")
			f := &freezer{freeze: func(context.Context) error {
				change(t, path)
				testtree.Clone(t, w.volume, state)
				return nil
			}}
			s, err := w.repo.Backup(context.Background(), w.target, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: w.volume}}, Freeze: f})
			if err != nil {
				t.Fatal(err)
			}
			testtree.Compare(t, state, w.restoreNew(s.ID), testtree.Options{})
			testtree.Compare(t, state, w.exportNew(s.ID), testtree.Options{})
			w.verify()
			// Where it was cut is where a backup in one pass cuts it.
			next := w.backup()
			testtree.Compare(t, state, w.restoreNew(next.ID), testtree.Options{})
			if n := next.Volumes[0].FramesNew; n != 0 {
				t.Errorf("the next backup stored %d frames anew: the file was cut elsewhere", n)
			}
		})
	}
}

func mustTruncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// More changes than memory may hold: what is beyond it is stored while frozen.
func TestAFreezeHoldsNoMoreInMemoryThanItMay(t *testing.T) {
	w := newWorld(t)
	names := []string{"a", "b", "c"}
	var sources []Source
	for i, n := range names {
		dir := filepath.Join(w.volume, n)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/table", noise(uint64(i), 40<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		sources = append(sources, Source{Name: n, Path: dir})
	}
	state := filepath.Join(w.root, "state")
	stored := int64(0)
	progress := &Progress{}
	f := &freezer{
		freeze: func(context.Context) error {
			for i, n := range names {
				if err := os.WriteFile(filepath.Join(w.volume, n, "table"), noise(uint64(100+i), 40<<20), 0o644); err != nil {
					return err
				}
			}
			testtree.Clone(t, w.volume, state)
			stored = progress.Stored.Load()
			return nil
		},
		thaw: func(context.Context) error {
			stored = progress.Stored.Load() - stored
			return nil
		},
	}
	s, err := w.repo.Backup(context.Background(), w.target, BackupOptions{Stack: "shop", Volumes: sources, Freeze: f, Progress: progress})
	if err != nil {
		t.Fatal(err)
	}
	// 120 MiB that do not compress: what is not held was on its way already.
	if stored < 1<<20 {
		t.Errorf("%d bytes were uploaded while frozen: all else was held in memory", stored)
	}
	m, err := w.repo.Find(context.Background(), "shop", s.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		dir := filepath.Join(w.root, "restored-"+n)
		if _, err := w.repo.Restore(context.Background(), m, RestoreOptions{Volume: n, Path: dir}); err != nil {
			t.Fatal(err)
		}
		testtree.Compare(t, filepath.Join(state, n), dir, testtree.Options{})
	}
	w.verify()
}

// backupFrozen is a backup with a freeze in which the lab's volumes change.
func (l *lab) backupFrozen(ctx context.Context, w *storetest.Faulty, f *freezer) (*Summary, error) {
	r, err := Ensure(ctx, w, l.settled())
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.Backup(ctx, w, BackupOptions{Stack: "shop", Volumes: l.sources(), Freeze: f, Dumps: []Dump{{
		Volume: "db.dump", Path: "dump.sql", Open: func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(strings.Repeat("insert into orders;\n", 30000))), nil
		},
	}}})
}

// Whatever the target does at whatever operation, and wherever the backup is
// interrupted: the services run afterwards, and there is a whole snapshot or none.
func TestServicesRunAgainWhateverTheTargetDoes(t *testing.T) {
	believeStats(t)
	probe := newLab(t)
	count := &storetest.Faulty{Writer: storetest.NewMemory()}
	f := &freezer{freeze: func(context.Context) error { probe.change(); return nil }}
	if _, err := probe.backupFrozen(context.Background(), count, f); err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"fail", "lose the answer", "cancel"} {
		t.Run(how, func(t *testing.T) {
			seen := map[bool]int{}
			forEachOp(t, count.Ops(), func(k int) {
				l := newLab(t)
				before := inUse(t)
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				mem := storetest.NewMemory()
				st := &storetest.Faulty{Writer: mem, Hook: func(_, _ string, n int) storetest.Fault {
					switch {
					case n != k:
						return storetest.None
					case how == "cancel":
						cancel()
						return storetest.None
					case how == "fail":
						return storetest.FailBefore
					}
					return storetest.FailAfter
				}}
				f := &freezer{freeze: func(context.Context) error { l.change(); return nil }}
				err := promptly(t, func() error {
					_, err := l.backupFrozen(ctx, st, f)
					return err
				})
				f.wantThawed(t, 1)
				seen[f.frozen.Load() > 0]++
				wantReleased(t, before)
				if err != nil && len(l.states) == 1 {
					l.change() // for what comes after it
				}
				ids := map[string]string{l.mustBackup(mem): l.states[1]}
				l.wantSnapshots(mem, ids)
				l.wantClean(mem)
			})
			if seen[false] == 0 || seen[true] == 0 {
				t.Errorf("failed before the freeze %d times, after it %d times: want both", seen[false], seen[true])
			}
		})
	}
}

var errTest = errors.New("the test says so")

func TestAFreezeThatFailsIsThawed(t *testing.T) {
	l := newLab(t)
	st := storetest.NewMemory()
	f := &freezer{freeze: func(context.Context) error { return errTest }}
	_, err := l.backupFrozen(context.Background(), &storetest.Faulty{Writer: st}, f)
	if !errors.Is(err, ErrFreeze) || !errors.Is(err, errTest) {
		t.Errorf("error %v", err)
	}
	f.wantThawed(t, 1)
	l.wantSnapshots(st, nil)
}

func TestAnInterruptedFreezeIsThawed(t *testing.T) {
	l := newLab(t)
	st := storetest.NewMemory()
	ctx, cancel := context.WithCancel(context.Background())
	f := &freezer{freeze: func(context.Context) error { cancel(); return nil }}
	if _, err := l.backupFrozen(ctx, &storetest.Faulty{Writer: st}, f); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	f.wantThawed(t, 1)
	l.wantSnapshots(st, nil)
}

func TestAPanicWhileFrozenThaws(t *testing.T) {
	l := newLab(t)
	f := &freezer{freeze: func(context.Context) error { panic("frozen stiff") }}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_, _ = l.backupFrozen(context.Background(), &storetest.Faulty{Writer: storetest.NewMemory()}, f)
	}()
	f.wantThawed(t, 1)
}

// A snapshot that was read whole is not thrown away because a service does not start.
func TestAThawThatFailsIsSaidAndLosesNothing(t *testing.T) {
	l := newLab(t)
	st := storetest.NewMemory()
	f := &freezer{
		freeze: func(context.Context) error { l.change(); return nil },
		thaw:   func(context.Context) error { return errTest },
	}
	s, err := l.backupFrozen(context.Background(), &storetest.Faulty{Writer: st}, f)
	var thaw *ThawError
	if !errors.As(err, &thaw) || !errors.Is(err, errTest) || s == nil || thaw.ID != s.ID {
		t.Fatalf("summary %+v, error %v", s, err)
	}
	f.wantThawed(t, 1)
	l.wantSnapshots(st, map[string]string{s.ID: l.states[1]})
	l.wantClean(st)
}

// Services are frozen again only where the place failed that was written to.
func TestSeveralTargetsFreezeOnce(t *testing.T) {
	for name, c := range map[string]struct {
		freezes int32
		fault   func(f *freezer) func(op, key string, n int) storetest.Fault
		thaw    error
		ok      bool
	}{
		"all is well": {freezes: 1, ok: true},
		"the first fails before the freeze": {freezes: 1, ok: true, fault: func(*freezer) func(op, key string, n int) storetest.Fault {
			return func(op, key string, _ int) storetest.Fault {
				if op == storetest.OpPut && strings.Contains(key, "/packs/") {
					return storetest.FailBefore
				}
				return storetest.None
			}
		}},
		"the first fails after the freeze": {freezes: 2, ok: true, fault: func(f *freezer) func(op, key string, n int) storetest.Fault {
			return func(op, key string, _ int) storetest.Fault {
				if op == storetest.OpPut && f.frozen.Load() > 0 {
					return storetest.FailBefore
				}
				return storetest.None
			}
		}},
		"the services do not start": {freezes: 1, thaw: errTest, ok: true},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			f := &freezer{thaw: func(context.Context) error { return c.thaw }}
			first := &storetest.Faulty{Writer: storetest.NewMemory()}
			places := l.places(first, storetest.NewMemory())
			if c.fault != nil {
				first.Hook = c.fault(f)
			}
			sum, results, err := BackupAll(context.Background(), places, BackupOptions{Stack: "shop", Volumes: l.sources(), Freeze: f})
			if !errors.Is(err, c.thaw) || (sum != nil) != c.ok {
				t.Errorf("summary %+v, results %+v, error %v", sum, results, err)
			}
			f.wantThawed(t, c.freezes)
			if n := f.frozen.Load(); n != c.freezes {
				t.Errorf("frozen %d times, want %d", n, c.freezes)
			}
			l.wantSnapshots(places[1].Store, map[string]string{results[1].ID: l.states[0]})
		})
	}
}

// A file that keeps its size and times while its content changes is what the
// margin for racy stats is for.
func TestWhatChangedInTheSameTickIsReadWhileFrozen(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(w.volume, "counter")
	if err := os.WriteFile(path, []byte("before"), 0o644); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f := &freezer{freeze: func(context.Context) error {
		g, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = g.WriteString("after!")
		return errors.Join(err, g.Close(), os.Chtimes(path, st.ModTime(), st.ModTime()))
	}}
	s, err := w.repo.Backup(context.Background(), w.target, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: w.volume}}, Freeze: f})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(w.restoreNew(s.ID), "counter")); err != nil || string(got) != "after!" {
		t.Errorf("%q, %v", got, err)
	}
}

// A target that hangs while more is read than memory may hold keeps no service
// from running for longer than it was told.
func TestAFreezeEndsAtItsLimit(t *testing.T) {
	l := newLab(t)
	f := &freezer{freeze: func(context.Context) error { l.change(); return nil }}
	st := &storetest.Faulty{Writer: storetest.NewMemory()}
	r, err := Ensure(context.Background(), st, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	st.Hook = func(op, key string, _ int) storetest.Fault {
		if op == storetest.OpPut && f.frozen.Load() > 0 && f.thawed.Load() == 0 {
			return storetest.CallBefore(func() { // as a request does that is never answered
				for f.thawed.Load() == 0 {
					runtime.Gosched()
				}
			})
		}
		return storetest.None
	}
	for i := range 3 {
		l.write("data", fmt.Sprint("large", i), noise(uint64(i), 20<<20))
	}
	change := f.freeze
	f.freeze = func(ctx context.Context) error {
		for i := range 3 {
			l.write("data", fmt.Sprint("large", i), noise(uint64(10+i), 20<<20))
		}
		return change(ctx)
	}
	err = promptly(t, func() error {
		_, err := r.Backup(ctx, st, BackupOptions{Stack: "shop", Volumes: l.sources(), Freeze: f, HoldBytes: 1, FreezeLimit: time.Second})
		return err
	})
	if !errors.Is(err, errFrozenLong) {
		t.Errorf("error %v", err)
	}
	f.wantThawed(t, 1)
}

// What is put off until the services run again is done, though the time that
// they may stand still is over by then.
func TestAFreezeWithinItsLimitIsCompletedAfterIt(t *testing.T) {
	l := newLab(t)
	for i := range 8 {
		l.write("data", fmt.Sprint("large", i), noise(uint64(i), 2<<20))
	}
	n := 0
	f := &freezer{freeze: func(context.Context) error {
		n++
		for i := range 8 {
			l.write("data", fmt.Sprint("large", i), noise(uint64(100*n+i), 2<<20))
		}
		return nil
	}}
	st := storetest.NewMemory()
	r, err := Ensure(context.Background(), st, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 5 { // the encoders may be quick
		_, err = r.Backup(context.Background(), st, BackupOptions{Stack: "shop", Volumes: l.sources(), Freeze: f, FreezeLimit: 5 * time.Minute})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// What is written when the services settle is read before they stand still.
func TestWhatSettlesIsReadBeforeTheFreeze(t *testing.T) {
	const size = 8 << 20
	read := map[bool]uint64{}
	for _, settles := range []bool{false, true} {
		w := newWorld(t)
		path := filepath.Join(w.volume, "table")
		if err := os.WriteFile(path, noise(1, size), 0o644); err != nil {
			t.Fatal(err)
		}
		f := &freezer{}
		f.settle = func() bool {
			if n := f.frozen.Load(); n != 0 {
				t.Errorf("it settles after it was frozen %d times", n)
			}
			if err := os.WriteFile(path, noise(2, size), 0o644); err != nil {
				t.Error(err)
			}
			return settles
		}
		s, err := w.repo.Backup(context.Background(), w.target, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: w.volume}}, Freeze: f})
		if err != nil {
			t.Fatal(err)
		}
		f.wantThawed(t, 1)
		if n := f.settled.Load(); n != 1 {
			t.Errorf("it was asked to settle %d times", n)
		}
		read[settles] = s.Volumes[0].BytesRead
		testtree.Compare(t, w.volume, w.restoreNew(s.ID), testtree.Options{})
	}
	if more := read[true] - read[false]; more < size {
		t.Errorf("%d bytes more were read when something had settled, want %d", more, size)
	}
}
