package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/tarstream"
	"github.com/disko/backupd/internal/snapshot/tree"
)

// plan is what a restore will do to a volume that holds something.
type plan struct {
	mu sync.Mutex
	// changed has the hash of every path that will be written anew or removed.
	// A collision means a file too much, never one too few.
	changed map[uint64]struct{}
	remove  []string // what the snapshot does not have, topmost first
	bytes   int64    // of the files that go
	absent  map[string]index.Kind
	// found, where set, is a comparison: what differs is noted there, and also what a
	// restore would write anew to be on the safe side is looked into.
	found *Compared
}

// touch notes that a path differs from the snapshot, and how.
func (p *plan) touch(path, how string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	hash := index.Hash(path)
	if _, known := p.changed[hash]; known {
		return
	}
	p.changed[hash] = struct{}{}
	if p.found != nil {
		p.found.differs(path, how)
	}
}

func (p *plan) touches(path string) bool {
	if p == nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.changed[index.Hash(path)]
	return ok
}

// planner walks the volume beside the snapshot.
type planner struct {
	*restore
	*plan
	cur     *merged
	entry   *index.Entry
	removed string // topmost path on its way out
	err     error
}

// makePlan compares the volume with the snapshot: types by a walk, then what
// is of the right type by its metadata and content, every byte of it.
func (r *restore) makePlan(ctx context.Context) (*plan, error) {
	p := &plan{changed: map[uint64]struct{}{}, found: r.exact}
	src, err := tree.OpenSource(r.o.Path)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	pl := &planner{restore: r, plan: p}
	if pl.cur, err = newMerged(ctx, r.v.pg, r.v.vol, nil); err == nil {
		err = pl.advance()
	}
	if err == nil {
		err = src.Walk(ctx, pl)
	}
	for err == nil && pl.err == nil && pl.entry != nil {
		pl.lacks(pl.entry)
		err = pl.advance()
	}
	if err = errors.Join(pl.err, err); err != nil {
		return nil, fmt.Errorf("compare %s with the snapshot: %w", r.o.Path, err)
	}
	if err := r.compare(ctx, p); err != nil {
		return nil, fmt.Errorf("compare %s with the snapshot: %w", r.o.Path, err)
	}
	return p, nil
}

func (p *planner) advance() error {
	e, _, err := p.cur.next()
	p.entry = nil
	if e != nil {
		c := *e
		p.entry = &c
	}
	return err
}

// lacks notes an entry of the snapshot that the volume does not have.
func (p *planner) lacks(e *index.Entry) {
	if p.found != nil && (e.Kind == index.Gone || e.Kind.LeftOut() || e.Path == index.Root) {
		return
	}
	p.touch(e.Path, "is missing")
}

// Skip implements tree.Visitor: it does the comparing; Visit has nothing left to do.
func (p *planner) Skip(n *tree.Node) bool {
	if p.err != nil || n.Path == tree.IncompleteMark || strings.HasPrefix(n.Path, "lost+found") && (n.Path == "lost+found" || n.Path[10] == '/') {
		return true
	}
	var e *index.Entry
	for p.entry != nil && p.err == nil {
		d := index.ComparePaths(p.entry.Path, n.Path)
		if d > 0 {
			break
		}
		if d == 0 {
			e = p.entry
		} else {
			p.lacks(p.entry)
		}
		p.err = p.advance()
	}
	if e != nil && e.Kind == index.Gone {
		e = nil
	}
	isDir := n.Stat.Type == tarstream.Dir
	how := "is not in the snapshot"
	switch {
	case e != nil && e.Kind.LeftOut():
		return true // its like was there when the snapshot was taken: hands off
	case n.Stat.MountRoot:
		return true
	case p.removed != "" && index.Below(n.Path, p.removed):
	case e == nil && !p.included(n.Path, isDir):
		// Something below may be included.
		return false
	case e == nil || e.Kind != index.KindOf(n.Stat.Type) && !(e.Kind == index.Link && !isDir):
		p.removed = n.Path
		p.remove = append(p.remove, n.Path)
		if e != nil {
			how = "is of another type"
		}
	case e.Kind == index.File && n.Stat.Nlink > 1 && p.found == nil:
		// It may be linked to what the snapshot has apart: write it anew.
	default:
		return false
	}
	p.touch(n.Path, how)
	if n.Stat.Type == tarstream.File {
		p.bytes += n.Stat.Size
	}
	return false
}

// Visit implements tree.Visitor.
func (p *planner) Visit(n *tree.Node) error {
	n.Release()
	if n.Err != nil && p.err == nil {
		return fmt.Errorf("%q: %w", n.Path, n.Err)
	}
	return p.err
}

