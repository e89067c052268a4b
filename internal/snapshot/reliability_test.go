package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tree"
	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/store/storetest"
	"github.com/disko/backupd/internal/targets"
	"github.com/disko/backupd/internal/targets/directory"
	"github.com/disko/backupd/internal/testtree"
)

// envKill makes the test binary a child that does one act and kills itself at
// one operation of its target: "ACT ROOT K before|after".
const envKill = "BACKUPD_TEST_KILL"

func TestMain(m *testing.M) {
	if act := os.Getenv(envKill); act != "" {
		killedChild(strings.Fields(act))
		return
	}
	os.Exit(m.Run())
}

// lab is a stack of two volumes in a small directory of its own, with the
// states they were in.
type lab struct {
	t           testing.TB
	root        string
	states      []string     // clones of both volumes
	credentials *Credentials // of an encrypted repository
}

var labVolumes = []string{"config", "data"}

// newLab makes the first state: some 30 entries, one file of several chunks,
// enough of every kind that all sections are used.
func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{t: t, root: fastDir(t)}
	for _, v := range labVolumes {
		if err := os.MkdirAll(l.volume(v)+"/dir/deep", 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range 8 {
			l.write(v, fmt.Sprintf("dir/%d", i), noise(uint64(i), 100+2000*i))
		}
		l.write(v, "large", noise(99, 1200<<10))
		l.write(v, "gone", noise(98, 500))
		for name, to := range map[string]string{"symlink": "dir/1", "dir/dangling": "/nowhere"} {
			if err := os.Symlink(to, filepath.Join(l.volume(v), name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Link(l.volume(v)+"/dir/2", l.volume(v)+"/hardlink"); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(l.volume(v)+"/fifo", 0o640); err != nil {
			t.Fatal(err)
		}
	}
	l.keep()
	return l
}

// fastDir is a directory in memory where there may be one: what is tested here
// syncs often.
func fastDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if os.Geteuid() == 0 && unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755") == nil {
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	return dir
}

// noise is n bytes that do not compress.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 7))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func (l *lab) volume(name string) string { return filepath.Join(l.root, "volumes", name) }
func (l *lab) cache() string             { return filepath.Join(l.root, "cache") }
func (l *lab) target() string            { return filepath.Join(l.root, "target") }

func (l *lab) write(volume, name string, data []byte) {
	l.t.Helper()
	if err := os.WriteFile(filepath.Join(l.volume(volume), name), data, 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// keep keeps the volumes' present state.
func (l *lab) keep() {
	l.t.Helper()
	state := filepath.Join(l.root, fmt.Sprint("state", len(l.states)))
	for _, v := range labVolumes {
		if err := os.MkdirAll(state, 0o755); err != nil {
			l.t.Fatal(err)
		}
		testtree.Clone(l.t, l.volume(v), filepath.Join(state, v))
	}
	l.states = append(l.states, state)
}

// change makes the second state: a changed group member, a stale one, a new
// file, another large file.
func (l *lab) change() {
	l.t.Helper()
	for _, v := range labVolumes {
		l.write(v, "dir/3", noise(33, 5000))
		l.write(v, "dir/new", noise(34, 700))
		l.write(v, "large2", noise(97, 600<<10))
		if err := os.Remove(filepath.Join(l.volume(v), "gone")); err != nil {
			l.t.Fatal(err)
		}
	}
	l.keep()
}

// options are for a reader who has nothing but the key.
func (l *lab) options() Options { return Options{Credentials: l.credentials} }

// settled are those of one who has a state directory as well.
func (l *lab) settled() Options { return Options{Credentials: l.credentials, CacheDir: l.cache()} }

func (l *lab) sources() []Source {
	var s []Source
	for _, v := range labVolumes {
		s = append(s, Source{Name: v, Path: l.volume(v)})
	}
	return s
}

// backup opens the repository, or makes it, and takes a snapshot.
func (l *lab) backup(ctx context.Context, w store.Writer) (*Summary, error) {
	r, err := Ensure(ctx, w, l.settled())
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.Backup(ctx, w, BackupOptions{Stack: "shop", Volumes: l.sources()})
}

// mustBackup is a backup that nobody attends to.
func (l *lab) mustBackup(w store.Writer) string {
	l.t.Helper()
	s, err := l.backup(context.Background(), w)
	if err != nil {
		l.t.Fatalf("the next backup: %v", err)
	}
	return s.ID
}

// restore opens the repository and restores one volume of a snapshot.
func (l *lab) restore(ctx context.Context, st store.Reader, id, volume, path string, force bool) error {
	r, err := Open(ctx, st, l.settled())
	if err != nil {
		return err
	}
	defer r.Close()
	m, err := r.Find(ctx, "shop", id)
	if err != nil {
		return err
	}
	_, err = r.Restore(ctx, m, RestoreOptions{Volume: volume, Path: path, Force: force})
	return err
}

// wantSnapshots makes sure that all snapshots there are restore: those of ids
// to their states, any other to the present state.
func (l *lab) wantSnapshots(st store.Reader, ids map[string]string) {
	l.t.Helper()
	ctx := context.Background()
	r, err := Open(ctx, st, l.options())
	if errors.Is(err, ErrNoRepository) && len(ids) == 0 {
		return
	}
	if err != nil {
		l.t.Errorf("open: %v", err)
		return
	}
	defer r.Close()
	list, err := r.List(ctx, "")
	if err != nil {
		l.t.Errorf("list: %v", err)
		return
	}
	found := 0
	for _, s := range list {
		state, known := ids[s.ID]
		if known {
			found++
		} else {
			state = l.states[len(l.states)-1]
		}
		for _, v := range labVolumes {
			dir := l.scratch()
			if err := l.restore(ctx, st, s.ID, v, dir, false); err != nil {
				l.t.Errorf("restore of %.8s: %v", s.ID, err)
			} else {
				testtree.Compare(l.t, filepath.Join(state, v), dir, testtree.Options{})
			}
			l.drop(dir)
		}
	}
	if found != len(ids) {
		l.t.Errorf("%d of %d snapshots are there", found, len(ids))
	}
}

func (l *lab) wantClean(st store.Reader) {
	l.t.Helper()
	r, err := Open(context.Background(), st, l.options())
	if err != nil {
		l.t.Error(err)
		return
	}
	defer r.Close()
	list, err := r.List(context.Background(), "")
	if err != nil {
		l.t.Error(err)
		return
	}
	v, err := r.Verify(context.Background(), list, true, nil)
	if err != nil {
		l.t.Error(err)
		return
	}
	for _, d := range v.Damage {
		l.t.Errorf("verify: %s", d)
	}
}

func (l *lab) scratch() string {
	l.t.Helper()
	dir, err := os.MkdirTemp(l.root, "restored-")
	if err != nil {
		l.t.Fatal(err)
	}
	return dir
}

func (l *lab) drop(dir string) {
	l.t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		l.t.Fatal(err)
	}
}

// forEachOp calls do for every operation of a run that has n, and two more; in
// short mode for the first, the last and some between.
func forEachOp(t *testing.T, n int, do func(k int)) {
	t.Helper()
	if n < 5 {
		t.Fatalf("the run has %d operations only", n)
	}
	step := 1
	if testing.Short() {
		step = max(1, n/6)
	}
	for k := 0; k < n+2; k++ {
		if k%step == 0 || k == n-1 {
			do(k)
		}
		if t.Failed() {
			t.Fatalf("at operation %d of %d", k, n)
		}
	}
}

// resources are what a run may leave open.
type resources struct{ fds, goroutines int }

func inUse(t testing.TB) resources {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	return resources{len(entries), runtime.NumGoroutine()}
}

// wantReleased waits until no more is in use than before.
func wantReleased(t testing.TB, before resources) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	now := inUse(t)
	for now.fds > before.fds || now.goroutines > before.goroutines {
		if time.Now().After(deadline) {
			buf := make([]byte, 64<<10)
			t.Errorf("%d descriptors and %d goroutines are left over\n%s", now.fds-before.fds, now.goroutines-before.goroutines, buf[:runtime.Stack(buf, true)])
			return
		}
		runtime.GC()
		now = inUse(t)
	}
}

// promptly calls do and fails if it takes unreasonably long.
func promptly(t testing.TB, do func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-time.After(time.Minute):
		buf := make([]byte, 256<<10)
		t.Fatalf("hangs:\n%s", buf[:runtime.Stack(buf, true)])
		return nil
	}
}

// faults are the ways in which one operation goes wrong.
var faults = map[string]storetest.Fault{"before": storetest.FailBefore, "after": storetest.FailAfter}

func at(k int, f storetest.Fault) func(string, string, int) storetest.Fault {
	return func(_, _ string, n int) storetest.Fault {
		if n == k {
			return f
		}
		return storetest.None
	}
}

// startingPoint is a store, and the lab beside it, before a backup that is to fail.
type startingPoint struct {
	*lab
	store *storetest.Memory
	ids   map[string]string // snapshots in the store, and their states
	n     int               // operations of the backup
}

// startingPoints are the very first backup, and a second one that changes something.
func startingPoints(t *testing.T, do func(t *testing.T, s startingPoint)) {
	t.Helper()
	startingPointsWith(t, nil, do)
}

func startingPointsWith(t *testing.T, c *Credentials, do func(t *testing.T, s startingPoint)) {
	t.Helper()
	believeStats(t)
	run := func(name string, second bool) {
		t.Run(name, func(t *testing.T) {
			s := startingPoint{lab: newLab(t), store: storetest.NewMemory(), ids: map[string]string{}}
			s.credentials = c
			if second {
				s.ids[s.mustBackup(s.store)] = s.states[0]
				s.change()
			}
			count := &storetest.Faulty{Writer: s.store.Clone()}
			s.mustBackup(count)
			s.n = count.Ops()
			before := inUse(t)
			do(t, s)
			wantReleased(t, before)
		})
	}
	run("first backup", false)
	run("second backup", true)
}

// recover makes sure that a backup's failure cost nothing: what was there
// is there, and the next backup succeeds.
func (s startingPoint) recover(st store.Writer) {
	s.t.Helper()
	s.wantSnapshots(st, s.ids)
	id := s.mustBackup(st)
	ids := map[string]string{id: s.states[len(s.states)-1]}
	for k, v := range s.ids {
		ids[k] = v
	}
	s.wantSnapshots(st, ids)
	s.wantClean(st)
}

func TestABackupThatFailsAtAnyOperationCostsNothing(t *testing.T) {
	startingPoints(t, func(t *testing.T, s startingPoint) {
		for name, fault := range faults {
			forEachOp(t, s.n, func(k int) {
				before := inUse(t)
				st := s.store.Clone()
				f := &storetest.Faulty{Writer: st, Hook: at(k, fault)}
				err := promptly(t, func() error { _, err := s.backup(context.Background(), f); return err })
				if err != nil && !errors.Is(err, storetest.ErrFault) {
					t.Errorf("%s: %v, want the injected error", name, err)
				}
				wantReleased(t, before)
				s.recover(st)
				if t.Failed() {
					t.Logf("fault %s", name)
				}
			})
		}
	})
}

func TestATargetThatStaysAwayFromAnyOperationOnCostsNothing(t *testing.T) {
	startingPoints(t, func(t *testing.T, s startingPoint) {
		forEachOp(t, s.n, func(k int) {
			st := s.store.Clone()
			var lost atomic.Int64 // operations that matter
			f := &storetest.Faulty{Writer: st, Hook: func(op, _ string, n int) storetest.Fault {
				if n < k {
					return storetest.None
				}
				if op != storetest.OpDelete { // the end of the run's intents, which expire
					lost.Add(1)
				}
				return storetest.FailBefore
			}}
			err := promptly(t, func() error { _, err := s.backup(context.Background(), f); return err })
			if err == nil && lost.Load() > 0 {
				t.Error("the backup says it succeeded")
			}
			s.recover(st)
		})
	})
}

func TestABackupCancelledAtAnyOperationReturnsAndCostsNothing(t *testing.T) {
	startingPoints(t, func(t *testing.T, s startingPoint) {
		forEachOp(t, s.n, func(k int) {
			before := inUse(t)
			st := s.store.Clone()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			var packs atomic.Int64
			f := &storetest.Faulty{Writer: st, Hook: func(op, key string, n int) storetest.Fault {
				if op == storetest.OpPut && strings.Contains(key, "/volumes/") {
					packs.Add(1)
				}
				return at(k, storetest.CallBefore(cancel))(op, key, n)
			}}
			err := promptly(t, func() error { _, err := s.backup(ctx, f); return err })
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("%v, want context.Canceled", err)
			}
			wantReleased(t, before)
			for _, key := range st.Keys() {
				// It stays where packs may be left, to tell prune of them.
				if strings.Contains(key, "/runs/") && packs.Load() == 0 {
					t.Errorf("the cancelled run left its intent %s and no pack", key)
				}
			}
			s.recover(st)
		})
	})
}

