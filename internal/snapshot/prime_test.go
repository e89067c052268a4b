package snapshot

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/disko/backupd/internal/store/storetest"
	"github.com/disko/backupd/internal/testtree"
)

func TestTheFirstBackupAfterARestoreReadsOnlyWhatChanged(t *testing.T) {
	believeStats(t)
	ctx := context.Background()
	l := newLab(t)
	st := storetest.NewMemory()
	id := l.mustBackup(st)
	fresh := filepath.Join(l.root, "fresh")
	repo := l.places(st)[0].Repo
	take := func() *Summary {
		t.Helper()
		s, err := repo.Backup(ctx, st, BackupOptions{Stack: "shop", Origin: "another", Volumes: []Source{{Name: "data", Path: fresh}}})
		if err != nil {
			t.Fatal(err)
		}
		dir := l.scratch()
		if err := l.restore(ctx, st, s.ID, "data", dir, false); err != nil {
			t.Fatal(err)
		}
		testtree.Compare(t, fresh, dir, testtree.Options{})
		return s
	}
	if err := l.restore(ctx, st, id, "data", fresh, false); err != nil {
		t.Fatal(err)
	}
	// One file changes between, in a way that its time does not tell.
	was, err := os.Stat(fresh + "/dir/5")
	if err != nil {
		t.Fatal(err)
	}
	changed := noise(5555, int(was.Size()))
	if err := os.WriteFile(fresh+"/dir/5", changed, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(fresh+"/dir/5", was.ModTime(), was.ModTime()); err != nil {
		t.Fatal(err)
	}
	s := take()
	if v := s.Volumes[0]; v.BytesRead != uint64(len(changed)) {
		t.Errorf("read %d bytes, want the %d of the file that changed", v.BytesRead, len(changed))
	}
	// And the one after it goes by its own parent again.
	if v := take().Volumes[0]; v.BytesRead != 0 || v.FramesNew != 0 {
		t.Errorf("the second backup read %d bytes and stored %d frames", v.BytesRead, v.FramesNew)
	}
	l.wantClean(st)
}

func TestANoteOfARestoreThatDoesNotFitCostsNothing(t *testing.T) {
	believeStats(t)
	ctx := context.Background()
	for name, spoil := range map[string]func(t *testing.T, cache, volume string){
		"damaged pages": func(t *testing.T, cache, _ string) { spoilFiles(t, cache, "index") },
		"damaged note":  func(t *testing.T, cache, _ string) { spoilFiles(t, cache, "primed") },
		"another volume at its path": func(t *testing.T, _, volume string) {
			if err := os.Rename(volume, volume+".old"); err != nil {
				t.Fatal(err)
			}
			testtree.Clone(t, volume+".old", volume)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			st := storetest.NewMemory()
			id := l.mustBackup(st)
			fresh := filepath.Join(l.root, "fresh")
			if err := l.restore(ctx, st, id, "data", fresh, false); err != nil {
				t.Fatal(err)
			}
			spoil(t, l.cache(), fresh)
			repo := l.places(st)[0].Repo
			s, err := repo.Backup(ctx, st, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: fresh}}})
			if err != nil {
				t.Fatal(err)
			}
			dir := l.scratch()
			if err := l.restore(ctx, st, s.ID, "data", dir, false); err != nil {
				t.Fatal(err)
			}
			testtree.Compare(t, fresh, dir, testtree.Options{})
			l.wantClean(st)
		})
	}
}

// spoilFiles flips a bit in every file below directories of that name.
func spoilFiles(t *testing.T, root, dir string) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !filepathHas(path, dir) {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		data[len(data)/2] ^= 1
		n++
		return os.WriteFile(path, data, 0o600)
	})
	if err != nil || n == 0 {
		t.Fatalf("%d files spoiled: %v", n, err)
	}
}

func filepathHas(path, dir string) bool {
	for p := filepath.Dir(path); p != "/" && p != "."; p = filepath.Dir(p) {
		if filepath.Base(p) == dir {
			return true
		}
	}
	return false
}
