//go:build linux

package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFullDiskIsRecognised(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	if err := unix.Mount("none", root, "tmpfs", 0, "size=64k"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("CI must be able to mount: %v", err)
		}
		t.Skip("mount:", err)
	}
	t.Cleanup(func() { ok(t, unix.Unmount(root, 0)) })
	d := mustOpen(t, root, DestOptions{}, false)
	err := d.WriteSmall(file("big"), make([]byte, 1<<20), false)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), `write "big"`) {
		t.Errorf("full disk: %v", err)
	}
	if _, err := d.Lstat("big"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("part of the file was left: %v", err)
	}
}

func TestMarkTellsOfTheFirstRestore(t *testing.T) {
	eachWay(t, func(t *testing.T, d *Dest, root string) {
		if d.HasMark() {
			t.Error("marked")
		}
		ok(t, d.WriteMark([]byte("first")))
		ok(t, d.WriteMark([]byte("second")))
		if b, err := d.ReadMark(); err != nil || string(b) != "first" || !d.HasMark() {
			t.Errorf("mark %q, %v", b, err)
		}
		ok(t, d.Sync())
		ok(t, d.Remove(IncompleteMark, nil))
		refused(t, "an entry of the mark's name", d.WriteSmall(file(IncompleteMark), nil, true))
		refused(t, "a link of the mark's name", d.Symlink(symlink(IncompleteMark, "x"), true))
		if !d.HasMark() {
			t.Error("the mark went")
		}
		ok(t, d.RemoveMark())
		if d.HasMark() {
			t.Error("still marked")
		}
		outside := filepath.Join(filepath.Dir(root), "outside")
		ok(t, os.Symlink(outside, root+"/"+IncompleteMark))
		refused(t, "a symlink as the mark", d.WriteMark([]byte("x")))
		if _, err := os.Lstat(outside); err == nil {
			t.Error("wrote through a symlink")
		}
		if !d.HasMark() {
			t.Error("a strange mark is none")
		}
	})
}

func TestManyGoroutinesShareHandles(t *testing.T) {
	before := openFiles(t)
	eachWay(t, func(t *testing.T, d *Dest, _ string) {
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 100 {
					dir := fmt.Sprintf("d%d", i*4+g%4) // two goroutines in each, more than are kept open
					if _, err := d.Mkdir(dir); err != nil {
						t.Error(err)
					}
					if err := d.WriteSmall(file(fmt.Sprintf("%s/f%d", dir, g)), []byte("x"), i%2 == 0); err != nil {
						t.Error(err)
					}
					own := fmt.Sprintf("own%d", g)
					_, err := d.Mkdir(own)
					if err == nil {
						err = d.WriteSmall(file(own+"/f"), nil, false)
					}
					if err == nil {
						err = d.Remove(own, nil)
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if n := openFiles(t) - before; n > maxHandles+10 {
			t.Errorf("%d files are open", n)
		}
		names, err := d.ReadDirNames(".")
		ok(t, err)
		if len(names) != 400 {
			t.Errorf("%d directories", len(names))
		}
	})
	if n := openFiles(t); n > before {
		t.Errorf("%d files left open", n-before)
	}
}

func openFiles(t *testing.T) int {
	fds, err := os.ReadDir("/proc/self/fd")
	ok(t, err)
	return len(fds)
}
