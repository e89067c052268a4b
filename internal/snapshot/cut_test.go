package snapshot

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"
)

// chunksOf cuts what r has, as a stream does: each chunk in memory of its own.
func chunksOf(t testing.TB, c *chunker, r io.Reader) [][]byte {
	t.Helper()
	c.reset(r)
	var all [][]byte
	for more := true; more; {
		chunk, m, err := c.next(nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(chunk) > 0 {
			all = append(all, chunk)
		}
		more = m
	}
	return all
}

func TestChunksAreTheContentAndWithinBounds(t *testing.T) {
	data := noise(1, 12<<20)
	var c chunker
	for _, n := range []int{0, 1, chunkMin - 1, chunkMin, chunkMin + 1, chunkNormal, chunkMin + readStep, chunkMax, chunkMax + 1, len(data)} {
		all := chunksOf(t, &c, bytes.NewReader(data[:n]))
		if !bytes.Equal(bytes.Join(all, nil), data[:n]) {
			t.Fatalf("%d bytes: the chunks are not the content", n)
		}
		for i, chunk := range all {
			if len(chunk) > chunkMax || len(chunk) <= chunkMin && i < len(all)-1 {
				t.Errorf("%d bytes: chunk %d of %d has %d bytes", n, i, len(all), len(chunk))
			}
		}
	}
}

// The same content gives the same frames, however the file system hands it over.
func TestCutsDoNotDependOnReads(t *testing.T) {
	data := noise(2, 6<<20)
	var c chunker
	want := chunksOf(t, &c, bytes.NewReader(data))
	for name, r := range map[string]io.Reader{
		"a byte a read":     iotest.OneByteReader(bytes.NewReader(data)),
		"half of each":      iotest.HalfReader(bytes.NewReader(data)),
		"data with the end": iotest.DataErrReader(bytes.NewReader(data)),
	} {
		if got := chunksOf(t, &c, r); !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("%s: cut elsewhere", name)
		}
	}
}

func TestAnInsertionMovesOnlyCutsNearby(t *testing.T) {
	data := noise(3, 64<<20)
	var c chunker
	have := map[[32]byte]bool{}
	for _, chunk := range chunksOf(t, &c, bytes.NewReader(data)) {
		have[sha256.Sum256(chunk)] = true
	}
	const edits = 8
	var edited []byte
	for i := range edits {
		edited = append(append(edited, data[i*len(data)/edits:(i+1)*len(data)/edits]...), "inserted"...)
	}
	fresh := 0
	for _, chunk := range chunksOf(t, &c, bytes.NewReader(edited)) {
		if !have[sha256.Sum256(chunk)] {
			fresh += len(chunk)
		}
	}
	// Measured: 0.35 MB an insertion.
	if fresh > edits<<20 {
		t.Errorf("%d insertions in 64 MiB made %d bytes new", edits, fresh)
	}
}

// In a run of one byte the hash stands still: it must not stand below the limit.
func TestRunsOfOneByteAreCutRarely(t *testing.T) {
	for b := range 256 {
		run := bytes.Repeat([]byte{byte(b)}, 4<<10)
		if _, cut := findCut(0, run, usualCut); cut > 64 {
			t.Errorf("byte %d: every place in a run of it is a cut", b)
		}
	}
	var c chunker
	if n := len(chunksOf(t, &c, bytes.NewReader(make([]byte, 64<<20)))); n > 33 {
		t.Errorf("64 MiB of zeros are %d chunks", n)
	}
}

func TestAReadErrorWhileCuttingIsReturned(t *testing.T) {
	broken := errors.New("broken")
	for _, n := range []int{0, chunkMin, chunkMin + 10, 3 << 20} {
		c := chunker{}
		c.reset(io.MultiReader(bytes.NewReader(noise(4, n)), iotest.ErrReader(broken)))
		err, more := error(nil), true
		for more && err == nil {
			_, more, err = c.next(nil)
		}
		if !errors.Is(err, broken) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

func BenchmarkCut(b *testing.B) {
	data := noise(5, 64<<20)
	var c chunker
	buf := make([]byte, 0, chunkMax)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		c.reset(bytes.NewReader(data))
		for more := true; more; {
			var err error
			if buf, more, err = c.next(buf); err != nil {
				b.Fatal(err)
			}
		}
	}
}
