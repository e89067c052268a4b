package storetest_test

import (
	"context"
	"errors"
	"testing"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/store/storetest"
	"github.com/disko/backupd/internal/targets/targetstest"
)

func TestMemoryKeepsTheContract(t *testing.T) {
	targetstest.Run(t, func(*testing.T) store.Writer { return storetest.NewMemory() })
}

func TestFaultyWithoutFaultsKeepsTheContract(t *testing.T) {
	targetstest.Run(t, func(*testing.T) store.Writer { return &storetest.Faulty{Writer: storetest.NewMemory()} })
}

func TestAClonesChangesAreItsOwn(t *testing.T) {
	a := storetest.NewMemory()
	a.SetBytes("x", []byte("one"))
	b := a.Clone()
	b.SetBytes("x", []byte("two"))
	b.SetBytes("y", nil)
	a.Bytes("x")[0] = '!'
	if string(a.Bytes("x")) != "one" || a.Bytes("y") != nil || string(b.Bytes("x")) != "two" {
		t.Errorf("%q %q", a.Bytes("x"), b.Bytes("x"))
	}
}

func TestAFaultIsAppliedBeforeOrAfter(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name    string
		fault   storetest.Fault
		err     error
		applied bool
	}{
		{"none", storetest.None, nil, true},
		{"before", storetest.FailBefore, storetest.ErrFault, false},
		{"after", storetest.FailAfter, storetest.ErrFault, true},
		{"after, of its own", storetest.FailAfter.With(store.ErrNoSpace), store.ErrNoSpace, true},
	} {
		m := storetest.NewMemory()
		f := &storetest.Faulty{Writer: m, Hook: func(op, _ string, n int) storetest.Fault {
			if op == storetest.OpPut && n == 1 {
				return c.fault
			}
			return storetest.None
		}}
		if _, err := f.Stat(ctx, "x"); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("%s: stat: %v", c.name, err)
		}
		if err := f.Put(ctx, "x", []byte("x")); !errors.Is(err, c.err) {
			t.Errorf("%s: put: %v, want %v", c.name, err, c.err)
		}
		if applied := m.Bytes("x") != nil; applied != c.applied {
			t.Errorf("%s: applied: %v", c.name, applied)
		}
		if f.Ops() != 2 {
			t.Errorf("%s: %d operations", c.name, f.Ops())
		}
	}
}

func TestAFaultOfAListingComesOnce(t *testing.T) {
	m := storetest.NewMemory()
	m.SetBytes("a/x", nil)
	m.SetBytes("a/y", nil)
	for name, c := range map[string]struct {
		fault storetest.Fault
		seen  int
	}{"before": {storetest.FailBefore, 0}, "after": {storetest.FailAfter, 2}} {
		f := &storetest.Faulty{Writer: m, Hook: func(string, string, int) storetest.Fault { return c.fault }}
		seen, failed := 0, 0
		for _, err := range f.List(context.Background(), "a/") {
			if err != nil {
				failed++
				continue
			}
			seen++
		}
		if seen != c.seen || failed != 1 {
			t.Errorf("%s: %d objects and %d errors", name, seen, failed)
		}
	}
}

func TestAHookMayActAtAnOperation(t *testing.T) {
	m := storetest.NewMemory()
	var seen []bool
	look := func() { seen = append(seen, m.Bytes("x") != nil) }
	f := &storetest.Faulty{Writer: m, Hook: func(_, _ string, n int) storetest.Fault {
		if n == 0 {
			return storetest.CallBefore(look)
		}
		return storetest.CallAfter(look)
	}}
	for range 2 {
		if err := f.Put(context.Background(), "x", []byte("x")); err != nil {
			t.Fatal(err)
		}
		if len(seen) == 1 {
			m.Remove("x")
		}
	}
	if len(seen) != 2 || seen[0] || !seen[1] {
		t.Errorf("%v", seen)
	}
}