// The k-th pack of a volume that has several of them.
func TestABackupThatFailsAtAnyOfManyPacksCostsNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("writes packs of 16 MiB")
	}
	believeStats(t)
	s := startingPoint{lab: newLab(t), store: storetest.NewMemory(), ids: map[string]string{}}
	s.ids[s.mustBackup(s.store)] = s.states[0]
	s.write("data", "huge", noise(1, 40<<20))
	s.keep()
	count := &storetest.Faulty{Writer: s.store.Clone()}
	packs := 0
	count.Hook = func(op, key string, _ int) storetest.Fault {
		if op == storetest.OpPut && strings.Contains(key, "/data/packs/") {
			packs++
		}
		return storetest.None
	}
	s.mustBackup(count)
	if packs < 3 {
		t.Fatalf("%d packs only", packs)
	}
	before := inUse(t)
	for name, fault := range faults {
		for k := range packs {
			st := s.store.Clone()
			f := &storetest.Faulty{Writer: st, Hook: func(op, key string, _ int) storetest.Fault {
				if op == storetest.OpPut && strings.Contains(key, "/data/packs/") && strings.HasSuffix(key, fmt.Sprint("-", k)) {
					return fault
				}
				return storetest.None
			}}
			err := promptly(t, func() error { _, err := s.backup(context.Background(), f); return err })
			if !errors.Is(err, storetest.ErrFault) {
				t.Errorf("pack %d %s: %v", k, name, err)
			}
			s.wantSnapshots(st, s.ids)
		}
	}
	s.recover(s.store)
	wantReleased(t, before)
}

