package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/store/storetest"
	"github.com/disko/backupd/internal/targets"
	"github.com/disko/backupd/internal/targets/nfs"
	"github.com/disko/backupd/internal/targets/retry"
	"github.com/disko/backupd/internal/targets/s3"
	"github.com/disko/backupd/internal/testservers"
	"github.com/disko/backupd/internal/testtree"
)

// The engine's promises, on real servers behind a network. What they promise
// of single operations is tested beside each target.

// envTarget names the target of a child that kills itself.
const envTarget = "BACKUPD_TEST_TARGET"

// impatient gives up soon where nothing moves, and asks again at once.
var impatient = targets.Options{
	S3:    s3.Options{StallTimeout: 2 * time.Second},
	NFS:   nfs.Options{StallTimeout: 2 * time.Second},
	Retry: retry.Options{Base: 20 * time.Millisecond, Max: 300 * time.Millisecond, Outage: time.Minute},
}

// server is a real server, and a way to break it.
type server struct {
	name string
	// place makes a new empty place on it: a target's name, and where its
	// objects lie as files of this machine.
	place                  func(t *testing.T) (name, dir string)
	pause, resume, restart func(t testing.TB)
}

func s3Server(t *testing.T) server {
	t.Helper()
	s := testservers.NewVersitygw(t)
	t.Setenv("AWS_ACCESS_KEY_ID", s.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s.SecretKey)
	t.Setenv("AWS_REGION", s.Region)
	return server{
		name: "s3",
		place: func(t *testing.T) (string, string) {
			bucket := s.Bucket(t)
			return "s3://" + bucket + "/prefix?endpoint=" + s.Endpoint, filepath.Join(s.BucketDir(t, bucket), "prefix")
		},
		pause: s.Pause, resume: s.Resume, restart: s.Restart,
	}
}

func nfsServer(t *testing.T) server {
	t.Helper()
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	n := 0
	return server{
		name: "nfs",
		place: func(t *testing.T) (string, string) {
			n++
			below := fmt.Sprintf("place%d", n)
			dir := filepath.Join(s.Dir, below)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			return s.URL("/" + below), dir
		},
		pause: s.Pause, resume: s.Resume, restart: s.Restart,
	}
}

// onServers runs a test on each kind of server.
func onServers(t *testing.T, test func(t *testing.T, s server)) {
	t.Helper()
	t.Run("s3", func(t *testing.T) { test(t, s3Server(t)) })
	t.Run("nfs", func(t *testing.T) { test(t, nfsServer(t)) })
}

func openNamed(t *testing.T, name string) store.Writer {
	t.Helper()
	st, err := targets.Open(context.Background(), name, impatient)
	if err != nil {
		t.Fatal(err)
	}
	if c, ok := st.(interface{ Close() error }); ok {
		t.Cleanup(func() { c.Close() })
	}
	return st
}

// someOps are operations spread over a run of n: the server's own tests have
// every one, a process that is killed needs a second or two each.
func someOps(n int) []int {
	step := max(1, n/5)
	if testing.Short() {
		step = max(1, n/2)
	}
	var ops []int
	for k := 0; k < n; k += step {
		ops = append(ops, k)
	}
	return append(ops, n-1)
}

func TestABackupKilledOnARealServerCostsNothing(t *testing.T) {
	believeStats(t)
	onServers(t, func(t *testing.T, s server) {
		l := newLab(t)
		name, _ := s.place(t)
		t.Setenv(envTarget, name)
		ids := map[string]string{}
		ids[l.mustBackup(openNamed(t, name))] = l.states[0]
		l.change()
		_, n := l.killed("backup", -1, "before")
		for _, when := range []string{"before", "after"} {
			for _, k := range someOps(n) {
				name, _ := s.place(t)
				t.Setenv(envTarget, name)
				if err := os.RemoveAll(l.cache()); err != nil {
					t.Fatal(err)
				}
				if killed, _ := l.killed("backup", k, when); !killed && when == "before" {
					t.Errorf("operation %d: nobody was killed", k)
				}
				st := openNamed(t, name)
				id := l.mustBackup(st) // unattended
				l.wantSnapshots(st, map[string]string{id: l.states[1]})
				l.wantClean(st)
				if t.Failed() {
					t.Fatalf("killed %s operation %d of %d", when, k, n)
				}
			}
		}
	})
}

