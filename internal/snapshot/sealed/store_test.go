package sealed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/store/storetest"
	"github.com/disko/backupd/internal/targets/targetstest"
)

const testRepository = "0123456789abcdef0123456789abcdef"

func newKeys(t testing.TB, postQuantum bool) *Keys {
	t.Helper()
	k, err := Generate(testRepository, postQuantum)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newWriter(t testing.TB, st store.Writer, k *Keys) *Writer {
	t.Helper()
	w, err := NewWriter(st, k)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// below is a part of a store, as a store of its own.
type below struct {
	store.Writer
	prefix string
}

// key keeps a bad key bad.
func (b below) key(key string) string { return b.prefix + key }

func (b below) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	return b.Writer.Get(ctx, b.key(key), off, n)
}

func (b below) Stat(ctx context.Context, key string) (store.Info, error) {
	info, err := b.Writer.Stat(ctx, b.key(key))
	info.Key = strings.TrimPrefix(info.Key, b.prefix)
	return info, err
}

func (b below) Put(ctx context.Context, key string, data []byte) error {
	return b.Writer.Put(ctx, b.key(key), data)
}

func (b below) Delete(ctx context.Context, key string) error {
	return b.Writer.Delete(ctx, b.key(key))
}

func (b below) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		for info, err := range b.Writer.List(ctx, b.prefix+prefix) {
			info.Key = strings.TrimPrefix(info.Key, b.prefix)
			if !yield(info, err) {
				return
			}
		}
	}
}

// An encrypted store keeps all promises of a plain one: where it passes
// through, where it encrypts, and where it signs as well.
func TestAnEncryptedStoreIsAStore(t *testing.T) {
	for name, prefix := range map[string]string{
		"outside": "", "volume": "stacks/shop/volumes/data/", "manifests": "stacks/shop/snapshots/", "runs": "stacks/shop/runs/",
	} {
		for _, postQuantum := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " post-quantum ", postQuantum), func(t *testing.T) {
				k := newKeys(t, postQuantum)
				targetstest.RunStore(t, func(t *testing.T) store.Writer {
					return below{newWriter(t, storetest.NewMemory(), k), prefix}
				})
			})
		}
	}
}

// noise is n bytes that no two of which are alike from afar.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b)
	return b
}

const packKey = "stacks/shop/volumes/data/packs/0123456789abcdef-0"

var edges = []int{0, 1, 15, 16, 17, 65535, 65536, 65537, 131071, 131072, 131073, 3*65536 - 1, 3 * 65536, 3*65536 + 1, 5 << 20}

func TestObjectsOfEverySizeComeBackAndTheirSizesAreKnownWithoutReading(t *testing.T) {
	ctx := context.Background()
	for _, postQuantum := range []bool{false, true} {
		k := newKeys(t, postQuantum)
		for i, n := range edges {
			mem := storetest.NewMemory()
			w := newWriter(t, mem, k)
			data := noise(uint64(i), n)
			if err := w.Put(ctx, packKey, data); err != nil {
				t.Fatal(err)
			}
			stored := int64(len(mem.Bytes(k.Hide(packKey))))
			if want := w.sealedSize(int64(n)); stored != want || w.plainSize(stored) != int64(n) {
				t.Errorf("%d bytes: stored as %d, computed %d, and back %d", n, stored, want, w.plainSize(stored))
			}
			over, err := Overhead(k)
			if err != nil || stored != over+int64(n)+16*max(1, (int64(n)+65535)/65536) {
				t.Errorf("%d bytes: %d stored, overhead %d (%v)", n, stored, over, err)
			}
			fresh := newWriter(t, mem, k)
			got, err := fresh.Get(ctx, packKey, 0, -1)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes came back as %d (%v)", n, len(got), err)
			}
			for info, err := range fresh.List(ctx, "stacks/shop/") {
				if err != nil || info != (store.Info{Key: packKey, Size: int64(n)}) {
					t.Errorf("listed as %+v, %v", info, err)
				}
			}
		}
	}
}

