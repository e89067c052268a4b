package index

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"

	"github.com/disko/backupd/internal/snapshot/pack"
)

// Frame is one line of a volume's frame table: the files section of the
// stream, in order. A slot is a piece of that section that is kept or dropped
// as one: a group of small files, or one large file (its header's frame, then
// its content's).
type Frame struct {
	Slot uint64
	pack.Ref
	// Members is, on the first line of a group's slot, how many tar entries
	// the group holds; 0 on a large file's lines and on further lines.
	Members uint32
}

// AppendTo writes the frame's line, its newline included.
func (f *Frame) AppendTo(dst []byte) []byte {
	dst = append(dst, `{"slot":`...)
	dst = appendUint(dst, f.Slot)
	dst = append(dst, ',')
	dst = appendRef(dst, f.Ref)
	if f.Members > 0 {
		dst = append(dst, `,"members":`...)
		dst = strconv.AppendUint(dst, uint64(f.Members), 10)
	}
	return append(dst, '}', '\n')
}

// ParseFrame reads the line that AppendTo writes, without its newline.
func ParseFrame(line []byte) (Frame, error) {
	s := scanner{rest: line}
	var f Frame
	s.lit(`{"slot":`)
	f.Slot = s.uint()
	s.lit(",")
	f.Ref = s.ref()
	if s.opt(`,"members":`) {
		if f.Members = s.uint32(); f.Members == 0 {
			s.fail("no members")
		}
	}
	s.lit("}")
	if len(s.rest) > 0 {
		s.fail("trailing bytes")
	}
	if s.err != nil {
		return Frame{}, fmt.Errorf("%w: frame line %.300q: %w", ErrCorrupt, line, s.err)
	}
	return f, nil
}

// Hash is what the table's pages are cut by.
func (f *Frame) Hash() uint64 { return binary.BigEndian.Uint64(f.ID[:]) }

// appendRef writes the members of a reference, without braces.
func appendRef(dst []byte, r pack.Ref) []byte {
	dst = append(dst, `"id":"`...)
	dst = hex.AppendEncode(dst, r.ID[:])
	dst = append(dst, `","pack":"`...)
	dst = append(dst, r.Pack.Run...)
	dst = append(dst, '-')
	dst = strconv.AppendUint(dst, uint64(r.Pack.N), 10)
	dst = append(dst, `","off":`...)
	dst = strconv.AppendUint(dst, uint64(r.Off), 10)
	dst = append(dst, `,"len":`...)
	dst = strconv.AppendUint(dst, uint64(r.Len), 10)
	dst = append(dst, `,"raw":`...)
	return strconv.AppendUint(dst, uint64(r.Raw), 10)
}

func (s *scanner) ref() pack.Ref {
	var r pack.Ref
	s.lit(`"id":"`)
	if b := s.str(); len(b) != 2*len(r.ID) {
		s.fail("bad id")
	} else if _, err := hex.Decode(r.ID[:], b); err != nil {
		s.check(err)
	} else if string(b) != r.ID.String() {
		s.fail("id not in lower case")
	}
	s.lit(`,"pack":"`)
	name, err := pack.ParseName(string(s.str()))
	s.check(err)
	r.Pack = name
	s.lit(`,"off":`)
	r.Off = s.uint32()
	s.lit(`,"len":`)
	r.Len = s.uint32()
	s.lit(`,"raw":`)
	r.Raw = s.uint32()
	if s.err == nil {
		s.check(r.Check())
	}
	return r
}
