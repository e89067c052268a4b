package testtree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
)

// pageSize is PostgreSQL's.
const pageSize = 8192

// Pages writes a file like a database table's: 8 KiB pages in PostgreSQL's layout
// (header, line pointers, free space of zeros, tuples of numbers and text), which
// zstd -3 makes about 4 times smaller, and at the end 1/64 of the pages as zeros.
// size is rounded down to whole pages.
func Pages(path string, size int64, seed uint64) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	count := size / pageSize
	buf := make([]byte, 0, 128*pageSize)
	for n := range count {
		at := len(buf)
		buf = buf[:at+pageSize]
		clear(buf[at:])
		if n < count-count/64 {
			fillPage(buf[at:], n, newPageRand(seed, n))
		}
		if len(buf) == cap(buf) || n == count-1 {
			if _, err := f.Write(buf); err != nil {
				return err
			}
			buf = buf[:0]
		}
	}
	return nil
}

// ChurnPages rewrites a fraction (0 to 1; more than 0 means at least one) of a
// file's 8 KiB pages in place, spread evenly; another seed chooses others. The
// page before the zero tail counts like any other, the tail does too and fills up.
func ChurnPages(path string, fraction float64, seed uint64) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	count := st.Size() / pageSize
	if count == 0 {
		return fmt.Errorf("churn %s: it has no page of %d bytes", path, pageSize)
	}
	if fraction <= 0 {
		return nil
	}
	page := make([]byte, pageSize)
	for _, i := range spread(int(count), fraction, newRand(seed, "pages").Float64()) {
		n := int64(i)
		clear(page)
		fillPage(page, n, newPageRand(seed, n))
		if _, err := f.WriteAt(page, n*pageSize); err != nil {
			return err
		}
	}
	return nil
}

func newPageRand(seed uint64, n int64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, uint64(n)^hash("page")))
}

// fillPage fills a zeroed page with a header of 24 bytes, line pointers upwards and
// tuples downwards.
func fillPage(page []byte, n int64, rng *rand.Rand) {
	little := binary.LittleEndian
	lower, upper := 24, pageSize
	stop := 30 + rng.IntN(600) // free space is left over, and not always the same
	for row := uint16(1); ; row++ {
		t := tuple(n, row, rng)
		room := (len(t) + 7) &^ 7
		if upper-room < lower+4+stop {
			break
		}
		upper -= room
		copy(page[upper:], t)
		little.PutUint32(page[lower:], uint32(upper)|1<<15|uint32(len(t))<<17)
		lower += 4
	}
	little.PutUint32(page[0:], uint32(n>>20))
	little.PutUint32(page[4:], uint32(n)*7919+rng.Uint32N(5000)) // the log position
	little.PutUint16(page[8:], uint16(rng.Uint32()))             // the checksum
	little.PutUint16(page[12:], uint16(lower))
	little.PutUint16(page[14:], uint16(upper))
	little.PutUint16(page[16:], pageSize)
	little.PutUint16(page[18:], pageSize|4)
}

// tuple is a header of 24 bytes and a row: id, two times, an amount, a state, a
// name, a sentence.
func tuple(page int64, row uint16, rng *rand.Rand) []byte {
	little := binary.LittleEndian
	t := make([]byte, 24, 300)
	little.PutUint32(t[0:], 700+uint32(page/16))
	little.PutUint16(t[8:], uint16(page>>16))
	little.PutUint16(t[10:], uint16(page))
	little.PutUint16(t[12:], row)
	little.PutUint16(t[14:], 7) // columns
	little.PutUint16(t[18:], 0x0902)
	t[22] = 24
	id := uint64(page)*60 + uint64(row)
	created := 750_000_000_000_000 + id*31_000_000 + uint64(rng.Uint32N(1<<20))
	t = little.AppendUint64(t, id)
	t = little.AppendUint64(t, created)
	t = little.AppendUint64(t, created)
	t = little.AppendUint32(t, rng.Uint32N(20000))
	text := func(s string) {
		t = append(t, byte(len(s)<<1|3))
		t = append(t, s...)
	}
	text([]string{"open", "paid", "shipped", "returned"}[min(rng.IntN(4), rng.IntN(4))])
	word := func() string { return wordList[min(rng.IntN(len(wordList)), rng.IntN(len(wordList)))] }
	text(word() + "@" + word() + ".example")
	note := phrases[rng.IntN(len(phrases))]
	if rng.IntN(2) == 0 {
		note += word() + " " + word() + " " + word()
	}
	text(note)
	return t
}

// phrases are what the rows of a table have in common.
var phrases = func() []string {
	rng := rand.New(rand.NewPCG(4, 5))
	all := make([]string, 200)
	for i := range all {
		for range 5 + rng.IntN(7) {
			all[i] += wordList[rng.IntN(len(wordList))] + " "
		}
	}
	return all
}()
