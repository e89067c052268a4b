package tarstream

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// samples are headers of every kind, at the edges of what the format holds.
func samples() []Header {
	long := func(n int) string {
		var parts []string
		for len(strings.Join(parts, "/")) < n {
			parts = append(parts, strings.Repeat("d", 60))
		}
		return strings.Join(parts, "/")
	}
	at := Time{Sec: 1_700_000_000}
	many := make([]Extent, MaxExtents)
	for i := range many {
		many[i] = Extent{Offset: int64(i) * 8192, Length: 512}
	}
	return []Header{
		{Path: ".", Type: Dir, Mode: 0o755, Mtime: at},
		{Path: "a", Type: File, Mode: 0o644, UID: 1000, GID: 100, Size: 5, Mtime: at},
		{Path: "empty", Type: File, Mtime: at},
		{Path: "dir", Type: Dir, Mode: 0o1777, Mtime: at},
		{Path: "dir/fifo", Type: Fifo, Mode: 0o600, Mtime: at},
		{Path: "dir/char", Type: Char, Mode: 0o666, Mtime: at, Major: 1, Minor: 3},
		{Path: "dir/block", Type: Block, Mode: 0o660, Mtime: at, Major: 2097151, Minor: 1048575},
		{Path: "dir/link", Type: Symlink, Link: "../nowhere", Mode: 0o777, Mtime: at},
		{Path: "dir/long-link", Type: Symlink, Link: strings.Repeat("t", 4000), Mode: 0o777, Mtime: at},
		{Path: "hard", Type: Link, Link: "a", Mode: 0o644, UID: 1000, GID: 100, Mtime: at},
		{Path: "hard2", Type: Link, Link: long(300) + "/x", Mode: 0o644, Mtime: at},
		{Path: "set", Type: File, Mode: 0o6755, Mtime: at},
		{Path: "far-user", Type: File, UID: 1 << 21, GID: 1<<32 - 2, Mtime: at},
		{Path: "last-octal-user", Type: File, UID: 1<<21 - 1, GID: 1<<21 - 1, Mtime: at},
		{Path: "old", Type: File, Mtime: Time{Sec: -1}},
		{Path: "old-ns", Type: File, Mtime: Time{Sec: -1, Nsec: 500_000_000}},
		{Path: "older-ns", Type: File, Mtime: Time{Sec: -86400*365*10 - 1, Nsec: 1}},
		{Path: "epoch", Type: File},
		{Path: "ns", Type: File, Mtime: Time{Sec: 1_700_000_000, Nsec: 123_456_789}},
		{Path: "far", Type: File, Mtime: Time{Sec: maxOctal12 + 1}},
		{Path: strings.Repeat("n", 100), Type: File, Mtime: at},
		{Path: strings.Repeat("n", 101), Type: File, Mtime: at},
		{Path: strings.Repeat("n", 255), Type: File, Mtime: at},
		{Path: strings.Repeat("n", 99), Type: Dir, Mtime: at},
		{Path: strings.Repeat("n", 99) + "d", Type: Dir, Mtime: at},
		{Path: long(101), Type: Dir, Mtime: at},
		{Path: long(256) + "/file", Type: File, Mtime: at},
		{Path: long(5000) + "/file", Type: File, Mtime: at},
		{Path: "new\nline", Type: File, Mtime: at},
		{Path: "bad\xff\xfeutf8", Type: File, Mtime: at},
		{Path: "ümlaut", Type: Symlink, Link: "zı\n\xff", Mode: 0o777, Mtime: at},
		{Path: "a=b%25 \"\\'", Type: File, Mtime: at},
		{Path: "x", Type: File, Mtime: at, Xattrs: []Xattr{
			{"security.capability", []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
			{"user.%3D", []byte("percent")},
			{"user.=", []byte("equals\n=\x00\xff")},
			{"user.empty", nil},
			{"user.plain", []byte("v")},
		}},
		{Path: "sparse/middle", Type: File, Mtime: at, Size: 1 << 20, Sparse: []Extent{{0, 4096}, {8192, 4096}, {1<<20 - 4096, 4096}}},
		{Path: "sparse/leading", Type: File, Mtime: at, Size: 12288, Sparse: []Extent{{8192, 4096}}},
		{Path: "sparse/trailing", Type: File, Mtime: at, Size: 1 << 20, Sparse: []Extent{{0, 4096}}},
		{Path: "sparse/only", Type: File, Mtime: at, Size: 1 << 20, Sparse: []Extent{}},
		{Path: "sparse/odd", Type: File, Mtime: Time{Sec: -5, Nsec: 7}, Size: 10001, Sparse: []Extent{{4096, 5905}}},
		{Path: "sparse/\xff\nname", Type: File, Mtime: at, Size: 8192, Sparse: []Extent{{4096, 4096}}},
		{Path: "sparse/huge", Type: File, Mtime: at, Size: 9 << 30, Sparse: []Extent{{8<<30 + 4096, 4096}}},
		{Path: "sparse/many", Type: File, Mtime: at, Size: 8192 * MaxExtents, Sparse: many},
		{Path: "huge", Type: File, Mtime: at, Size: 8<<30 + 1},
	}
}

func mustAppend(t testing.TB, h *Header) []byte {
	t.Helper()
	b, err := h.Append(nil)
	if err != nil {
		t.Fatalf("append %.80q: %v", h.Path, err)
	}
	return b
}

// same compares headers; a value of nil is an empty value.
func same(a, b Header) bool {
	x, y := slices.Clone(a.Xattrs), slices.Clone(b.Xattrs)
	for _, list := range [][]Xattr{x, y} {
		for i := range list {
			list[i].Value = append([]byte{}, list[i].Value...)
		}
	}
	a.Xattrs, b.Xattrs = nil, nil
	return reflect.DeepEqual(a, b) && (len(x) == 0 && len(y) == 0 || reflect.DeepEqual(x, y))
}

func TestParseReadsWhatAppendWrites(t *testing.T) {
	for _, h := range samples() {
		b := mustAppend(t, &h)
		if len(b)%blockSize != 0 {
			t.Errorf("%.60q: %d bytes are no whole blocks", h.Path, len(b))
		}
		got, n, err := Parse(append(slices.Clone(b), "what follows"...))
		if err != nil || n != len(b) {
			t.Errorf("%.60q: parsed %d of %d bytes: %v", h.Path, n, len(b), err)
			continue
		}
		if !same(got, h) {
			t.Errorf("%.60q: got %.300v\nwant %.300v", h.Path, got, h)
		}
	}
}

func TestAppendKeepsWhatIsBeforeIt(t *testing.T) {
	for _, h := range samples() {
		want := mustAppend(t, &h)
		got, err := h.Append([]byte("before"))
		if err != nil || string(got[:6]) != "before" || !bytes.Equal(got[6:], want) {
			t.Errorf("%.60q: %v", h.Path, err)
		}
	}
}

func TestAHeaderThatIsCutIsShortAndNotDamaged(t *testing.T) {
	for _, h := range samples() {
		b := mustAppend(t, &h)
		step := max(1, len(b)/100)
		for n := 0; n < len(b); n += step {
			if _, _, err := Parse(b[:n]); !errors.Is(err, ErrShort) {
				t.Errorf("%.60q: %d of %d bytes: %v", h.Path, n, len(b), err)
				break
			}
		}
	}
}

func TestEveryFlippedBitIsRefusedOrAnotherHeader(t *testing.T) {
	for _, h := range samples() {
		b := mustAppend(t, &h)
		if len(b) > 2048 {
			continue
		}
		for i := range b {
			for bit := range 8 {
				if len(b) > blockSize && bit != i%8 {
					continue
				}
				b[i] ^= 1 << bit
				got, n, err := Parse(b)
				if err == nil {
					if again, err := got.Append(nil); err != nil || !bytes.Equal(again, b[:n]) {
						t.Errorf("%.60q: byte %d, bit %d: accepted, not canonical", h.Path, i, bit)
					}
				}
				b[i] ^= 1 << bit
			}
		}
	}
}

// golden are blocks by their runs of bytes that are not zero. A change here is
// a change of the format.
var golden = []struct {
	h    Header
	want string
}{
	{Header{Path: "dir/a", Type: File, Mode: 0o644, UID: 1000, GID: 100, Size: 5, Mtime: Time{Sec: 1_700_000_000}}, `
0 "dir/a"
100 "0000644"
108 "0001750"
116 "0000144"
124 "00000000005"
136 "14524770400"
148 "010211"
155 " 0"
257 "ustar"
263 "00"
329 "0000000"
337 "0000000"
`},
	{Header{Path: ".", Type: Dir, Mode: 0o1777}, `
0 "./"
100 "0001777"
108 "0000000"
116 "0000000"
124 "00000000000"
136 "00000000000"
148 "007347"
155 " 5"
257 "ustar"
263 "00"
329 "0000000"
337 "0000000"
`},
	{Header{Path: "x", Type: File, Mode: 0o600, UID: 1 << 21, Mtime: Time{Sec: -1, Nsec: 500_000_000}, Xattrs: []Xattr{{"user.=", []byte("a\x00")}, {"user.a", nil}}}, `
0 "././@PaxHeader"
100 "0000644"
108 "0000000"
116 "0000000"
124 "00000000121"
136 "00000000000"
148 "011465"
155 " x"
257 "ustar"
263 "00"
329 "0000000"
337 "0000000"
512 "28 SCHILY.xattr.user.%3D=a"
539 "\n24 SCHILY.xattr.user.a=\n14 mtime=-0.5\n15 uid=2097152\n"
`},
}

// runs lists the bytes that are not zero.
func runs(b []byte) string {
	var out strings.Builder
	out.WriteByte('\n')
	for i := 0; i < len(b); i++ {
		if b[i] == 0 {
			continue
		}
		end := i + bytes.IndexByte(append(slices.Clone(b[i:]), 0), 0)
		fmt.Fprintf(&out, "%d %q\n", i, b[i:end])
		i = end
	}
	return out.String()
}

func TestGoldenHeaders(t *testing.T) {
	for _, g := range golden {
		b := mustAppend(t, &g.h)
		if b[156] == 'x' {
			b = b[:len(b)-blockSize] // the ustar block behind it is like the others
		}
		if got := runs(b); got != g.want {
			t.Errorf("%q: got %s\nwant %s", g.h.Path, got, g.want)
		}
	}
}

func TestGoldenSparseMap(t *testing.T) {
	for _, c := range []struct {
		name string
		h    Header
		want string
	}{
		{"data last", Header{Size: 12288, Sparse: []Extent{{0, 100}, {8192, 4096}}}, "2\n0\n100\n8192\n4096\n"},
		{"hole last", Header{Size: 12288, Sparse: []Extent{{0, 100}}}, "2\n0\n100\n12288\n0\n"},
		{"only a hole", Header{Size: 12288, Sparse: []Extent{}}, "1\n12288\n0\n"},
	} {
		got := c.h.appendMap(nil)
		if len(got) != blockSize || string(bytes.TrimRight(got, "\x00")) != c.want {
			t.Errorf("%s: got %q", c.name, bytes.TrimRight(got, "\x00"))
		}
	}
}

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

func TestMergeExtentsFillsTheSmallestHoles(t *testing.T) {
	for _, c := range []struct {
		name  string
		in    []Extent
		limit int
		want  []Extent
	}{
		{"none", nil, 3, nil},
		{"fewer than the limit", []Extent{{0, 1}, {5, 1}}, 3, []Extent{{0, 1}, {5, 1}}},
		{"as many as the limit", []Extent{{0, 1}, {5, 1}}, 2, []Extent{{0, 1}, {5, 1}}},
		{"one too many", []Extent{{0, 1}, {5, 1}, {8, 1}}, 2, []Extent{{0, 1}, {5, 4}}},
		{"the first of equal holes", []Extent{{0, 1}, {2, 1}, {4, 1}}, 2, []Extent{{0, 3}, {4, 1}}},
		{"down to one", []Extent{{7, 1}, {20, 3}, {100, 10}}, 1, []Extent{{7, 103}}},
		{"neighbours merge into one", []Extent{{0, 1}, {2, 1}, {4, 1}, {100, 1}}, 2, []Extent{{0, 5}, {100, 1}}},
	} {
		in := slices.Clone(c.in)
		if got := MergeExtents(in, c.limit); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
		if !slices.Equal(in, c.in) {
			t.Errorf("%s: its input was changed", c.name)
		}
	}
}

func TestMergedExtentsCoverTheDataAndNoMoreThanNeeded(t *testing.T) {
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 1))
		var in []Extent
		pos := r.Int64N(3)
		for range 1 + r.IntN(60) {
			e := Extent{pos, 1 + r.Int64N(9)}
			in = append(in, e)
			pos = e.Offset + e.Length + 1 + r.Int64N(20)
		}
		limit := 1 + r.IntN(len(in)+3)
		out := MergeExtents(in, limit)
		if want := min(limit, len(in)); len(out) != want {
			t.Fatalf("seed %d: %d extents, limit %d of %d", seed, len(out), limit, len(in))
		}
		h := Header{Path: "f", Type: File, Size: pos, Sparse: out}
		if _, err := h.Append(nil); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		// Each input lies in one output, and no smaller choice of holes exists.
		var holes []int64
		for i := range len(in) - 1 {
			holes = append(holes, in[i+1].Offset-in[i].Offset-in[i].Length)
		}
		slices.Sort(holes)
		var want, got, data int64
		for _, n := range holes[:len(in)-len(out)] {
			want += n
		}
		for _, e := range in {
			data += e.Length
			if !slices.ContainsFunc(out, func(o Extent) bool {
				return o.Offset <= e.Offset && e.Offset+e.Length <= o.Offset+o.Length
			}) {
				t.Fatalf("seed %d: %v is lost", seed, e)
			}
		}
		for _, e := range out {
			got += e.Length
		}
		if got-data != want {
			t.Fatalf("seed %d: %d bytes of holes filled, %d are enough", seed, got-data, want)
		}
	}
}

