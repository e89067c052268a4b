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
	c.reset(r, 0)
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
	k := cuttingAt(0)
	for _, n := range []int{0, 1, k.least - 1, k.least, k.least + 1, k.normal, k.least + readStep, chunkMax, chunkMax + 1, len(data)} {
		all := chunksOf(t, &c, bytes.NewReader(data[:n]))
		if !bytes.Equal(bytes.Join(all, nil), data[:n]) {
			t.Fatalf("%d bytes: the chunks are not the content", n)
		}
		for i, chunk := range all {
			if len(chunk) > chunkMax || len(chunk) <= k.least && i < len(all)-1 {
				t.Errorf("%d bytes: chunk %d of %d has %d bytes", n, i, len(all), len(chunk))
			}
		}
	}
}

// Chunks grow with their place in the file, wherever reading began, and firstCut
// finds the same ones.
func TestHugeFilesHaveLargerChunks(t *testing.T) {
	data := noise(6, 48<<20)
	last := 0
	for _, from := range []int64{0, 4<<30 - 24<<20, 4 << 30, 32<<30 - 24<<20, 32 << 30} {
		c := chunker{}
		c.reset(bytes.NewReader(data), from)
		chunks, beyond, at := 0, 0, 0
		for more := true; more; chunks++ {
			pos, want := c.pos, firstCut(data[at:], from+int64(at))
			if pos != from+int64(at) {
				t.Fatalf("at byte %d of a reading that began at %d, the chunker is at %d", at, from, pos)
			}
			var chunk []byte
			var err error
			if chunk, more, err = c.next(nil); err != nil {
				t.Fatal(err)
			}
			if more && len(chunk) != want {
				t.Fatalf("chunk at %d has %d bytes, firstCut says %d", pos, len(chunk), want)
			}
			if more && len(chunk) <= cuttingAt(pos).least {
				t.Errorf("chunk at %d has %d bytes", pos, len(chunk))
			}
			if at += len(chunk); at > len(data)/2 {
				beyond++
			}
		}
		t.Logf("from %d: %d bytes a chunk, in the second half %d", from, len(data)/chunks, len(data)/2/beyond)
		if mean := len(data) / 2 / beyond; mean < last {
			t.Errorf("from %d: chunks of %d bytes, further forward of %d", from, mean, last)
		} else {
			last = mean
		}
	}
	if last < 3*156<<10 {
		t.Errorf("chunks of a huge file have %d bytes", last)
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
		if _, cut := findCut(0, run, cuttingAt(0).usual); cut > 64 {
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
	for _, n := range []int{0, cuttingAt(0).least, cuttingAt(0).least + 10, 3 << 20} {
		c := chunker{}
		c.reset(io.MultiReader(bytes.NewReader(noise(4, n)), iotest.ErrReader(broken)), 0)
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
		c.reset(bytes.NewReader(data), 0)
		for more := true; more; {
			var err error
			if buf, more, err = c.next(buf); err != nil {
				b.Fatal(err)
			}
		}
	}
}
