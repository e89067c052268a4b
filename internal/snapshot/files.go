package snapshot

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// fileSink takes the content of one file. Its calls may come from several
// goroutines, and out of order; Done comes last.
type fileSink interface {
	// Write takes bytes of the file's data: those at off of its extents, one
	// behind the other.
	Write(p []byte, off int64) error
	// Done ends the file; Abort drops it, after an error.
	Done() error
	Abort()
}

// openSink begins a file; a nil fileSink passes over it. Called from several goroutines.
type openSink func(e *index.Entry, h *tarstream.Header) (fileSink, error)

// window is how many entries are put in the order of their slots at a time.
// Changed files lie in late groups, scattered over the paths: in windows, each
// group is decoded once a window and not once a file. The first windows are
// smaller, so that decoding begins before much of the index was read.
const window, firstWindow = 32 << 10, 2 << 10

// windowBytes bounds the paths in a window, which may be long.
const windowBytes = 32 << 20

// files hands the content of the files section to sinks, in parallel. want
// chooses entries; nil means all.
func (v *volumeReader) files(ctx context.Context, want func(e *index.Entry) bool, open openSink) error {
	cur, err := index.NewCursor(ctx, v.pg, v.vol.Files, nil)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &fileReader{v: v, ctx: ctx, open: open, jobs: make(chan job, maxQueued/jobWeight), room: semaphore.NewWeighted(maxQueued)}
	if v.spans != nil {
		w.stored = semaphore.NewWeighted(maxStage)
	}
	var failed error
	var once sync.Once
	var workers sync.WaitGroup
	for range max(8, 2*runtime.GOMAXPROCS(0)) { // while most wait for the target, some decode and write
		workers.Go(func() {
			for j := range w.jobs { // all of them, after an error too: each has files to abort
				if err := j.do(); err != nil {
					once.Do(func() { failed = err; cancel() })
				}
				w.room.Release(j.weight)
				if w.stored != nil {
					w.stored.Release(j.stored)
				}
			}
		})
	}
	if err = w.windows(cur, want); err != nil {
		_ = w.abandon() // err is the cause
	}
	close(w.jobs)
	workers.Wait()
	if failed != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = failed
	}
	return err
}

type fileReader struct {
	v    *volumeReader
	ctx  context.Context //nolint:containedctx // lives as long as the one call that made it
	open openSink

	jobs   chan job            // for the workers
	room   *semaphore.Weighted // for what waits in jobs
	stored *semaphore.Weighted // and its bytes, where these come in spans

	pieces []piece // asked for and not begun
	larges int     // large files, open, that some of them are of

	heads  heads // of large files that are not open yet
	passed stage
}

// job is a read and what is done with it.
type job struct {
	do     func() error
	weight int64
	stored int64
}

const (
	// maxQueued bounds the entries that wait for the workers: enough that these
	// have work while the next headers are waited for.
	maxQueued = 2 * window
	// jobWeight is what a job counts beside its entries.
	jobWeight = 256
)

// queue hands a job to the workers; false where the run was given up.
func (w *fileReader) queue(entries int, stored int64, do func() error) bool {
	j := job{do: do, weight: min(int64(entries)+jobWeight, maxQueued), stored: min(stored, maxStage)}
	if w.stored != nil && w.stored.Acquire(w.ctx, j.stored) != nil {
		return false
	}
	if w.room.Acquire(w.ctx, j.weight) != nil {
		return false
	}
	w.jobs <- j
	return true
}

