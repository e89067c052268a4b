package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/snapshot/tree"
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

// A restore that ended is gone on with, and what others wrote meanwhile can be
// told: every file that has its name has its time as well.
func TestFreshRestoreThatEndedIsGoneOnWith(t *testing.T) {
	w := newWorld(t)
	testtree.Random(t, w.volume, 2, testtree.RandomOptions{Files: 200, NoLarge: true})
	w.backup()
	dir := t.TempDir()
	f := Fresh{Discard: imageCopy(t, dir)}
	m, err := w.repo.Find(context.Background(), "shop", "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	progress := &Progress{}
	done := make(chan error, 1)
	go func() {
		_, err := w.repo.Restore(ctx, m, RestoreOptions{Volume: "data", Path: dir, Fresh: &f, Progress: progress})
		done <- err
	}()
	for progress.Files.Load() < 20 && len(done) == 0 {
		_ = ctx.Err()
	}
	cancel()
	if err := <-done; err == nil {
		t.Skip("the restore was faster than the test")
	}
	if _, err := os.Lstat(filepath.Join(dir, tree.IncompleteMark)); err != nil {
		t.Fatalf("no mark: %v", err)
	}
	err = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, p)
		if err != nil || !d.Type().IsRegular() || rel == tree.IncompleteMark || strings.HasPrefix(d.Name(), ".backupd-tmp-") {
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
			t.Errorf("%s has its name but not its time and size", rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.restoreFresh(dir, f); err != nil {
		t.Fatal(err)
	}
	testtree.Compare(t, w.volume, dir, testtree.Options{})
}
