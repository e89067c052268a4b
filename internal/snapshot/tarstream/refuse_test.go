package tarstream

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestHeadersThatNoFileHasAreRefused(t *testing.T) {
	file := func(f func(h *Header)) Header {
		h := Header{Path: "a", Type: File, Size: 100}
		f(&h)
		return h
	}
	for name, h := range map[string]Header{
		"empty path":             file(func(h *Header) { h.Path = "" }),
		"absolute path":          file(func(h *Header) { h.Path = "/a" }),
		"parent":                 file(func(h *Header) { h.Path = "a/../../b" }),
		"just the parent":        file(func(h *Header) { h.Path = ".." }),
		"dot inside":             file(func(h *Header) { h.Path = "a/./b" }),
		"dot in front":           file(func(h *Header) { h.Path = "./a" }),
		"double slash":           file(func(h *Header) { h.Path = "a//b" }),
		"trailing slash":         file(func(h *Header) { h.Path = "a/" }),
		"NUL in path":            file(func(h *Header) { h.Path = "a\x00b" }),
		"root is a file":         file(func(h *Header) { h.Path = "." }),
		"no type":                file(func(h *Header) { h.Type = 0 }),
		"type of GNU tar":        file(func(h *Header) { h.Type = 'S' }),
		"pax as a type":          file(func(h *Header) { h.Type = 'x' }),
		"negative size":          file(func(h *Header) { h.Size = -1 }),
		"size of a directory":    {Path: "d", Type: Dir, Size: 1},
		"mode with a type":       file(func(h *Header) { h.Mode = 0o100644 }),
		"link text of a file":    file(func(h *Header) { h.Link = "b" }),
		"symlink without text":   {Path: "l", Type: Symlink},
		"symlink with NUL":       {Path: "l", Type: Symlink, Link: "a\x00"},
		"hard link to itself":    {Path: "l", Type: Link, Link: "l"},
		"hard link out":          {Path: "l", Type: Link, Link: "../l"},
		"hard link to absolute":  {Path: "l", Type: Link, Link: "/l"},
		"hard link to the root":  {Path: "l", Type: Link, Link: "."},
		"hard link to nothing":   {Path: "l", Type: Link},
		"device number of file":  file(func(h *Header) { h.Major = 1 }),
		"device number too big":  {Path: "c", Type: Char, Major: maxOctal8 + 1},
		"nanoseconds":            file(func(h *Header) { h.Mtime.Nsec = 1e9 }),
		"negative nanoseconds":   file(func(h *Header) { h.Mtime.Nsec = -1 }),
		"time far away":          file(func(h *Header) { h.Mtime.Sec = 1<<58 + 1 }),
		"time long ago":          file(func(h *Header) { h.Mtime.Sec = -1<<58 - 1 }),
		"attribute without name": file(func(h *Header) { h.Xattrs = []Xattr{{"", nil}} }),
		"attribute with NUL":     file(func(h *Header) { h.Xattrs = []Xattr{{"a\x00", nil}} }),
		"attribute twice":        file(func(h *Header) { h.Xattrs = []Xattr{{"a", nil}, {"a", nil}} }),
		"attributes unsorted":    file(func(h *Header) { h.Xattrs = []Xattr{{"b", nil}, {"a", nil}} }),
		"attributes too large":   file(func(h *Header) { h.Xattrs = []Xattr{{"a", make([]byte, MaxHeader)}} }),
		"more data than can be":  file(func(h *Header) { h.Size = maxData + 1 }),
		"sparse data overflows":  file(func(h *Header) { h.Size = 1<<63 - 1; h.Sparse = []Extent{{0, h.Size}} }),
		"sparse directory":       {Path: "d", Type: Dir, Sparse: []Extent{}},
		"empty extent":           file(func(h *Header) { h.Sparse = []Extent{{0, 0}} }),
		"negative extent":        file(func(h *Header) { h.Sparse = []Extent{{0, -1}} }),
		"extent before the file": file(func(h *Header) { h.Sparse = []Extent{{-1, 1}} }),
		"extent past the end":    file(func(h *Header) { h.Sparse = []Extent{{99, 2}} }),
		"extent that overflows":  file(func(h *Header) { h.Sparse = []Extent{{1, 1<<63 - 1}} }),
		"extents adjacent":       file(func(h *Header) { h.Sparse = []Extent{{0, 10}, {10, 10}} }),
		"extents overlap":        file(func(h *Header) { h.Sparse = []Extent{{0, 10}, {5, 10}} }),
		"extents descend":        file(func(h *Header) { h.Sparse = []Extent{{50, 10}, {0, 10}} }),
		"too many extents":       file(func(h *Header) { h.Size = 1 << 30; h.Sparse = extents(MaxExtents+1, 1, 1) }),
	} {
		if b, err := h.Append(nil); err == nil {
			t.Errorf("%s: accepted, %d bytes", name, len(b))
		}
	}
}

