package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/tarstream"
	"github.com/disko/backupd/internal/snapshot/tree"
)

const (
	// smallMax is the largest file that goes into a group, in bytes.
	smallMax = 256 << 10
	// groupTarget is T of the format: about how many bytes a group has. It has
	// at least a quarter of it and at most four times as much.
	groupTarget = 256 << 10
	groupMin    = groupTarget / 4
	groupMax    = groupTarget * 4
)

// lastOfGroup says whether a group ends after a file: a property of its path
// and size alone, so that boundaries stay where they are when others change.
// It is true with probability weight/groupTarget.
func lastOfGroup(hash uint64, weight int) bool {
	if weight >= groupTarget {
		return true
	}
	limit, _ := bits.Div64(uint64(weight), 0, groupTarget) // 2^64 x weight / T
	return hash < limit
}

// stream writes the files section of a volume's stream: it cuts it into slots
// and frames, and encodes these in the background.
type stream struct {
	v      *volumeRun
	g      *errgroup.Group // encoders
	ctx    context.Context //nolint:containedctx // lives as long as the one call that made it
	cancel context.CancelCauseFunc
	tail   *index.Leaves
	next   uint64 // slot
	queue  []*slotJob
	group  *slotJob
	bufs   chan *[]byte // memory of groups and chunks under way; its capacity bounds them
	used   usage
	last   uint64  // hash of the tail's last line
	header []byte  // scratch
	cut    chunker // of large files; its memory serves one after the other
	window frameWindow
	held   []func() error // put off while the services stand still
}

// slotJob is a slot on its way.
type slotJob struct {
	slot      uint64
	raw       *[]byte // of an open group
	members   uint32
	abandoned bool // its file could not be read to the end

	pending atomic.Int32  // pieces not encoded yet, and one for whoever still adds pieces
	done    chan struct{} // closed when there are none
	mu      sync.Mutex
	header  []pack.Ref // of a large file, before its frames in the stream
	frames  []pack.Ref
}

func (j *slotJob) release() {
	if j.pending.Add(-1) == 0 {
		close(j.done)
	}
}

// newStream returns a stream whose slots begin at first. New frames' lines go to tail.
func (v *volumeRun) newStream(ctx context.Context, first uint64, tail *index.Leaves, u usage) *stream {
	ctx, cancel := context.WithCancelCause(ctx)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(v.encoders)
	s := &stream{v: v, g: g, cancel: cancel, ctx: ctx, tail: tail, next: first, used: u, bufs: make(chan *[]byte, 2*v.encoders+2)}
	s.window.frames = v.frames
	for range cap(s.bufs) {
		s.bufs <- new([]byte)
	}
	return s
}

func (s *stream) buffer() (*[]byte, error) {
	select {
	case b := <-s.bufs:
		*b = (*b)[:0]
		return b, nil
	case <-s.ctx.Done():
		return nil, context.Cause(s.ctx)
	}
}

// giveBack returns a buffer that buffer handed out.
func (s *stream) giveBack(b *[]byte) { s.bufs <- b }

// encode has an encoder do its work on raw, a buffer, and gives that back. While
// the services are frozen it only keeps a copy, as long as there is memory for it.
func (s *stream) encode(raw *[]byte, work func(raw []byte) error) {
	if s.v.hold.keep(len(*raw)) {
		kept := slices.Clone(*raw)
		s.giveBack(raw)
		s.held = append(s.held, func() error { return work(kept) })
		return
	}
	s.unhold()
	s.g.Go(func() error {
		defer s.giveBack(raw)
		return work(*raw)
	})
}

// own is encode of bytes that nobody uses further.
func (s *stream) own(raw []byte, work func(raw []byte) error) {
	if s.v.hold.keep(len(raw)) {
		s.held = append(s.held, func() error { return work(raw) })
		return
	}
	s.unhold()
	s.g.Go(func() error { return work(raw) })
}

// unhold does what was put off.
func (s *stream) unhold() {
	for i, work := range s.held {
		s.held[i] = nil
		s.g.Go(work)
	}
	s.held = nil
}

func (s *stream) open() *slotJob {
	j := &slotJob{slot: s.next, done: make(chan struct{})}
	j.pending.Store(1)
	s.next++
	s.queue = append(s.queue, j)
	return j
}

