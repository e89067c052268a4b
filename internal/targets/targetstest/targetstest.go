// Package targetstest is the conformance suite of targets: what package store
// promises, asked of an implementation. Every target must pass it.
package targetstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/disko/backupd/internal/store"
)

// Run runs the suite. open returns an empty target, a new one at each call.
func Run(t *testing.T, open func(t *testing.T) store.Writer) {
	t.Helper()
	RunStore(t, open)
	t.Run("AnObjectsTimeIsThatOfTheTargetsClock", func(t *testing.T) { times(t, open(t)) })
}

// RunStore runs the part of the suite that a store over a store has to pass: what
// is asked of the target itself is left out.
func RunStore(t *testing.T, open func(t *testing.T) store.Writer) {
	t.Helper()
	for _, c := range []struct {
		promise string
		test    func(t *testing.T, s store.Writer)
	}{
		{"AnObjectIsReadAsItWasWritten", readBack},
		{"LargeAndEmptyObjectsAreKept", sizes},
		{"PutKeepsNothingOfTheCallersSlice", ownership},
		{"NothingIsOverwritten", noOverwrite},
		{"OfConcurrentPutsOfOneKeyExactlyOneWins", concurrentPuts},
		{"PutsOfDifferentKeysDoNotMeet", neighbours},
		{"RangesEndAtTheObjectsEdges", ranges},
		{"AHugeRangeIsRefusedWithoutMemory", hugeRange},
		{"WhatIsAbsentDoesNotExist", absent},
		{"AListingHasEverythingBelowItsPrefixAndNothingElse", list},
		{"AListingEndsWhenItsReaderDoes", listStopped},
		{"DeleteRemovesOneObject", remove},
		{"BadKeysAreRefused", badKeys},
		{"ACancelledContextEndsEveryOperation", cancelled},
	} {
		t.Run(c.promise, func(t *testing.T) { c.test(t, open(t)) })
	}
}

func times(t *testing.T, s store.Writer) {
	ctx := context.Background()
	c, ok := s.(store.Clock)
	if !ok {
		t.Fatal("the target is no store.Clock: nothing could be pruned there")
	}
	if _, err := c.Modified(ctx, "absent"); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("the time of what is absent: %v, want ErrNotExist", err)
	}
	before, err := c.Now(ctx)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "timed", []byte("x"))
	at, err := c.Modified(ctx, "timed")
	if err != nil {
		t.Fatal(err)
	}
	after, err := c.Now(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// Whole seconds, and a server whose answer's date is a moment older than its disk's.
	const coarse = 2 * time.Second
	if at.Before(before.Add(-coarse)) || at.After(after.Add(coarse)) {
		t.Errorf("put at %v, between %v and %v", at, before, after)
	}
	if n := len(listing(t, s, "")); n != 1 {
		t.Errorf("%d objects are left by asking for the time, want 1", n)
	}
}

func put(t *testing.T, s store.Putter, key string, data []byte) {
	t.Helper()
	if err := s.Put(context.Background(), key, data); err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
}

func wantBytes(t *testing.T, s store.Getter, key string, want []byte) {
	t.Helper()
	got, err := s.Get(context.Background(), key, 0, -1)
	if err != nil {
		t.Errorf("get %s: %v", key, err)
	} else if !bytes.Equal(got, want) {
		t.Errorf("get %s: %d bytes that are not the %d written", key, len(got), len(want))
	}
}

// listing returns what a listing yields: sizes by key.
func listing(t *testing.T, s store.Lister, prefix string) map[string]int64 {
	t.Helper()
	all := map[string]int64{}
	for info, err := range s.List(context.Background(), prefix) {
		if err != nil {
			t.Fatalf("list %q: %v", prefix, err)
		}
		if _, twice := all[info.Key]; twice {
			t.Errorf("list %q: %s twice", prefix, info.Key)
		}
		all[info.Key] = info.Size
	}
	return all
}

