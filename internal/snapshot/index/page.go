package index

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/disko/backupd/internal/snapshot/pack"
)

const (
	// fanOut is how many lines a page holds on average: a line is the last of
	// its page when the fanBits of its hash for that level are all zero.
	fanBits = 6
	// maxLines and maxBytes end a page where the hash does not.
	maxLines = 256
	maxBytes = 1 << 20
	// maxHeaders ends a leaf whose entries have huge headers: readers hold all of them.
	maxHeaders = 16 << 20
	// maxLevel bounds the levels above the leaves: 64^8 lines.
	maxLevel = 8
)

// cut says whether the line with this hash is the last of its page at a level.
func cut(hash uint64, level int) bool {
	return hash>>(fanBits*level)&(1<<fanBits-1) == 0
}

// Child is a reference to a page, as it stands in the page above it.
type Child struct {
	First string // key of its first line: an escaped path, or a slot
	N     uint64 // lines in the leaves below
	Page  pack.Ref
	// Tar are the frames that hold the tar headers of a leaf's entries, in the
	// leaf's order; nil in the files section, whose frames have a table.
	Tar []pack.Ref
}

func (c *Child) appendTo(dst []byte) []byte {
	dst = append(dst, `{"first":"`...)
	dst = append(dst, c.First...) // was escaped when it was a path
	dst = append(dst, `","n":`...)
	dst = appendUint(dst, c.N)
	dst = append(dst, ',')
	dst = appendRef(dst, c.Page)
	for i, r := range c.Tar {
		if i == 0 {
			dst = append(dst, `,"tar":[{`...)
		} else {
			dst = append(dst, `},{`...)
		}
		dst = appendRef(dst, r)
	}
	if len(c.Tar) > 0 {
		dst = append(dst, `}]`...)
	}
	return append(dst, '}', '\n')
}

func parseChild(line []byte) (Child, error) {
	s := scanner{rest: line}
	var c Child
	s.lit(`{"first":"`)
	first := s.str()
	_, err := unescape(first)
	s.check(err)
	c.First = string(first)
	s.lit(`,"n":`)
	c.N = s.uint()
	s.lit(",")
	c.Page = s.ref()
	if s.opt(`,"tar":[{`) {
		for {
			c.Tar = append(c.Tar, s.ref())
			if s.err != nil || !s.opt(`},{`) {
				break
			}
		}
		s.lit(`}]`)
	}
	s.lit("}")
	if len(s.rest) > 0 {
		s.fail("trailing bytes")
	}
	if s.err != nil {
		return Child{}, fmt.Errorf("%w: page line %.300q: %w", ErrCorrupt, line, s.err)
	}
	return c, nil
}

// Tree is the root of one section of the index, or of the frame table, as the
// manifest holds it. The zero Tree is empty.
type Tree struct {
	Level int // of the root page; 0 is a leaf
	Root  Child
}

// Empty says that the tree has no line.
func (t Tree) Empty() bool { return t.Root.N == 0 }

// MarshalJSON writes null for the empty tree, else the root's line and level.
// What encodes it must not escape for HTML: the key would no longer be as in the pages.
func (t Tree) MarshalJSON() ([]byte, error) {
	if t.Empty() {
		return []byte("null"), nil
	}
	b := t.Root.appendTo(nil)
	b = append([]byte(`{"level":`+strconv.Itoa(t.Level)+`,`), b[1:]...)
	return bytes.TrimSpace(b), nil
}

// UnmarshalJSON reads what MarshalJSON writes, however spaced.
func (t *Tree) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*t = Tree{}
		return nil
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, b); err != nil {
		return err
	}
	s := scanner{rest: compact.Bytes()}
	s.lit(`{"level":`)
	level := s.uint()
	s.lit(",")
	if s.err != nil || level > maxLevel {
		return fmt.Errorf("%w: root of an index: %.200q", ErrCorrupt, b)
	}
	c, err := parseChild(append([]byte{'{'}, s.rest...))
	if err != nil {
		return err
	}
	if c.N == 0 {
		return fmt.Errorf("%w: root of an index without entries", ErrCorrupt)
	}
	*t = Tree{Level: int(level), Root: c}
	return nil
}