// sum is what a racy file is known by: its header and content.
func (s *stream) sum(c *content) (string, error) {
	header, err := c.header.Append(s.header[:0])
	if err != nil {
		return "", err
	}
	s.header = header
	h := sha256.New()
	h.Write(header)
	h.Write(c.data)
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// small adds a small file to the open group and returns where it lies.
func (s *stream) small(c *content, hash uint64) (slot uint64, off uint32, err error) {
	header, err := c.header.Append(s.header[:0])
	if err != nil {
		return 0, 0, err
	}
	s.header = header
	pad := tarstream.Padding(int64(len(c.data)))
	weight := len(header) + len(c.data) + pad
	if s.group != nil && len(*s.group.raw)+weight > groupMax {
		s.closeGroup()
	}
	if s.group == nil {
		raw, err := s.buffer()
		if err != nil {
			return 0, 0, err
		}
		s.group = s.open()
		s.group.raw = raw
	}
	j := s.group
	off = uint32(len(*j.raw))
	*j.raw = append(append(append(*j.raw, header...), c.data...), zeros[:pad]...)
	j.members++
	if len(*j.raw) >= groupMax || len(*j.raw) >= groupMin && lastOfGroup(hash, weight) {
		s.closeGroup()
	}
	return j.slot, off, s.drain(false)
}

var zeros [512]byte

// closeGroup hands the open group to an encoder.
func (s *stream) closeGroup() {
	j := s.group
	if j == nil {
		return
	}
	s.group = nil
	s.encode(j.raw, func(raw []byte) error {
		defer j.release()
		refs, err := s.v.frames.storeAll(raw)
		j.frames = refs
		return err
	})
	j.raw = nil
}

// large adds a large file: its content first, then the header that fits what
// was read. It says where it lies, and whether it changed meanwhile. old, where
// not nil, are the frames that most of its content is expected in.
func (s *stream) large(it *item, old []pack.Ref) (e index.Entry, dirty bool, err error) {
	f, st, err := it.node.Open()
	if err != nil {
		return e, false, err
	}
	defer f.Close()
	if it.node.Stat.Nlink > 1 && st.Ino != it.node.Stat.Ino {
		return e, false, tree.ErrReplaced // other paths of the old file count on its content
	}
	h := st.Header(it.path)
	if h.Xattrs, err = f.Xattrs(); err != nil {
		return e, false, err
	}
	if err := sparse(&h, f, st); err != nil {
		return e, false, err
	}
	j := s.open()
	if old != nil && h.Sparse == nil {
		err = s.again(j, f, &h, it.base.Size, old)
	} else {
		err = s.chunks(j, newExtentReader(f, &h, s.v.read), &h)
	}
	if err == nil {
		err = s.headed(j, &h)
	}
	if err != nil {
		j.abandoned = true
		j.release()
		return e, false, err
	}
	after, err := f.Stat()
	if err != nil {
		return e, false, err
	}
	e = index.Entry{Path: it.path, Kind: index.File, Size: h.Size, Mtime: st.Mtime, Ctime: st.Ctime, Ino: st.Ino, Slot: j.slot}
	return e, !after.Same(&st), s.drain(false)
}

// headed adds the header of a large file whose content was read, and with it
// the last piece of its slot.
func (s *stream) headed(j *slotJob, h *tarstream.Header) error {
	buf, err := s.buffer()
	if err != nil {
		return err
	}
	if *buf, err = h.Append(*buf); err != nil {
		s.giveBack(buf)
		return err
	}
	s.encode(buf, func(raw []byte) error {
		defer j.release()
		var err error
		j.header, err = inFrames(raw, s.v.frames.storeApart)
		return err
	})
	return nil
}

// chunks cuts content into frames. The padding belongs to the last.
func (s *stream) chunks(j *slotJob, r io.Reader, h *tarstream.Header) error {
	s.cut.reset(r, 0)
	for more := true; more; {
		err := s.window.move(s.cut.pos)
		if err != nil {
			return err
		}
		if _, more, err = s.cutNext(j, h.DataSize); err != nil {
			return err
		}
	}
	return nil
}

// cutNext cuts one chunk off what is read, and says how long it is and whether
// others follow. size is asked for the length of the whole once the last was read.
func (s *stream) cutNext(j *slotJob, size func() int64) (n int, more bool, err error) {
	buf, err := s.buffer()
	if err != nil {
		return 0, false, err
	}
	*buf, more, err = s.cut.next(*buf)
	if err != nil || len(*buf) == 0 {
		s.giveBack(buf)
		return 0, false, err
	}
	n = len(*buf)
	if !more {
		*buf = append(*buf, zeros[:tarstream.Padding(size())]...)
	}
	s.encode(buf, s.piece(j))
	return n, more, nil
}

// piece makes room for the next piece of a large file, and returns what an
// encoder does with it.
func (s *stream) piece(j *slotJob) func(raw []byte) error {
	j.mu.Lock()
	i := len(j.frames)
	j.frames = append(j.frames, pack.Ref{})
	j.mu.Unlock()
	j.pending.Add(1)
	return func(raw []byte) error {
		defer j.release()
		ref, err := s.v.frames.storeApart(raw)
		if err == nil && s.v.printer != nil {
			s.v.frames.note(ref.ID, s.v.printer.print(raw))
		}
		j.mu.Lock()
		j.frames[i] = ref
		j.mu.Unlock()
		return err
	}
}

// drain writes the table's lines of slots that are complete, in their order;
// all of them, waiting, at the end.
func (s *stream) drain(all bool) error {
	for len(s.queue) > 0 {
		j := s.queue[0]
		if j == s.group {
			return nil
		}
		if all {
			select {
			case <-j.done:
			case <-s.ctx.Done():
				return context.Cause(s.ctx)
			}
		} else {
			select {
			case <-j.done:
			default:
				return nil
			}
		}
		if err := s.ctx.Err(); err != nil {
			return context.Cause(s.ctx) // an encoder failed: its frames are not there
		}
		s.queue = s.queue[1:]
		if j.abandoned {
			continue
		}
		for i, ref := range append(j.header, j.frames...) {
			f := index.Frame{Slot: j.slot, Ref: ref}
			if i == 0 {
				f.Members = j.members
			}
			s.used.add(ref)
			if err := s.tail.Add(f.Hash(), f.AppendTo(nil), nil, nil); err != nil {
				return err
			}
			s.last = f.Hash()
		}
	}
	return nil
}

// close encodes and writes all that is left.
func (s *stream) close() error {
	s.closeGroup()
	s.unhold()
	derr := s.drain(true)
	if err := s.g.Wait(); err != nil {
		return err
	}
	if derr != nil {
		return derr
	}
	return s.tail.Close(s.last)
}
