//go:build linux

package snapshot

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/targets/directory"
	"github.com/disko/backupd/internal/testtree"
)

const envUserNamespace = "BACKUPD_TEST_USERNS"

// In a container of a rootless engine nobody may make devices, and ids end.
func TestARestoreInAUserNamespaceGoesOnWithoutDevicesAndSaysWhichIdIsMissing(t *testing.T) {
	if dir := os.Getenv(envUserNamespace); dir != "" {
		root, first, _ := strings.Cut(dir, " ")
		restoreInUserNamespace(t, root, first)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make devices")
	}
	w := newWorld(t)
	path := func(name string) string { return filepath.Join(w.volume, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(path("file"), []byte("content"), 0o640))
	must(os.Chown(path("file"), 999, 998))
	must(unix.Mkfifo(path("fifo"), 0o600))
	must(unix.Mknod(path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(os.Link(path("null"), path("null-too")))
	first := w.backup().ID
	before, err := os.Stat(w.volume)
	must(err)
	must(os.WriteFile(path("high"), nil, 0o600))
	must(os.Chown(path("high"), 100000, 100000))
	must(os.Chtimes(w.volume, before.ModTime(), before.ModTime()))
	w.backup()

	child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	child.Env = append(os.Environ(), envUserNamespace+"="+w.root+" "+first)
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true}
	out, err := child.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "restored in a user namespace") {
		t.Fatalf("%v\n%s", err, out)
	}
	testtree.Compare(t, w.volume, filepath.Join(w.root, "restored"), testtree.Options{Ignore: func(p string) bool {
		return strings.HasPrefix(p, "null") || p == "high"
	}})
}

// restoreHere restores the volume of a world that another process has made, from the
// target below its root into a directory beside it.
func restoreHere(t *testing.T, root, id, dir string) (*RestoreStats, error) {
	t.Helper()
	target, err := directory.Open(filepath.Join(root, "target"))
	if err != nil {
		t.Fatal(err)
	}
	repo, err := Open(context.Background(), target, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	m, err := repo.Find(context.Background(), "shop", id)
	if err != nil {
		t.Fatal(err)
	}
	return repo.Restore(context.Background(), m, RestoreOptions{Volume: "data", Path: filepath.Join(root, dir)})
}

func restoreInUserNamespace(t *testing.T, root, first string) {
	stats, err := restoreHere(t, root, first, "restored")
	if err != nil {
		t.Fatal(err)
	}
	var lacks []string
	for _, w := range stats.Warnings {
		lacks = append(lacks, w.Path)
	}
	if !slices.Equal(lacks, []string{"null", "null-too"}) || !strings.Contains(stats.Warnings[0].What, "device not restored: operation not permitted") {
		t.Errorf("warnings: %+v", stats.Warnings)
	}
	if _, err := restoreHere(t, root, "", "high"); err == nil || !strings.Contains(err.Error(), "/etc/subuid") {
		t.Errorf("an id that is not mapped: %v", err)
	}
	t.Log("restored in a user namespace")
}
