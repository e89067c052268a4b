package snapshot

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tree"
	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/store/storetest"
	"github.com/disko/backupd/internal/testtree"
)

// oddVolume fills a volume with every kind of entry that can be told apart.
func oddVolume(t *testing.T, dir string) {
	t.Helper()
	for _, step := range []func() error{
		func() error { return os.MkdirAll(filepath.Join(dir, "sub/deep"), 0o750) },
		func() error { return os.WriteFile(filepath.Join(dir, "small"), []byte("small"), 0o640) },
		func() error { return os.WriteFile(filepath.Join(dir, "sub/large"), make([]byte, 5<<20), 0o600) },
		func() error {
			return os.WriteFile(filepath.Join(dir, "sub/deep/text"), []byte(strings.Repeat("text", 1000)), 0o600)
		},
		func() error { return os.Link(filepath.Join(dir, "small"), filepath.Join(dir, "sub/other-name")) },
		func() error { return os.Symlink("small", filepath.Join(dir, "link")) },
		func() error { return unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600) },
		func() error { return os.WriteFile(filepath.Join(dir, "left-out.log"), []byte("no"), 0o600) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCompareFindsWhateverIsNotAsInTheSnapshot(t *testing.T) {
	w := newWorld(t)
	oddVolume(t, w.volume)
	s, err := w.repo.Backup(context.Background(), w.target, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: w.volume}}, Exclude: []string{"*.log"}})
	if err != nil {
		t.Fatal(err)
	}
	m, err := w.repo.Find(context.Background(), "shop", s.ID)
	if err != nil {
		t.Fatal(err)
	}
	compare := func(dir string) *Compared {
		t.Helper()
		c, err := w.repo.Compare(context.Background(), m, CompareOptions{Volume: "data", Path: dir})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := compare(w.restoreNew(s.ID)); c.Differ != 0 || c.Bytes != 5<<20+4000+5 || c.Entries < 8 {
		t.Fatalf("of what was restored just now: %+v", c)
	}
	keepTimes := func(path string, change func() error) func() error {
		return func() error {
			st, err := os.Stat(path)
			if err == nil {
				err = change()
			}
			if err == nil {
				err = os.Chtimes(path, st.ModTime(), st.ModTime())
			}
			return err
		}
	}
	for name, c := range map[string]struct {
		path, how string
		change    func(dir string) func() error
	}{
		"a byte":      {"sub/large", "content", func(d string) func() error { return keepTimes(d+"/sub/large", flip(d+"/sub/large", 3<<20)) }},
		"a small one": {"sub/deep/text", "content", func(d string) func() error { return keepTimes(d+"/sub/deep/text", flip(d+"/sub/deep/text", 17)) }},
		"missing":     {"link", "missing", func(d string) func() error { return keepTimes(d, func() error { return os.Remove(d + "/link") }) }},
		"surplus": {"more", "not in the snapshot", func(d string) func() error {
			return keepTimes(d, func() error { return os.WriteFile(d+"/more", nil, 0o600) })
		}},
		"type": {"pipe", "another type", func(d string) func() error {
			return keepTimes(d, func() error {
				if err := os.Remove(d + "/pipe"); err != nil {
					return err
				}
				return os.WriteFile(d+"/pipe", nil, 0o600)
			})
		}},
		"mode":      {"small", "mode", func(d string) func() error { return func() error { return os.Chmod(d+"/small", 0o666) } }},
		"directory": {"sub/deep", "mode", func(d string) func() error { return func() error { return os.Chmod(d+"/sub/deep", 0o777) } }},
		"time": {"sub", "time", func(d string) func() error {
			return func() error { return os.Chtimes(d+"/sub", time.Time{}, time.Unix(1, 0)) }
		}},
		"hard link": {"sub/other-name", "hard link", func(d string) func() error {
			return keepTimes(d+"/sub", func() error {
				st, err := os.Stat(d + "/small")
				if err == nil {
					err = os.Remove(d + "/sub/other-name")
				}
				if err == nil {
					err = os.WriteFile(d+"/sub/other-name", []byte("small"), 0o640)
				}
				if err == nil {
					err = os.Chtimes(d+"/sub/other-name", st.ModTime(), st.ModTime())
				}
				return err
			})
		}},
		"half a restore": {tree.IncompleteMark, "did not end", func(d string) func() error {
			return keepTimes(d, func() error { return os.WriteFile(d+"/"+tree.IncompleteMark, nil, 0o600) })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := w.restoreNew(s.ID)
			if err := c.change(dir)(); err != nil {
				t.Fatal(err)
			}
			got := compare(dir)
			if got.Differ != 1 || got.Differences[0].Path != c.path || !strings.Contains(got.Differences[0].How, c.how) {
				t.Errorf("%+v", got.Differences)
			}
		})
	}
}

// flip changes one bit of a file.
func flip(path string, at int64) func() error {
	return func() error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		var b [1]byte
		if _, err := f.ReadAt(b[:], at); err != nil {
			return err
		}
		b[0] ^= 4
		_, err = f.WriteAt(b[:], at)
		return err
	}
}

