package snapshot

import (
	"bytes"
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

	"github.com/klauspost/compress/zstd"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/store/storetest"
	"github.com/disko/backupd/internal/testtree"
)

var unzstd, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(4))

// ward is a small repository of two snapshots that is to be damaged. The
// second has a group with stale members, and an entry that is gone.
type ward struct {
	t       *testing.T
	store   *storetest.Memory
	ids     []string
	states  []string
	exports [][]byte
	root    string

	credentials *Credentials
}

func newWard(t *testing.T) *ward {
	t.Helper()
	return newWardWith(t, nil)
}

// newWardWith makes an encrypted one, whose keys were rotated between the snapshots.
func newWardWith(t *testing.T, c *Credentials) *ward {
	t.Helper()
	believeStats(t)
	w := &ward{t: t, store: storetest.NewMemory(), root: fastDir(t), credentials: c}
	volume := filepath.Join(w.root, "volume")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(volume+"/dir", 0o755))
	for _, name := range []string{"a", "b", "dir/c", "dir/gone", "z"} {
		must(os.WriteFile(filepath.Join(volume, name), []byte("content of "+name+"\n"), 0o640))
	}
	must(os.WriteFile(volume+"/large", []byte(strings.Repeat("the same line again and again\n", 20000)), 0o600))
	must(os.Symlink("dir/c", volume+"/symlink"))
	must(os.Link(volume+"/a", volume+"/hardlink"))
	repo, err := Ensure(context.Background(), w.store, Options{Credentials: c})
	must(err)
	defer repo.Close()
	for i := range 2 {
		if i == 1 && c != nil {
			_, err := repo.RotateKeys(context.Background(), w.store, c)
			must(err)
		}
		if i == 1 {
			must(os.WriteFile(volume+"/b", []byte("other content of b"), 0o640))
			must(os.Remove(volume + "/dir/gone"))
		}
		s, err := repo.Backup(context.Background(), w.store, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: volume}}})
		must(err)
		state := filepath.Join(w.root, fmt.Sprint("state", i))
		testtree.Clone(t, volume, state)
		m, err := repo.Find(context.Background(), "shop", s.ID)
		must(err)
		var export bytes.Buffer
		must(repo.Export(context.Background(), m, "data", &export, func(Warning) {}, nil))
		raw, err := unzstd.DecodeAll(export.Bytes(), nil)
		must(err)
		w.ids, w.states, w.exports = append(w.ids, s.ID), append(w.states, state), append(w.exports, raw)
		if i == 1 && m.Volume("data").Absent.Empty() {
			t.Fatal("the second snapshot has no stale entry")
		}
	}
	if found := w.examine(w.store, ""); len(found.wrong) > 0 || found.reported {
		t.Fatalf("undamaged: %+v", found)
	}
	return w
}

// finding is what became of one damage.
type finding struct {
	reported bool     // opening or verifying said so
	harmless bool     // all snapshots came back all the same
	wrong    []string // what came out and is not what went in
	what     error    // the first report
}

// examine verifies and restores all snapshots of a damaged store.
func (w *ward) examine(st *storetest.Memory, key string) (f finding) {
	report := func(err error) {
		f.reported = true
		if f.what == nil {
			f.what = err
		}
	}
	ctx := context.Background()
	repo, err := Open(ctx, st, Options{Credentials: w.credentials})
	if err != nil {
		report(err)
		return f
	}
	defer repo.Close()
	list, err := repo.List(ctx, "")
	if err != nil {
		report(err)
	}
	v, err := repo.Verify(ctx, list, true, nil)
	if err != nil {
		report(err)
	} else if len(v.Damage) > 0 {
		report(errors.New(v.Damage[0].String()))
	}
	if f.reported && slices.Contains(extraKeys, key) {
		return f // no restore reads it
	}
	f.harmless = true
	for i, id := range w.ids {
		if !w.restore(ctx, repo, i, id, &f) {
			f.harmless = false
		}
	}
	return f
}