func readBack(t *testing.T, s store.Writer) {
	all := map[string]int64{}
	for i, key := range []string{"a", "marker.json", "stacks/shop/volumes/data/packs/0123456789abcdef-0", "A-Z_0.9/x", strings.Repeat("k", 200), strings.Repeat("d/", 100) + "deep"} {
		data := fmt.Appendf(nil, "content %d\x00\xff", i)
		put(t, s, key, data)
		wantBytes(t, s, key, data)
		info, err := s.Stat(context.Background(), key)
		if err != nil || info != (store.Info{Key: key, Size: int64(len(data))}) {
			t.Errorf("stat %s: %+v, %v", key, info, err)
		}
		all[key] = int64(len(data))
	}
	if got := listing(t, s, ""); !maps.Equal(got, all) {
		t.Errorf("listing: %v, want %v", got, all)
	}
}

// pattern is n bytes that differ from those of another seed.
func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	x := uint32(seed) + 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func sizes(t *testing.T, s store.Writer) {
	for i, n := range []int{0, 1, 4095, 4096, 4097, 20 << 20} {
		key, data := fmt.Sprint("sizes/", n), pattern(n, byte(i))
		put(t, s, key, data)
		wantBytes(t, s, key, data)
		if info, err := s.Stat(context.Background(), key); err != nil || info.Size != int64(n) {
			t.Errorf("stat %s: %+v, %v", key, info, err)
		}
	}
}

func ownership(t *testing.T, s store.Writer) {
	data := []byte("first content")
	want := bytes.Clone(data)
	put(t, s, "x", data)
	copy(data, "OVERWRITTEN!!")
	wantBytes(t, s, "x", want)
	got, err := s.Get(context.Background(), "x", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	copy(got, "OVERWRITTEN!!")
	wantBytes(t, s, "x", want)
}

func noOverwrite(t *testing.T, s store.Writer) {
	ctx := context.Background()
	for _, first := range [][]byte{[]byte("first"), {}} {
		key := fmt.Sprint("taken/", len(first))
		put(t, s, key, first)
		for _, second := range [][]byte{[]byte("second"), []byte("first"), {}} {
			if err := s.Put(ctx, key, second); !errors.Is(err, store.ErrExist) {
				t.Errorf("put over %s: %v, want ErrExist", key, err)
			}
		}
		wantBytes(t, s, key, first)
	}
	if n := len(listing(t, s, "")); n != 2 {
		t.Errorf("%d objects, want 2", n)
	}
}

func concurrentPuts(t *testing.T, s store.Writer) {
	for round := range 8 {
		key := fmt.Sprintf("race/%d/object", round)
		const n = 8
		errs := make([]error, n)
		start := make(chan struct{})
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				data := pattern(64<<10, byte(i))
				<-start
				errs[i] = s.Put(context.Background(), key, data)
			})
		}
		close(start)
		wg.Wait()
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner < 0:
				winner = i
			case err == nil:
				t.Errorf("%s: puts %d and %d both say they made it", key, winner, i)
			case !errors.Is(err, store.ErrExist):
				t.Errorf("%s: put %d: %v, want ErrExist", key, i, err)
			}
		}
		if winner < 0 {
			t.Fatalf("%s: nobody made it", key)
		}
		wantBytes(t, s, key, pattern(64<<10, byte(winner)))
	}
}

// neighbours: packs and index packs of one run bear the same last component,
// and are written at the same time into directories that are not there yet.
func neighbours(t *testing.T, s store.Writer) {
	want := map[string]int64{}
	var wg sync.WaitGroup
	for round := range 16 {
		for i, dir := range []string{"packs", "index", "packs/more"} {
			key := fmt.Sprintf("stacks/shop/%d/%s/0123456789abcdef-0", round, dir)
			data := pattern(1000+round*10+i, byte(i))
			want[key] = int64(len(data))
			wg.Go(func() {
				if err := s.Put(context.Background(), key, data); err != nil {
					t.Errorf("put %s: %v", key, err)
				}
			})
		}
	}
	wg.Wait()
	if got := listing(t, s, "stacks/"); !maps.Equal(got, want) {
		t.Errorf("listing has %d objects, or other ones, instead of %d", len(got), len(want))
	}
}

