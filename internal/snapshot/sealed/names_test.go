package sealed

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/store/storetest"
)

func TestNamesAreHashedWithTheRepositorysKey(t *testing.T) {
	k, other := newKeys(t, false), newKeys(t, false)
	hidden := map[string]string{}
	for _, key := range []string{
		"stacks/shop/volumes/data/packs/0123456789abcdef-0", "stacks/shop2/volumes/data/packs/0123456789abcdef-0",
		"stacks/shop/volumes/shop/index/0123456789abcdef-0", "stacks/data/volumes/shop/index/0123456789abcdef-0",
		"stacks/shop/snapshots/00000001-" + testRepository, "stacks/shop/runs/0123456789abcdef.0", "stacks/shop/condemned/x",
	} {
		h := k.Hide(key)
		if strings.Contains(h, "shop") || strings.Contains(h, "data") || k.Hide(key) != h || other.Hide(key) == h {
			t.Errorf("%s is stored as %s", key, h)
		}
		for _, component := range strings.Split(h, "/") {
			if isHash(component) && hidden[component] != "" && component != k.stackName("shop") {
				t.Errorf("%s and %s share %s", key, hidden[component], component)
			} else if isHash(component) {
				hidden[component] = key
			}
		}
	}
	for _, key := range []string{"backupd.json", "keys/01234567-01234567", "restore.sh"} {
		if k.Hide(key) != key {
			t.Errorf("%s is stored as %s", key, k.Hide(key))
		}
	}
}

func list(t *testing.T, r *Reader) []string {
	t.Helper()
	var keys []string
	for info, err := range r.List(context.Background(), "stacks/") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	return slices.Sorted(slices.Values(keys))
}

// named is a store with two stacks of one volume each, and one object in each.
func named(t *testing.T) (*storetest.Memory, *Keys, []string) {
	t.Helper()
	k, mem := newKeys(t, false), storetest.NewMemory()
	keys := []string{"stacks/a/volumes/v/packs/0123456789abcdef-0", "stacks/longer-name/volumes/w/packs/0123456789abcdef-0"}
	for _, key := range keys {
		if err := newWriter(t, mem, k).Put(context.Background(), key, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	return mem, k, keys
}

func nameKeys(mem *storetest.Memory) []string {
	return slices.DeleteFunc(mem.Keys(), func(key string) bool { return !strings.HasSuffix(key, "/"+nameObject) })
}

func checkNames(t *testing.T, mem *storetest.Memory, k *Keys) map[string]error {
	t.Helper()
	r, err := NewReader(mem, k)
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string]error{}
	for key, err := range r.CheckNames(context.Background()) {
		if err != nil {
			bad[key] = err
		}
	}
	return bad
}

func TestAListingHasTheNamesBehindTheHashes(t *testing.T) {
	mem, k, keys := named(t)
	r, err := NewReader(mem, k)
	if err != nil {
		t.Fatal(err)
	}
	if got := list(t, r); !slices.Equal(got, keys) {
		t.Errorf("%q, want %q", got, keys)
	}
	if bad := checkNames(t, mem, k); len(bad) > 0 {
		t.Errorf("%v", bad)
	}
	sizes := map[int]bool{}
	for _, key := range nameKeys(mem) {
		sizes[len(mem.Bytes(key))] = true
	}
	if len(nameKeys(mem)) != 4 || len(sizes) != 1 {
		t.Errorf("name objects %q have sizes %v: the length of a name shows", nameKeys(mem), slices.Collect(maps.Keys(sizes)))
	}
}

func TestDamagedAndSwappedNamesAreFoundAndGiveNoOtherName(t *testing.T) {
	mem, k, keys := named(t)
	names := nameKeys(mem)
	damage := map[string]func(st *storetest.Memory){
		"swapped": func(st *storetest.Memory) {
			a, b := st.Bytes(names[0]), st.Bytes(names[2])
			st.SetBytes(names[0], b)
			st.SetBytes(names[2], a)
		},
	}
	for _, key := range names {
		data := mem.Bytes(key)
		for name, now := range map[string][]byte{"cut": data[1:], "longer": append(slices.Clone(data), 0), "empty": {}, "twice": append(slices.Clone(data), data...)} {
			damage[key+" "+name] = func(st *storetest.Memory) { st.SetBytes(key, now) }
		}
		damage[key+" lost"] = func(st *storetest.Memory) { st.Remove(key) }
		for pos := range data {
			damage[key+" flipped at "+string(rune('0'+pos%10))+strings.Repeat("i", pos/10)] = func(st *storetest.Memory) {
				bad := slices.Clone(data)
				bad[pos] ^= 1 << (pos % 8)
				st.SetBytes(key, bad)
			}
		}
	}
	for name, do := range damage {
		st := mem.Clone()
		do(st)
		if bad := checkNames(t, st, k); len(bad) == 0 {
			t.Errorf("%s: not reported", name)
		}
		r, err := NewReader(st, k)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range list(t, r) {
			p, _ := split(key)
			if !slices.Contains(keys, key) && !isHash(p.stack) && !isHash(p.volume) {
				t.Errorf("%s: %s is listed", name, key)
			}
		}
		// Who knows the names needs no name objects.
		if r, err = NewReader(st, k); err != nil {
			t.Fatal(err)
		}
		if got, err := r.Get(context.Background(), keys[0], 0, -1); err != nil || !bytes.Equal(got, []byte("x")) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// What somebody else puts below stacks/ under a plain name is none of ours.
func TestPlantedPlainNamesAreNotListed(t *testing.T) {
	mem, k, keys := named(t)
	for _, key := range []string{"stacks/a/snapshots/00000009-" + testRepository, "stacks/a/volumes/v/packs/0123456789abcdef-7", k.Hide("stacks/a/volumes/v")[:39] + "/volumes/v/packs/0123456789abcdef-7"} {
		mem.SetBytes(key, []byte("planted"))
	}
	r, err := NewReader(mem, k)
	if err != nil {
		t.Fatal(err)
	}
	if got := list(t, r); !slices.Equal(got, keys) {
		t.Errorf("%q", got)
	}
}

// An outage while names are read is an error, and no wrong name that sticks.
func TestAnOutageWhileNamesAreReadIsAnError(t *testing.T) {
	mem, k, keys := named(t)
	failing := true
	f := &storetest.Faulty{Writer: mem, Hook: func(op, _ string, _ int) storetest.Fault {
		if op == storetest.OpGet && failing {
			return storetest.FailBefore
		}
		return storetest.None
	}}
	r, err := NewReader(f, k)
	if err != nil {
		t.Fatal(err)
	}
	var got error
	for _, err := range r.List(context.Background(), "stacks/") {
		got = err
	}
	if !errors.Is(got, storetest.ErrFault) {
		t.Errorf("%v, want the injected error", got)
	}
	failing = false
	if got := list(t, r); !slices.Equal(got, keys) {
		t.Errorf("%q, want %q", got, keys)
	}
}