// restore says whether a snapshot came back; what came back wrong it notes.
func (w *ward) restore(ctx context.Context, repo *Repository, i int, id string, f *finding) bool {
	m, err := repo.Find(ctx, "shop", id)
	if err != nil {
		return false
	}
	var export bytes.Buffer
	if err := repo.Export(ctx, m, "data", &export, func(Warning) {}, nil); err == nil {
		// Some bits of a zstd frame may flip and mean the same.
		if raw, err := unzstd.DecodeAll(export.Bytes(), nil); err != nil || !bytes.Equal(raw, w.exports[i]) {
			f.wrong = append(f.wrong, fmt.Sprintf("export %d differs (%v)", i, err))
		}
	}
	dir, err := os.MkdirTemp(w.root, "restored-")
	if err != nil {
		f.wrong = append(f.wrong, err.Error())
		return false
	}
	defer os.RemoveAll(dir)
	if _, err := repo.Restore(ctx, m, RestoreOptions{Volume: "data", Path: dir}); err != nil {
		// Nothing but whole files may lie there, whatever their metadata yet.
		return false
	}
	diffs, err := testtree.Diff(w.states[i], dir, testtree.Options{})
	if err != nil {
		diffs = append(diffs, err.Error())
	}
	f.wrong = append(f.wrong, diffs...)
	return len(diffs) == 0
}

// extraKeys are objects that no snapshot needs.
var extraKeys = []string{restoreScriptKey, restoreNotesKey}

// damage is one case: what is done to the store.
type damage struct {
	name string
	key  string // of the one object concerned; empty: several
	flip bool   // of one bit
	do   func(st *storetest.Memory)
	// hidden damage need not be reported: nothing refers to what is gone.
	hidden bool
}

// wantFound does damages, several at once in stores of their own.
func (w *ward) wantFound(all []damage) {
	w.t.Helper()
	var unseen atomic.Int64
	defer func() { w.t.Logf("%d of %d damages were harmless and not reported", unseen.Load(), len(all)) }()
	jobs := make(chan damage)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for d := range jobs {
				st := w.store.Clone()
				d.do(st)
				f := w.examine(st, d.key)
				if len(f.wrong) > 0 {
					w.t.Errorf("%s: a wrong tree came out: %s", d.name, strings.Join(f.wrong, "; "))
				}
				// A bit may flip and mean the same: in a marker's time or space, or what no
				// decoder looks at in a zstd frame, whose content is known by its id.
				if !f.reported && f.harmless {
					unseen.Add(1)
				}
				if !f.reported && !d.hidden && !((d.flip || d.key == markerKey) && f.harmless) {
					w.t.Errorf("%s: not reported (harmless: %v)", d.name, f.harmless)
				}
			}
		})
	}
	for _, d := range all {
		if w.t.Failed() && testing.Short() {
			break
		}
		jobs <- d
	}
	close(jobs)
	wg.Wait()
}

// isManifest: a manifest that is gone is a snapshot that is not there, whoever removed it.
func isManifest(key string) bool {
	_, _, _, ok := splitSnapshotKey(key)
	return ok
}

func TestNoFlippedBitPassesUnseen(t *testing.T) {
	w := newWard(t)
	// Every byte of small objects, and a sample of the others', spread evenly.
	most := 2500
	if testing.Short() {
		most = 60
	}
	var all []damage
	for _, key := range w.store.Keys() {
		size := len(w.store.Bytes(key))
		t.Logf("%s: %d bytes", key, size)
		n := most
		if slices.Contains(extraKeys, key) {
			n = most / 10
		}
		step := max(1, (size+n-1)/n)
		for pos := 0; pos < size; pos += step {
			all = append(all, damage{key: key, flip: true, name: fmt.Sprintf("bit %d of byte %d of %s", pos%8, pos, key), do: func(st *storetest.Memory) {
				data := st.Bytes(key)
				data[pos] ^= 1 << (pos % 8)
				st.SetBytes(key, data)
			}})
		}
	}
	t.Logf("%d flips", len(all))
	w.wantFound(all)
}

