package tarstream

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

const (
	blockSize = 512
	// MaxHeader bounds an encoded header: the kernel allows a megabyte of
	// attributes, and sparse maps are a megabyte at the most.
	MaxHeader = 16 << 20
	// MaxExtents bounds a sparse map, so that it stays below the mebibyte
	// that Go's archive/tar reads.
	MaxExtents = 30_000
	maxOctal8  = 0o7777777     // fields of 8 bytes
	maxOctal12 = 0o77777777777 // fields of 12 bytes
	nameSize   = 100
	// maxData bounds a file's stored data, so that no sum of it with headers
	// and padding overflows, here or in a caller. No file has so much data;
	// the size of a sparse file may be larger.
	maxData = 1 << 62
	paxName = "././@PaxHeader"
)

// Append appends the header's canonical form to dst: a pax extended header
// where the plain one cannot hold everything, the ustar header, and a sparse
// file's map, which tar counts as data.
func (h *Header) Append(dst []byte) ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	start := len(dst)
	suffix := ""
	if h.Type == Dir {
		suffix = "/" // the root becomes "./"
	}
	mapSize := h.mapSize()
	stored := h.DataSize() + mapSize
	// The records go where they belong at once, behind a block that is filled
	// when their length is known: one header a file leaves no room for buffers.
	dst = append(dst, zeros[:]...)
	dst = h.appendRecords(dst, suffix, stored)
	if n := len(dst) - start - blockSize; n > 0 {
		paxBlock(n).fill(dst[start:])
		dst = pad(dst, n)
	} else {
		dst = dst[:start]
	}
	b := block{name: h.Path, suffix: suffix, link: h.Link, mode: h.Mode, uid: h.UID, gid: h.GID, size: stored, mtime: h.Mtime.Sec, flag: byte(h.Type), major: h.Major, minor: h.Minor}
	// What a record says is left out of the block: the block would only say it wrongly.
	if h.Sparse != nil {
		b.name = "GNUSparseFile.0"
	} else if !plainName(h.Path, suffix) {
		b.name, b.suffix = "@", ""
	}
	if !plainName(h.Link, "") {
		b.link = "@"
	}
	if b.uid > maxOctal8 {
		b.uid = 0
	}
	if b.gid > maxOctal8 {
		b.gid = 0
	}
	if b.size > maxOctal12 {
		b.size = 0
	}
	if h.Mtime.Sec < 0 || h.Mtime.Sec > maxOctal12 {
		b.mtime = 0
	}
	at := len(dst)
	dst = append(dst, zeros[:]...)
	b.fill(dst[at:])
	if h.Sparse != nil {
		dst = h.appendMap(dst)
	}
	if len(dst)-start > MaxHeader {
		return nil, fmt.Errorf("header of %d bytes is larger than the format allows", len(dst)-start)
	}
	return dst, nil
}

// DataSize is how many bytes of content follow the header, without padding.
func (h *Header) DataSize() int64 {
	if h.Type != File {
		return 0
	}
	if h.Sparse == nil {
		return h.Size
	}
	var n int64
	for _, e := range h.Sparse {
		n += e.Length
	}
	return n
}

// Padding is how many zero bytes follow n bytes of content.
func Padding(n int64) int { return int(-n & (blockSize - 1)) }

var zeros [blockSize]byte

func pad(dst []byte, n int) []byte {
	return append(dst, zeros[:Padding(int64(n))]...)
}

// CheckPath refuses paths that no entry may have: they would leave the
// volume, or name an entry in a second way.
func CheckPath(p string) error {
	if p == "." {
		return nil
	}
	if p == "" || strings.IndexByte(p, 0) >= 0 {
		return fmt.Errorf("path %.100q is empty or has a NUL", p)
	}
	for start := 0; ; {
		i := strings.IndexByte(p[start:], '/')
		part := p[start:]
		if i >= 0 {
			part = p[start : start+i]
		}
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("path %.100q is absolute or has an empty, '.' or '..' component", p)
		}
		if i < 0 {
			return nil
		}
		start += i + 1
	}
}

var errBadHeader = errors.New("no valid tar header")

func (h *Header) check() error {
	if err := CheckPath(h.Path); err != nil {
		return err
	}
	bad := func(what string) error { return fmt.Errorf("%w: %.100q: %s", errBadHeader, h.Path, what) }
	switch h.Type {
	case File, Symlink, Char, Block, Dir, Fifo:
	case Link:
		if err := CheckPath(h.Link); err != nil {
			return err
		}
		if h.Link == h.Path || h.Link == "." {
			return bad("links to itself or to the root")
		}
	default:
		return bad("unknown type")
	}
	switch {
	case h.Path == "." && h.Type != Dir:
		return bad("the root is no directory")
	case (h.Type == Symlink || h.Type == Link) != (h.Link != ""):
		return bad("link text")
	case strings.IndexByte(h.Link, 0) >= 0:
		return bad("link text with a NUL")
	case h.Mode > 0o7777:
		return bad("mode")
	case h.Size < 0 || h.Type != File && h.Size != 0:
		return bad("size")
	case h.Type != Char && h.Type != Block && (h.Major != 0 || h.Minor != 0):
		return bad("device numbers")
	case h.Major > maxOctal8 || h.Minor > maxOctal8:
		return bad("device numbers too large for tar")
	case h.Mtime.Nsec < 0 || h.Mtime.Nsec > 999_999_999 || h.Mtime.Sec < -1<<58 || h.Mtime.Sec > 1<<58:
		return bad("time")
	}
	for i, x := range h.Xattrs {
		if x.Name == "" || strings.IndexByte(x.Name, 0) >= 0 || i > 0 && x.Name <= h.Xattrs[i-1].Name {
			return bad("attributes out of order")
		}
	}
	if err := h.checkSparse(); err != nil {
		return err
	}
	if h.DataSize() > maxData {
		return bad("more data than any file has")
	}
	return nil
}

