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
	ext := h.Sparse
	if n := len(ext); n == 0 || ext[n-1].Offset+ext[n-1].Length < h.Size {
		ext = append(slices.Clip(ext), Extent{Offset: h.Size})
	}
	line := func(n int64) {
		dst = strconv.AppendInt(dst, n, 10)
		dst = append(dst, '\n')
	}
	line(int64(len(ext)))
	for _, e := range ext {
		line(e.Offset)
		line(e.Length)
	}
	return pad(dst, len(dst))
}

// MergeExtents fills the smallest holes between extents, until at most limit
// extents are left: a map that many readers can hold, for a little more data.
func MergeExtents(ext []Extent, limit int) []Extent {
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