// volumes that a restore goes to: an empty one, and one in another state.
func restoreCases(t *testing.T, do func(t *testing.T, l *lab, st *storetest.Memory, id string, n int, prepare func() string, force bool)) {
	t.Helper()
	believeStats(t)
	for name, over := range map[string]bool{"into an empty volume": false, "over another state": true} {
		t.Run(name, func(t *testing.T) {
			l, st := newLab(t), storetest.NewMemory()
			id := l.mustBackup(st)
			l.change()
			l.mustBackup(st)
			prepare := func() string {
				dir := l.scratch()
				if over {
					l.drop(dir)
					testtree.Clone(t, filepath.Join(l.states[1], "data"), dir)
				}
				return dir
			}
			count := &storetest.Faulty{Writer: st}
			dir := prepare()
			l.drop(l.cache()) // as those that follow may find it
			if err := l.restore(context.Background(), count, id, "data", dir, over); err != nil {
				t.Fatal(err)
			}
			testtree.Compare(t, filepath.Join(l.states[0], "data"), dir, testtree.Options{})
			before := inUse(t)
			do(t, l, st, id, count.Ops(), prepare, over)
			wantReleased(t, before)
		})
	}
}

// wantMarked makes sure that a volume is as it was, or says that it is incomplete.
func (l *lab) wantMarked(dir string, over bool) (marked bool) {
	l.t.Helper()
	if _, err := os.Lstat(filepath.Join(dir, tree.IncompleteMark)); err == nil {
		return true
	}
	if over {
		testtree.Compare(l.t, filepath.Join(l.states[1], "data"), dir, testtree.Options{})
		return false
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) || len(entries) > 0 {
		l.t.Errorf("%s has no mark and %d entries (%v)", dir, len(entries), err)
	}
	return false
}

