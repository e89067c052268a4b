package snapshot

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
)

// frameIDs returns the ids of all frames that hold a snapshot's stream: those
// of the frame table, and those of the headers of the other entries.
func (w *world) frameIDs(id string) map[pack.ID]bool {
	w.t.Helper()
	m, err := w.repo.Find(context.Background(), "shop", id)
	if err != nil {
		w.t.Fatal(err)
	}
	vol := m.Volume("data")
	pg := w.repo.pages("shop", vol)
	ids := map[pack.ID]bool{}
	frames, err := index.NewFrameCursor(context.Background(), pg, vol.Frames, nil)
	for ok := err == nil; ok; {
		if ok, err = frames.Next(); ok {
			ids[frames.Frame.ID] = true
		}
	}
	if err != nil {
		w.t.Fatal(err)
	}
	nodes, err := index.NewCursor(context.Background(), pg, vol.Nodes, nil)
	for ok := err == nil; ok; {
		if ok, err = nodes.Next(); ok {
			for _, ref := range nodes.Item().Page.Tar {
				ids[ref.ID] = true
			}
		}
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return ids
}

// exportTo writes the tar stream of a snapshot.
func (w *world) exportTo(id string, out io.Writer) {
	w.t.Helper()
	m, err := w.repo.Find(context.Background(), "shop", id)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.repo.Export(context.Background(), m, "data", out, func(Warning) {}, nil); err != nil {
		w.t.Fatal(err)
	}
}

// plant makes a tree of that content, in an order of its own.
func plant(t *testing.T, root string, order *rand.Rand) {
	t.Helper()
	const dirs, files = 40, 1500
	at := time.Unix(1_600_000_000, 123_456_789)
	dir := func(i int) string { return fmt.Sprintf("d%d/e%d", i%7, i) }
	for _, i := range order.Perm(dirs) {
		if err := os.MkdirAll(filepath.Join(root, dir(i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	content := func(i int) []byte {
		n := i * 37 % 9000
		if i%500 == 7 {
			n = 5 << 20 // a large file, in chunks
		}
		b := make([]byte, n)
		var seed [32]byte
		seed[0], seed[1] = byte(i), byte(i>>8)
		rand.NewChaCha8(seed).Read(b)
		return b
	}
	for _, i := range order.Perm(files) {
		p := filepath.Join(root, dir(i%dirs), fmt.Sprint("file", i))
		var err error
		switch i % 100 {
		case 1:
			err = os.Symlink(fmt.Sprint("file", i+dirs), p)
		default:
			if err = os.WriteFile(p, content(i), 0o644); err == nil {
				err = os.Chtimes(p, at, at.Add(time.Duration(i)))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// What os cannot set: the times of symlinks; and those of directories, when they are full.
	err := filepath.WalkDir(root, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.Type().IsRegular() {
			return err
		}
		ts := unix.NsecToTimespec(at.UnixNano())
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheSameTreeInAnotherOrderHasTheSameFrames(t *testing.T) {
	var first map[pack.ID]bool
	var firstTar int
	for seed := range uint64(3) {
		w := newWorld(t)
		plant(t, w.volume, rand.New(rand.NewPCG(seed, 1)))
		s := w.backup()
		ids := w.frameIDs(s.ID)
		var tar counter
		w.exportTo(s.ID, &tar)
		if first == nil {
			first, firstTar = ids, int(tar)
			if len(ids) < 10 {
				t.Fatalf("only %d frames", len(ids))
			}
			continue
		}
		if !maps.Equal(ids, first) {
			both := 0
			for id := range ids {
				if first[id] {
					both++
				}
			}
			t.Errorf("order %d: %d frames, %d in the first, %d of them the same", seed, len(ids), len(first), both)
		}
		if int(tar) != firstTar {
			t.Errorf("order %d: the export has %d bytes, the first %d", seed, tar, firstTar)
		}
	}
}

type counter int

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

func TestTheSameTreeTwiceInOneRepositoryStoresNoFrameTwice(t *testing.T) {
	w := newWorld(t)
	plant(t, w.volume, rand.New(rand.NewPCG(1, 1)))
	first := slices.Collect(maps.Keys(w.frameIDs(w.backup().ID)))
	second := w.frameIDs(w.backup().ID)
	for _, id := range first {
		if !second[id] {
			t.Fatalf("frame %.12s is not in the second snapshot of an unchanged tree", id)
		}
	}
	if len(second) != len(first) {
		t.Errorf("%d frames, then %d", len(first), len(second))
	}
}