func (h *Header) checkSparse() error {
	if h.Sparse == nil {
		return nil
	}
	if h.Type != File || len(h.Sparse) > MaxExtents {
		return fmt.Errorf("%w: %.100q: sparse map", errBadHeader, h.Path)
	}
	end := int64(-1)
	for _, e := range h.Sparse {
		if e.Length <= 0 || e.Offset <= end || e.Offset > h.Size || e.Length > h.Size-e.Offset {
			return fmt.Errorf("%w: %.100q: sparse map", errBadHeader, h.Path)
		}
		end = e.Offset + e.Length
	}
	return nil
}

// plainName says that a ustar header can hold a name, and that every reader takes it as it is.
func plainName(s, suffix string) bool {
	if len(s)+len(suffix) > nameSize {
		return false
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// appendRecords appends the pax records, sorted by their keys.
func (h *Header) appendRecords(r []byte, suffix string, stored int64) []byte {
	if h.Sparse != nil {
		r = appendRecord(r, "GNU.sparse.major", "1")
		r = appendRecord(r, "GNU.sparse.minor", "0")
		r = appendRecord(r, "GNU.sparse.name", h.Path)
		r = appendNumber(r, "GNU.sparse.realsize", h.Size)
	}
	r = h.appendXattrs(r)
	if h.GID > maxOctal8 {
		r = appendNumber(r, "gid", int64(h.GID))
	}
	if !plainName(h.Link, "") {
		r = appendRecord(r, "linkpath", h.Link)
	}
	if h.Mtime.Nsec != 0 || h.Mtime.Sec < 0 || h.Mtime.Sec > maxOctal12 {
		var buf [40]byte
		r = appendRecord(r, "mtime", AppendTime(buf[:0], h.Mtime))
	}
	if h.Sparse == nil && !plainName(h.Path, suffix) {
		r = appendRecord(r, "path", h.Path+suffix)
	}
	if stored > maxOctal12 {
		r = appendNumber(r, "size", stored)
	}
	if h.UID > maxOctal8 {
		r = appendNumber(r, "uid", int64(h.UID))
	}
	return r
}

const xattrPrefix = "SCHILY.xattr."

// xattrEscape is how GNU tar writes names: a record's key ends at its first '='.
var (
	xattrEscape   = strings.NewReplacer("%", "%25", "=", "%3D")
	xattrUnescape = strings.NewReplacer("%25", "%", "%3D", "=")
)

func (h *Header) appendXattrs(r []byte) []byte {
	if !slices.ContainsFunc(h.Xattrs, func(x Xattr) bool { return strings.ContainsAny(x.Name, "%=") }) {
		for _, x := range h.Xattrs {
			r = appendRecord(r, xattrPrefix+x.Name, x.Value)
		}
		return r
	}
	// Keys stand in another order than names: "user.=" becomes "user.%3D".
	type record struct {
		key   string
		value []byte
	}
	list := make([]record, 0, len(h.Xattrs))
	for _, x := range h.Xattrs {
		list = append(list, record{xattrPrefix + xattrEscape.Replace(x.Name), x.Value})
	}
	slices.SortFunc(list, func(a, b record) int { return strings.Compare(a.key, b.key) })
	for _, x := range list {
		r = appendRecord(r, x.key, x.value)
	}
	return r
}

// appendRecord writes "length key=value\n", where the length counts itself.
func appendRecord[V string | []byte](dst []byte, key string, value V) []byte {
	n := len(key) + len(value) + 3
	size := n + digits(int64(n))
	if n+digits(int64(size)) != size {
		size = n + digits(int64(size))
	}
	dst = strconv.AppendInt(dst, int64(size), 10)
	dst = append(dst, ' ')
	dst = append(dst, key...)
	dst = append(dst, '=')
	dst = append(dst, value...)
	return append(dst, '\n')
}

func appendNumber(dst []byte, key string, n int64) []byte {
	var buf [20]byte
	return appendRecord(dst, key, strconv.AppendInt(buf[:0], n, 10))
}

func digits(n int64) int {
	d := 1
	for ; n >= 10; n /= 10 {
		d++
	}
	return d
}

// AppendTime writes a time in seconds since 1970 with as many decimals as it
// needs: "1700000000.5", "-0.25". pax headers and the index write it so.
func AppendTime(dst []byte, t Time) []byte {
	sec, nsec := t.Sec, t.Nsec
	if sec < 0 && nsec > 0 {
		sec, nsec = sec+1, 1e9-nsec
		if sec == 0 {
			dst = append(dst, '-')
		}
	}
	dst = strconv.AppendInt(dst, sec, 10)
	if nsec == 0 {
		return dst
	}
	dst = append(dst, '.')
	for div := int32(1e8); nsec > 0; div /= 10 {
		dst = append(dst, byte('0'+nsec/div))
		nsec %= div
	}
	return dst
}