func TestARestoreThatFailsAtAnyOperationIsMarkedAndCanBeRepeated(t *testing.T) {
	restoreCases(t, func(t *testing.T, l *lab, st *storetest.Memory, id string, n int, prepare func() string, force bool) {
		marked := 0
		for name, fault := range faults {
			forEachOp(t, n, func(k int) {
				// Without its cache, all it needs comes from the target.
				l.drop(l.cache())
				dir := prepare()
				before := inUse(t)
				f := &storetest.Faulty{Writer: st, Hook: at(k, fault)}
				err := promptly(t, func() error { return l.restore(context.Background(), f, id, "data", dir, force) })
				wantReleased(t, before)
				// It may do without what it did not need: the manifest of another snapshot.
				if err != nil {
					if !errors.Is(err, storetest.ErrFault) {
						t.Errorf("%s: %v, want the injected error", name, err)
					}
					if l.wantMarked(dir, force) {
						marked++
						if _, err := l.backupOf(dir); err == nil {
							t.Error("a volume with a half of a restore passed for data")
						}
					}
					if err := l.restore(context.Background(), st, id, "data", dir, force); err != nil {
						t.Errorf("%s: the next restore: %v", name, err)
					}
				}
				testtree.Compare(t, filepath.Join(l.states[0], "data"), dir, testtree.Options{})
				l.drop(dir)
			})
		}
		if marked == 0 {
			t.Error("no failure came after the mark was written")
		}
	})
}

