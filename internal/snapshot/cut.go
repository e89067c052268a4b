package snapshot

import (
	"errors"
	"io"
	"math"
	"slices"
)

// Large files are cut by content, so that an insertion moves no boundary but
// those next to it: where a rolling hash of the last 64 bytes is below a
// limit, so many bytes from the last cut at the least and chunkMax at the most.
// Up to the normal size the limit is low, from there on high, which keeps sizes
// near it (FastCDC's normalized chunking: Xia et al., USENIX ATC 2016, who also
// give the hash). The figures are measured: see docs/adr/0014 and 0023.
//
// All that is read is in the cache when it is hashed, and is copied once, by
// the kernel, but for what was read beyond a cut.
const (
	chunkMax = 2<<20 - 512 // leaves room for the padding of the last one
	// readStep is how much is read beyond the least size at a time, in bytes.
	readStep = 64 << 10
)

// cutting says how chunks are cut. Below a limit of 2^64/n one position in n is a cut.
type cutting struct {
	least, normal int // bytes
	rare, usual   uint64
}

// cuttingAt returns how a chunk is cut that begins there in a file. Smaller
// chunks store less of a database that changed, and cost lines of the frame table, which
// a huge file has enough of. It is the place that counts and not the file's
// size, so that a file may grow beyond any bound without being cut anew.
func cuttingAt(pos int64) cutting {
	least := 64 << 10
	switch {
	case pos >= 32<<30:
		least = 256 << 10
	case pos >= 4<<30:
		least = 128 << 10
	}
	n := uint64(least)
	return cutting{least: least, normal: 2 * least, rare: math.MaxUint64 / (4 * n), usual: math.MaxUint64 / (n / 2)}
}

// chunker cuts what it reads into chunks.
type chunker struct {
	r     io.Reader
	ended bool
	ahead []byte // was read beyond the last cut
	pos   int64  // of the last cut in the file
}

// reset begins with another reader, which stands at that place of its file, in the same memory.
func (c *chunker) reset(r io.Reader, pos int64) {
	c.r, c.ended, c.ahead, c.pos = r, false, c.ahead[:0], pos
}

// next reads the next chunk into buf's memory, and says whether others
// follow. It is empty only where there was nothing at all.
func (c *chunker) next(buf []byte) (chunk []byte, more bool, err error) {
	chunk = append(buf[:0], c.ahead...)
	c.ahead = c.ahead[:0]
	k := cuttingAt(c.pos)
	var hash uint64
	for at := k.least; ; {
		if len(chunk) > at {
			normal := max(at, min(k.normal, len(chunk)))
			cut := 0
			if hash, cut = findCut(hash, chunk[at:normal], k.rare); cut == 0 {
				at = normal
				hash, cut = findCut(hash, chunk[at:], k.usual)
			}
			if cut > 0 {
				c.ahead = append(c.ahead, chunk[at+cut:]...)
				chunk = chunk[:at+cut]
				break
			}
			at = len(chunk)
		}
		if c.ended || len(chunk) == chunkMax {
			break
		}
		want := min(max(k.least, len(chunk)+readStep), chunkMax)
		if chunk, err = c.read(chunk, want-len(chunk)); err != nil {
			return chunk, false, err
		}
	}
	c.pos += int64(len(chunk))
	if len(c.ahead) == 0 && !c.ended {
		if c.ahead, err = c.read(c.ahead, readStep); err != nil {
			return chunk, false, err
		}
	}
	return chunk, len(c.ahead) > 0, nil
}

// firstCut returns where the chunk ends that p begins with, at that place of
// its file; 0 if p ends before.
func firstCut(p []byte, pos int64) int {
	k := cuttingAt(pos)
	if len(p) <= k.least {
		return 0
	}
	p = p[:min(len(p), chunkMax)]
	normal := min(k.normal, len(p))
	hash, cut := findCut(0, p[k.least:normal], k.rare)
	if cut > 0 {
		return k.least + cut
	}
	if _, cut = findCut(hash, p[normal:], k.usual); cut > 0 {
		return normal + cut
	}
	if len(p) == chunkMax {
		return chunkMax
	}
	return 0
}

// read appends n bytes to buf, or fewer where the reader ends.
func (c *chunker) read(buf []byte, n int) ([]byte, error) {
	buf = slices.Grow(buf, n)
	got, err := io.ReadFull(c.r, buf[len(buf):len(buf)+n])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		c.ended, err = true, nil
	}
	return buf[:len(buf)+got], err
}

// findCut goes on with a hash over p, up to where it is below limit, and
// returns how many bytes that took; 0 if it never is. Eight bytes a turn are twice as
// fast as one.
func findCut(hash uint64, p []byte, limit uint64) (now uint64, cut int) {
	table := &gear
	i := 0
	for ; i+8 <= len(p); i += 8 {
		b := (*[8]byte)(p[i:])
		if hash = hash<<1 + table[b[0]]; hash < limit {
			return hash, i + 1
		}
		if hash = hash<<1 + table[b[1]]; hash < limit {
			return hash, i + 2
		}
		if hash = hash<<1 + table[b[2]]; hash < limit {
			return hash, i + 3
		}
		if hash = hash<<1 + table[b[3]]; hash < limit {
			return hash, i + 4
		}
		if hash = hash<<1 + table[b[4]]; hash < limit {
			return hash, i + 5
		}
		if hash = hash<<1 + table[b[5]]; hash < limit {
			return hash, i + 6
		}
		if hash = hash<<1 + table[b[6]]; hash < limit {
			return hash, i + 7
		}
		if hash = hash<<1 + table[b[7]]; hash < limit {
			return hash, i + 8
		}
	}
	for ; i < len(p); i++ {
		if hash = hash<<1 + table[p[i]]; hash < limit {
			return hash, i + 1
		}
	}
	return hash, 0
}

// gear has a random number for each byte. Another table would cut elsewhere,
// and large files that changed would be stored whole once: it stays as it is.
var gear = func() (table [256]uint64) {
	// splitmix64 from 1 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
	state := uint64(1)
	for i := range table {
		state += 0x9E3779B97F4A7C15
		z := state
		z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
		z = (z ^ z>>27) * 0x94D049BB133111EB
		table[i] = z ^ z>>31
	}
	return table
}()