func TestNoCutOrLostObjectPassesUnseen(t *testing.T) {
	w := newWard(t)
	var all []damage
	for _, key := range w.store.Keys() {
		data := w.store.Bytes(key)
		for name, now := range map[string][]byte{
			"emptied": {}, "cut to half": data[:len(data)/2], "cut by one byte": data[:len(data)-1], "one byte longer": append(slices.Clone(data), 0),
			"twice in a row": append(slices.Clone(data), data...), "zeroed": make([]byte, len(data)), "without its first byte": data[1:],
		} {
			all = append(all, damage{key: key, name: key + " " + name, do: func(st *storetest.Memory) { st.SetBytes(key, now) }})
		}
		all = append(all, damage{key: key, name: key + " deleted", do: func(st *storetest.Memory) { st.Remove(key) }, hidden: isManifest(key)})
	}
	w.wantFound(all)
}

func TestNoSwappedObjectPassesUnseen(t *testing.T) {
	w := newWard(t)
	var all []damage
	keys := w.store.Keys()
	for i, a := range keys {
		for _, b := range keys[i+1:] {
			all = append(all, damage{name: a + " swapped with " + b, do: func(st *storetest.Memory) {
				one, two := st.Bytes(a), st.Bytes(b)
				st.SetBytes(a, two)
				st.SetBytes(b, one)
			}})
			// One in place of the other: an old backup copied over.
			all = append(all, damage{name: a + " over " + b, do: func(st *storetest.Memory) { st.SetBytes(b, st.Bytes(a)) }})
			all = append(all, damage{name: b + " over " + a, do: func(st *storetest.Memory) { st.SetBytes(a, st.Bytes(b)) }})
		}
	}
	w.wantFound(all)
}

// Verify without deep looks at names and sizes, and finds what lacks these.
func TestAQuickVerifyFindsWhatIsMissingOrCut(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	for _, key := range w.store.Keys() {
		if isManifest(key) || key == markerKey {
			continue
		}
		for name, do := range map[string]func(st *storetest.Memory){
			"deleted": func(st *storetest.Memory) { st.Remove(key) },
			"cut":     func(st *storetest.Memory) { st.SetBytes(key, st.Bytes(key)[1:]) },
		} {
			st := w.store.Clone()
			do(st)
			repo, err := Open(ctx, st, Options{})
			if err != nil {
				t.Fatal(err)
			}
			list, err := repo.List(ctx, "")
			if err != nil {
				t.Fatal(err)
			}
			v, err := repo.Verify(ctx, list, false, nil)
			if err != nil || len(v.Damage) == 0 {
				t.Errorf("%s %s: %v, %v", key, name, v, err)
			}
		}
	}
}

// A backup on a damaged repository must not fail for what it can do without,
// nor spread the damage: what it takes is whole or it says so.
func TestABackupOnADamagedRepositoryIsWholeOrFails(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	volume := filepath.Join(w.root, "volume")
	for _, key := range w.store.Keys() {
		for name, do := range map[string]func(st store.Writer, mem *storetest.Memory){
			"deleted": func(_ store.Writer, mem *storetest.Memory) { mem.Remove(key) },
			"cut":     func(_ store.Writer, mem *storetest.Memory) { mem.SetBytes(key, mem.Bytes(key)[1:]) },
			"flipped": func(_ store.Writer, mem *storetest.Memory) {
				data := mem.Bytes(key)
				data[len(data)/2] ^= 0x10
				mem.SetBytes(key, data)
			},
		} {
			st := w.store.Clone()
			do(st, st)
			repo, err := Ensure(ctx, st, Options{})
			if err != nil {
				if key != markerKey {
					t.Errorf("%s %s: open: %v", key, name, err)
				}
				continue
			}
			s, err := repo.Backup(ctx, st, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: volume}}})
			if err != nil {
				t.Logf("%s %s: %v", key, name, err)
				if name != "flipped" {
					t.Errorf("%s %s: backup: %v", key, name, err)
				}
				continue
			}
			m, err := repo.Find(ctx, "shop", s.ID)
			if err != nil {
				t.Fatalf("%s %s: %v", key, name, err)
			}
			dir := filepath.Join(w.root, "again")
			_, err = repo.Restore(ctx, m, RestoreOptions{Volume: "data", Path: dir})
			if err == nil {
				testtree.Compare(t, volume, dir, testtree.Options{})
			} else if name != "flipped" || !strings.Contains(key, "/packs/") {
				// Packs are believed to be as they were written: verify reads them.
				t.Errorf("%s %s: restore of the new snapshot: %v", key, name, err)
			}
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
}