// compare finds, among what is of the right type, what differs.
func (r *restore) compare(ctx context.Context, p *plan) error {
	err := r.v.files(ctx, func(e *index.Entry) bool { return !p.touches(e.Path) && r.wants(e.Path) }, func(e *index.Entry, h *tarstream.Header) (fileSink, error) {
		st, err := r.dest.Lstat(e.Path)
		if err != nil {
			return nil, err
		}
		differs := func(how string) {
			p.touch(e.Path, how)
			p.mu.Lock()
			p.bytes += st.Size
			p.mu.Unlock()
		}
		same, err := r.sameMeta(h, &st)
		if err != nil {
			return nil, err
		}
		if !same || st.Size != h.Size {
			differs("has another size, time, mode, owner or attribute")
			return nil, nil
		}
		f, err := r.dest.OpenRead(e.Path)
		if err != nil {
			return nil, err
		}
		if p.found != nil {
			p.found.add(h.Size)
		}
		return &comparer{f: f, extents: layout(h), differs: func() { differs("has another content") }}, nil
	})
	if err != nil {
		return err
	}
	return r.v.nodes(ctx, func(e *index.Entry, h *tarstream.Header) error {
		if p.touches(e.Path) || !r.wants(e.Path) {
			return nil
		}
		if e.Kind == index.Dir || e.Kind == index.Link {
			if p.found == nil {
				return nil
			}
			return r.compareNode(p, e, h)
		}
		st, err := r.dest.Lstat(e.Path)
		if err != nil {
			return err
		}
		same, err := r.sameMeta(h, &st)
		if err == nil && same && h.Type == tarstream.Symlink {
			var text string
			text, err = r.dest.Readlink(e.Path)
			same = text == h.Link
		}
		if same = same && st.Major == h.Major && st.Minor == h.Minor; !same && err == nil {
			p.touch(e.Path, "has another time, mode, owner, attribute, target or device")
		}
		if p.found != nil {
			p.found.add(0)
		}
		return err
	})
}

// sameMeta says whether what stands in the volume has the header's metadata.
func (r *restore) sameMeta(h *tarstream.Header, st *tree.Stat) (bool, error) {
	if st.Mode != h.Mode && h.Type != tarstream.Symlink || st.Mtime != h.Mtime || !r.o.NoOwner && (st.UID != h.UID || st.GID != h.GID) {
		return false, nil
	}
	x, err := r.dest.Xattrs(h.Path)
	if err != nil {
		return false, err
	}
	return slices.EqualFunc(x, h.Xattrs, func(a, b tarstream.Xattr) bool { return a.Name == b.Name && bytes.Equal(a.Value, b.Value) }), nil
}

// layout is where a file's data lies in it.
func layout(h *tarstream.Header) []tarstream.Extent {
	if h.Sparse != nil {
		return h.Sparse
	}
	return []tarstream.Extent{{Length: h.Size}}
}

// spread calls use for each stretch of a piece of data: where it lies in the file.
func spread(extents []tarstream.Extent, p []byte, off int64, use func(p []byte, at int64) error) error {
	for _, e := range extents {
		if len(p) == 0 {
			return nil
		}
		if off >= e.Length {
			off -= e.Length
			continue
		}
		n := min(int64(len(p)), e.Length-off)
		if err := use(p[:n], e.Offset+off); err != nil {
			return err
		}
		p, off = p[n:], 0
	}
	return nil
}

// comparer is a fileSink that compares. Holes it does not look into: they are
// read as zeros in files of the same size, or hold data that the extents'
// neighbours would show; zeros reads them.
type comparer struct {
	f interface {
		io.ReaderAt
		io.Closer
	}
	extents []tarstream.Extent
	differs func()
	mu      sync.Mutex
	unlike  bool
}

// Write implements fileSink.
func (c *comparer) Write(p []byte, off int64) error {
	return spread(c.extents, p, off, func(p []byte, at int64) error {
		have := make([]byte, len(p))
		if _, err := c.f.ReadAt(have, at); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !bytes.Equal(have, p) {
			c.mu.Lock()
			c.unlike = true
			c.mu.Unlock()
		}
		return nil
	})
}

// Done implements fileSink.
func (c *comparer) Done() error {
	defer c.f.Close()
	pos := int64(0)
	for _, e := range c.extents {
		if !c.unlike && !zeroBetween(c.f, pos, e.Offset) {
			c.unlike = true
		}
		pos = e.Offset + e.Length
	}
	if !c.unlike && !zeroBetween(c.f, pos, 1<<62) {
		c.unlike = true
	}
	if c.unlike {
		c.differs()
	}
	return nil
}

// Abort implements fileSink.
func (c *comparer) Abort() { _ = c.f.Close() }

// zeroBetween says whether a file reads as zeros between two places.
func zeroBetween(f io.ReaderAt, from, to int64) bool {
	buf := make([]byte, 64<<10)
	for from < to {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), to-from)], from)
		for _, b := range buf[:n] {
			if b != 0 {
				return false
			}
		}
		if err != nil {
			return errors.Is(err, io.EOF)
		}
		from += int64(n)
	}
	return true
}