func TestSizesThatNoObjectHasAreNone(t *testing.T) {
	w := newWriter(t, storetest.NewMemory(), newKeys(t, false))
	valid := map[int64]int64{}
	for n := int64(0); n < 3*chunkSize+5; n++ {
		valid[w.sealedSize(n)] = n
	}
	for size := int64(0); size < w.sealedSize(3*chunkSize); size++ {
		n, ok := valid[size]
		if got := w.plainSize(size); ok && got != n || !ok && got >= 0 {
			t.Fatalf("%d stored bytes hold %d, want %d (%v)", size, got, n, ok)
		}
	}
}

func FuzzRanges(f *testing.F) {
	k, err := Generate(testRepository, false)
	if err != nil {
		f.Fatal(err)
	}
	mem := storetest.NewMemory()
	w := newWriter(f, mem, k)
	sizes := []int{0, 1, 65536, 2 * 65536, 2*65536 + 1, 5 * 65536, 300_000, 1 << 20}
	data := noise(1, 1<<20)
	for i, n := range sizes {
		if err := w.Put(context.Background(), fmt.Sprintf("stacks/s/volumes/v/packs/0123456789abcdef-%d", i), data[:n]); err != nil {
			f.Fatal(err)
		}
	}
	// One reader for all: what it remembers must not matter.
	r, err := NewReader(mem, k)
	if err != nil {
		f.Fatal(err)
	}
	for i, n := range sizes {
		for _, off := range []int64{0, 65535, 65536, 65537, int64(n) - 1, int64(n)} {
			f.Add(byte(i), off, int64(1))
			f.Add(byte(i), off, int64(0))
			f.Add(byte(i), off, int64(70_000))
			f.Add(byte(i), off, int64(-1))
		}
	}
	f.Fuzz(func(t *testing.T, which byte, off, n int64) {
		i := int(which) % len(sizes)
		want := data[:sizes[i]]
		got, err := r.Get(context.Background(), fmt.Sprintf("stacks/s/volumes/v/packs/0123456789abcdef-%d", i), off, n)
		size := int64(len(want))
		fits := off >= 0 && off <= size && (n < 0 || n <= size-off)
		switch {
		case !fits && !errors.Is(err, store.ErrShort):
			t.Fatalf("%d from %d of %d: %v, want ErrShort", n, off, size, err)
		case fits && err != nil:
			t.Fatalf("%d from %d of %d: %v", n, off, size, err)
		case fits:
			if n < 0 {
				n = size - off
			}
			if !bytes.Equal(got, want[off:off+n]) {
				t.Fatalf("%d from %d of %d: other bytes", n, off, size)
			}
		}
	})
}

// Pieces are read by several goroutines from one pack, and each gets its own.
func TestConcurrentReadersOfOnePackGetTheirPieces(t *testing.T) {
	k := newKeys(t, false)
	mem := storetest.NewMemory()
	w := newWriter(t, mem, k)
	data := noise(1, 4<<20)
	if err := w.Put(context.Background(), packKey, data); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, 1))
			for range 200 {
				off := r.IntN(len(data))
				n := r.IntN(min(200_000, len(data)-off) + 1)
				if got, err := w.Get(context.Background(), packKey, int64(off), int64(n)); err != nil || !bytes.Equal(got, data[off:off+n]) {
					t.Errorf("%d from %d: %v", n, off, err)
				}
			}
		})
	}
	wg.Wait()
}

// A pack is opened once: three reads for its first piece, then one for each,
// and none for what lies in the chunks that were read last.
func TestAPackIsOpenedOnce(t *testing.T) {
	k := newKeys(t, false)
	mem := storetest.NewMemory()
	if err := newWriter(t, mem, k).Put(context.Background(), packKey, noise(1, 4<<20)); err != nil {
		t.Fatal(err)
	}
	var gets atomic.Int64
	counted := &storetest.Faulty{Writer: mem, Hook: func(op, _ string, _ int) storetest.Fault {
		if op == storetest.OpGet {
			gets.Add(1)
		}
		return storetest.None
	}}
	w := newWriter(t, counted, k)
	for i, c := range []struct {
		off, n int64
		gets   int64
	}{{70_000, 10, 3}, {70_010, 5000, 0}, {400_000, 1000, 1}, {500_000, 300_000, 1}, {70_000, 10, 1}, {0, 4 << 20, 1}} {
		before := gets.Load()
		if _, err := w.Get(context.Background(), packKey, c.off, c.n); err != nil {
			t.Fatal(err)
		}
		if n := gets.Load() - before; n != c.gets {
			t.Errorf("read %d took %d requests, want %d", i, n, c.gets)
		}
	}
}