// outages are what a server does in the middle of a run.
func (s server) outages() map[string]func(t *testing.T) {
	return map[string]func(t *testing.T){
		"restarted": func(t *testing.T) { s.restart(t) },
		"paused for longer than a stall": func(t *testing.T) {
			s.pause(t)
			time.AfterFunc(5*time.Second, func() { s.resume(t) })
		},
	}
}

func TestABackupSurvivesAnOutageOfItsTarget(t *testing.T) {
	believeStats(t)
	onServers(t, func(t *testing.T, s server) {
		for what, outage := range s.outages() {
			t.Run(what, func(t *testing.T) {
				l := newLab(t)
				name, _ := s.place(t)
				st := openNamed(t, name)
				var once sync.Once
				var puts atomic.Int32
				// Around the repeating: the operation that meets the outage begins after it.
				f := &storetest.Faulty{Writer: st, Hook: func(op, key string, _ int) storetest.Fault {
					if op == storetest.OpPut && strings.Contains(key, "/packs/") && puts.Add(1) == 1 {
						once.Do(func() { outage(t) })
					}
					return storetest.None
				}}
				id := l.mustBackup(f)
				l.wantSnapshots(st, map[string]string{id: l.states[0]})
				l.wantClean(st)
			})
		}
	})
}

func TestARestoreSurvivesAnOutageOfItsTarget(t *testing.T) {
	believeStats(t)
	onServers(t, func(t *testing.T, s server) {
		for what, outage := range s.outages() {
			t.Run(what, func(t *testing.T) {
				l := newLab(t)
				name, _ := s.place(t)
				st := openNamed(t, name)
				id := l.mustBackup(st)
				var once sync.Once
				f := &storetest.Faulty{Writer: st, Hook: func(op, key string, _ int) storetest.Fault {
					if op == storetest.OpGet && strings.Contains(key, "/packs/") {
						once.Do(func() { outage(t) })
					}
					return storetest.None
				}}
				dir := l.scratch()
				if err := l.restore(context.Background(), f, id, "data", dir, false); err != nil {
					t.Fatal(err)
				}
				testtree.Compare(t, filepath.Join(l.states[0], "data"), dir, testtree.Options{})
			})
		}
	})
}

// A restore that was given up goes on from where it was: what lies there
// already is compared, and only the rest is written.
func TestARestoreThatWasGivenUpGoesOn(t *testing.T) {
	believeStats(t)
	onServers(t, func(t *testing.T, s server) {
		l := newLab(t)
		name, _ := s.place(t)
		st := openNamed(t, name)
		id := l.mustBackup(st)
		gone := &storetest.Faulty{Writer: st, Hook: func(op, key string, n int) storetest.Fault {
			if op == storetest.OpGet && strings.Contains(key, "/packs/") && n%2 == 1 {
				return storetest.FailBefore
			}
			return storetest.None
		}}
		dir := l.scratch()
		if err := l.restore(context.Background(), gone, id, "data", dir, false); !errors.Is(err, storetest.ErrFault) {
			t.Fatalf("the first: %v", err)
		}
		if err := l.restore(context.Background(), st, id, "data", dir, false); err != nil {
			t.Fatal(err)
		}
		testtree.Compare(t, filepath.Join(l.states[0], "data"), dir, testtree.Options{})
	})
}

