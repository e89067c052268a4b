package tarstream

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

var (
	// ErrShort: the bytes end before the header does; more are needed.
	ErrShort = errors.New("tar header goes on")
	// ErrCorrupt: this is not a header that Append writes.
	ErrCorrupt = errors.New("damaged tar header")
)

func corrupt(what string, args ...any) error {
	return fmt.Errorf("%w: "+what, append([]any{ErrCorrupt}, args...)...)
}

// Parse reads the header at the start of b and returns how many bytes it
// takes, a sparse file's map included. Whatever Append would not have written
// byte for byte is refused.
func Parse(b []byte) (h Header, n int, err error) {
	var records []byte
	pos := 0
	if len(b) >= blockSize && b[flagAt] == 'x' {
		if records, err = paxRecords(b); err != nil {
			return Header{}, 0, err
		}
		pos = blockSize + len(records) + Padding(int64(len(records)))
	}
	first, err := parseBlock(b[pos:])
	if err != nil {
		return Header{}, 0, err
	}
	pos += blockSize
	h = Header{
		Path: first.name, Type: Type(first.flag), Link: first.link, Mode: first.mode, UID: first.uid, GID: first.gid,
		Mtime: Time{Sec: first.mtime}, Major: first.major, Minor: first.minor,
	}
	p := paxParser{h: &h, stored: first.size, realsize: -1}
	if err := p.records(records); err != nil {
		return Header{}, 0, err
	}
	if h.Type == File {
		h.Size = p.stored
	}
	if h.Type == Dir {
		h.Path = strings.TrimSuffix(h.Path, "/")
	}
	if p.realsize >= 0 {
		h.Size = p.realsize
		used, err := h.parseMap(b[pos:])
		if err != nil {
			return Header{}, 0, err
		}
		pos += used
	}
	// An ordinary header is written again on the stack.
	var small [4 * blockSize]byte
	again := small[:0]
	if pos > len(small) {
		again = make([]byte, 0, pos)
	}
	if again, err = h.Append(again); err != nil {
		return Header{}, 0, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if !bytes.Equal(again, b[:pos]) {
		return Header{}, 0, corrupt("%.100q: not in the canonical form", h.Path)
	}
	return h, pos, nil
}

// flagAt is where a block says what it is.
const flagAt = 156

// paxRecords returns the records of the extended header at the start of b.
// Its block is compared before its size is believed: a damaged one must not
// make the caller fetch 16 MiB.
func paxRecords(b []byte) ([]byte, error) {
	size, ok := parseOctal(b[124:136])
	if !ok || size == 0 || size > MaxHeader {
		return nil, corrupt("extended header of %d bytes", size)
	}
	var want [blockSize]byte
	paxBlock(int(size)).fill(want[:])
	if string(want[:]) != string(b[:blockSize]) {
		return nil, corrupt("extended header: not in the canonical form")
	}
	end := blockSize + int(size)
	if end+Padding(int64(size)) > len(b) {
		return nil, ErrShort
	}
	return b[blockSize:end], nil
}

// parseBlock reads a ustar header. That it is canonical is seen later, when it is written again.
func parseBlock(b []byte) (out block, err error) {
	if len(b) < blockSize {
		return block{}, ErrShort
	}
	bad := string(b[257:265]) != "ustar\x0000"
	num := func(from, to int) uint64 {
		n, ok := parseOctal(b[from:to])
		bad = bad || !ok
		return n
	}
	out = block{
		name: fieldText(b[0:100]), mode: uint32(num(100, 108)), uid: uint32(num(108, 116)), gid: uint32(num(116, 124)),
		size: int64(num(124, 136)), mtime: int64(num(136, 148)), flag: b[flagAt], link: fieldText(b[157:257]),
		major: uint32(num(329, 337)), minor: uint32(num(337, 345)),
	}
	if bad {
		return block{}, corrupt("no ustar header")
	}
	return out, nil
}

// parseOctal reads the digits of a field; its last byte is left to the comparison.
func parseOctal(field []byte) (n uint64, ok bool) {
	for _, c := range field[:len(field)-1] {
		if c < '0' || c > '7' {
			return 0, false
		}
		n = n<<3 | uint64(c-'0')
	}
	return n, true
}

func fieldText(field []byte) string {
	if i := bytes.IndexByte(field, 0); i >= 0 {
		field = field[:i]
	}
	return string(field)
}

// paxParser takes the records of an extended header into a Header.
type paxParser struct {
	h        *Header
	stored   int64
	realsize int64
}

func (p *paxParser) records(b []byte) error {
	for len(b) > 0 {
		sp := bytes.IndexByte(b[:min(len(b), 10)], ' ')
		if sp <= 0 {
			return corrupt("record length")
		}
		n, err := strconv.Atoi(string(b[:sp]))
		if err != nil || n <= sp+1 || n > len(b) || b[n-1] != '\n' {
			return corrupt("record length")
		}
		key, value, ok := bytes.Cut(b[sp+1:n-1], []byte("="))
		if !ok {
			return corrupt("record without a value")
		}
		if err := p.record(key, value); err != nil {
			return err
		}
		b = b[n:]
	}
	slices.SortFunc(p.h.Xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

func (p *paxParser) record(key, value []byte) (err error) {
	switch string(key) {
	case "path", "GNU.sparse.name":
		p.h.Path = string(value)
	case "linkpath":
		p.h.Link = string(value)
	case "uid":
		p.h.UID, err = parseID(value)
	case "gid":
		p.h.GID, err = parseID(value)
	case "size":
		p.stored, err = strconv.ParseInt(string(value), 10, 64)
	case "GNU.sparse.realsize":
		p.realsize, err = strconv.ParseInt(string(value), 10, 64)
		if p.realsize < 0 {
			return corrupt("sparse file's size")
		}
	case "mtime":
		p.h.Mtime, err = parsePaxTime(string(value))
	case "GNU.sparse.major", "GNU.sparse.minor":
	default:
		name, ok := bytes.CutPrefix(key, []byte(xattrPrefix))
		if !ok {
			return corrupt("unknown record %.60q", key)
		}
		p.h.Xattrs = append(p.h.Xattrs, Xattr{xattrUnescape.Replace(string(name)), bytes.Clone(value)})
	}
	if err != nil {
		return corrupt("record %s: %v", key, err)
	}
	return nil
}

func parseID(value []byte) (uint32, error) {
	n, err := strconv.ParseUint(string(value), 10, 32)
	return uint32(n), err
}

func parsePaxTime(s string) (Time, error) {
	whole, frac, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || len(frac) > 9 {
		return Time{}, errors.New("bad time")
	}
	var nsec int64
	if frac != "" {
		if nsec, err = strconv.ParseInt((frac + "000000000")[:9], 10, 32); err != nil || nsec < 0 {
			return Time{}, errors.New("bad time")
		}
	}
	if strings.HasPrefix(whole, "-") && nsec > 0 {
		return Time{Sec: sec - 1, Nsec: int32(1e9 - nsec)}, nil
	}
	return Time{Sec: sec, Nsec: int32(nsec)}, nil
}

// parseMap reads a sparse map and returns its length, padding included.
func (h *Header) parseMap(b []byte) (int, error) {
	pos := 0
	number := func() (int64, error) {
		rest := b[pos:min(len(b), pos+21)]
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			if len(rest) < 21 {
				return 0, ErrShort
			}
			return 0, corrupt("sparse map")
		}
		n, err := strconv.ParseInt(string(rest[:i]), 10, 64)
		if err != nil || n < 0 {
			return 0, corrupt("sparse map")
		}
		pos += i + 1
		return n, nil
	}
	count, err := number()
	if err != nil {
		return 0, err
	}
	if count > MaxExtents+1 {
		return 0, corrupt("sparse map of %d extents", count)
	}
	h.Sparse = []Extent{}
	for range count {
		var e Extent
		if e.Offset, err = number(); err == nil {
			e.Length, err = number()
		}
		if err != nil {
			return 0, err
		}
		h.Sparse = append(h.Sparse, e)
	}
	if n := len(h.Sparse); n > 0 && h.Sparse[n-1].Length == 0 {
		h.Sparse = h.Sparse[:n-1]
	}
	if pos += Padding(int64(pos)); pos > len(b) {
		return 0, ErrShort
	}
	return pos, nil
}
