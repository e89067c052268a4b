package snapshot

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/testtree"
)

// framesOf gives the frames of a snapshot's files section: of groups, and of large files.
func (w *world) framesOf(id string) (groups, larges []pack.Ref) {
	w.t.Helper()
	m, err := w.repo.Find(context.Background(), "shop", id)
	if err != nil {
		w.t.Fatal(err)
	}
	v := m.Volume("data")
	cur, err := index.NewFrameCursor(context.Background(), w.repo.pages("shop", v), v.Frames, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	group, slot := false, uint64(0)
	for i := 0; ; i++ {
		ok, err := cur.Next()
		if err != nil {
			w.t.Fatal(err)
		}
		if !ok {
			return groups, larges
		}
		if f := &cur.Frame; i == 0 || f.Slot != slot {
			group, slot = f.Members > 0, f.Slot
		}
		if group {
			groups = append(groups, cur.Frame.Ref)
		} else {
			larges = append(larges, cur.Frame.Ref)
		}
	}
}

// needs is the size of all data packs that a snapshot needs.
func (w *world) needs(id string) (bytes uint64) {
	w.t.Helper()
	m, err := w.repo.Find(context.Background(), "shop", id)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, r := range m.Volume("data").Packs {
		for _, size := range r.Sizes {
			bytes += uint64(size)
		}
	}
	return bytes
}

// After weeks of small changes a snapshot needs little more than what it
// uses: a night's pack dies when most of its pages changed again, and small files that
// did not change are not stored again for its sake.
func TestNightsOfSmallChangesLeaveLittleThatIsDead(t *testing.T) {
	believeStats(t)
	w := newWorld(t)
	src, table := filepath.Join(w.volume, "src"), filepath.Join(w.volume, "table")
	if _, err := testtree.SourceTree(src, 300, 7); err != nil {
		t.Fatal(err)
	}
	const size = 16 << 20
	if err := testtree.Pages(table, size, 8); err != nil {
		t.Fatal(err)
	}
	first := w.backup()
	stored, last := uint64(0), first
	const nights = 12
	for night := range uint64(nights) {
		if _, _, err := testtree.Churn(src, .01, 1000+night); err != nil {
			t.Fatal(err)
		}
		if err := testtree.ChurnPages(table, .01, 1000+night); err != nil {
			t.Fatal(err)
		}
		last = w.backup()
		stored += last.Volumes[0].BytesStored
	}
	whole := first.Volumes[0].BytesStored
	groups, larges := w.framesOf(last.ID)
	used := usage{}
	used.add(groups...)
	used.add(larges...)
	live := uint64(0)
	for _, n := range used {
		live += n
	}
	apart := map[pack.Name]bool{}
	for _, ref := range larges {
		apart[ref.Pack] = true
	}
	for _, ref := range groups {
		if apart[ref.Pack] {
			t.Errorf("pack %s has groups and pieces of large files", ref.Pack)
		}
	}
	needs := w.needs(last.ID)
	t.Logf("first %d; a night %d; the last one uses %d bytes of packs of %d", whole, stored/nights, live, needs)
	// Measured: 0.21 and 1.66.
	if stored/nights > whole*3/10 {
		t.Errorf("a night that changes 1 %% stores %d bytes of %d", stored/nights, whole)
	}
	if needs > live*2 {
		t.Errorf("the last night's snapshot needs packs of %d bytes for the %d bytes it uses", needs, live)
	}
	testtree.Compare(t, w.volume, w.restoreNew(last.ID), testtree.Options{})
	w.verify()
}

// Of a volume with more frames than a run remembers, a large file that changed
// is still found to be mostly there, whatever comes and goes beside it.
func TestLargeFilesOfVolumesWithTooManyFramesAreNotStoredAgain(t *testing.T) {
	old := maxHave
	maxHave = 3
	t.Cleanup(func() { maxHave = old })
	believeStats(t)
	w := newWorld(t)
	data := noise(9, 24<<20)
	write := func(name string, parts ...[]byte) {
		t.Helper()
		f, err := os.Create(filepath.Join(w.volume, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, p := range parts {
			if _, err := f.Write(p); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("a", data[:8<<20])
	write("b", data[8<<20:16<<20])
	write("gone", data[:300<<10])
	write("z", data[16<<20:])
	w.backup()
	if err := os.Remove(filepath.Join(w.volume, "gone")); err != nil {
		t.Fatal(err)
	}
	write("a", []byte("inserted"), data[:8<<20])
	write("b", data[8<<20:12<<20], data[12<<20+1000:16<<20])
	write("new", noise(10, 1<<20))
	write("z", data[16<<20:20<<20], noise(11, 1000), data[20<<20+1000:])
	s := w.backup()
	// 1 MiB is new, and four places changed, each in a chunk of 0.3 MB at most.
	if v := s.Volumes[0]; v.BytesStored > 4<<20 || v.FramesReused < 100 {
		t.Errorf("stored %d bytes, %d frames new and %d as before", v.BytesStored, v.FramesNew, v.FramesReused)
	}
	testtree.Compare(t, w.volume, w.restoreNew(s.ID), testtree.Options{})
	w.verify()
}

// The window drops what lies far behind, and has the next in sight, in a file
// whose frames are many.
func TestAWindowMovesOverAFileOfManyFrames(t *testing.T) {
	f := newFrameStore(nil, nil, nil)
	f.full.Store(true)
	w := frameWindow{frames: f}
	const n = 5 * windowHalf
	const each = 1000
	at := func(i int) pack.ID { return pack.Sum([]byte{byte(i), byte(i >> 8), byte(i >> 16)}) }
	for i := range n {
		end := int64(i+1) * each
		f.sight(pack.Ref{ID: at(i), Raw: each}, windowed{at(i), end})
		w.queue = append(w.queue, windowed{at(i), end})
	}
	// A piece that comes twice stays in sight until the second is behind.
	f.sight(pack.Ref{ID: at(0), Raw: each}, windowed{at(0), 2 * windowHalf * each})
	if err := w.move(2*windowHalf*each - each); err != nil {
		t.Fatal(err)
	}
	sees := func(i int) bool {
		_, ok := f.lookup(at(i))
		return ok
	}
	if !sees(0) || sees(1) || sees(windowHalf-2) || !sees(windowHalf) || !sees(n-1) {
		t.Error("the window does not see what it should")
	}
	if len(w.queue) > n-windowHalf+1 {
		t.Errorf("%d frames are in sight", len(w.queue))
	}
}
