package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/tarstream"
	"github.com/disko/backupd/internal/snapshot/tree"
)

// volumeRun takes one volume's part of a snapshot.
type volumeRun struct {
	run         string
	name        string
	src         *tree.Source
	trust       tree.Trust
	exclude     patterns
	pick        func(path string) bool // nil: everything
	crossMounts bool
	readers     int
	encoders    int
	buffers     [2]sync.Pool // of memory for readers
	frames      *frameStore  // of the stream
	pages       *frameStore  // of the index
	pg          *pages       // reads the base's pages, and those of this run
	progress    *Progress
	stats       VolumeStats
	warn        func(Warning)
	warnings    []Warning
	counts      Counts
	expiredIdx  map[pack.Name]bool
	used        usage // of data packs, by the last pass
	usedIdx     usage
	failed      error    // met where it could not be returned
	nextSlot    uint64   // of the next pass
	printer     *printer // nil where there is one pass only
	recheck     bool     // an earlier pass of this run is the base: large files differ in little
	hold        *hold    // nil where nothing is frozen
}

// maxPasses bounds how often a volume is gone over for the sake of stale members.
const maxPasses = 4

// take goes over the volume: once, and again as long as a change of types left a
// stale member where plain tar would trip over it. The passes after the first read
// only the groups concerned. The last pass has read everything and is to be finished.
func (v *volumeRun) take(ctx context.Context, b *base) (*pass, error) {
	for n := 0; ; n++ {
		p, err := v.gather(ctx, b)
		if err != nil {
			return nil, err
		}
		if len(p.forced) == 0 {
			return p, nil
		}
		if n == maxPasses {
			p.abandon()
			return nil, errors.New("files and directories keep changing places while the volume is read; stop what changes them and try again")
		}
		vol, err := p.finish(ctx)
		if err != nil {
			return nil, err
		}
		if b, err = v.baseOf(ctx, vol, p.forced); err != nil {
			return nil, err
		}
	}
}

// baseOf makes the result of a pass the base of the next: all of it is on the
// target, but for its manifest.
func (v *volumeRun) baseOf(ctx context.Context, vol *Volume, forced map[uint64]bool) (*base, error) {
	sizes, err := v.pages.w.Flush()
	if err != nil {
		return nil, err
	}
	v.pg.know([]PackRange{{Run: v.run, Sizes: sizes}})
	vol.Rewrite = Rewrite{}
	return openBase(ctx, vol, v.pg, true, forced, v.frames.know)
}

func (v *volumeRun) read(n int) {
	v.progress.Bytes.Add(int64(n))
	v.stats.BytesRead += uint64(n)
}

// knowPage remembers a page of the base, unless it is to be stored again.
func (v *volumeRun) knowPage(ref pack.Ref) {
	if !v.expiredIdx[ref.Pack] {
		v.pages.know(ref)
	}
}

func (v *volumeRun) warning(path string, err error) {
	v.counts.Warnings++
	v.addWarning(Warning{Path: index.Escape(path), What: reason(err)})
}

func (v *volumeRun) addWarning(w Warning) {
	if len(v.warnings) < maxWarnings {
		v.warnings = append(v.warnings, w)
	}
	v.warn(w)
}

// reason is an error's text without the path that stands beside it.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return err.Error()
}

// pass is one walk over the volume against its base.
type pass struct {
	v        *volumeRun
	base     *base
	stream   *stream
	leaves   [index.Sections]*index.Leaves
	builders [index.Sections]*index.Builder
	last     [index.Sections]uint64 // hash of the last line
	used     usage                  // of data packs
	usedIdx  usage
	pages    countedPages
	tail     *collector      // of the frame table's new leaves
	solid    string          // the last path that is in the stream and is no directory
	forced   map[uint64]bool // groups that must not keep a stale member
	line     []byte
	known    *index.Page // whose headers' frames were remembered last
	// lost has the paths of hard-linked files that could not be stored, and
	// the path that holds the content in their stead, once there is one.
	lost map[string]string
}

// collector takes leaves in place of a builder, for later.
type collector struct {
	children []index.Child
	last     []uint64
}

// Leaf implements index.LeafSink.
func (c *collector) Leaf(child index.Child, last uint64) error {
	c.children = append(c.children, child)
	c.last = append(c.last, last)
	return nil
}

// countedPages notes which index packs a snapshot uses.
type countedPages struct {
	*frameStore
	used usage
}

// StorePage implements index.Pages.
func (c countedPages) StorePage(raw []byte) (pack.Ref, error) {
	ref, err := c.frameStore.StorePage(raw)
	c.used.add(ref)
	return ref, err
}

