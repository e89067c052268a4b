package snapshot

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/disko/backupd/internal/snapshot/tree"
	"github.com/disko/backupd/internal/store/storetest"
	"github.com/disko/backupd/internal/testtree"
)

// imageCopy fills a directory as an engine does from an image, and returns its paths.
func imageCopy(t *testing.T, dir string) []string {
	t.Helper()
	for _, d := range []string{"conf.d", "conf.d/deep"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	list := []string{"conf.d", "conf.d/deep"}
	for _, f := range []string{"conf.d/deep/default", "readme"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("from the image"), 0o644); err != nil {
			t.Fatal(err)
		}
		list = append(list, f)
	}
	return list
}

func (w *world) restoreFresh(dir string, f Fresh) error {
	w.t.Helper()
	m, err := w.repo.Find(context.Background(), "shop", "")
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = w.repo.Restore(context.Background(), m, RestoreOptions{Volume: "data", Path: dir, Fresh: &f})
	return err
}

func TestFreshVolumeLosesTheImagesCopyAndKeepsPlaceholders(t *testing.T) {
	w := newWorld(t)
	testtree.Random(t, w.volume, 1, testtree.RandomOptions{Files: 60, NoLarge: true})
	if err := os.WriteFile(filepath.Join(w.volume, ".gitignore"), []byte("of the snapshot"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.backup()
	dir := t.TempDir()
	f := Fresh{Discard: imageCopy(t, dir), Keep: []string{".gitignore"}}
	if err := os.WriteFile(filepath.Join(dir, ".gitignore"), []byte("of the project"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := w.restoreFresh(dir, f); err != nil {
		t.Fatal(err)
	}
	testtree.Compare(t, w.volume, dir, testtree.Options{Ignore: func(p string) bool { return p == ".gitignore" }})
	if b, _ := os.ReadFile(filepath.Join(dir, ".gitignore")); string(b) != "of the project" {
		t.Errorf(".gitignore is %q", b)
	}
}

func TestWhatWasNotAnnouncedIsNeverRemovedFromAFreshVolume(t *testing.T) {
	w := newWorld(t)
	testtree.Random(t, w.volume, 1, testtree.RandomOptions{Files: 10, NoLarge: true})
	w.backup()
	for _, path := range []string{"mine", "conf.d/deep/mine"} {
		dir := t.TempDir()
		f := Fresh{Discard: imageCopy(t, dir)}
		if err := os.WriteFile(filepath.Join(dir, path), []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := w.restoreFresh(dir, f); !errors.Is(err, ErrNotEmpty) {
			t.Errorf("%s: %v; want ErrNotEmpty", path, err)
		}
		if b, _ := os.ReadFile(filepath.Join(dir, path)); string(b) != "precious" {
			t.Errorf("%s is %q", path, b)
		}
	}
}

// Wherever a restore ends, it can be gone on with; and what others write meanwhile
// could be told: every file that has its name has its time and size as well.
func TestFreshRestoreThatEndedIsGoneOnWith(t *testing.T) {
	w := newWorld(t)
	testtree.Random(t, w.volume, 2, testtree.RandomOptions{Files: 60, NoLarge: true})
	for i := range 2 { // what one read does not bring
		b := make([]byte, 5<<20)
		rand.Read(b)
		if err := os.WriteFile(filepath.Join(w.volume, fmt.Sprint("large", i)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.backup()
	half := 0
	for k := 0; ; k++ {
		dir := t.TempDir()
		f := Fresh{Discard: imageCopy(t, dir)}
		faulty := &storetest.Faulty{Writer: w.target}
		r, err := Open(context.Background(), faulty, Options{})
		if err != nil {
			t.Fatal(err)
		}
		m, err := r.Find(context.Background(), "shop", "")
		if err != nil {
			t.Fatal(err)
		}
		faulty.Hook = at(faulty.Ops()+k, storetest.FailBefore)
		_, err = r.Restore(context.Background(), m, RestoreOptions{Volume: "data", Path: dir, Fresh: &f})
		if err == nil {
			break // it has no k-th operation
		}
		if !errors.Is(err, storetest.ErrFault) {
			t.Fatal(err)
		}
		if _, err := os.Lstat(filepath.Join(dir, tree.IncompleteMark)); err != nil {
			t.Fatalf("no mark: %v", err)
		}
		half += w.wholeFiles(dir)
		if err := w.restoreFresh(dir, f); err != nil {
			t.Fatal(err)
		}
		testtree.Compare(t, w.volume, dir, testtree.Options{})
	}
	if half == 0 {
		t.Error("no restore ended with some of the files")
	}
}

// wholeFiles counts a half restored volume's files, all of which must be as they will be.
func (w *world) wholeFiles(dir string) (n int) {
	w.t.Helper()
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, p)
		if err != nil || !d.Type().IsRegular() || rel == tree.IncompleteMark {
			return err
		}
		have, err := os.Lstat(p)
		if err != nil {
			return err
		}
		want, err := os.Lstat(filepath.Join(w.volume, rel))
		if err != nil {
			return err
		}
		if !have.ModTime().Equal(want.ModTime()) || have.Size() != want.Size() {
			w.t.Errorf("%s has its name but not its time and size", rel)
		}
		n++
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}
