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
	paxName    = "././@PaxHeader"
)

// Append appends the header's canonical form to dst: a pax extended header
// where the plain one cannot hold everything, the ustar header, and a sparse
// file's map, which tar counts as data.
func (h *Header) Append(dst []byte) ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	start := len(dst)
	var sparseMap []byte
	if h.Sparse != nil {
		sparseMap = h.appendMap(nil)
	}
	name, link := h.Path, h.Link
	switch {
	case h.Path == ".":
		name = "./"
	case h.Type == Dir:
		name += "/"
	}
	stored := h.DataSize() + int64(len(sparseMap))
	records := h.records(name, stored)
	if len(records) > 0 {
		dst = appendBlock(dst, block{name: paxName, mode: 0o644, size: int64(len(records)), flag: 'x'})
		dst = append(dst, records...)
		dst = pad(dst, len(records))
	}
	b := block{name: name, link: link, mode: h.Mode, uid: h.UID, gid: h.GID, size: stored, mtime: h.Mtime.Sec, flag: byte(h.Type), major: h.Major, minor: h.Minor}
	// What a record says is left out of the block: the block would only say it wrongly.
	if h.Sparse != nil {
		b.name = "GNUSparseFile.0"
	} else if !plainName(name) {
		b.name = "@"
	}
	if !plainName(link) {
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
	dst = appendBlock(dst, b)
	dst = append(dst, sparseMap...)
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
		if h.Link == h.Path {
			return bad("links to itself")
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
	return h.checkSparse()
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
func plainName(s string) bool {
	if len(s) > nameSize {
		return false
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// records returns the pax records, sorted by their keys.
func (h *Header) records(name string, stored int64) []byte {
	var r []byte
	if h.Sparse != nil {
		r = appendRecord(r, "GNU.sparse.major", "1")
		r = appendRecord(r, "GNU.sparse.minor", "0")
		r = appendRecord(r, "GNU.sparse.name", name)
		r = appendRecord(r, "GNU.sparse.realsize", strconv.FormatInt(h.Size, 10))
	}
	r = h.appendXattrs(r)
	if h.GID > maxOctal8 {
		r = appendRecord(r, "gid", strconv.FormatUint(uint64(h.GID), 10))
	}
	if !plainName(h.Link) {
		r = appendRecord(r, "linkpath", h.Link)
	}
	if h.Mtime.Nsec != 0 || h.Mtime.Sec < 0 || h.Mtime.Sec > maxOctal12 {
		var buf [40]byte
		r = appendRecord(r, "mtime", string(appendPaxTime(buf[:0], h.Mtime)))
	}
	if h.Sparse == nil && !plainName(name) {
		r = appendRecord(r, "path", name)
	}
	if stored > maxOctal12 {
		r = appendRecord(r, "size", strconv.FormatInt(stored, 10))
	}
	if h.UID > maxOctal8 {
		r = appendRecord(r, "uid", strconv.FormatUint(uint64(h.UID), 10))
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
	if len(h.Xattrs) == 0 {
		return r
	}
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
		r = appendRecord(r, x.key, string(x.value))
	}
	return r
}

// appendRecord writes "length key=value\n", where the length counts itself.
func appendRecord(dst []byte, key, value string) []byte {
	n := len(key) + len(value) + 3
	size := n + digits(n)
	if n+digits(size) != size {
		size = n + digits(size)
	}
	dst = strconv.AppendInt(dst, int64(size), 10)
	dst = append(dst, ' ')
	dst = append(dst, key...)
	dst = append(dst, '=')
	dst = append(dst, value...)
	return append(dst, '\n')
}

func digits(n int) int {
	d := 1
	for ; n >= 10; n /= 10 {
		d++
	}
	return d
}

// appendPaxTime writes a time as decimal seconds, trailing zeros cut: "-1.5".
func appendPaxTime(dst []byte, t Time) []byte {
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

// block is what a ustar header holds.
type block struct {
	name, link   string
	mode         uint32
	uid, gid     uint32
	size, mtime  int64
	flag         byte
	major, minor uint32
}

func appendBlock(dst []byte, b block) []byte {
	var buf [blockSize]byte
	copy(buf[0:100], b.name)
	octal(buf[100:108], uint64(b.mode))
	octal(buf[108:116], uint64(b.uid))
	octal(buf[116:124], uint64(b.gid))
	octal(buf[124:136], uint64(b.size))
	octal(buf[136:148], uint64(b.mtime))
	buf[156] = b.flag
	copy(buf[157:257], b.link)
	copy(buf[257:265], "ustar\x0000")
	octal(buf[329:337], uint64(b.major))
	octal(buf[337:345], uint64(b.minor))
	copy(buf[148:156], "        ")
	var sum uint64
	for _, c := range buf {
		sum += uint64(c)
	}
	octal(buf[148:155], sum)
	return append(dst, buf[:]...)
}

// octal writes a field: digits that fill it but for a NUL at its end.
func octal(field []byte, n uint64) {
	last := len(field) - 1
	field[last] = 0
	for i := last - 1; i >= 0; i-- {
		field[i] = byte('0' + n&7)
		n >>= 3
	}
}
