package tarstream

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
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

// formatSum is the SHA-256 of all samples' headers. Old snapshots have these
// bytes: where it changes, frames are no longer known by their ids and old
// headers are refused. Add samples at their end, with a sum of their own.
const formatSum = "5da9f91addc150ae6fc99b70e670c00b6c704cab91ad836c9f0aedd187bfb794"

func TestTheFormatDoesNotChange(t *testing.T) {
	sum := sha256.New()
	for _, h := range samples() {
		sum.Write(mustAppend(t, &h))
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != formatSum {
		t.Errorf("headers are other bytes than before: %s", got)
	}
}
