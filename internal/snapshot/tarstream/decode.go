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
	first, err := parseBlock(b)
	if err != nil {
		return Header{}, 0, err
	}
	pos := blockSize
	var records []byte
	if first.flag == 'x' {
		if first.size <= 0 || first.size > MaxHeader {
			return Header{}, 0, corrupt("extended header of %d bytes", first.size)
		}
		end := pos + int(first.size)
		if end+Padding(first.size) > len(b) {
			return Header{}, 0, ErrShort
		}
		records = b[pos:end]
		pos = end + Padding(first.size)
		if first, err = parseBlock(b[pos:]); err != nil {
			return Header{}, 0, err
		}
		pos += blockSize
	}
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
	if h.Path == "./" {
		h.Path = "."
	} else if h.Type == Dir {
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
	again, err := h.Append(make([]byte, 0, pos))
	if err != nil {
		return Header{}, 0, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if !bytes.Equal(again, b[:pos]) {
		return Header{}, 0, corrupt("%.100q: not in the canonical form", h.Path)
	}
	return h, pos, nil
}

// parseBlock reads a ustar header. That it is canonical is seen later, when it is written again.
func parseBlock(b []byte) (block, error) {
	if len(b) < blockSize {
		return block{}, ErrShort
	}
	var bad bool
	num := func(field []byte) uint64 {
		var n uint64
		for _, c := range field[:len(field)-1] {
			if c < '0' || c > '7' {
				bad = true
				return 0
			}
			n = n<<3 | uint64(c-'0')
		}
		return n
	}
	text := func(field []byte) string {
		if i := bytes.IndexByte(field, 0); i >= 0 {
			field = field[:i]
		}
		return string(field)
	}
	out := block{
		name: text(b[0:100]), mode: uint32(num(b[100:108])), uid: uint32(num(b[108:116])), gid: uint32(num(b[116:124])),
		size: int64(num(b[124:136])), mtime: int64(num(b[136:148])), flag: b[156], link: text(b[157:257]),
		major: uint32(num(b[329:337])), minor: uint32(num(b[337:345])),
	}
	if bad || string(b[257:265]) != "ustar\x0000" {
		return block{}, corrupt("no ustar header")
	}
	return out, nil
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
		key, value, ok := strings.Cut(string(b[sp+1:n-1]), "=")
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

func (p *paxParser) record(key, value string) (err error) {
	switch key {
	case "path", "GNU.sparse.name":
		p.h.Path = value
	case "linkpath":
		p.h.Link = value
	case "uid", "gid":
		var n uint64
		n, err = strconv.ParseUint(value, 10, 32)
		if key == "uid" {
			p.h.UID = uint32(n)
		} else {
			p.h.GID = uint32(n)
		}
	case "size":
		p.stored, err = strconv.ParseInt(value, 10, 64)
	case "GNU.sparse.realsize":
		p.realsize, err = strconv.ParseInt(value, 10, 64)
		if p.realsize < 0 {
			return corrupt("sparse file's size")
		}
	case "mtime":
		p.h.Mtime, err = parsePaxTime(value)
	case "GNU.sparse.major", "GNU.sparse.minor":
	default:
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok {
			return corrupt("unknown record %.60q", key)
		}
		p.h.Xattrs = append(p.h.Xattrs, Xattr{xattrUnescape.Replace(name), []byte(value)})
	}
	if err != nil {
		return corrupt("record %s: %v", key, err)
	}
	return nil
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
