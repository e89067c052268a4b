package index

import (
	"bytes"
	"fmt"

	"github.com/disko/backupd/internal/snapshot/pack"
)

// Pages stores pages; one that the target already has is not stored again.
type Pages interface {
	StorePage(raw []byte) (pack.Ref, error)
}

// Builder builds the levels above the leaves of one tree.
type Builder struct {
	pages  Pages
	levels []node
}

// node is the growing page of one level.
type node struct {
	children []Child
	last     uint64 // hash of the last line below
	bytes    int
}

// NewBuilder returns a Builder that stores its pages in pages.
func NewBuilder(pages Pages) *Builder { return &Builder{pages: pages} }

// Leaf adds the next leaf; last is the hash of its last line.
func (b *Builder) Leaf(c Child, last uint64) error { return b.add(0, c, last) }

func (b *Builder) add(level int, c Child, last uint64) error {
	if level > maxLevel {
		return fmt.Errorf("index of more than %d levels: its paths are too long", maxLevel)
	}
	if level == len(b.levels) {
		b.levels = append(b.levels, node{})
	}
	n := &b.levels[level]
	n.children = append(n.children, c)
	n.last = last
	n.bytes += 200 + len(c.First) + 200*len(c.Tar)
	// Where a single path is as long as a page, a page of one child would lead
	// to another one above it, without end.
	if cut(last, level+1) || len(n.children) >= maxLines || len(n.children) > 1 && n.bytes >= maxBytes {
		return b.flush(level)
	}
	return nil
}

// flush closes the growing page of a level and adds it to the next.
func (b *Builder) flush(level int) error {
	n := b.levels[level]
	b.levels[level] = node{}
	var raw []byte
	up := Child{First: n.children[0].First}
	for i := range n.children {
		raw = n.children[i].appendTo(raw)
		up.N += n.children[i].N
	}
	ref, err := b.pages.StorePage(raw)
	if err != nil {
		return err
	}
	up.Page = ref
	return b.add(level+1, up, n.last)
}

// Close stores what is open and returns the tree. A level of one page is not
// stored: the page below it is the root.
func (b *Builder) Close() (Tree, error) {
	for level := 0; level < len(b.levels); level++ {
		n := b.levels[level]
		if level == len(b.levels)-1 && len(n.children) == 1 {
			return Tree{Level: level, Root: n.children[0]}, nil
		}
		if len(n.children) > 0 {
			if err := b.flush(level); err != nil {
				return Tree{}, err
			}
		}
	}
	return Tree{}, nil
}

// Leaves writes the leaves of one tree: lines in ascending order of their
// keys. Where a run of lines is exactly what a page of the base held, the
// frames of that page's headers are kept as they are.
type Leaves struct {
	sink  LeafSink
	pages Pages
	// Tar, where set, stores the tar headers of a closed leaf's entries and
	// returns their frames: the sections whose leaves are their groups.
	Tar func(headers []byte) ([]pack.Ref, error)
	// Kept, where set, is told of the frames of headers that are kept or stored.
	Kept func([]pack.Ref)
	// Expired says that what is stored there must be stored again.
	Expired func(pack.Name) bool

	raw, headers []byte
	lines        int
	first        string
	clean        *Page // the page of the base that the open leaf has followed so far
}

// LeafSink takes finished leaves in order: a Builder, or what keeps them for one.
type LeafSink interface {
	// Leaf adds the next leaf; last is the hash of its last line.
	Leaf(c Child, last uint64) error
}

// NewLeaves returns a writer that stores its leaves in pages and hands them to sink.
func NewLeaves(sink LeafSink, pages Pages) *Leaves { return &Leaves{sink: sink, pages: pages} }

// Add adds a line; hash is the hash of its key, header its tar header where
// the section's leaves are its groups. base, where not nil, is the line of the
// base with the same key; it may differ.
func (l *Leaves) Add(hash uint64, line, header []byte, base *Item) error {
	switch {
	case l.lines == 0:
		l.first = keyOf(line)
		l.clean = nil
		if base != nil && base.Index == 0 && !l.expired(base.Page) {
			l.clean = base.Page
		}
	case l.clean != nil && (base == nil || base.Page != l.clean || base.Index != l.lines):
		l.clean = nil
	}
	if l.clean != nil && !bytes.Equal(line, base.Line) {
		l.clean = nil
	}
	l.raw = append(l.raw, line...)
	l.headers = append(l.headers, header...)
	l.lines++
	if cut(hash, 0) || l.lines >= maxLines || len(l.raw) >= maxBytes || len(l.headers) >= maxHeaders {
		return l.flush(hash)
	}
	return nil
}

func (l *Leaves) expired(p *Page) bool {
	if l.Expired == nil {
		return false
	}
	for _, r := range p.Tar {
		if l.Expired(r.Pack) {
			return true
		}
	}
	return false
}

func (l *Leaves) flush(last uint64) error {
	if l.lines == 0 {
		return nil
	}
	c := Child{First: l.first, N: uint64(l.lines)}
	kept := l.clean != nil && l.clean.Lines == l.lines
	if kept {
		c.Tar = l.clean.Tar
	}
	// A kept page goes through StorePage too: where its index pack is to be
	// dropped, its lines are stored again.
	ref, err := l.pages.StorePage(l.raw)
	if err != nil {
		return err
	}
	c.Page = ref
	if !kept && l.Tar != nil {
		if c.Tar, err = l.Tar(l.headers); err != nil {
			return err
		}
	}
	if l.Kept != nil {
		l.Kept(c.Tar)
	}
	l.raw, l.headers, l.lines, l.clean = l.raw[:0], l.headers[:0], 0, nil
	return l.sink.Leaf(c, last)
}

// keyOf cuts a line's key out of it: the escaped path, or the slot.
func keyOf(line []byte) string {
	if b, ok := bytes.CutPrefix(line, []byte(`{"path":"`)); ok {
		return string(b[:bytes.IndexByte(b, '"')])
	}
	b := bytes.TrimPrefix(line, []byte(`{"slot":`))
	return string(bytes.Trim(b[:bytes.IndexByte(b, ',')], `"`))
}

// Close closes the last leaf; last is the hash of the last line added.
func (l *Leaves) Close(last uint64) error { return l.flush(last) }
