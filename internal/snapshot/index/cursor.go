package index

import (
	"bytes"
	"context"
	"fmt"
	"sort"
	"strconv"

	"github.com/disko/backupd/internal/snapshot/pack"
)

// PageReader reads pages, decoded and checked against their id.
type PageReader interface {
	ReadPage(ctx context.Context, ref pack.Ref) ([]byte, error)
}

// Page is a leaf that a cursor stands in.
type Page struct {
	Child
	Lines int
}

// Item is a line of a leaf, and where it stands. Line includes its newline
// and is valid as long as the cursor is in the same page.
type Item struct {
	Line  []byte
	Page  *Page
	Index int
}

// lines walks the lines of a tree's leaves in order.
type lines struct {
	ctx   context.Context //nolint:containedctx // lives as long as the one call that made it
	pages PageReader
	stack [][]Child // of each level, the children still to come, from the root down
	seen  func(pack.Ref)
	rest  []byte
	item  Item
}

// newLines starts at the leaf where skip stops saying that a page whose
// successor begins with the given key can be passed over.
func newLines(ctx context.Context, pages PageReader, t Tree, seen func(pack.Ref), skip func(next string) bool) (*lines, error) {
	l := &lines{ctx: ctx, pages: pages, seen: seen}
	if t.Empty() {
		return l, nil
	}
	level := []Child{t.Root}
	for range t.Level {
		l.stack = append(l.stack, level)
		var err error
		if level, err = l.open(len(l.stack) - 1); err != nil {
			return nil, err
		}
		if skip != nil {
			i := sort.Search(len(level)-1, func(i int) bool { return !skip(level[i+1].First) })
			level = level[i:]
		}
	}
	l.stack = append(l.stack, level)
	return l, nil
}

// open reads the first child of a level and returns its children.
func (l *lines) open(level int) ([]Child, error) {
	c := l.stack[level][0]
	l.stack[level] = l.stack[level][1:]
	raw, err := l.read(c)
	if err != nil {
		return nil, err
	}
	var children []Child
	var n uint64
	for len(raw) > 0 {
		line, rest, ok := bytes.Cut(raw, []byte{'\n'})
		if !ok {
			return nil, fmt.Errorf("%w: index page %.12s: last line is cut", ErrCorrupt, c.Page.ID)
		}
		child, err := parseChild(line)
		if err != nil {
			return nil, err
		}
		children = append(children, child)
		n += child.N
		raw = rest
	}
	if len(children) == 0 || children[0].First != c.First || n != c.N {
		return nil, fmt.Errorf("%w: index page %.12s: not what the page above says", ErrCorrupt, c.Page.ID)
	}
	return children, nil
}

func (l *lines) read(c Child) ([]byte, error) {
	raw, err := l.pages.ReadPage(l.ctx, c.Page)
	if err != nil {
		return nil, err
	}
	if l.seen != nil {
		l.seen(c.Page)
	}
	return raw, nil
}

// next returns the next line, or nil at the end.
func (l *lines) next() (*Item, error) {
	for len(l.rest) == 0 {
		if len(l.stack) == 0 {
			return nil, nil
		}
		// Go up to a level that still has children, and down to the leaves from there.
		leaf := len(l.stack) - 1
		level := leaf
		for level >= 0 && len(l.stack[level]) == 0 {
			level--
		}
		if level < 0 {
			l.stack = nil
			return nil, nil
		}
		for ; level < leaf; level++ {
			children, err := l.open(level)
			if err != nil {
				return nil, err
			}
			l.stack[level+1] = children
		}
		c := l.stack[leaf][0]
		l.stack[leaf] = l.stack[leaf][1:]
		raw, err := l.read(c)
		if err != nil {
			return nil, err
		}
		n := bytes.Count(raw, []byte{'\n'})
		if n == 0 || raw[len(raw)-1] != '\n' || uint64(n) != c.N {
			return nil, fmt.Errorf("%w: index page %.12s: %d lines instead of %d", ErrCorrupt, c.Page.ID, n, c.N)
		}
		l.rest = raw
		l.item.Page = &Page{Child: c, Lines: n}
		l.item.Index = -1
	}
	i := bytes.IndexByte(l.rest, '\n') + 1
	l.item.Line = l.rest[:i]
	l.item.Index++
	l.rest = l.rest[i:]
	return &l.item, nil
}