func ranges(t *testing.T, s store.Writer) {
	data := pattern(1000, 1)
	put(t, s, "r", data)
	put(t, s, "empty", nil)
	for _, c := range []struct {
		key    string
		off, n int64
		want   []byte
	}{
		{"r", 0, 1000, data},
		{"r", 0, -1, data},
		{"r", 0, 0, nil},
		{"r", 0, 1, data[:1]},
		{"r", 999, 1, data[999:]},
		{"r", 999, -1, data[999:]},
		{"r", 500, 499, data[500:999]},
		{"r", 1000, 0, nil},
		{"r", 1000, -1, nil},
		{"empty", 0, 0, nil},
		{"empty", 0, -1, nil},
	} {
		got, err := s.Get(context.Background(), c.key, c.off, c.n)
		if err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("get %s, %d from %d: %d bytes, %v; want %d", c.key, c.n, c.off, len(got), err, len(c.want))
		}
	}
	for _, c := range []struct {
		key    string
		off, n int64
	}{
		{"r", 0, 1001},
		{"r", 1, 1000},
		{"r", 999, 2},
		{"r", 1000, 1},
		{"r", 1001, 0},
		{"r", 1001, -1},
		{"r", 5000, 10},
		{"empty", 0, 1},
		{"empty", 1, 0},
		{"empty", 1, -1},
	} {
		if got, err := s.Get(context.Background(), c.key, c.off, c.n); !errors.Is(err, store.ErrShort) {
			t.Errorf("get %s, %d from %d: %d bytes, %v; want ErrShort", c.key, c.n, c.off, len(got), err)
		}
	}
	if _, err := s.Get(context.Background(), "r", -1, 10); err == nil {
		t.Error("get from -1 is no error")
	}
}

func hugeRange(t *testing.T, s store.Writer) {
	put(t, s, "small", []byte("small"))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, r := range [][2]int64{{0, 1 << 50}, {0, math.MaxInt64}, {1, math.MaxInt64}, {math.MaxInt64, 1}, {math.MaxInt64, math.MaxInt64}, {0, 1 << 31}} {
		if _, err := s.Get(context.Background(), "small", r[0], r[1]); !errors.Is(err, store.ErrShort) {
			t.Errorf("%d bytes from %d: %v, want ErrShort", r[1], r[0], err)
		}
	}
	runtime.ReadMemStats(&after)
	// A target that believes a length takes 2 GiB at the least; a connection
	// made anew, or another test's goroutine, may take some.
	if n := after.TotalAlloc - before.TotalAlloc; n > 256<<20 {
		t.Errorf("refusing took %d bytes of memory", n)
	}
}

func absent(t *testing.T, s store.Writer) {
	ctx := context.Background()
	put(t, s, "dir/object", []byte("x"))
	for _, key := range []string{"none", "dir/none", "dir/object2", "none/at/all", "dir", "dir/object/below"} {
		if _, err := s.Get(ctx, key, 0, -1); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("get %s: %v, want ErrNotExist", key, err)
		}
		if _, err := s.Get(ctx, key, 0, 0); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("get nothing of %s: %v, want ErrNotExist", key, err)
		}
		if _, err := s.Stat(ctx, key); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("stat %s: %v, want ErrNotExist", key, err)
		}
	}
}