// Every byte of a stored object vouches for the content: whole reads see any
// flip, reads of a piece see it or return what was written.
func TestNoFlippedBitOfAnObjectGivesOtherContent(t *testing.T) {
	ctx := context.Background()
	k := newKeys(t, false)
	mem := storetest.NewMemory()
	data := noise(1, 3*chunkSize+77)
	if err := newWriter(t, mem, k).Put(ctx, packKey, data); err != nil {
		t.Fatal(err)
	}
	hidden := k.Hide(packKey)
	good := mem.Bytes(hidden)
	var at []int
	for i := range 300 { // all of the header, then samples
		at = append(at, i, len(good)-1-i)
	}
	for i := 300; i < len(good); i += 1999 {
		at = append(at, i)
	}
	for _, pos := range at {
		bad := slices.Clone(good)
		bad[pos] ^= 1 << (pos % 8)
		mem.SetBytes(hidden, bad)
		w := newWriter(t, mem, k)
		if got, err := w.Get(ctx, packKey, 0, -1); err == nil || got != nil {
			t.Errorf("byte %d: %d bytes and %v", pos, len(got), err)
		} else if !errors.Is(err, pack.ErrCorrupt) && !errors.Is(err, ErrForged) {
			t.Errorf("byte %d: %v", pos, err)
		}
		if got, err := w.Get(ctx, packKey, 1000, 5000); err == nil && !bytes.Equal(got, data[1000:6000]) {
			t.Errorf("byte %d: a piece has other content", pos)
		}
	}
	for name, bad := range map[string][]byte{
		"cut": good[:len(good)-1], "cut to whole chunks": good[:len(good)-77-tagSize], "longer": append(slices.Clone(good), 0), "empty": {},
		"first chunk twice": slices.Concat(good[:encChunkSize+216], good[216:encChunkSize+216], good[encChunkSize+216:]),
	} {
		mem.SetBytes(hidden, bad)
		if got, err := newWriter(t, mem, k).Get(ctx, packKey, 0, -1); err == nil {
			t.Errorf("%s: %d bytes", name, len(got))
		}
		if got, err := newWriter(t, mem, k).Get(ctx, packKey, 1000, 5000); err == nil {
			t.Errorf("%s: a piece of %d bytes", name, len(got))
		}
	}
}

func TestAnAgentWritesAndReadsNothing(t *testing.T) {
	ctx := context.Background()
	k := newKeys(t, false)
	text, err := k.AgentKey()
	if err != nil {
		t.Fatal(err)
	}
	agent, err := ParseAgentKey(text)
	if err != nil {
		t.Fatal(err)
	}
	mem := storetest.NewMemory()
	w := newWriter(t, mem, agent)
	manifest := "stacks/shop/snapshots/00000001-" + testRepository
	for _, key := range []string{packKey, manifest} {
		if err := w.Put(ctx, key, []byte("content")); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Get(ctx, key, 0, -1); !errors.Is(err, ErrNoIdentity) {
			t.Errorf("%s: %v, want ErrNoIdentity", key, err)
		}
		if info, err := w.Stat(ctx, key); err != nil || info.Size != 7 {
			t.Errorf("%s: %+v, %v", key, info, err)
		}
		if got, err := newWriter(t, mem, k).Get(ctx, key, 0, -1); err != nil || string(got) != "content" {
			t.Errorf("%s: its reader gets %q, %v", key, got, err)
		}
	}
	for _, name := range []string{k.Identities[0], "AGE-SECRET-KEY"} {
		if strings.Contains(fmt.Sprint(agent.Identities), name) || strings.Contains(text, name) {
			t.Error("the agent key holds an identity")
		}
	}
}

func BenchmarkPut(b *testing.B) {
	data := noise(1, 16<<20)
	w := newWriter(b, discard{storetest.NewMemory()}, newKeys(b, false))
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if err := w.Put(context.Background(), packKey, data); err != nil {
			b.Fatal(err)
		}
	}
}

// discard takes objects and keeps none.
type discard struct{ *storetest.Memory }

func (discard) Put(context.Context, string, []byte) error { return nil }
