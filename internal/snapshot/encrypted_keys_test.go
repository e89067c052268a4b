package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/store/storetest"
)

func TestKeysAreAddedListedAndRemoved(t *testing.T) {
	f := newFort(t)
	ctx := context.Background()
	second, _ := newIdentity(t)
	third := &Credentials{Passphrase: "correct horse"}
	r := f.open(f.store, f.options())
	for _, c := range []*Credentials{recipientsOf(t, second), third} {
		if err := r.AddKeys(ctx, f.store, c); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []*Credentials{f.owner, second, third} {
		if k := f.open(f.store, Options{Credentials: c}).keys; !k.Same(f.keys) || !k.CanRead() {
			t.Error("other keys")
		}
	}
	f.wantRefused(f.store, Options{Credentials: &Credentials{Passphrase: "wrong"}}, sealed.ErrWrongKey, "a wrong passphrase")
	list, err := r.Keys(ctx)
	if err != nil || len(list) != 3 || list[2].Kind != "passphrase" && list[1].Kind != "passphrase" && list[0].Kind != "passphrase" {
		t.Fatalf("%+v, %v", list, err)
	}
	for i, k := range list {
		err := r.RemoveKey(ctx, f.store, k.Name)
		if last := i == 2; last != errors.Is(err, ErrUsage) || !last && err != nil {
			t.Errorf("removing key %d of 3: %v", i, err)
		}
	}
	if err := r.RemoveKey(ctx, f.store, "nothere"); !errors.Is(err, ErrUsage) {
		t.Errorf("%v", err)
	}
	f.wantCleanWith(second, third)
}

// wantCleanWith: whoever still has a key finds the repository whole.
func (f *fort) wantCleanWith(all ...*Credentials) {
	f.t.Helper()
	for _, c := range append(all, f.owner) {
		r, err := Open(context.Background(), f.store, Options{Credentials: c})
		if err != nil {
			continue
		}
		list, err := r.List(context.Background(), "")
		if err != nil {
			f.t.Fatal(err)
		}
		v, err := r.Verify(context.Background(), list, true, nil)
		if err != nil || len(v.Damage) > 0 || v.Snapshots != 4 {
			f.t.Errorf("%+v, %v", v, err)
		}
		return
	}
	f.t.Error("nobody can open it")
}

// Whatever operation of it fails, a rotation is done or not done, nobody is
// locked out, and it can be repeated.
func TestARotationThatFailsAtAnyOperationLocksNobodyOut(t *testing.T) {
	f := newFort(t)
	ctx := context.Background()
	fresh, _ := newIdentity(t)
	count := &storetest.Faulty{Writer: f.store.Clone()}
	rotate := func(st *storetest.Faulty, c *Credentials) error {
		r, err := Open(ctx, st, Options{Credentials: c})
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = r.RotateKeys(ctx, st, recipientsOf(t, fresh))
		return err
	}
	if err := rotate(count, f.owner); err != nil {
		t.Fatal(err)
	}
	for name, fault := range faults {
		forEachOp(t, count.Ops(), func(k int) {
			st := f.store.Clone()
			_ = rotate(&storetest.Faulty{Writer: st, Hook: at(k, fault)}, f.owner)
			opens := 0
			for _, c := range []*Credentials{f.owner, fresh} {
				r, err := Open(ctx, st, Options{Credentials: c})
				if err != nil {
					continue
				}
				opens++
				list, err := r.List(ctx, "")
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range list {
					if l.Err != nil {
						t.Errorf("fault %s: %v", name, l.Err)
					}
				}
				if _, err := r.RotateKeys(ctx, st, recipientsOf(t, fresh)); err != nil {
					t.Errorf("fault %s: again: %v", name, err)
				}
				r.Close()
				break
			}
			if opens == 0 {
				t.Errorf("fault %s: nobody can open it", name)
				return
			}
			after := *f
			after.store = st
			after.wantCleanWith(fresh)
			if list, err := f.open(st, Options{Credentials: fresh}).Keys(ctx); err != nil || len(list) != 1 {
				t.Errorf("fault %s: keys %+v, %v", name, list, err)
			}
		})
	}
}

func TestOfTwoRotationsAtOnceOneCounts(t *testing.T) {
	f := newFort(t)
	ctx := context.Background()
	hooked := &storetest.Faulty{Writer: f.store}
	once := false
	hooked.Hook = func(op, key string, _ int) storetest.Fault {
		if op != storetest.OpPut || !strings.HasPrefix(key, rotationsPrefix) || once {
			return storetest.None
		}
		once = true
		return storetest.CallBefore(func() {
			if _, err := f.open(f.store, f.stranger()).RotateKeys(ctx, f.store, f.owner); err != nil {
				t.Error(err)
			}
		})
	}
	_, err := f.open(hooked, f.stranger()).RotateKeys(ctx, hooked, f.owner)
	if err == nil || !strings.Contains(err.Error(), "somebody else rotated") {
		t.Errorf("the slower one: %v", err)
	}
	r := f.open(f.store, f.stranger())
	if r.keys.Generation != 2 {
		t.Errorf("generation %d", r.keys.Generation)
	}
	if list, err := r.List(ctx, ""); err != nil || len(list) != 4 || list[0].Err != nil {
		t.Errorf("%+v, %v", list, err)
	}
}

// A snapshot that was committed between the rotation's look and its end is said to be refused.
func TestARotationTellsWhatItRefuses(t *testing.T) {
	f := newFort(t)
	hooked := &storetest.Faulty{Writer: f.store}
	var late string
	hooked.Hook = func(op, key string, _ int) storetest.Fault {
		if op == storetest.OpPut && strings.HasPrefix(key, rotationsPrefix) {
			return storetest.CallBefore(func() { late = f.backup(f.store, "shop").ID })
		}
		return storetest.None
	}
	done, err := f.open(hooked, f.stranger()).RotateKeys(context.Background(), hooked, f.owner)
	if err != nil || len(done.Refused) != 1 || done.Refused[0].ID != late {
		t.Fatalf("%+v, %v; want %.8s", done, err, late)
	}
	f.wantForged(f.store, "shop", 4, late, f.ids[2])
}

func TestWhatCannotBeOpenedAgainIsNotCreated(t *testing.T) {
	ctx := context.Background()
	owner, _ := newIdentity(t)
	other, _ := newIdentity(t)
	f := newFort(t)
	for name, c := range map[string]*Credentials{"recipients alone": recipientsOf(t, owner), "nothing": {}, "an agent key": agentOf(t, f.agent)} {
		st := storetest.NewMemory()
		if _, err := Ensure(ctx, st, Options{Credentials: c}); !errors.Is(err, ErrKey) || len(st.Keys()) > 0 {
			t.Errorf("%s: %v, %q", name, err, st.Keys())
		}
	}
	// A recipient and somebody else's identity: both open it.
	both := recipientsOf(t, owner)
	both.Identities = other.Identities
	st := storetest.NewMemory()
	if _, err := Ensure(ctx, st, Options{Credentials: both}); err != nil {
		t.Fatal(err)
	}
	for i, c := range []*Credentials{both, owner, other} {
		if _, err := Open(ctx, st, Options{Credentials: c}); err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	// A passphrase and an identity: each opens it.
	both = &Credentials{Passphrase: "correct horse", Identities: other.Identities}
	st = storetest.NewMemory()
	if _, err := Ensure(ctx, st, Options{Credentials: both}); err != nil {
		t.Fatal(err)
	}
	for i, c := range []*Credentials{{Passphrase: "correct horse"}, other} {
		if _, err := Open(ctx, st, Options{Credentials: c}); err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
}

func TestAgentKeysOfAnotherRepositoryAreRefused(t *testing.T) {
	a, b := newFort(t), newFort(t)
	a.wantRefused(a.store, Options{Credentials: agentOf(t, b.agent)}, ErrKey, "another's agent key")
	mixed := agentOf(t, b.agent)
	mixed.Identities = a.owner.Identities
	a.wantRefused(a.store, Options{Credentials: mixed}, ErrKey, "another's agent key with the right identity")
	a.wantRefused(a.store, Options{}, ErrKey, "no key")
	a.wantRefused(a.store, Options{Credentials: recipientsOf(t, a.owner)}, ErrKey, "a recipient alone")
	plain := storetest.NewMemory()
	if _, err := Ensure(context.Background(), plain, Options{}); err != nil {
		t.Fatal(err)
	}
	a.wantRefused(plain, a.stranger(), ErrKey, "a key for a plain repository")
}

// A hybrid repository does all that another does.
func TestAPostQuantumRepositoryRestoresAndRotates(t *testing.T) {
	believeStats(t)
	c, _ := newIdentity(t)
	c.PostQuantum = true
	l, st := newLab(t), storetest.NewMemory()
	l.credentials = c
	ids := map[string]string{l.mustBackup(st): l.states[0]}
	r, err := Open(context.Background(), st, l.options())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.RotateKeys(context.Background(), st, c); err != nil || !strings.HasPrefix(r.keys.Recipient, "age1pq1") {
		t.Fatalf("%v, %.10s", err, r.keys.Recipient)
	}
	l.change()
	ids[l.mustBackup(st)] = l.states[1]
	l.wantSnapshots(st, ids)
	l.wantClean(st)
}

// The state directory may be lost or damaged: then the next contact is a first one.
func TestALostTrustFileIsAFirstContact(t *testing.T) {
	f := newFort(t)
	tr := newTrust(f.options().TrustDir, f.keys.Repository)
	if tr.highest("shop") != 3 || tr.highest("wiki") != 1 || tr.highest("other") != 0 {
		t.Errorf("%d, %d", tr.highest("shop"), tr.highest("wiki"))
	}
	for i, o := range []Options{f.stranger(), {Credentials: f.owner, TrustDir: "/dev/null/none"}} {
		r := f.open(f.store, o)
		if _, err := r.Find(context.Background(), "shop", "latest"); err != nil {
			t.Errorf("%d: %v", i, err)
		}
		if s, err := r.Backup(context.Background(), f.store.Clone(), BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: f.volume}}}); err != nil {
			t.Errorf("%d: %v, %v", i, s, err)
		}
	}
}