func list(t *testing.T, s store.Writer) {
	if got := listing(t, s, ""); len(got) > 0 {
		t.Errorf("a new target has %v", got)
	}
	if got := listing(t, s, "stacks/"); len(got) > 0 {
		t.Errorf("a new target has %v", got)
	}
	keys := []string{"top", "a/b/c", "a/b/d/e/f", "a/bc", "a/b-c/d", "a/b.c", "ab/c", "b/a/b/c", "A/b/c"}
	for i, key := range keys {
		put(t, s, key, make([]byte, i))
	}
	for prefix, want := range map[string][]string{
		"":          keys,
		"a/":        {"a/b/c", "a/b/d/e/f", "a/bc", "a/b-c/d", "a/b.c"},
		"a/b/":      {"a/b/c", "a/b/d/e/f"},
		"a/b/d/":    {"a/b/d/e/f"},
		"a/b/c/":    nil,
		"a/b/c/d/":  nil,
		"none/":     nil,
		"a/none/x/": nil,
	} {
		got := slices.Sorted(maps.Keys(listing(t, s, prefix)))
		want = slices.Sorted(slices.Values(want))
		if !slices.Equal(got, want) {
			t.Errorf("list %q: %q, want %q", prefix, got, want)
		}
	}
	for key, size := range listing(t, s, "") {
		if size != int64(slices.Index(keys, key)) {
			t.Errorf("list: %s has %d bytes", key, size)
		}
	}
}

func listStopped(t *testing.T, s store.Writer) {
	for i := range 10 {
		put(t, s, fmt.Sprintf("d%d/x", i), nil)
	}
	n := 0
	for _, err := range s.List(context.Background(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 3 {
			break
		}
	}
	if n != 3 {
		t.Errorf("%d objects", n)
	}
}

func remove(t *testing.T, s store.Writer) {
	ctx := context.Background()
	for _, key := range []string{"d/a", "d/b", "d/ab/c"} {
		put(t, s, key, []byte(key))
	}
	// Absent ones, and prefixes, are no objects.
	for _, key := range []string{"none", "d/none", "none/at/all", "d/a/below", "d", "d/ab"} {
		if err := s.Delete(ctx, key); err != nil {
			t.Errorf("delete %s, which is absent: %v", key, err)
		}
	}
	if n := len(listing(t, s, "")); n != 3 {
		t.Fatalf("%d objects are left, want 3", n)
	}
	for range 2 {
		if err := s.Delete(ctx, "d/a"); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if _, err := s.Stat(ctx, "d/a"); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("deleted, and stat says %v", err)
	}
	if got := listing(t, s, "d/"); len(got) != 2 {
		t.Errorf("left are %v", got)
	}
	put(t, s, "d/a", []byte("again"))
	wantBytes(t, s, "d/a", []byte("again"))
}

func badKeys(t *testing.T, s store.Writer) {
	ctx := context.Background()
	for _, key := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/../../b", ".hidden", "a/.hidden", "a b", "a\\b", "a\x00b", "a\nb", "ä", "a:b", "*",
		strings.Repeat("x", 513),
	} {
		if err := s.Put(ctx, key, []byte("x")); err == nil {
			t.Errorf("put %q is no error", key)
		}
		if _, err := s.Get(ctx, key, 0, -1); err == nil {
			t.Errorf("get %q is no error", key)
		}
		if _, err := s.Stat(ctx, key); err == nil {
			t.Errorf("stat %q is no error", key)
		}
		if err := s.Delete(ctx, key); err == nil {
			t.Errorf("delete %q is no error", key)
		}
	}
	if got := listing(t, s, ""); len(got) > 0 {
		t.Errorf("refused keys left %v", got)
	}
}

func cancelled(t *testing.T, s store.Writer) {
	put(t, s, "d/there", []byte("there"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	want := func(act string, err error) {
		t.Helper()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", act, err)
		}
	}
	want("put", s.Put(ctx, "d/new", []byte("x")))
	_, err := s.Get(ctx, "d/there", 0, -1)
	want("get", err)
	_, err = s.Stat(ctx, "d/there")
	want("stat", err)
	want("delete", s.Delete(ctx, "d/there"))
	err = nil
	for _, lerr := range s.List(ctx, "d/") {
		if err = lerr; err != nil {
			break
		}
	}
	want("list", err)
	if got := listing(t, s, ""); len(got) != 1 || got["d/there"] != 5 {
		t.Errorf("left are %v, want d/there alone", got)
	}
}
