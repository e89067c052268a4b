package snapshot

import (
	"context"
	"sort"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
)

// windowHalf is how many frames of its base are in sight before, and how many
// behind where a large file is read: far more than encoders are late by, and more
// than 1 GB of the file each, so that what was inserted or cut out hides nothing.
const windowHalf = 8 << 10

// frameWindow moves over the frames that the base has of large files while
// these are read. A run remembers maxHave frames of its base; of a volume that has
// more, what a changed file has kept is found through the window. It belongs to the
// goroutine that reads; encoders look into what it has in sight.
type frameWindow struct {
	frames *frameStore
	cur    *index.FrameCursor
	slot   uint64
	more   bool               // cur stands before a frame of the slot
	gone   map[pack.Name]bool // is stored again

	// Places are counted over all files: frames of the one before are looked for yet.
	start, end int64 // of the file, and of what was loaded of it; its header counts, which is little
	queue      []windowed
}

// windowed is a frame in sight, and where it ends.
type windowed struct {
	id  pack.ID
	end int64
}

// leave goes to a file that the base does not have.
func (w *frameWindow) leave() { w.start, w.more = w.end, false }

// open goes to the large file that the base has in that slot. Where it has
// none, or the run remembers all of the base anyway, nothing comes into sight.
func (w *frameWindow) open(ctx context.Context, b *base, slot uint64) error {
	w.leave()
	if !w.frames.full.Load() {
		return nil
	}
	if s := b.slot(slot); s == nil || s.members > 0 {
		return nil
	}
	cur, err := index.SeekFrames(ctx, b.pages, b.vol.Frames, slot)
	if err != nil {
		return err
	}
	w.cur, w.slot, w.gone = cur, slot, b.expired
	for {
		ok, err := cur.Next()
		if err != nil || !ok {
			return err
		}
		if cur.Frame.Slot >= slot {
			w.more = cur.Frame.Slot == slot
			return nil
		}
	}
}

// move has in sight what lies around a place in the file.
func (w *frameWindow) move(pos int64) error {
	if !w.more && len(w.queue) == 0 {
		return nil
	}
	pos += w.start
	behind := sort.Search(len(w.queue), func(i int) bool { return w.queue[i].end > pos })
	if n := behind - windowHalf; n > windowHalf/4 { // many at once: the rest has to move up
		for _, at := range w.queue[:n] {
			w.frames.overlook(at)
		}
		w.queue, behind = append(w.queue[:0], w.queue[n:]...), windowHalf
	}
	for w.more && len(w.queue)-behind < windowHalf {
		ref := w.cur.Frame.Ref
		w.end += int64(ref.Raw)
		if !w.gone[ref.Pack] {
			at := windowed{ref.ID, w.end}
			w.frames.sight(ref, at)
			w.queue = append(w.queue, at)
		}
		ok, err := w.cur.Next()
		if err != nil {
			return err
		}
		w.more = ok && w.cur.Frame.Slot == w.slot
	}
	return nil
}