// newPass begins a pass against a base.
func (v *volumeRun) newPass(ctx context.Context, b *base) *pass {
	v.counts, v.warnings, v.stats.FramesReused = Counts{}, nil, 0
	p := &pass{v: v, base: b, used: usage{}, usedIdx: usage{}, forced: map[uint64]bool{}, lost: map[string]string{}}
	pages := countedPages{v.pages, p.usedIdx}
	for s := range p.leaves {
		p.builders[s] = index.NewBuilder(pages)
		p.leaves[s] = index.NewLeaves(p.builders[s], pages)
		if index.Section(s) == index.Nodes {
			p.leaves[s].Tar = func(headers []byte) ([]pack.Ref, error) { return v.frames.storeAll(headers) }
			p.leaves[s].Kept = func(refs []pack.Ref) { p.used.add(refs...) }
			if b != nil {
				p.leaves[s].Expired = func(n pack.Name) bool { return b.expired[n] }
			}
		}
	}
	if b != nil {
		v.nextSlot = max(v.nextSlot, b.vol.NextSlot)
	}
	p.pages, p.tail = pages, &collector{}
	p.stream = v.newStream(ctx, v.nextSlot, index.NewLeaves(p.tail, pages), p.used)
	return p
}

// gather reads all that is to be read. What it returns is to be finished, or abandoned.
func (v *volumeRun) gather(ctx context.Context, b *base) (*pass, error) {
	p := v.newPass(ctx, b)
	err := v.scan(p.stream.ctx, b, p.use)
	if err == nil {
		err = v.failed
	}
	if err != nil {
		return nil, p.fail(err)
	}
	p.stream.closeGroup()
	return p, nil
}