func TestNoFlippedBitOnARealServerPassesUnseen(t *testing.T) {
	believeStats(t)
	onServers(t, func(t *testing.T, s server) {
		l := newLab(t)
		name, dir := s.place(t)
		st := openNamed(t, name)
		id := l.mustBackup(st)
		n := 0
		for info, err := range st.List(context.Background(), "stacks/") {
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, info.Key)
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, at := range []int{0, len(whole) / 2, len(whole) - 2} {
				n++
				flipped := append([]byte(nil), whole...)
				flipped[at] ^= 1 << (n % 8)
				if err := os.WriteFile(path, flipped, 0o644); err != nil {
					t.Fatal(err)
				}
				l.wantFlipSeen(st, id, fmt.Sprintf("%s at %d", info.Key, at))
			}
			if err := os.WriteFile(path, whole, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if n < 12 {
			t.Fatalf("%d flips only", n)
		}
		l.wantSnapshots(st, map[string]string{id: l.states[0]})
		l.wantClean(st)
	})
}

// wantFlipSeen makes sure that verify reports what was done to a repository,
// and that a restore gives what was backed up, or an error.
func (l *lab) wantFlipSeen(st store.Reader, id, what string) {
	l.t.Helper()
	ctx := context.Background()
	r, err := Open(ctx, st, l.options())
	if err != nil {
		return
	}
	defer r.Close()
	list, err := r.List(ctx, "")
	if err != nil {
		return
	}
	v, err := r.Verify(ctx, list, true, nil)
	if err == nil && len(v.Damage) == 0 {
		l.t.Errorf("%s: verify says nothing", what)
	}
	for _, volume := range labVolumes {
		dir := l.scratch()
		m, err := r.Find(ctx, "shop", id)
		if err == nil {
			_, err = r.Restore(ctx, m, RestoreOptions{Volume: volume, Path: dir})
		}
		if err == nil {
			testtree.Compare(l.t, filepath.Join(l.states[0], volume), dir, testtree.Options{})
		}
		l.drop(dir)
	}
}

// policy reads one of the IAM policies of configs/s3 for a bucket.
func policy(t *testing.T, name, bucket, prefix string) string {
	t.Helper()
	text, err := os.ReadFile("../../configs/s3/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer("example-bucket", bucket, "backups/", prefix+"/").Replace(string(text))
}

// The policies that configs/s3 gives are enough for what they are for, and the
// agent's may delete nothing.
func TestAnAgentThatMayOnlyAddAndAReaderThatMayOnlyReadAreEnough(t *testing.T) {
	believeStats(t)
	s := testservers.Minio(t)
	bucket := s.Bucket(t)
	name := "s3://" + bucket + "/shop?endpoint=" + s.Endpoint
	as := func(policyFile string) store.Writer {
		c := s.Assume(t, policy(t, policyFile, bucket, "shop"))
		t.Setenv("AWS_ACCESS_KEY_ID", c.AccessKey)
		t.Setenv("AWS_SECRET_ACCESS_KEY", c.SecretKey)
		t.Setenv("AWS_SESSION_TOKEN", c.SessionToken)
		t.Setenv("AWS_REGION", s.Region)
		return openNamed(t, name)
	}
	l := newLab(t)
	agent := as("add-only.json")
	ids := map[string]string{}
	ids[l.mustBackup(agent)] = l.states[0]
	l.change()
	ids[l.mustBackup(agent)] = l.states[1]
	if err := agent.Delete(context.Background(), markerKey); !errors.Is(err, store.ErrAccess) {
		t.Errorf("the agent deletes the marker: %v", err)
	}
	reader := as("restore-only.json")
	l.wantSnapshots(reader, ids)
	l.wantClean(reader)
	if _, err := l.backup(context.Background(), reader); !errors.Is(err, store.ErrAccess) {
		t.Errorf("a backup by the reader: %v, want access denied", err)
	}
	l.wantSnapshots(reader, ids)
}

// locker is a target that locks what is put, and notes what is locked again.
type locker struct {
	*storetest.Memory
	mu     sync.Mutex
	locked map[string]int
}

func (l *locker) Retain(_ context.Context, key string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.locked[key]++
	return nil
}

func TestPacksThatANewSnapshotReusesAreLockedAgain(t *testing.T) {
	believeStats(t)
	l := newLab(t)
	st := &locker{Memory: storetest.NewMemory(), locked: map[string]int{}}
	l.mustBackup(st)
	if len(st.locked) > 0 {
		t.Errorf("the first backup locks again what it just put: %v", st.locked)
	}
	was := packsOf(st.Memory)
	l.write("data", "dir/3", noise(3, 900))
	l.keep()
	id := l.mustBackup(st)
	r := l.places(st)[0].Repo
	m, err := r.Find(context.Background(), "shop", id)
	if err != nil {
		t.Fatal(err)
	}
	reused := 0
	for _, key := range m.objects() {
		if slices.Contains(was, key) {
			reused++
			if st.locked[key] != 1 {
				t.Errorf("%s was locked again %d times", key, st.locked[key])
			}
		}
	}
	if reused == 0 || len(st.locked) != reused {
		t.Errorf("%d packs are reused, %d were locked again", reused, len(st.locked))
	}
}

// The whole of a repository's life on a real S3 server and in a directory: what
// is left after forget and two prunes is what the kept snapshots need, to the key.
func TestPruneOnRealTargetsLeavesExactlyWhatIsNeeded(t *testing.T) {
	believeStats(t)
	test := func(t *testing.T, name string) {
		l := newLab(t)
		st := openNamed(t, name)
		ids := map[string]string{}
		var all []string
		for n := range 6 {
			id := l.mustBackup(st)
			all = append(all, id)
			ids[id] = l.states[n]
			for _, v := range labVolumes {
				for i := range 8 {
					l.write(v, fmt.Sprintf("dir/%d", i), noise(uint64(100*n+i), 4000))
				}
				l.write(v, "large", noise(uint64(1000+n), 600<<10))
			}
			l.keep()
		}
		r := l.repo(st)
		done, err := r.Forget(context.Background(), st, ForgetOptions{Stack: "shop", Policy: Policy{Last: 2}})
		if err != nil || len(done.Forgotten) != 4 {
			t.Fatalf("%+v, %v", done, err)
		}
		for _, id := range all[:4] {
			delete(ids, id)
		}
		condemned := l.mustPrune(st, 0)
		if condemned.Condemned.Bytes < 2<<20 {
			t.Errorf("%+v", condemned)
		}
		l.wantSnapshots(st, ids)
		// By the target's own clock it is not due.
		pruned, err := r.Prune(context.Background(), st, PruneOptions{})
		if err != nil || len(pruned.Stacks[0].Waiting) != 1 {
			t.Errorf("%+v, %v", pruned, err)
		}
		if freed := l.mustPrune(st, week).Freed; freed != condemned.Condemned {
			t.Errorf("freed %+v of %+v", freed, condemned.Condemned)
		}
		l.mustPrune(st, 2*week)
		l.wantExactly(st, r)
		l.wantSnapshots(st, ids)
		l.wantClean(st)
	}
	t.Run("directory", func(t *testing.T) { test(t, t.TempDir()) })
	onServers(t, func(t *testing.T, s server) {
		name, _ := s.place(t)
		test(t, name)
	})
}

// On a bucket with object lock nothing is deleted before its time: it would be
// hidden, and take its space all the same.
func TestPruneKeepsLockedObjectsCondemned(t *testing.T) {
	believeStats(t)
	s := testservers.Versitygw(t)
	t.Setenv("AWS_ACCESS_KEY_ID", s.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s.SecretKey)
	t.Setenv("AWS_REGION", s.Region)
	o := impatient
	o.S3.LockMode, o.S3.LockDays = "GOVERNANCE", 10
	st, err := targets.Open(context.Background(), "s3://"+s.LockedBucket(t)+"/prefix?endpoint="+s.Endpoint, o)
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	ids, _ := l.threeStates(st)
	l.mustForget(st, ids[0], ids[1])
	condemned := l.mustPrune(st, 0)
	done, err := l.repo(st).Prune(context.Background(), laterVault{later{st, week, false}, st.(store.Locker)}, PruneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := done.Stacks[0]
	if got.Freed.Objects > 0 || got.Locked != condemned.Condemned || got.LockedUntil.Before(time.Now().AddDate(0, 0, 9)) {
		t.Errorf("%+v of %+v", got, condemned.Condemned)
	}
	l.wantSnapshots(st, map[string]string{ids[2]: l.states[2]})
}

// laterVault is later on a target with object lock.
type laterVault struct {
	later
	store.Locker
}
