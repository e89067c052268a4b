package snapshot

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/targets/directory"
)

// The repository in testdata was written by the first version of the format
// and is never written again: it must restore forever. It has a delta group, files that
// are gone, a path that became a directory, links, a hole, an attribute and old times.
func TestGoldenRepositoryRestoresForever(t *testing.T) {
	st, err := directory.Open("testdata/golden/1")
	if err != nil {
		t.Fatal(err)
	}
	repo, err := Open(context.Background(), st, Options{CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	list, err := repo.List(context.Background(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	v, err := repo.Verify(context.Background(), list, true, nil)
	if err != nil || len(v.Damage) > 0 || v.Snapshots != 2 {
		t.Fatalf("verify: %v, %+v", err, v)
	}
	for _, tag := range []string{"one", "two"} {
		m, err := repo.Find(context.Background(), "shop", tag)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), "data")
		if _, err := repo.Restore(context.Background(), m, RestoreOptions{Volume: "data", Path: dir, NoOwner: os.Geteuid() != 0}); err != nil {
			t.Fatal(err)
		}
		// Listed by other programs, as it was when the snapshot was taken.
		cmd := exec.Command("sh", "-c", `find . -printf '%P\t%y\t%m\t%s\t%T@\t%l\n' | LC_ALL=C sort; find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum`)
		cmd.Dir = dir
		got, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile("testdata/golden/" + tag + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Errorf("snapshot %s came back otherwise:\n%s\nwant\n%s", tag, got, want)
		}
		script := filepath.Join(t.TempDir(), "script")
		out, err := exec.Command("sh", "testdata/golden/1/restore.sh", m.ID(), "shop", "data", script).CombinedOutput()
		if err != nil {
			t.Fatalf("restore.sh: %v\n%s", err, out)
		}
		cmd = exec.Command("sh", "-c", `find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum`)
		cmd.Dir = script
		if got, err := cmd.Output(); err != nil || !strings.HasSuffix(string(want), string(got)) || len(got) == 0 {
			t.Errorf("restore.sh, snapshot %s: %v\n%s", tag, err, got)
		}
	}
}
