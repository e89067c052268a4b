package tarstream

import (
	"cmp"
	"slices"
	"strconv"
)

// appendMap writes the map of GNU.sparse 1.0: the number of extents, then
// offset and length of each, a line a number, padded to a block. GNU tar ends
// it with an empty extent at the file's end where a hole is last.
func (h *Header) appendMap(dst []byte) []byte {
	start := len(dst)
	line := func(n int64) {
		dst = strconv.AppendInt(dst, n, 10)
		dst = append(dst, '\n')
	}
	count := len(h.Sparse)
	if h.holeLast() {
		count++
	}
	line(int64(count))
	for _, e := range h.Sparse {
		line(e.Offset)
		line(e.Length)
	}
	if h.holeLast() {
		line(h.Size)
		line(0)
	}
	return pad(dst, len(dst)-start)
}

func (h *Header) holeLast() bool {
	n := len(h.Sparse)
	return n == 0 || h.Sparse[n-1].Offset+h.Sparse[n-1].Length < h.Size
}

// mapSize is how many bytes appendMap will write: the block and the size
// record stand before the map and count it.
func (h *Header) mapSize() int64 {
	if h.Sparse == nil {
		return 0
	}
	count, n := len(h.Sparse), 0
	if h.holeLast() {
		count++
		n = digits(h.Size) + len("\n0\n")
	}
	n += digits(int64(count)) + 1
	for _, e := range h.Sparse {
		n += digits(e.Offset) + digits(e.Length) + 2
	}
	return int64(n + Padding(int64(n)))
}

// MergeExtents fills the smallest holes between extents, until at most limit
// extents are left: a map that many readers can hold, for a little more data.
// Of holes of one size the first is filled. A limit below 1 counts as 1, since
// data must stay. It leaves ext alone, and returns it where nothing is merged.
func MergeExtents(ext []Extent, limit int) []Extent {
	limit = max(limit, 1)
	over := len(ext) - limit
	if over <= 0 {
		return ext
	}
	type hole struct {
		size int64
		at   int // behind extent at
	}
	holes := make([]hole, 0, len(ext)-1)
	for i := range len(ext) - 1 {
		holes = append(holes, hole{ext[i+1].Offset - ext[i].Offset - ext[i].Length, i})
	}
	slices.SortFunc(holes, func(a, b hole) int { return cmp.Or(cmp.Compare(a.size, b.size), cmp.Compare(a.at, b.at)) })
	fill := make([]bool, len(ext))
	for _, h := range holes[:over] {
		fill[h.at] = true
	}
	out := make([]Extent, 0, limit)
	for i, e := range ext {
		if i > 0 && fill[i-1] {
			last := &out[len(out)-1]
			last.Length = e.Offset + e.Length - last.Offset
			continue
		}
		out = append(out, e)
	}
	return out
}
