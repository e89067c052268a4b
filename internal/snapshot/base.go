package snapshot

import (
	"context"
	"fmt"
	"slices"
	"sort"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
)

// base is the snapshot of a volume that a pass compares the tree with.
type base struct {
	vol     *Volume
	pages   *pages
	trusted bool // an unchanged stat in it means unchanged content
	slots   []baseSlot
	expired map[pack.Name]bool // data packs whose frames are stored again
	// rewrite are slots that are given up: their entries are read again.
	rewrite map[uint64]bool
}

// baseSlot is a slot of the base's stream.
type baseSlot struct {
	slot    uint64
	members uint32 // 0: a large file
	live    uint32 // entries of this pass that stay in it
	dying   bool
}

// openBase reads the base's frame table.
func openBase(ctx context.Context, vol *Volume, pg *pages, trusted bool, forced map[uint64]bool, know func(pack.Ref)) (*base, error) {
	b := &base{vol: vol, pages: pg, trusted: trusted, expired: map[pack.Name]bool{}, rewrite: map[uint64]bool{}}
	for _, s := range vol.Rewrite.Packs {
		name, err := pack.ParseName(s)
		if err != nil {
			return nil, fmt.Errorf("advice of the parent: %w", err)
		}
		b.expired[name] = true
	}
	for _, s := range vol.Rewrite.Slots {
		b.rewrite[s] = true
	}
	for s := range forced {
		b.rewrite[s] = true
	}
	cur, err := index.NewFrameCursor(ctx, pg, vol.Frames, nil)
	if err != nil {
		return nil, err
	}
	for {
		ok, err := cur.Next()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		f := cur.Frame
		if n := len(b.slots); n == 0 || b.slots[n-1].slot != f.Slot {
			b.slots = append(b.slots, baseSlot{slot: f.Slot, members: f.Members, dying: b.rewrite[f.Slot]})
		}
		if b.expired[f.Pack] {
			b.slots[len(b.slots)-1].dying = true
			continue
		}
		know(f.Ref)
	}
	return b, nil
}

// slot returns the base's slot of that number, or nil.
func (b *base) slot(n uint64) *baseSlot {
	i := sort.Search(len(b.slots), func(i int) bool { return b.slots[i].slot >= n })
	if i == len(b.slots) || b.slots[i].slot != n {
		return nil
	}
	return &b.slots[i]
}

// stale returns the groups that would hold a stale member of a path whose
// base entry is e, if that entry is not kept.
func (b *base) stale(e *index.Entry) []uint64 {
	var out []uint64
	add := func(n uint64) {
		if s := b.slot(n); s != nil && s.members > 0 && !s.dying {
			out = append(out, n)
		}
	}
	for _, n := range e.Old {
		add(n)
	}
	if e.Kind == index.File {
		add(e.Slot)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// merged walks the entries of all sections of a volume in the order of paths.
type merged struct {
	cursors [index.Sections]*index.Cursor
	at      int // section of the current entry
}

// newMerged returns a merged cursor before the first entry of the sections.
func newMerged(ctx context.Context, pg *pages, vol *Volume, know func(pack.Ref), sections ...index.Section) (*merged, error) {
	m := &merged{at: -1}
	if len(sections) == 0 {
		sections = []index.Section{index.Files, index.Nodes, index.Absent}
	}
	for _, s := range sections {
		c, err := index.NewCursor(ctx, pg, *vol.Section(s), know)
		if err == nil {
			err = m.begin(s, c)
		}
		if err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *merged) begin(s index.Section, c *index.Cursor) error {
	ok, err := c.Next()
	if ok {
		m.cursors[s] = c
		err = m.checkSection(s)
	}
	return err
}

// next goes to the next entry and returns it with its place; nil at the end.
func (m *merged) next() (*index.Entry, index.Item, error) {
	if m.at >= 0 {
		c := m.cursors[m.at]
		ok, err := c.Next()
		if err != nil {
			return nil, index.Item{}, err
		}
		if !ok {
			m.cursors[m.at] = nil
		} else if err := m.checkSection(index.Section(m.at)); err != nil {
			return nil, index.Item{}, err
		}
	}
	m.at = -1
	for i, c := range m.cursors {
		if c == nil {
			continue
		}
		if m.at < 0 {
			m.at = i
			continue
		}
		switch d := index.ComparePaths(c.Entry.Path, m.cursors[m.at].Entry.Path); {
		case d < 0:
			m.at = i
		case d == 0:
			return nil, index.Item{}, fmt.Errorf("%w: index has %.200q twice", ErrDamaged, c.Entry.Path)
		}
	}
	if m.at < 0 {
		return nil, index.Item{}, nil
	}
	c := m.cursors[m.at]
	return &c.Entry, *c.Item(), nil
}

// checkSection refuses an entry in a section that is not its own.
func (m *merged) checkSection(s index.Section) error {
	if e := &m.cursors[s].Entry; e.Kind.Section() != s {
		return fmt.Errorf("%w: index has %.200q, a %s, among the %s", ErrDamaged, e.Path, e.Kind, s)
	}
	return nil
}