// BenchmarkBackup tells what encryption costs: compare the two.
func BenchmarkBackup(b *testing.B) {
	owner, _ := newIdentity(b)
	for name, c := range map[string]*Credentials{"plain": nil, "encrypted": owner} {
		for kind, data := range map[string]func(i int) []byte{
			"noise": func(i int) []byte { return noise(uint64(i), 8<<20) },
			"text": func(i int) []byte {
				return []byte(strings.Repeat(fmt.Sprintf("line %d of a log that is like others; ", i), 8<<20/40))
			},
		} {
			b.Run(kind+"/"+name, func(b *testing.B) {
				l := &lab{t: b, root: fastDir(b)}
				for i := range 16 {
					benchFile(b, l, i, data(i))
				}
				b.SetBytes(16 * 8 << 20)
				before := cpuTime(b)
				for b.Loop() {
					st := storetest.NewMemory()
					r, err := Ensure(context.Background(), st, Options{Credentials: c})
					if err != nil {
						b.Fatal(err)
					}
					if _, err := r.Backup(context.Background(), st, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: l.volume("data")}}}); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64((cpuTime(b)-before).Milliseconds())/float64(b.N), "cpu-ms/op")
			})
		}
	}
}

// cpuTime is what the process has used of all processors.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchFile(b *testing.B, l *lab, i int, data []byte) {
	b.Helper()
	if err := os.MkdirAll(l.volume("data"), 0o755); err != nil {
		b.Fatal(err)
	}
	l.write("data", fmt.Sprint(i), data)
}
