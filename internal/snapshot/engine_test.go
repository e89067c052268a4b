package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/disko/backupd/internal/targets/directory"
	"github.com/disko/backupd/internal/testtree"
)

// believeStats makes runs trust the stats of trees that were just written.
func believeStats(t *testing.T) {
	t.Helper()
	forceTrust = true
	t.Cleanup(func() { forceTrust = false })
}

// world is a volume, a repository in a directory, and a state directory.
type world struct {
	t      *testing.T
	volume string
	target *directory.Target
	repo   *Repository
	root   string

	credentials *Credentials
	script      func(cmd *exec.Cmd) ([]byte, error) // runs restore.sh, where that takes a key
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldWith(t, nil)
}

func newWorldWith(t *testing.T, c *Credentials) *world {
	t.Helper()
	w := &world{t: t, root: t.TempDir(), credentials: c, script: (*exec.Cmd).CombinedOutput}
	w.volume = filepath.Join(w.root, "volume")
	target := filepath.Join(w.root, "target")
	for _, d := range []string{w.volume, target} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if w.target, err = directory.Open(target); err != nil {
		t.Fatal(err)
	}
	w.open()
	return w
}

func (w *world) open() {
	w.t.Helper()
	var err error
	if w.repo, err = Ensure(context.Background(), w.target, Options{CacheDir: filepath.Join(w.root, "cache"), Credentials: w.credentials}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(w.repo.Close)
}

func (w *world) backup() *Summary {
	w.t.Helper()
	s, err := w.repo.Backup(context.Background(), w.target, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: w.volume}}})
	if err != nil {
		w.t.Fatalf("backup: %v", err)
	}
	return s
}

// restoreNew restores a snapshot into a new directory and returns it.
func (w *world) restoreNew(id string) string {
	w.t.Helper()
	dir, err := os.MkdirTemp(w.root, "restored-")
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := w.repo.Find(context.Background(), "shop", id)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.repo.Restore(context.Background(), m, RestoreOptions{Volume: "data", Path: dir}); err != nil {
		w.t.Fatalf("restore: %v", err)
	}
	return dir
}

// exportNew unpacks an export with tar and zstd into a new directory.
func (w *world) exportNew(id string) string {
	w.t.Helper()
	dir, err := os.MkdirTemp(w.root, "exported-")
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := w.repo.Find(context.Background(), "shop", id)
	if err != nil {
		w.t.Fatal(err)
	}
	var out bytes.Buffer
	if err := w.repo.Export(context.Background(), m, "data", &out, func(Warning) {}, nil); err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "zstd -dc | LC_ALL=C tar -xp --numeric-owner --xattrs --xattrs-include='*' -C "+dir)
	cmd.Stdin = &out
	if msg, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("tar: %v\n%s", err, msg)
	}
	return dir
}

// scriptNew restores a snapshot by restore.sh into a new directory.
func (w *world) scriptNew(id string) string {
	w.t.Helper()
	dir, err := os.MkdirTemp(w.root, "scripted-")
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command("sh", filepath.Join(w.target.Location(), "restore.sh"), id, "shop", "data", dir)
	if msg, err := w.script(cmd); err != nil {
		w.t.Fatalf("restore.sh: %v\n%s", err, msg)
	}
	return dir
}

func (w *world) verify() {
	w.t.Helper()
	list, err := w.repo.List(context.Background(), "")
	if err != nil {
		w.t.Fatal(err)
	}
	v, err := w.repo.Verify(context.Background(), list, true, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, d := range v.Damage {
		w.t.Errorf("verify: %s", d)
	}
}

func TestSnapshotsOfAChangingTreeRestoreIdentically(t *testing.T) {
	believeStats(t)
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			newWorld(t).changeAndRestore(seed)
		})
	}
}

// changeAndRestore takes snapshots of a tree that changes between them, and
// restores each in all ways.
func (w *world) changeAndRestore(seed uint64) {
	t := w.t
	testtree.Random(t, w.volume, seed, testtree.RandomOptions{Files: 100, NoLarge: true})
	var ids []string
	var states []string
	const lastStep = 5
	for step := range lastStep + 1 {
		if step > 0 {
			for k := range uint64(3) {
				for _, line := range testtree.Mutate(t, w.volume, seed*100+uint64(step)*10+k) {
					t.Log(step, line)
				}
			}
		}
		s := w.backup()
		state := filepath.Join(w.root, fmt.Sprint("state", step))
		testtree.Clone(t, w.volume, state)
		ids, states = append(ids, s.ID), append(states, state)
		for i := range ids {
			// All of them at the end, the newest at every step.
			if i == step || step == lastStep {
				testtree.Compare(t, states[i], w.restoreNew(ids[i]), testtree.Options{})
				testtree.Compare(t, states[i], w.exportNew(ids[i]), testtree.Options{})
				testtree.Compare(t, states[i], w.scriptNew(ids[i]), testtree.Options{})
			}
		}
		if t.Failed() {
			t.Fatalf("after step %d", step)
		}
	}
	w.verify()
}

// Files that were written seconds before a backup have stats that cannot be
// trusted: they are read again, and found to be the same.
func TestYoungFilesAreReadAgainAndNotStoredAgain(t *testing.T) {
	w := newWorld(t)
	if _, err := testtree.SourceTree(w.volume, 300, 7); err != nil {
		t.Fatal(err)
	}
	first := w.backup()
	second := w.backup()
	if v := second.Volumes[0]; v.BytesRead == 0 || v.FramesNew != 0 {
		t.Errorf("second backup read %d bytes and stored %d new frames; want some and none", v.BytesRead, v.FramesNew)
	}
	testtree.Compare(t, w.restoreNew(first.ID), w.restoreNew(second.ID), testtree.Options{})
	testtree.Compare(t, w.volume, w.restoreNew(second.ID), testtree.Options{})
}

// The first path of a hard-linked file cannot be read: the next one has the content.
func TestHardLinkWhoseFirstPathIsExcludedKeepsItsContent(t *testing.T) {
	w := newWorld(t)
	for _, step := range []error{
		os.WriteFile(filepath.Join(w.volume, "a"), []byte("held"), 0o600),
		os.Link(filepath.Join(w.volume, "a"), filepath.Join(w.volume, "b")),
		os.Link(filepath.Join(w.volume, "a"), filepath.Join(w.volume, "c")),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	_, err := w.repo.Backup(context.Background(), w.target, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: w.volume}}, Exclude: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	dir := w.restoreNew("latest")
	testtree.Compare(t, w.volume, dir, testtree.Options{Ignore: func(p string) bool { return p == "a" }})
	w.verify()
}