// backupOf tries to take a snapshot of one directory, into a store of its own.
func (l *lab) backupOf(dir string) (*Summary, error) {
	st := storetest.NewMemory()
	r, err := Ensure(context.Background(), st, Options{})
	if err != nil {
		l.t.Fatal(err)
	}
	return r.Backup(context.Background(), st, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: dir}}})
}

func TestARestoreCancelledAtAnyOperationReturnsAndCanBeRepeated(t *testing.T) {
	restoreCases(t, func(t *testing.T, l *lab, st *storetest.Memory, id string, n int, prepare func() string, force bool) {
		forEachOp(t, n, func(k int) {
			l.drop(l.cache())
			dir := prepare()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			f := &storetest.Faulty{Writer: st, Hook: at(k, storetest.CallBefore(cancel))}
			err := promptly(t, func() error { return l.restore(ctx, f, id, "data", dir, force) })
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					t.Errorf("%v, want context.Canceled", err)
				}
				l.wantMarked(dir, force)
				if err := l.restore(context.Background(), st, id, "data", dir, force); err != nil {
					t.Errorf("the next restore: %v", err)
				}
			}
			testtree.Compare(t, filepath.Join(l.states[0], "data"), dir, testtree.Options{})
			l.drop(dir)
		})
	})
}

// killedChild is the child process of the tests below.
func killedChild(args []string) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	forceTrust = true
	act, l := args[0], &lab{root: args[1], credentials: keyFromEnvironment()}
	k, err := strconv.Atoi(args[2])
	if err != nil {
		fail(err)
	}
	kill := func() {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	fault := storetest.CallBefore(kill)
	if args[3] == "after" {
		fault = storetest.CallAfter(kill)
	}
	name := os.Getenv(envTarget)
	if name == "" {
		name = l.target()
	}
	target, err := targets.Open(context.Background(), name, impatient)
	if err != nil {
		fail(err)
	}
	f := &storetest.Faulty{Writer: target, Hook: at(k, fault)}
	switch act {
	case "backup":
		_, err = l.backup(context.Background(), f)
	case "restore":
		err = l.restore(context.Background(), f, args[4], "data", args[5], args[6] == "force")
	}
	if err != nil {
		fail(err)
	}
	fmt.Println(f.Ops())
}

