package tarstream

import (
	"archive/tar"
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
)

func FuzzParse(f *testing.F) {
	for _, h := range samples() {
		if b := mustAppend(f, &h); len(b) < 64<<10 {
			f.Add(b)
		}
	}
	f.Add([]byte{})
	f.Add(make([]byte, 1024))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = seal(bytes.Clone(b))
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
		if n > 1<<20 {
			return // archive/tar reads no longer records or maps
		}
		got, err := tar.NewReader(bytes.NewReader(b[:n])).Next()
		if err != nil {
			t.Fatalf("archive/tar: %v\n%s", err, hex.Dump(b[:n]))
		}
		want := h.Path
		if h.Type == Dir {
			want += "/"
		}
		if got.Name != want || got.Typeflag != byte(h.Type) || got.Size != h.Size || got.Linkname != h.Link {
			t.Fatalf("archive/tar reads %q %q %c %d, want %q %q %c %d", got.Name, got.Linkname, got.Typeflag, got.Size, want, h.Link, h.Type, h.Size)
		}
	})
}

// seal makes the checksums fit, which no fuzzer finds by chance.
func seal(b []byte) []byte {
	for at := 0; len(b)-at >= blockSize; {
		block := b[at : at+blockSize]
		copy(block[148:156], "        ")
		octal(block[148:155], checksum(block))
		size, ok := parseOctal(block[124:136])
		if at > 0 || block[flagAt] != 'x' || !ok || size > MaxHeader {
			break
		}
		at = blockSize + int(size) + Padding(int64(size))
	}
	return b
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