func TestOddTreesCompareEqualAfterARestore(t *testing.T) {
	believeStats(t)
	w := newWorld(t)
	testtree.Random(t, w.volume, 5, testtree.RandomOptions{})
	s := w.backup()
	m, err := w.repo.Find(context.Background(), "shop", s.ID)
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.repo.Compare(context.Background(), m, CompareOptions{Volume: "data", Path: w.restoreNew(s.ID)})
	if err != nil {
		t.Fatal(err)
	}
	if c.Differ != 0 {
		t.Errorf("%v", c.Differences)
	}
}

func TestDrillsAreNotedOnTheTargetAndBelievedOnlyFromHoldersOfTheKeys(t *testing.T) {
	ids, _ := newIdentity(t)
	for name, c := range map[string]*Credentials{"plain": nil, "encrypted": ids} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			w := newWorldWith(t, c)
			oddVolume(t, w.volume)
			first := w.backup()
			second := w.backup()
			at := time.Date(2026, 3, 4, 5, 6, 7, 891_000_001, time.FixedZone("", 3600))
			put := func(s *Summary, minutes int, failure string) {
				t.Helper()
				rec := DrillRecord{
					Snapshot: s.ID, Sequence: s.Sequence, Started: at.Add(time.Duration(minutes) * time.Minute), Finished: at.Add(time.Hour), Passed: failure == "", Error: failure,
					Volumes: []DrillVolume{{"data", 8, 5 << 20, 0}}, Checks: []DrillChecked{{"db", "postgres", 1.25, failure}}, Version: "test",
				}
				if err := w.repo.PutDrill(ctx, w.target, "shop", rec); err != nil {
					t.Fatal(err)
				}
			}
			put(second, 1, "")
			put(first, 0, "it said \xff last")
			put(second, 2, "")
			list, err := w.repo.Drills(ctx, "shop")
			if err != nil || len(list) != 3 || list[0].Snapshot != first.ID || list[0].Passed || list[1].Snapshot != second.ID || !list[1].Passed || list[0].Took() == 0 {
				t.Fatalf("%+v, %v", list, err)
			}
			keys := keysBelow(t, w.target, "stacks/")
			drills := slices.DeleteFunc(keys, func(k string) bool { return !strings.Contains(k, "/drills/") })
			if len(drills) != 3 {
				t.Fatalf("records lie at %v", drills)
			}
			// What another wrote there, and a record that was moved to another snapshot, count for nothing.
			data, err := w.target.Get(ctx, drills[0], 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			moved := drills[0][:len(drills[0])-16] + strings.Repeat("0", 16)
			if err := w.target.Put(ctx, moved, data); err != nil {
				t.Fatal(err)
			}
			want := 3
			if c == nil {
				want = 4 // nobody vouches for anything there
			}
			if list, err = w.repo.Drills(ctx, "shop"); err != nil || len(list) != want {
				t.Errorf("with one that was copied: %d, %v", len(list), err)
			}
			if _, err := w.repo.Prune(ctx, w.target, PruneOptions{}); err != nil {
				t.Errorf("prune stops at records of drills: %v", err)
			}
			w.verify()
		})
	}
}

func keysBelow(t *testing.T, st store.Lister, prefix string) []string {
	t.Helper()
	var out []string
	for info, err := range st.List(context.Background(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, info.Key)
	}
	slices.Sort(out)
	return out
}

func TestPruneRemovesDrillsOfSnapshotsThatAreGone(t *testing.T) {
	ctx := context.Background()
	now := time.Date(2026, 3, 4, 0, 0, 0, 0, time.UTC)
	mem := storetest.NewMemory()
	mem.Clock = func() time.Time { return now }
	repo, err := Ensure(ctx, mem, Options{Now: mem.Clock})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var taken []*Summary
	for range 2 {
		s, err := repo.Backup(ctx, mem, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: dir}}})
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, s)
		if err := repo.PutDrill(ctx, mem, "shop", DrillRecord{Snapshot: s.ID, Sequence: s.Sequence, Started: now, Finished: now, Passed: true}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := repo.Forget(ctx, mem, ForgetOptions{Stack: "shop", Snapshots: []string{taken[0].ID}}); err != nil {
		t.Fatal(err)
	}
	left := func() (ids []string) {
		list, err := repo.Drills(ctx, "shop")
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range list {
			ids = append(ids, d.Snapshot)
		}
		return ids
	}
	for i, want := range []int{2, 1, 1} { // condemned and waiting; deleted; nothing more
		for range 2 {
			if _, err := repo.Prune(ctx, mem, PruneOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if got := left(); len(got) != want || !slices.Contains(got, taken[1].ID) {
			t.Errorf("after round %d of pruning there are drills of %v", i, got)
		}
		now = now.Add(8 * 24 * time.Hour)
	}
}
