package snapshot

import (
	"context"
	"errors"
	"io/fs"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/tarstream"
	"github.com/disko/backupd/internal/snapshot/tree"
)

// item is one path of the tree, of the base, or of both.
type item struct {
	path   string
	node   *tree.Node   // nil: only the base has it
	kind   index.Kind   // what it is now; Gone where only the base has it
	link   string       // holder's path, of a Link
	racy   bool         // its stat will not be trusted next time
	same   bool         // unchanged against the base
	kept   bool         // was read, and is what the base has
	base   *index.Entry // nil: the base does not have it
	at     index.Item   // where the base has it
	header tarstream.Header
	err    error // why it cannot be read
	small  *content
	ready  chan struct{} // closed when small was read; nil where nothing is to be read
}

// scanner walks the tree beside its base and sends both, merged, in the order
// of paths. Small files that changed are read ahead, several at once.
type scanner struct {
	v       *volumeRun
	base    *base
	ctx     context.Context //nolint:containedctx // lives as long as the one call that made it
	cur     *merged
	entry   *index.Entry // the base's next
	at      index.Item
	trust   tree.Trust
	rootDev uint64
	holders map[inode]*holder
	out     chan *item
	reads   chan *item
	memory  *semaphore.Weighted // of small files that were read and not used yet
}

type inode struct{ dev, ino uint64 }

// holder is the first path of a file with several hard links.
type holder struct {
	path string
	left uint32 // links not seen yet; the record goes with the last
}

// readAhead is how many items may wait between the walk and the stream.
const readAhead = 256

// readMemory bounds the content that waits, in bytes.
const readMemory = 8 << 20

// scan walks the source and calls use for each item, in order.
func (v *volumeRun) scan(ctx context.Context, b *base, use func(*item) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	s := &scanner{
		v: v, base: b, ctx: ctx, trust: v.trust, rootDev: v.src.Root().Dev, holders: map[inode]*holder{},
		out: make(chan *item, readAhead), reads: make(chan *item, readAhead), memory: semaphore.NewWeighted(readMemory),
	}
	g.Go(func() error {
		defer close(s.out)
		defer close(s.reads)
		return s.walk()
	})
	for range v.readers {
		g.Go(func() error {
			for it := range s.reads {
				c := content{err: ctx.Err(), buf: v.buffer(it.node.Stat.Size).Get().(*[]byte)}
				if c.err == nil {
					c = readSmall(it.node, smallMax, c.buf)
				}
				it.small = &c
				close(it.ready)
			}
			return nil
		})
	}
	var failed error
	for it := range s.out {
		if it.ready != nil {
			<-it.ready // a reader closes it: they end only when reads is drained
		}
		if failed == nil {
			if failed = use(it); failed != nil {
				cancel()
			}
		}
		if it.small != nil {
			v.buffer(it.node.Stat.Size).Put(it.small.buf)
			s.memory.Release(it.node.Stat.Size)
		}
		if it.node != nil {
			it.node.Release()
		}
	}
	if err := g.Wait(); failed == nil {
		failed = err
	}
	return failed
}