// extents returns n extents of that length with holes between them.
func extents(n int, length, hole int64) []Extent {
	out := make([]Extent, n)
	for i := range out {
		out[i] = Extent{int64(i) * (length + hole), length}
	}
	return out
}

func TestPathsOnlyOfOneFormAreAccepted(t *testing.T) {
	for _, p := range []string{".", "a", "a/b", "...", "..a", "a..", ".a", "a b", "\xff", "a\nb", "-rf", "a:b", `a\b`} {
		if err := CheckPath(p); err != nil {
			t.Error(err)
		}
	}
	for _, p := range []string{"", "/", "//", "a/", "/a", "./a", "a/.", "..", "../a", "a/..", "a/../b", "a//b", "\x00", "a/\x00"} {
		if CheckPath(p) == nil {
			t.Errorf("%q accepted", p)
		}
	}
}

func TestARecordsLengthCountsItself(t *testing.T) {
	for n := range 100_100 {
		if n > 1100 && n%10_000 > 10 && n%10_000 < 9980 {
			continue
		}
		r := appendRecord(nil, "k", strings.Repeat("v", n))
		if got := fmt.Sprintf("%d k=", len(r)); !strings.HasPrefix(string(r), got) {
			t.Fatalf("value of %d bytes: record of %d bytes begins %.10q", n, len(r), r)
		}
	}
}

func TestParseOfAHugeCountAllocatesInProportion(t *testing.T) {
	h := Header{Path: "s", Type: File, Size: 1 << 40, Sparse: []Extent{{4096, 4096}}}
	b := mustAppend(t, &h)
	at := len(b) - blockSize
	for _, count := range []string{"30002", "9223372036854775807", "99999999999999999999", "-1", "2e9"} {
		c := slices.Clone(b)
		clear(c[at:])
		copy(c[at:], count+"\n4096\n4096\n")
		allocated := testing.AllocsPerRun(1, func() {
			if _, _, err := Parse(c); !errors.Is(err, ErrCorrupt) {
				t.Errorf("count %s: %v", count, err)
			}
		})
		if allocated > 100 {
			t.Errorf("count %s: %v allocations", count, allocated)
		}
	}
}

func TestADamagedExtendedHeaderIsNotShort(t *testing.T) {
	// Were its size believed, the caller would fetch up to 16 MiB to learn that it is damaged.
	h := Header{Path: "n\n", Type: File}
	b := mustAppend(t, &h)[:blockSize]
	copy(b[124:], "00070000000") // 14 MiB, and the checksum of another size
	if _, _, err := Parse(b); !errors.Is(err, ErrCorrupt) {
		t.Errorf("wrong checksum: %v", err)
	}
	for _, size := range []int{0, MaxHeader + 1, maxOctal12} {
		clear(b)
		paxBlock(size).fill(b)
		if _, _, err := Parse(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("records of %d bytes: %v", size, err)
		}
	}
	clear(b)
	paxBlock(MaxHeader).fill(b)
	if _, _, err := Parse(b); !errors.Is(err, ErrShort) {
		t.Errorf("records of %d bytes: %v", MaxHeader, err)
	}
}
