package tarstream

import (
	"strings"
	"testing"
)

func TestAppendOfAnOrdinaryFileAllocatesNothing(t *testing.T) {
	buf := make([]byte, 0, 4*blockSize)
	for _, h := range []Header{
		{Path: "a/b", Type: File, Mode: 0o644, UID: 1000, Size: 5, Mtime: Time{1_700_000_000, 123_456_789}},
		{Path: "a", Type: Dir, Mode: 0o755, Mtime: Time{-5, 1}},
		{Path: "n\n", Type: File, Xattrs: []Xattr{{"user.a", []byte("v")}}},
	} {
		if n := testing.AllocsPerRun(100, func() { _, _ = h.Append(buf) }); n > 0 {
			t.Errorf("%q: %v allocations", h.Path, n)
		}
	}
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