// killed runs a child that kills itself at operation k; false where it got to its end.
func (l *lab) killed(act string, k int, when string, more ...string) (killed bool, ops int) {
	l.t.Helper()
	cmd := exec.Command(os.Args[0])
	args := append([]string{act, l.root, strconv.Itoa(k), when}, more...)
	cmd.Env = append(os.Environ(), envKill+"="+strings.Join(args, " "))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true, 0
	}
	if err != nil {
		l.t.Fatalf("child: %v\n%s", err, stderr.String())
	}
	if ops, err = strconv.Atoi(strings.TrimSpace(string(out))); err != nil {
		l.t.Fatal(err)
	}
	return false, ops
}

func (l *lab) openTarget() *directory.Target {
	l.t.Helper()
	target, err := directory.Open(l.target())
	if err != nil {
		l.t.Fatal(err)
	}
	return target
}

// resetTarget makes the target a copy of a directory.
func (l *lab) resetTarget(from string) {
	l.t.Helper()
	l.drop(l.target())
	if err := os.CopyFS(l.target(), os.DirFS(from)); err != nil {
		l.t.Fatal(err)
	}
}

func TestABackupKilledAtAnyOperationCostsNothing(t *testing.T) {
	believeStats(t)
	for _, name := range []string{"first backup", "second backup"} {
		t.Run(name, func(t *testing.T) {
			s := startingPoint{lab: newLab(t), ids: map[string]string{}}
			initial := filepath.Join(s.root, "initial")
			for _, d := range []string{initial, s.target()} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if name == "second backup" {
				s.ids[s.mustBackup(s.openTarget())] = s.states[0]
				s.change()
				s.drop(initial)
				if err := os.CopyFS(initial, os.DirFS(s.target())); err != nil {
					t.Fatal(err)
				}
			}
			_, n := s.killed("backup", -1, "before")
			kills := 0
			for _, when := range []string{"before", "after"} {
				forEachOp(t, n, func(k int) {
					s.resetTarget(initial)
					if killed, _ := s.killed("backup", k, when); killed {
						kills++
					}
					s.recover(s.openTarget())
					if t.Failed() {
						t.Logf("killed %s", when)
					}
				})
			}
			// Some operations find nothing, and are not applied.
			if !testing.Short() && kills < 2*n-4 {
				t.Errorf("%d kills of %d", kills, 2*n)
			}
		})
	}
}

func TestARestoreKilledAtAnyOperationIsMarkedAndCanBeRepeated(t *testing.T) {
	believeStats(t)
	for _, over := range []string{"empty", "force"} {
		t.Run(over, func(t *testing.T) {
			l := newLab(t)
			if err := os.Mkdir(l.target(), 0o755); err != nil {
				t.Fatal(err)
			}
			id := l.mustBackup(l.openTarget())
			l.change()
			l.mustBackup(l.openTarget())
			prepare := func() string {
				l.drop(l.cache())
				dir := l.scratch()
				if over == "force" {
					l.drop(dir)
					testtree.Clone(t, filepath.Join(l.states[1], "data"), dir)
				}
				return dir
			}
			_, n := l.killed("restore", -1, "before", id, prepare(), over)
			marked := 0
			forEachOp(t, n, func(k int) {
				dir := prepare()
				if killed, _ := l.killed("restore", k, "after", id, dir, over); killed {
					if l.wantMarked(dir, over == "force") {
						marked++
					}
					if err := l.restore(context.Background(), l.openTarget(), id, "data", dir, over == "force"); err != nil {
						t.Errorf("the next restore: %v", err)
					}
				}
				testtree.Compare(t, filepath.Join(l.states[0], "data"), dir, testtree.Options{})
				l.drop(dir)
			})
			// Of the few kills of a short run, all may come while the first reads are ahead of the mark.
			if marked == 0 && !testing.Short() {
				t.Error("no kill came after the mark was written")
			}
		})
	}
}

// smallDisk mounts a tmpfs and returns its directory.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("CI must be able to mount: %v", err)
		}
		t.Skipf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// leave fills a disk until only so many bytes are free, and returns what gives them back.
