package agent

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// fullDisk mounts a small file system at a directory, and returns what fills it
// to the last byte.
func fullDisk(t *testing.T, dir string) (fill func()) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("mount: %v; .ci/run runs as root", err)
		}
		t.Skipf("mount: %v; it needs root", err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return func() {
		f, err := os.Create(filepath.Join(dir, "ballast"))
		must(t, err)
		defer f.Close()
		for _, n := range []int{64 << 10, 4 << 10} {
			for err == nil {
				_, err = f.Write(make([]byte, n))
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			err = nil
		}
	}
}