func (s *scanner) walk() error {
	if s.base != nil {
		var err error
		if s.cur, err = newMerged(s.ctx, s.base.pages, s.base.vol, s.v.knowPage); err != nil {
			return err
		}
		if err := s.advance(); err != nil {
			return err
		}
	}
	if err := s.v.src.Walk(s.ctx, s); err != nil {
		return err
	}
	for s.entry != nil {
		if err := s.sendGone(); err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) advance() error {
	e, at, err := s.cur.next()
	if err != nil {
		return err
	}
	s.entry = nil
	if e != nil {
		c := *e
		s.entry, s.at = &c, at
	}
	return nil
}

func (s *scanner) sendGone() error {
	it := &item{path: s.entry.Path, kind: index.Gone, base: s.entry, at: s.at}
	if err := s.send(it); err != nil {
		return err
	}
	return s.advance()
}

func (s *scanner) send(it *item) error {
	if it.ready != nil {
		if err := s.memory.Acquire(s.ctx, it.node.Stat.Size); err != nil {
			it.node.Release()
			return err
		}
		select {
		case s.reads <- it:
		case <-s.ctx.Done():
			it.node.Release()
			return s.ctx.Err()
		}
	}
	select {
	case s.out <- it:
		return nil
	case <-s.ctx.Done():
		if it.ready != nil {
			<-it.ready
		}
		if it.node != nil {
			it.node.Release()
		}
		return s.ctx.Err()
	}
}

// item begins an item, sending first what the base has before it.
func (s *scanner) item(n *tree.Node) (*item, error) {
	it := &item{path: n.Path, node: n}
	for s.entry != nil {
		d := index.ComparePaths(s.entry.Path, n.Path)
		if d > 0 {
			break
		}
		if d == 0 {
			it.base, it.at = s.entry, s.at
			return it, s.advance()
		}
		if err := s.sendGone(); err != nil {
			return nil, err
		}
	}
	return it, nil
}

// Skip implements tree.Visitor: what is left out on purpose.
func (s *scanner) Skip(n *tree.Node) bool {
	isDir := n.Stat.Type == tarstream.Dir
	switch {
	case s.v.exclude.match(s.v.name, n.Path, isDir), n.Path == tree.IncompleteMark:
		return s.leaveOut(n, index.Excluded)
	case !s.v.crossMounts && (n.Stat.MountRoot || isDir && !n.Stat.MountKnown && n.Stat.Dev != s.rootDev):
		return s.leaveOut(n, index.Mount)
	case n.Stat.Type == 0:
		return s.leaveOut(n, index.Socket)
	case s.v.pick != nil && !isDir && !s.v.pick(n.Path):
		return s.leaveOut(n, index.Kept)
	}
	return false
}

func (s *scanner) leaveOut(n *tree.Node, kind index.Kind) bool {
	it, err := s.item(&tree.Node{Path: n.Path, Stat: n.Stat})
	if err == nil {
		it.kind = kind
		err = s.send(it)
	}
	// An error here is that of the run's context, or of the base: Visit meets it again.
	if err != nil && s.v.failed == nil {
		s.v.failed = err
	}
	return true
}

// Visit implements tree.Visitor.
func (s *scanner) Visit(n *tree.Node) error {
	if s.v.failed != nil {
		return s.v.failed
	}
	it, err := s.item(n)
	if err != nil {
		return err
	}
	s.decide(it)
	if it.err != nil && errors.Is(it.err, fs.ErrNotExist) {
		// It vanished since its directory was read: as if it had never been there.
		n.Release()
		it.node, it.kind, it.err = nil, index.Gone, nil
		if it.base == nil {
			return nil
		}
	}
	return s.send(it)
}

// decide says what an item is and whether it has to be read.
func (s *scanner) decide(it *item) {
	n := it.node
	if n.Err != nil {
		it.kind, it.err = index.Unreadable, n.Err
		return
	}
	it.kind = index.KindOf(n.Stat.Type)
	it.racy = !s.trust.Stats || s.trust.Racy(&n.Stat)
	if n.Stat.Nlink > 1 && it.kind != index.Dir {
		s.decideLink(it)
	}
	if it.kind != index.File {
		if it.header, it.err = n.Header(); it.err != nil {
			it.kind = index.Unreadable
			return
		}
		if it.kind == index.Link {
			it.header = tarstream.Header{
				Path: it.path, Type: tarstream.Link, Link: it.link,
				Mode: n.Stat.Mode, UID: n.Stat.UID, GID: n.Stat.GID, Mtime: n.Stat.Mtime,
			}
		}
		return
	}
	if it.same = s.unchanged(it); !it.same && n.Stat.Size <= smallMax {
		it.ready = make(chan struct{})
	}
}

// decideLink makes every path of an inode after the first a hard link to it.
func (s *scanner) decideLink(it *item) {
	key := inode{it.node.Stat.Dev, it.node.Stat.Ino}
	h := s.holders[key]
	if h == nil {
		s.holders[key] = &holder{path: it.path, left: it.node.Stat.Nlink - 1}
		return
	}
	it.kind, it.link = index.Link, h.path
	if h.left--; h.left == 0 {
		delete(s.holders, key)
	}
}

// unchanged says whether a regular file is what the base has.
func (s *scanner) unchanged(it *item) bool {
	e := it.base
	if e == nil || !s.base.trusted || !s.trust.Stats || e.Kind != index.File || e.Racy {
		return false
	}
	st := &it.node.Stat
	if e.Size != st.Size || e.Mtime != st.Mtime || e.Ctime != st.Ctime || e.Ino != st.Ino {
		return false
	}
	slot := s.base.slot(e.Slot)
	return slot != nil && !slot.dying
}

// smallBuffer divides the readers' buffers in two classes, lest each of
// those that wait in a pool grows to the largest file that it ever held.
const smallBuffer = 32 << 10

// buffer is where readers get the memory for a file of that size.
func (v *volumeRun) buffer(size int64) *sync.Pool {
	if size <= smallBuffer {
		return &v.buffers[0]
	}
	return &v.buffers[1]
}