func leave(t *testing.T, disk string, free int) (giveBack func()) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(disk, &st); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(disk, "filler")
	f, err := os.Create(name)
	if err == nil {
		if n := int64(st.Bavail)*st.Bsize - int64(free); n > 0 {
			err = unix.Fallocate(int(f.Fd()), 0, 0, n)
		}
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// spaces are how many bytes are free, from none to enough.
func spaces(t *testing.T, enough int) []int {
	var all []int
	step := 8 << 10
	for free := 0; free < enough; free += step {
		all = append(all, free)
		if free >= 64<<10 {
			step = 192 << 10 // in between are large packs only
		}
		if testing.Short() {
			step = enough / 5
		}
	}
	return append(all, enough)
}

func TestADiskThatFillsAtAnyWriteOfABackupCostsNothing(t *testing.T) {
	believeStats(t)
	for _, name := range []string{"first backup", "second backup"} {
		t.Run(name, func(t *testing.T) {
			disk := smallDisk(t, 32<<20)
			s := startingPoint{lab: newLab(t), ids: map[string]string{}}
			dir, initial := filepath.Join(disk, "target"), storetest.NewMemory()
			if name == "second backup" {
				s.ids[s.mustBackup(initial)] = s.states[0]
				s.change()
			}
			full, fits := 0, 0
			for _, free := range spaces(t, 6<<20) {
				s.drop(dir)
				target, err := directory.Create(dir)
				if err != nil {
					t.Fatal(err)
				}
				for _, key := range initial.Keys() {
					if err := target.Put(context.Background(), key, initial.Bytes(key)); err != nil {
						t.Fatal(err)
					}
				}
				giveBack := leave(t, disk, free)
				_, err = s.backup(context.Background(), target)
				switch {
				case err == nil:
					fits++
				case errors.Is(err, store.ErrNoSpace):
					full++
				default:
					t.Errorf("%v, want ErrNoSpace", err)
				}
				s.wantSnapshots(target, s.ids) // while it is full still
				giveBack()
				s.recover(target)
				if t.Failed() {
					t.Fatalf("with %d bytes free", free)
				}
			}
			if full == 0 || fits == 0 {
				t.Errorf("%d backups were too large and %d fitted", full, fits)
			}
		})
	}
}

func TestADiskThatFillsAtAnyWriteOfARestoreMarksTheVolume(t *testing.T) {
	believeStats(t)
	disk := smallDisk(t, 16<<20)
	l, st := newLab(t), storetest.NewMemory()
	id := l.mustBackup(st)
	full, fits := 0, 0
	for _, free := range spaces(t, 3<<20) {
		dir := filepath.Join(disk, "volume")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		giveBack := leave(t, disk, free)
		err := l.restore(context.Background(), st, id, "data", dir, false)
		switch {
		case err == nil:
			fits++
		case errors.Is(err, syscall.ENOSPC):
			full++
			l.wantMarked(dir, false)
		default:
			t.Errorf("%v, want ENOSPC", err)
		}
		giveBack()
		if err != nil {
			if err := l.restore(context.Background(), st, id, "data", dir, false); err != nil {
				t.Errorf("the next restore: %v", err)
			}
		}
		testtree.Compare(t, filepath.Join(l.states[0], "data"), dir, testtree.Options{NoSparse: true})
		l.drop(dir)
		if t.Failed() {
			t.Fatalf("with %d bytes free", free)
		}
	}
	if full == 0 || fits == 0 {
		t.Errorf("%d restores were too large and %d fitted", full, fits)
	}
}

// The cache is a copy: it may be full, read-only, wrong or lost at any time.
func TestACacheThatIsWrongCostsNothing(t *testing.T) {
	believeStats(t)
	for name, spoil := range map[string]func(path string) error{
		"cut":     func(path string) error { return os.Truncate(path, 10) },
		"altered": func(path string) error { return os.WriteFile(path, noise(5, 5000), 0o600) },
		"lost":    os.Remove,
		"a directory": func(path string) error {
			return errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := startingPoint{lab: newLab(t), ids: map[string]string{}}
			st := storetest.NewMemory()
			s.ids[s.mustBackup(st)] = s.states[0]
			s.change()
			spoilt := 0
			err := filepath.WalkDir(s.cache(), func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				spoilt++
				return spoil(path)
			})
			if err != nil || spoilt == 0 {
				t.Fatalf("spoilt %d files: %v", spoilt, err)
			}
			s.recover(st)
		})
	}
}