func TestPaddingFillsBlocks(t *testing.T) {
	for n, want := range map[int64]int{0: 0, 1: 511, 511: 1, 512: 0, 513: 511, 1<<40 + 1: 511} {
		if got := Padding(n); got != want {
			t.Errorf("%d bytes: %d, want %d", n, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, h := range samples() {
		if b := mustAppend(f, &h); len(b) < 64<<10 {
			f.Add(b)
		}
	}
	f.Add([]byte{})
	f.Add(make([]byte, 1024))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrShort) && !errors.Is(err, ErrCorrupt) {
				t.Fatalf("neither short nor damaged: %v", err)
			}
			return
		}
		again, err := h.Append(nil)
		if err != nil || !bytes.Equal(again, b[:n]) {
			t.Fatalf("accepted, but not canonical: %v\n%s", err, hex.Dump(b[:n]))
		}
	})
}

// FuzzHeader builds a header out of the fuzzer's numbers and strings.
func FuzzHeader(f *testing.F) {
	f.Add(byte('0'), "a", "", uint32(0o644), uint32(0), uint32(0), int64(5), int64(0), int32(0), uint32(0), "user.a", []byte("v"), []byte{})
	f.Add(byte('0'), "s", "", uint32(0o644), uint32(1<<31), uint32(1<<21), int64(1<<33), int64(-1), int32(5), uint32(0), "user.=%", []byte("\x00\n="), []byte{1, 2, 3, 4})
	f.Add(byte('5'), ".", "", uint32(0o755), uint32(0), uint32(0), int64(0), int64(1<<40), int32(999_999_999), uint32(0), "", []byte{}, []byte{})
	f.Add(byte('2'), "\xff\n", "x\xfe", uint32(0o777), uint32(0), uint32(0), int64(0), int64(-1<<50), int32(1), uint32(0), "", []byte{}, []byte{})
	f.Add(byte('1'), "l", "a", uint32(0), uint32(0), uint32(0), int64(0), int64(0), int32(0), uint32(0), "", []byte{}, []byte{})
	f.Add(byte('3'), "c", "", uint32(0o666), uint32(0), uint32(0), int64(0), int64(0), int32(0), uint32(1<<20), "", []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, kind byte, path, link string, mode, uid, gid uint32, size, sec int64, nsec int32, dev uint32, attr string, value, holes []byte) {
		h := Header{Path: path, Type: Type(kind), Link: link, Mode: mode, UID: uid, GID: gid, Size: size, Mtime: Time{sec, nsec}, Major: dev, Minor: dev / 2}
		if attr != "" {
			h.Xattrs = []Xattr{{attr, value}, {attr + "2", nil}}
		}
		if len(holes) > 0 {
			h.Sparse = []Extent{}
			pos := int64(holes[0])
			for i := 1; i+1 < len(holes); i += 2 {
				h.Sparse = append(h.Sparse, Extent{pos, int64(holes[i])})
				pos += int64(holes[i]) + int64(holes[i+1])
			}
		}
		b, err := h.Append(nil)
		if err != nil {
			return // no such file
		}
		got, n, err := Parse(b)
		if err != nil || n != len(b) || !same(got, h) {
			t.Fatalf("%d of %d bytes, %v\ngot  %+v\nwant %+v", n, len(b), err, got, h)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	benchmarks(b, func(b *testing.B, h *Header) {
		var buf []byte
		for b.Loop() {
			buf, _ = h.Append(buf[:0])
		}
	})
}

func BenchmarkParse(b *testing.B) {
	benchmarks(b, func(b *testing.B, h *Header) {
		raw := mustAppend(b, h)
		for b.Loop() {
			if _, _, err := Parse(raw); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func benchmarks(b *testing.B, run func(b *testing.B, h *Header)) {
	plain := Header{Path: "src/cmd/compile/internal/ssa/rewrite.go", Type: File, Mode: 0o644, UID: 1000, GID: 1000, Size: 12345, Mtime: Time{Sec: 1_700_000_000}}
	ordinary := plain
	ordinary.Mtime.Nsec = 123_456_789
	attrs := ordinary
	attrs.Path = strings.Repeat("long/", 40) + "name"
	attrs.Xattrs = []Xattr{{"security.capability", make([]byte, 20)}, {"user.comment", []byte("text")}}
	sparse := plain
	sparse.Sparse = extents(1000, 4096, 4096)
	sparse.Size = 1 << 30
	for name, h := range map[string]*Header{"plain": &plain, "ordinary": &ordinary, "attributes": &attrs, "sparse1000": &sparse} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			run(b, h)
		})
	}
}
