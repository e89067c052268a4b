package nfs

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/targets/targetstest"
	"github.com/disko/backupd/internal/testservers"
)

// at is a directory below a server's export.
func at(s *testservers.NFS, below string) Options {
	return Options{Host: s.Host, Port: s.Port, MountPort: s.MountPort, Path: s.Export + below}
}

func open(t testing.TB, o Options) *Target {
	t.Helper()
	target, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close() })
	return target
}

// wantNoTemp makes sure that nothing is left of what failed.
func wantNoTemp(t testing.TB, root string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(root, tmpDir))
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	for _, e := range entries {
		t.Errorf("%s is left in %s", e.Name(), tmpDir)
	}
}

func TestNFSKeepsTheContract(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	targetstest.Run(t, func(t *testing.T) store.Writer {
		dir, err := os.MkdirTemp(s.Dir, "target-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { wantNoTemp(t, dir) })
		return open(t, at(s, "/"+filepath.Base(dir)))
	})
}