// Cursor walks the entries of one section in the order of their paths.
type Cursor struct {
	lines *lines
	prev  string
	begun bool
	// Entry is the current entry, valid after Next returned true.
	Entry Entry
	item  *Item
}

// NewCursor returns a cursor before the first entry. seen, where not nil,
// is told of every page that is read.
func NewCursor(ctx context.Context, pages PageReader, t Tree, seen func(pack.Ref)) (*Cursor, error) {
	l, err := newLines(ctx, pages, t, seen, nil)
	return &Cursor{lines: l}, err
}

// SeekCursor returns a cursor that stands shortly before path: at the start of
// the leaf that holds it or would.
func SeekCursor(ctx context.Context, pages PageReader, t Tree, path string) (*Cursor, error) {
	l, err := newLines(ctx, pages, t, nil, func(next string) bool {
		p, err := unescapeKey(next)
		return err == nil && ComparePaths(p, path) <= 0
	})
	return &Cursor{lines: l}, err
}

// unescapeKey reads a path from the form that a page's line keeps it in.
func unescapeKey(s string) (string, error) { return unescape([]byte(s)) }

// Item is where the current entry stands.
func (c *Cursor) Item() *Item { return c.item }

// Following are the leaves behind the current one, as far as they are known:
// up to the end of the page above. They are not to be changed.
func (c *Cursor) Following() []Child {
	if len(c.lines.stack) == 0 {
		return nil
	}
	return c.lines.stack[len(c.lines.stack)-1]
}

// Next goes to the next entry; false at the end.
func (c *Cursor) Next() (bool, error) {
	item, err := c.lines.next()
	if item == nil || err != nil {
		c.item = nil
		return false, err
	}
	e, err := ParseEntry(item.Line[:len(item.Line)-1])
	if err != nil {
		return false, err
	}
	if c.begun && ComparePaths(c.prev, e.Path) >= 0 {
		return false, fmt.Errorf("%w: index page %.12s: %.200q comes after %.200q", ErrCorrupt, item.Page.Page.ID, e.Path, c.prev)
	}
	c.begun, c.prev = true, e.Path
	c.Entry, c.item = e, item
	return true, nil
}

// FrameCursor walks the lines of a frame table in order.
type FrameCursor struct {
	lines *lines
	begun bool
	// Frame is the current line, valid after Next returned true.
	Frame Frame
	item  *Item
}

// NewFrameCursor returns a cursor before the first frame.
func NewFrameCursor(ctx context.Context, pages PageReader, t Tree, seen func(pack.Ref)) (*FrameCursor, error) {
	l, err := newLines(ctx, pages, t, seen, nil)
	return &FrameCursor{lines: l}, err
}

// SeekFrames returns a cursor at or shortly before a slot's first frame.
func SeekFrames(ctx context.Context, pages PageReader, t Tree, slot uint64) (*FrameCursor, error) {
	l, err := newLines(ctx, pages, t, nil, func(next string) bool {
		n, err := strconv.ParseUint(next, 10, 64)
		// A slot may begin in the page before the one that begins with it.
		return err == nil && n < slot
	})
	return &FrameCursor{lines: l}, err
}

// Item is where the current line stands.
func (c *FrameCursor) Item() *Item { return c.item }

// Next goes to the next line; false at the end.
func (c *FrameCursor) Next() (bool, error) {
	item, err := c.lines.next()
	if item == nil || err != nil {
		c.item = nil
		return false, err
	}
	f, err := ParseFrame(item.Line[:len(item.Line)-1])
	if err != nil {
		return false, err
	}
	if c.begun && f.Slot < c.Frame.Slot {
		return false, fmt.Errorf("%w: index page %.12s: slot %d comes after %d", ErrCorrupt, item.Page.Page.ID, f.Slot, c.Frame.Slot)
	}
	c.begun = true
	c.Frame, c.item = f, item
	return true, nil
}
