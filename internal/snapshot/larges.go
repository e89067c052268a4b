package snapshot

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// head is a large file whose content is not asked for yet: its header says
// how much that is, and lies in a frame of its own.
type head struct {
	entry  index.Entry
	frames []pack.Ref // of its slot; the header's first
	n      int        // how many of them the header took
	header tarstream.Header
}

// heads gathers large files, so that a distant target is not waited for once a
// file: while some headers are fetched, the next are gathered.
type heads struct {
	next   []*head // gathered
	frames int     // of these
	bytes  int     // of their first frames, decoded

	asked   []*head // being fetched
	waiting chan error
}

const (
	// headReaders is how many reads of headers are under way at a time: a few
	// hundred bytes each, so that nearly all of it is waiting.
	headReaders = 16
	// maxHeads bounds the headers that are gathered, which may have large attributes.
	maxHeads = 4 << 20
)

// large notes one large file. It leaves the cursor behind the file's frames.
func (w *fileReader) large(e *index.Entry, cur *index.FrameCursor) (more bool, err error) {
	h := &head{entry: *e}
	for more = true; err == nil && more && cur.Frame.Slot == e.Slot && len(h.frames) < maxPieces; more, err = cur.Next() {
		h.frames = append(h.frames, cur.Frame.Ref)
		w.pass(cur.Frame.Ref)
	}
	if err != nil {
		return false, err
	}
	if more && cur.Frame.Slot == e.Slot {
		// So large that one more wait does not count, and its frames are too many to be held.
		if err := w.v.fetch(w.ctx, h.frames[:1], func(_ int, raw []byte) error { return h.read(w, raw) }); err != nil {
			return false, err
		}
		return w.begin(h, cur)
	}
	w.heads.next = append(w.heads.next, h)
	w.heads.frames += len(h.frames)
	w.heads.bytes += int(h.frames[0].Raw)
	if len(w.heads.next) >= maxLarges || w.heads.frames >= maxPieces || w.heads.bytes >= maxHeads {
		err = w.ask()
	}
	return more, err
}

// ask begins the files whose headers were asked for before, and asks for those
// that were gathered since.
func (w *fileReader) ask() error {
	if err := w.settle(); err != nil {
		return err
	}
	asked := w.heads.next
	if len(asked) == 0 {
		return nil
	}
	pieces := make([]piece, len(asked))
	for i, h := range asked {
		pieces[i] = piece{ref: h.frames[0], use: func(raw []byte) error { return h.read(w, raw) }}
	}
	waiting := make(chan error, 1)
	w.heads = heads{asked: asked, waiting: waiting}
	go func() { // settle or abandon waits for it; a limited group makes whoever adds to it wait
		var g errgroup.Group
		g.SetLimit(headReaders)
		for _, part := range w.v.spans.cut(pieces) {
			g.Go(func() error { return w.together(part) })
		}
		waiting <- g.Wait()
	}()
	return nil
}

// settle waits for the headers that were asked for, and begins their files.
func (w *fileReader) settle() error {
	if w.heads.waiting == nil {
		return nil
	}
	var err error
	select {
	case err = <-w.heads.waiting:
	default:
		if len(w.jobs) == 0 { // the workers are not to wait, too
			w.flush()
		}
		err = <-w.heads.waiting
	}
	asked := w.heads.asked
	w.heads.waiting, w.heads.asked = nil, nil
	for _, h := range asked {
		if err != nil {
			break
		}
		_, err = w.begin(h, nil)
	}
	return err
}

// read takes the header's first frame; a long header goes on in the next.
func (h *head) read(w *fileReader, raw []byte) error {
	raw = slices.Clone(raw) // the header's attributes lie in it
	for {
		h.n++
		var n int
		var err error
		h.header, n, err = tarstream.Parse(raw)
		if err == nil && n != len(raw) {
			err = errors.New("bytes behind it")
		}
		if err == nil {
			return fits(&h.entry, &h.header)
		}
		if !errors.Is(err, tarstream.ErrShort) || h.n == len(h.frames) {
			return fmt.Errorf("%w: header of %.200q: %w", ErrDamaged, h.entry.Path, err)
		}
		if err := w.v.fetch(w.ctx, h.frames[h.n:h.n+1], func(_ int, b []byte) error { raw = append(raw, b...); return nil }); err != nil {
			return err
		}
	}
}

// begin hands a large file, whose header was read, to its sink: piece by
// piece, in parallel. The frames that the head does not have come from the
// cursor, where there is one.
func (w *fileReader) begin(h *head, cur *index.FrameCursor) (more bool, err error) {
	e, rest := &h.entry, h.frames[h.n:]
	more = cur != nil
	next := func() (ref pack.Ref, ok bool) {
		if len(rest) > 0 {
			ref, rest = rest[0], rest[1:]
			return ref, true
		}
		if err != nil || !more || cur.Frame.Slot != e.Slot {
			return ref, false
		}
		ref = cur.Frame.Ref
		more, err = cur.Next()
		return ref, err == nil
	}
	s, oerr := w.open(e, &h.header)
	if oerr != nil {
		return false, oerr
	}
	size := h.header.DataSize() + int64(tarstream.Padding(h.header.DataSize()))
	f := &largeFile{sink: s, size: h.header.DataSize()}
	f.pending.Store(1)
	off := int64(0)
	for off <= size {
		ref, ok := next()
		if !ok {
			break
		}
		at := off
		off += int64(ref.Raw)
		if s == nil {
			continue
		}
		f.pending.Add(1)
		w.read(piece{
			ref: ref,
			use: func(raw []byte) error {
				err := f.write(raw, at)
				if err != nil {
					f.fail()
				}
				return errors.Join(err, f.release())
			},
			drop: func() error {
				f.fail()
				return f.release()
			},
		})
	}
	if err == nil && off != size {
		err = wrongSize(e, off, size)
	}
	if s == nil {
		return more, err
	}
	if err != nil {
		f.fail()
	}
	if rerr := f.release(); err == nil {
		err = rerr
	}
	if w.larges++; w.larges >= maxLarges {
		w.flush()
	}
	return more, err
}

// wrongSize is the error for a large file whose frames, read to their end or
// to where they are too many, do not have its size.
func wrongSize(e *index.Entry, got, want int64) error {
	return fmt.Errorf("%w: %.200q has %d bytes or more in its frames instead of %d", ErrDamaged, e.Path, got, want)
}

// largeFile counts the pieces of a large file that are under way.
type largeFile struct {
	sink    fileSink
	size    int64
	pending atomic.Int32
	failed  atomic.Bool
	once    sync.Once
}

func (f *largeFile) fail() { f.failed.Store(true) }

// write passes a piece on, without the padding behind the content.
func (f *largeFile) write(p []byte, off int64) error {
	if off >= f.size || f.failed.Load() {
		return nil
	}
	return f.sink.Write(p[:min(int64(len(p)), f.size-off)], off)
}

// release ends the file when its last piece is done.
func (f *largeFile) release() (err error) {
	if f.pending.Add(-1) > 0 {
		return nil
	}
	f.once.Do(func() {
		if f.failed.Load() {
			f.sink.Abort()
			return
		}
		err = f.sink.Done()
	})
	return err
}