func (w *fileReader) windows(cur *index.Cursor, want func(e *index.Entry) bool) error {
	var entries []index.Entry
	for more, n := true, firstWindow; more; n = min(4*n, window) {
		first := n == firstWindow
		entries = entries[:0]
		for held := 0; len(entries) < n && held < windowBytes; {
			ok, err := cur.Next()
			if err != nil {
				return err
			}
			if !ok {
				more = false
				break
			}
			if cur.Entry.Kind != index.File {
				return fmt.Errorf("%w: index has %.200q, a %s, among the files", ErrDamaged, cur.Entry.Path, cur.Entry.Kind)
			}
			if want == nil || want(&cur.Entry) {
				cur.Entry.Old = nil // is not needed, and may be long
				held += len(cur.Entry.Path)
				entries = append(entries, cur.Entry)
			}
		}
		slices.SortFunc(entries, func(a, b index.Entry) int {
			if a.Slot != b.Slot {
				if a.Slot < b.Slot {
					return -1
				}
				return 1
			}
			return int(int64(a.Off) - int64(b.Off))
		})
		if err := w.slots(slices.Clone(entries)); err != nil {
			return err
		}
		// What lies near each other is read at once, the content of large files
		// too: only the beginning is not to wait for their headers.
		if !first || !more {
			if err := w.settle(); err != nil {
				return err
			}
		}
		w.flush()
		if err := w.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// slots goes through sorted entries and the frame table side by side.
func (w *fileReader) slots(entries []index.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	cur, err := index.SeekFrames(w.ctx, w.v.pg, w.v.vol.Frames, entries[0].Slot)
	if err != nil {
		return err
	}
	ok, err := cur.Next()
	for len(entries) > 0 {
		if err != nil {
			return err
		}
		slot := entries[0].Slot
		if ok && cur.Frame.Slot < slot {
			if slot-cur.Frame.Slot > 4096 { // far away: by the upper pages
				if cur, err = index.SeekFrames(w.ctx, w.v.pg, w.v.vol.Frames, slot); err != nil {
					return err
				}
			}
			ok, err = cur.Next()
			continue
		}
		if !ok || cur.Frame.Slot != slot {
			return fmt.Errorf("%w: %.200q is in slot %d, which the frame table does not have", ErrDamaged, entries[0].Path, slot)
		}
		n := 1
		for n < len(entries) && entries[n].Slot == slot {
			n++
		}
		members := entries[:n]
		entries = entries[n:]
		if cur.Frame.Members == 0 {
			if len(members) > 1 {
				return fmt.Errorf("%w: %.200q and %.200q are in one slot, which is a large file's", ErrDamaged, members[0].Path, members[1].Path)
			}
			if ok, err = w.large(&members[0], cur); err != nil {
				return err
			}
			if err = w.stage(); err != nil {
				return err
			}
			continue
		}
		var refs []pack.Ref
		for ok && err == nil && cur.Frame.Slot == slot {
			if len(refs) > 0 && cur.Frame.Members > 0 {
				return fmt.Errorf("%w: frame table has slot %d twice", ErrDamaged, slot)
			}
			if len(refs)*pack.MaxFrame > maxTar {
				return fmt.Errorf("%w: group in slot %d has too many frames", ErrDamaged, slot)
			}
			refs = append(refs, cur.Frame.Ref)
			w.pass(cur.Frame.Ref)
			ok, err = cur.Next()
		}
		if err != nil {
			return err
		}
		if len(refs) == 1 {
			w.read(piece{ref: refs[0], entries: n, use: func(raw []byte) error { return w.group(raw, members) }})
		} else {
			w.wide(refs, members)
		}
		if err = w.stage(); err != nil {
			return err
		}
	}
	return w.ask()
}

// wide reads a group of several frames: one with more attributes than a frame holds.
func (w *fileReader) wide(refs []pack.Ref, members []index.Entry) {
	stored := int64(0)
	for _, ref := range refs {
		stored += int64(ref.Len)
	}
	w.queue(len(members), stored, func() error {
		var group []byte
		for _, run := range runs(refs) {
			err := w.v.fetch(w.ctx, run, func(_ int, raw []byte) error {
				group = append(group, raw...)
				return nil
			})
			if err != nil {
				return err
			}
		}
		return w.group(group, members)
	})
}

// group hands the members of a decoded group to their sinks.
func (w *fileReader) group(raw []byte, members []index.Entry) error {
	for i := range members {
		e := &members[i]
		if int64(e.Off) >= int64(len(raw)) {
			return fmt.Errorf("%w: %.200q lies at %d of a group of %d bytes", ErrDamaged, e.Path, e.Off, len(raw))
		}
		h, n, err := tarstream.Parse(raw[e.Off:])
		if err != nil {
			return fmt.Errorf("%w: header of %.200q: %w", ErrDamaged, e.Path, err)
		}
		if err := fits(e, &h); err != nil {
			return err
		}
		data := raw[int(e.Off)+n:]
		if h.DataSize() > int64(len(data)) {
			return fmt.Errorf("%w: content of %.200q goes beyond its group", ErrDamaged, e.Path)
		}
		s, err := w.open(e, &h)
		if err != nil {
			return err
		}
		if s == nil {
			continue
		}
		if err := s.Write(data[:h.DataSize()], 0); err != nil {
			s.Abort()
			return err
		}
		if err := s.Done(); err != nil {
			return err
		}
	}
	return nil
}
