package directory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/store"
)

// mountExt4 mounts a new ext4 of that many MiB.
func mountExt4(t *testing.T, mib int64) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, mib<<20); err != nil {
		t.Fatal(err)
	}
	for _, line := range [][]string{{"mkfs.ext4", "-q", "-m", "0", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("CI must be able to mount an ext4: %v: %s", err, out)
			}
			t.Skipf("%q: %v: %s", line, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// Length, memory and file system decide how an object is written, and not what it is.
func TestObjectsOfEverySizeAndPlaceInMemoryComeBack(t *testing.T) {
	ctx := context.Background()
	memory := make([]byte, 3*directMin)
	rand.NewChaCha8([32]byte{1}).Read(memory)
	for name, root := range map[string]func(t *testing.T) string{
		"temporary directory": func(t *testing.T) string { return t.TempDir() },
		"tmpfs":               func(t *testing.T) string { return mountTmpfs(t, "size=64m") },
		"ext4":                func(t *testing.T) string { return mountExt4(t, 64) },
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Open(root(t))
			if err != nil {
				t.Fatal(err)
			}
			for i, n := range []int{directMin - 1, directMin, directMin + 1, directMin + directAlign - 1, directMin + directAlign, 2*directMin + 12345} {
				for _, from := range []int{0, 1, 512, directAlign} {
					key := fmt.Sprintf("object%d-%d", i, from)
					want := memory[from : from+n]
					if err := s.Put(ctx, key, want); err != nil {
						t.Fatal(err)
					}
					if got, err := s.Get(ctx, key, 0, -1); err != nil || !bytes.Equal(got, want) {
						t.Errorf("%d bytes at %d in memory: read back as %d bytes, %v", n, from, len(got), err)
					}
					if err := s.Delete(ctx, key); err != nil {
						t.Fatal(err)
					}
				}
			}
			wantNoTemp(t, s)
		})
	}
}

func TestPacksDoNotFillThePageCache(t *testing.T) {
	s, err := Open(mountExt4(t, 64))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(context.Background(), "pack", make([]byte, 16<<20+100)); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(s.root, "pack"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var in unix.Cachestat_t
	if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &in, 0); err != nil {
		t.Skipf("this kernel cannot tell (6.5 and later can): %v", err)
	}
	if in.Cache > 16 {
		t.Errorf("%d pages of the pack are in the page cache", in.Cache)
	}
}

func TestAFullDiskIsSaidOfPacksToo(t *testing.T) {
	ctx := context.Background()
	s, err := Open(mountExt4(t, 24))
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range 10 {
		key := fmt.Sprintf("pack%d", i)
		if err = s.Put(ctx, key, make([]byte, 5<<20)); err != nil {
			break
		}
		want = append(want, key)
	}
	if !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("%v, want ErrNoSpace", err)
	}
	wantNoTemp(t, s)
	wantObjects(t, s, want...)
}
