package index

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// memory keeps pages by their content.
type memory struct {
	pages map[pack.ID][]byte
	added int
	fail  error // of the next StorePage
}

func newMemory() *memory { return &memory{pages: map[pack.ID][]byte{}} }

func (m *memory) StorePage(raw []byte) (pack.Ref, error) {
	if m.fail != nil {
		return pack.Ref{}, m.fail
	}
	ref := testRef("")
	ref.ID, ref.Raw = pack.Sum(raw), uint32(len(raw))
	if m.pages[ref.ID] == nil {
		m.pages[ref.ID] = slices.Clone(raw)
		m.added++
	}
	return ref, nil
}

func (m *memory) ReadPage(_ context.Context, ref pack.Ref) ([]byte, error) {
	raw, ok := m.pages[ref.ID]
	if !ok {
		return nil, errors.New("no such page")
	}
	return raw, nil
}

func buildEntries(t testing.TB, m *memory, entries []Entry) Tree {
	t.Helper()
	b := NewBuilder(m)
	l := NewLeaves(b, m)
	var hash uint64
	for i := range entries {
		hash = Hash(entries[i].Path)
		if err := l.Add(hash, entries[i].AppendTo(nil), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(hash); err != nil {
		t.Fatal(err)
	}
	tree, err := b.Close()
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// randomEntries returns n entries in the order of their paths.
func randomEntries(n int, seed uint64) []Entry {
	r := rand.New(rand.NewPCG(seed, 5))
	seen := map[string]bool{}
	var entries []Entry
	for len(entries) < n {
		p := randomPath(r) + fmt.Sprint(r.IntN(10*n+1))
		if !seen[p] {
			seen[p] = true
			entries = append(entries, Entry{Path: p, Kind: File, Size: r.Int64N(1 << 40), Mtime: tarstream.Time{Sec: r.Int64N(1 << 31)}, Ino: r.Uint64(), Slot: r.Uint64N(1000)})
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int { return ComparePaths(a.Path, b.Path) })
	return entries
}

func readEntries(c *Cursor) ([]Entry, error) {
	var got []Entry
	for {
		ok, err := c.Next()
		if !ok || err != nil {
			return got, err
		}
		got = append(got, c.Entry)
	}
}

func TestEntriesAreReadBackAtEverySizeOfTree(t *testing.T) {
	for _, n := range []int{0, 1, 2, 63, 64, 65, 1000, 20_000} {
		m := newMemory()
		entries := randomEntries(n, uint64(n))
		tree := buildEntries(t, m, entries)
		if tree.Empty() != (n == 0) || tree.Root.N != uint64(n) {
			t.Fatalf("%d entries: the tree has %d", n, tree.Root.N)
		}
		read := 0
		c, err := NewCursor(context.Background(), m, tree, func(pack.Ref) { read++ })
		if err != nil {
			t.Fatal(err)
		}
		got, err := readEntries(c)
		if err != nil || len(got) != n || n > 0 && !reflect.DeepEqual(got, entries) {
			t.Fatalf("%d entries: read %d, %v", n, len(got), err)
		}
		if read != m.added {
			t.Errorf("%d entries: %d of %d pages were read", n, read, m.added)
		}
		if ok, err := c.Next(); ok || err != nil {
			t.Errorf("%d entries: behind the end: %v, %v", n, ok, err)
		}
	}
}

func TestSeekFindsEveryEntryWithFewPages(t *testing.T) {
	m := newMemory()
	entries := randomEntries(20_000, 1)
	tree := buildEntries(t, m, entries)
	r := rand.New(rand.NewPCG(6, 7))
	for k := range 300 {
		i := r.IntN(len(entries))
		c, err := SeekCursor(context.Background(), m, tree, entries[i].Path)
		if err != nil {
			t.Fatal(err)
		}
		for steps := 0; ; steps++ {
			ok, err := c.Next()
			if err != nil || !ok || steps > maxLines {
				t.Fatalf("%q: not found after %d lines, %v", entries[i].Path, steps, err)
			}
			if c.Entry.Path == entries[i].Path {
				break
			}
		}
		if k >= 10 {
			continue
		}
		// And goes on in order to the end of the tree.
		rest, err := readEntries(c)
		if err != nil || len(rest) != len(entries)-i-1 {
			t.Fatalf("%q: %d entries behind it instead of %d, %v", entries[i].Path, len(rest), len(entries)-i-1, err)
		}
	}
}

func TestSeekBesideEveryEntryMissesNone(t *testing.T) {
	m := newMemory()
	entries := randomEntries(3000, 2)
	tree := buildEntries(t, m, entries)
	r := rand.New(rand.NewPCG(8, 9))
	for range 100 {
		p := randomPath(r)
		want, _ := slices.BinarySearchFunc(entries, p, func(e Entry, p string) int { return ComparePaths(e.Path, p) })
		c, err := SeekCursor(context.Background(), m, tree, p)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readEntries(c)
		if err != nil {
			t.Fatal(err)
		}
		got = slices.DeleteFunc(got, func(e Entry) bool { return ComparePaths(e.Path, p) < 0 })
		if len(got) != len(entries)-want {
			t.Fatalf("%q: %d entries from there instead of %d", p, len(got), len(entries)-want)
		}
	}
}

func TestAChangeStoresPagesInProportionToItself(t *testing.T) {
	m := newMemory()
	entries := randomEntries(20_000, 3)
	tree := buildEntries(t, m, entries)
	r := rand.New(rand.NewPCG(10, 11))
	for range 5 {
		i := r.IntN(len(entries))
		for _, c := range []struct {
			what string
			most int
			with []Entry
		}{
			{"changing", tree.Level + 1, slices.Concat(entries[:i], []Entry{{Path: entries[i].Path, Kind: File, Size: 1, Slot: 9999}}, entries[i+1:])},
			{"inserting", 8, slices.Concat(entries[:i+1], []Entry{{Path: entries[i].Path + "\x01", Kind: File, Slot: 9999}}, entries[i+1:])},
			{"removing", 8, slices.Concat(entries[:i], entries[i+1:])},
		} {
			m.added = 0
			buildEntries(t, m, c.with)
			if m.added > c.most {
				t.Errorf("%s entry %d of 20,000 stored %d pages, more than %d", c.what, i, m.added, c.most)
			}
		}
	}
	m.added = 0
	if again := buildEntries(t, m, entries); m.added != 0 || !reflect.DeepEqual(again, tree) {
		t.Errorf("the same entries stored %d pages", m.added)
	}
}

func buildFrames(t *testing.T, m *memory, frames []Frame) Tree {
	t.Helper()
	b := NewBuilder(m)
	l := NewLeaves(b, m)
	var hash uint64
	for i := range frames {
		hash = frames[i].Hash()
		if err := l.Add(hash, frames[i].AppendTo(nil), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(hash); err != nil {
		t.Fatal(err)
	}
	tree, err := b.Close()
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestSeekFindsAllFramesOfASlot(t *testing.T) {
	m := newMemory()
	r := rand.New(rand.NewPCG(12, 13))
	var frames []Frame
	slot := uint64(0)
	of := map[uint64]int{}
	for len(frames) < 20_000 {
		slot += 1 + r.Uint64N(3)
		if len(frames) > 15_000 && slot < 1<<53 {
			slot = 1 << 53 // from here on, slots are in quotes
		}
		n := 1
		if r.IntN(50) == 0 {
			n = 1 + r.IntN(400) // over more than one page
		}
		for range n {
			frames = append(frames, Frame{Slot: slot, Ref: testRef(fmt.Sprint(len(frames)))})
		}
		of[slot] = n
	}
	tree := buildFrames(t, m, frames)
	c, err := NewFrameCursor(context.Background(), m, tree, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range frames {
		if ok, err := c.Next(); !ok || err != nil || c.Frame != frames[i] {
			t.Fatalf("line %d: %v, %v, %v", i, ok, err, c.Frame)
		}
	}
	for slot, n := range of {
		if n == 1 && slot%16 != 0 {
			continue
		}
		c, err := SeekFrames(context.Background(), m, tree, slot)
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		for {
			ok, err := c.Next()
			if err != nil {
				t.Fatal(err)
			}
			if !ok || c.Frame.Slot > slot {
				break
			}
			if c.Frame.Slot == slot {
				got++
			}
		}
		if got != n {
			t.Fatalf("slot %d: %d frames instead of %d", slot, got, n)
		}
	}
}

// leaf stores a page of lines as they are, and returns a tree of it.
func leaf(t *testing.T, m *memory, lines []byte, first string, n uint64) Tree {
	t.Helper()
	ref, err := m.StorePage(lines)
	if err != nil {
		t.Fatal(err)
	}
	return Tree{Root: Child{First: first, N: n, Page: ref}}
}

func TestCursorsRefuseLinesOutOfOrder(t *testing.T) {
	m := newMemory()
	lines := func(paths ...string) (b []byte) {
		for _, p := range paths {
			e := Entry{Path: p, Kind: File}
			b = e.AppendTo(b)
		}
		return b
	}
	for name, tree := range map[string]Tree{
		"descending":                  leaf(t, m, lines("b", "a"), "b", 2),
		"twice":                       leaf(t, m, lines("a", "a"), "a", 2),
		"by bytes, not by components": leaf(t, m, lines("a", "a-b", "a/b"), "a", 3),
		"more lines than said":        leaf(t, m, lines("a", "b"), "a", 1),
		"fewer lines than said":       leaf(t, m, lines("a", "b"), "a", 3),
		"no lines":                    leaf(t, m, nil, "a", 1),
		"cut":                         leaf(t, m, lines("a", "b")[:100], "a", 2),
		"no newline at the end":       leaf(t, m, lines("a", "b")[:len(lines("a", "b"))-1], "a", 2),
		"terabytes of lines":          leaf(t, m, lines("a"), "a", 1<<60),
		"a level that is a leaf":      {Level: 1, Root: leaf(t, m, lines("a"), "a", 1).Root},
	} {
		c, err := NewCursor(context.Background(), m, tree, nil)
		if err == nil {
			_, err = readEntries(c)
		}
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var frames []byte
	for _, slot := range []uint64{3, 3, 2} {
		f := Frame{Slot: slot, Ref: testRef("x")}
		frames = f.AppendTo(frames)
	}
	c, err := NewFrameCursor(context.Background(), m, leaf(t, m, frames, "3", 3), nil)
	for ok := err == nil; ok; {
		ok, err = c.Next()
	}
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("slots that descend: %v", err)
	}
}

func TestCursorsRefusePagesThatAreNotWhatThePageAboveSays(t *testing.T) {
	m := newMemory()
	tree := buildEntries(t, m, randomEntries(3000, 4))
	if tree.Level < 1 {
		t.Fatal("the tree has one level")
	}
	for name, change := range map[string]func(c *Child){
		"another count": func(c *Child) { c.N++ },
		"another first": func(c *Child) { c.First += "x" },
		"another page":  func(c *Child) { c.Page = testRef("absent") },
	} {
		broken := tree
		change(&broken.Root)
		c, err := NewCursor(context.Background(), m, broken, nil)
		if err == nil {
			_, err = readEntries(c)
		}
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestAPageThatCannotBeStoredIsAnError(t *testing.T) {
	m := newMemory()
	m.fail = errors.New("disk full")
	b := NewBuilder(m)
	l := NewLeaves(b, m)
	e := Entry{Path: "a", Kind: File}
	err := l.Add(Hash("a"), e.AppendTo(nil), nil, nil)
	if err == nil {
		err = l.Close(Hash("a"))
	}
	if !errors.Is(err, m.fail) {
		t.Errorf("got %v", err)
	}
}

func TestHeadersOfAnUnchangedLeafAreKept(t *testing.T) {
	m := newMemory()
	entries := randomEntries(1000, 5)
	for i := range entries {
		entries[i] = Entry{Path: entries[i].Path, Kind: Dir, Ino: uint64(i)}
	}
	stored := 0
	build := func(base map[string]*Item) Tree {
		b := NewBuilder(m)
		l := NewLeaves(b, m)
		l.Tar = func(headers []byte) ([]pack.Ref, error) {
			stored++
			return []pack.Ref{testRef(fmt.Sprint("tar", stored))}, nil
		}
		var hash uint64
		for i := range entries {
			hash = Hash(entries[i].Path)
			if err := l.Add(hash, entries[i].AppendTo(nil), []byte("header"), base[entries[i].Path]); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(hash); err != nil {
			t.Fatal(err)
		}
		tree, err := b.Close()
		if err != nil {
			t.Fatal(err)
		}
		return tree
	}
	items := func(tree Tree) map[string]*Item {
		c, err := NewCursor(context.Background(), m, tree, nil)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]*Item{}
		for {
			ok, err := c.Next()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				return out
			}
			item := *c.Item()
			item.Line = slices.Clone(item.Line)
			out[c.Entry.Path] = &item
		}
	}
	first := build(nil)
	if stored < 5 {
		t.Fatalf("%d leaves of 1000 entries", stored)
	}
	base := items(first)
	stored = 0
	if again := build(base); stored != 0 || !reflect.DeepEqual(again, first) {
		t.Errorf("the same entries stored the headers of %d leaves", stored)
	}
	entries[500].Ino = 1 << 40
	if build(base); stored != 1 {
		t.Errorf("one changed entry stored the headers of %d leaves", stored)
	}
}