// fail ends a pass that met an error, and returns its cause: that of an encoder
// which ended the pass, if there was one.
func (p *pass) fail(err error) error {
	p.stream.cancel(err)
	if cause := p.stream.g.Wait(); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// abandon ends a pass that is not to be finished.
func (p *pass) abandon() { _ = p.fail(context.Canceled) }

// finish stores what was put off, and the index.
func (p *pass) finish(ctx context.Context) (*Volume, error) {
	v := p.v
	if err := p.stream.close(); err != nil {
		return nil, p.fail(err)
	}
	v.nextSlot = p.stream.next
	vol := &Volume{Name: v.name, NextSlot: v.nextSlot, Counts: v.counts, Warnings: v.warnings}
	for s := range p.leaves {
		err := p.leaves[s].Close(p.last[s])
		if err == nil {
			*vol.Section(index.Section(s)), err = p.builders[s].Close()
		}
		if err != nil {
			return nil, err
		}
	}
	if err := p.frameTable(ctx, vol, p.tail, p.pages); err != nil {
		return nil, err
	}
	p.advise(vol)
	return vol, nil
}

// use puts one item into the sections.
func (p *pass) use(it *item) error {
	if err := context.Cause(p.stream.ctx); err != nil {
		return err
	}
	v := p.v
	p.promote(it)
	e := index.Entry{Path: it.path, Kind: it.kind, Racy: it.racy}
	if it.node != nil {
		e.Mtime, e.Ctime, e.Ino = it.node.Stat.Mtime, it.node.Stat.Ctime, it.node.Stat.Ino
	}
	var header []byte
	switch {
	case it.kind == index.File && it.same:
		e = *it.base
		p.base.slot(e.Slot).live++
		v.progress.Bytes.Add(e.Size)
	case it.kind == index.File:
		if err := p.file(it, &e); err != nil {
			return err
		}
	case it.kind == index.Unreadable:
		v.warning(it.path, fmt.Errorf("not read: %w", it.err))
	case it.kind == index.Mount:
		v.addWarning(Warning{Path: index.Escape(it.path), What: "another file system is mounted here, left out; --cross-mounts takes it", Notice: true})
	case it.kind == index.Socket:
		v.addWarning(Warning{Path: index.Escape(it.path), What: "socket, left out", Notice: true})
	case it.kind.Section() != index.Absent:
		h := &it.header
		if h.Type == tarstream.Link {
			e.Link = h.Link
		}
		e.Mtime = h.Mtime
		var err error
		if header, err = h.Append(nil); err != nil {
			// Nothing tar can express: a link text with a NUL, say.
			v.warning(it.path, err)
			e = index.Entry{Path: it.path, Kind: index.Unreadable}
			header = nil
		}
	}
	if !it.same && !it.kept {
		p.stale(it, &e)
	}
	if it.node != nil && it.node.Stat.Nlink > 1 && it.kind != index.Link && e.Kind.Section() == index.Absent {
		p.lost[it.path] = ""
	}
	if e.Kind.Section() == index.Absent {
		e = index.Entry{Path: e.Path, Kind: e.Kind, Old: e.Old}
		if e.Kind == index.Gone && len(e.Old) == 0 {
			return nil
		}
	} else {
		v.counts.Entries++
		v.progress.Files.Add(1)
		if e.Kind == index.File {
			v.counts.Files++
			v.counts.Bytes += uint64(e.Size)
		}
		if e.Kind != index.Dir {
			p.solid = e.Path
		}
	}
	return p.add(&e, header, it)
}

// promote sees to a hard link whose first path could not be stored: the next
// path of the file takes its place.
func (p *pass) promote(it *item) {
	if it.kind != index.Link {
		return
	}
	now, lost := p.lost[it.link]
	switch {
	case !lost:
	case now != "":
		it.header.Link = now
	case it.node.Stat.Type == tarstream.File:
		p.lost[it.link] = it.path
		it.kind = index.File
	default:
		it.kind, it.err = index.Unreadable, fmt.Errorf("%q, the same file, cannot be read", it.link)
	}
}

// add writes an entry's line to its section.
func (p *pass) add(e *index.Entry, header []byte, it *item) error {
	s := e.Kind.Section()
	var at *index.Item
	if it.base != nil && it.base.Kind.Section() == s {
		at = &it.at
		p.knowHeaders(at.Page)
	}
	if it.same {
		p.line = append(p.line[:0], it.at.Line...)
	} else {
		p.line = e.AppendTo(p.line[:0])
	}
	hash := index.Hash(e.Path)
	p.last[s] = hash
	return p.leaves[s].Add(hash, p.line, header, at)
}

// knowHeaders remembers the frames of a base page's headers: where only a line
// of it changed, an entry that is young no more, the headers are the same.
func (p *pass) knowHeaders(page *index.Page) {
	if page == p.known {
		return
	}
	p.known = page
	for _, ref := range page.Tar {
		if !p.base.expired[ref.Pack] {
			p.v.frames.know(ref)
		}
	}
}

// file stores a regular file that is new, changed or doubtful.
func (p *pass) file(it *item, e *index.Entry) error {
	v := p.v
	unreadable := func(err error) {
		*e = index.Entry{Path: it.path, Kind: index.Unreadable}
		if it.link != "" {
			p.lost[it.link] = "" // the next path has to hold the content
		}
		if errors.Is(err, fs.ErrNotExist) {
			e.Kind = index.Gone // as if it had never been there
			return
		}
		v.warning(it.path, fmt.Errorf("not read: %w", err))
	}
	dirty := false
	if c := it.small; c != nil && !c.grown {
		if c.err != nil {
			unreadable(c.err)
			return nil //nolint:nilerr // it is in the snapshot's warnings
		}
		v.read(len(c.data))
		if err := p.small(it, e); err != nil {
			return fmt.Errorf("store %q: %w", it.path, err)
		}
		dirty = c.dirty
	} else {
		old, err := p.expected(it)
		if err != nil {
			return err
		}
		large, changed, err := p.stream.large(it, old)
		if err != nil {
			if cause := context.Cause(p.stream.ctx); cause != nil {
				return cause
			}
			unreadable(err)
			return nil
		}
		large.Racy = e.Racy
		*e = large
		dirty = changed
	}
	if dirty {
		e.Racy = true
		v.warning(it.path, errors.New("changed while it was read; its content may be torn"))
	}
	return nil
}

// expected returns the frames that a large file's content is expected in.
// Where they cannot be told, what the base has of the file comes into sight.
func (p *pass) expected(it *item) ([]pack.Ref, error) {
	if p.base == nil || it.base == nil || it.base.Kind != index.File {
		p.stream.window.leave()
		return nil, nil
	}
	if p.v.recheck {
		if old, err := p.base.content(p.stream.ctx, it.base); old != nil || err != nil {
			return old, err
		}
	}
	return nil, p.stream.window.open(p.stream.ctx, p.base, it.base.Slot)
}

// small stores a small file, unless the base has it and only its stat was in doubt.
func (p *pass) small(it *item, e *index.Entry) (err error) {
	c := it.small
	e.Size, e.Mtime, e.Ctime, e.Ino = c.header.Size, c.stat.Mtime, c.stat.Ctime, c.stat.Ino
	doubted := it.base != nil && it.base.Kind == index.File && it.base.Sum != ""
	e.Racy = e.Racy || c.dirty
	sum := ""
	if e.Racy || doubted {
		if sum, err = p.stream.sum(c); err != nil {
			return err
		}
	}
	if e.Racy {
		e.Sum = sum
	}
	if doubted && it.base.Sum == sum {
		if slot := p.base.slot(it.base.Slot); slot != nil && !slot.dying && slot.members > 0 {
			slot.live++
			e.Slot, e.Off, e.Old = it.base.Slot, it.base.Off, it.base.Old
			it.kept = true
			return nil
		}
	}
	e.Slot, e.Off, err = p.stream.small(c, index.Hash(it.path))
	return err
}

// stale sees to the members of kept groups that bear a path which the
// snapshot has otherwise or not at all: plain tar extracts them, and must come out right.
func (p *pass) stale(it *item, e *index.Entry) {
	if it.base == nil {
		return
	}
	old := p.base.stale(it.base)
	if len(old) == 0 {
		return
	}
	// A file may come before another file, a symlink or nothing of its name. It
	// may not come before a directory of its name, nor below what is no directory.
	if e.Kind == index.Dir || p.solid != "" && index.Below(e.Path, p.solid) {
		for _, s := range old {
			p.forced[s] = true
		}
		return
	}
	e.Old = old
}

// frameTable writes the table of the files section: what is kept of the
// base's, then this run's slots, whose leaves are in tail.
func (p *pass) frameTable(ctx context.Context, vol *Volume, tail *collector, pages countedPages) error {
	b := index.NewBuilder(pages)
	if p.base != nil {
		leaves := index.NewLeaves(b, pages)
		cur, err := index.NewFrameCursor(ctx, p.base.pages, p.base.vol.Frames, p.v.knowPage)
		if err != nil {
			return err
		}
		var last uint64
		for {
			ok, err := cur.Next()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			if s := p.base.slot(cur.Frame.Slot); s == nil || s.live == 0 {
				continue
			}
			p.used.add(cur.Frame.Ref)
			if cur.Frame.Pack.Run != p.v.run {
				p.v.stats.FramesReused++
			}
			last = cur.Frame.Hash()
			if err := leaves.Add(last, cur.Item().Line, nil, cur.Item()); err != nil {
				return err
			}
		}
		if err := leaves.Close(last); err != nil {
			return err
		}
	}
	for i, c := range tail.children {
		if err := b.Leaf(c, tail.last[i]); err != nil {
			return err
		}
	}
	var err error
	vol.Frames, err = b.Close()
	return err
}

// advise notes what the next run should store again, and sums up what is used.
func (p *pass) advise(vol *Volume) {
	if p.base != nil {
		for _, s := range p.base.slots {
			if s.live > 0 && s.members > 0 && s.live*2 < s.members {
				vol.Rewrite.Slots = append(vol.Rewrite.Slots, s.slot)
			}
		}
	}
	p.v.used, p.v.usedIdx = p.used, p.usedIdx
}

// sparsePack is the share of a pack, in percent, below which what is still used
// of it is stored again, so that old packs die whole.
const sparsePack = 30

// settle turns the use of packs into what the manifest says of them: the
// packs needed, with their sizes, and those not worth keeping.
func settle(used usage, known []PackRange, run string, sizes []uint32) (ranges []PackRange, expired []string, err error) {
	all := map[pack.Name]uint32{}
	for _, r := range append(slices.Clone(known), PackRange{Run: run, Sizes: sizes}) {
		for i, size := range r.Sizes {
			all[pack.Name{Run: r.Run, N: r.First + uint32(i)}] = size
		}
	}
	names := make([]pack.Name, 0, len(used))
	for n := range used {
		names = append(names, n)
	}
	slices.SortFunc(names, comparePacks)
	for _, n := range names {
		size, ok := all[n]
		if !ok {
			return nil, nil, fmt.Errorf("%w: the parent uses pack %s and does not list it", ErrDamaged, n)
		}
		if n.Run != run && used[n]*100 < uint64(size)*sparsePack {
			expired = append(expired, n.String())
		}
		if k := len(ranges); k > 0 && ranges[k-1].Run == n.Run && ranges[k-1].First+uint32(len(ranges[k-1].Sizes)) == n.N {
			ranges[k-1].Sizes = append(ranges[k-1].Sizes, size)
			continue
		}
		ranges = append(ranges, PackRange{Run: n.Run, First: n.N, Sizes: []uint32{size}})
	}
	return ranges, expired, nil
}

func comparePacks(a, b pack.Name) int {
	if a.Run != b.Run {
		if a.Run < b.Run {
			return -1
		}
		return 1
	}
	return int(int64(a.N) - int64(b.N))
}
