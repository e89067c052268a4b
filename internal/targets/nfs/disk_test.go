package nfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk mounts a new file system of a size.
func smallDisk(t *testing.T, kind, size string) string {
	t.Helper()
	dir := t.TempDir()
	image, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	mkfs := []string{"mkfs." + kind, "-q", image}
	if kind == "ext4" {
		mkfs = []string{"mkfs.ext4", "-q", "-m", "0", image}
	}
	for _, args := range [][]string{{"truncate", "-s", size, image}, mkfs, {"mount", "-o", "loop", image, mnt}} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err == nil {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		t.Skipf("a small %s cannot be mounted here: %q: %v\n%s", kind, args, err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return mnt
}
