package snapshot

import (
	"cmp"
	"errors"
	"slices"

	"github.com/disko/backupd/internal/snapshot/pack"
)

// piece is a frame to be read, and what it is for.
type piece struct {
	ref     pack.Ref
	entries int // of the index that it holds in memory
	// use takes the decoded frame, which it must not keep; drop, where set, is
	// called in its place where the frame cannot be had.
	use  func(raw []byte) error
	drop func() error
}

const (
	// maxPieces is how many frames are put in the order of their packs at a
	// time. Encoders work side by side, so that a pack has its frames nearly, and
	// not quite, in the order of the stream.
	maxPieces = 1024
	// maxSpan is how much of a pack one read brings, in stored bytes: enough
	// that a target's delay does not count, and few enough for several workers.
	maxSpan = 2 << 20
	// maxGap is how much is read for nothing rather than asking once more: what
	// a line of 25 Mbit/s brings in the time of a round trip.
	maxGap = 64 << 10
	// maxLarges bounds the files that stand open meanwhile.
	maxLarges = 64
)

// read has a frame read, sooner or later.
func (w *fileReader) read(p piece) {
	w.pieces = append(w.pieces, p)
	if len(w.pieces) >= maxPieces {
		w.flush()
	}
}

// flush reads what was asked for, in the order in which it lies.
func (w *fileReader) flush() {
	for _, part := range w.v.spans.cut(w.pieces) {
		entries, stored := 0, int64(0)
		for _, p := range part {
			entries += p.entries
			stored += int64(p.ref.Len)
		}
		if !w.queue(entries, stored, func() error { return w.together(part) }) {
			for i := range part {
				_ = part[i].abandon() // what ended the run is known
			}
		}
	}
	w.pieces, w.larges = nil, 0
}

// abandon drops what was asked for and not begun.
func (w *fileReader) abandon() error {
	var errs []error
	if w.heads.waiting != nil {
		errs = append(errs, <-w.heads.waiting)
	}
	w.heads = heads{}
	for _, p := range w.pieces {
		errs = append(errs, p.abandon())
	}
	w.pieces = nil
	return errors.Join(errs...)
}

func (p *piece) abandon() error {
	if p.drop == nil {
		return nil
	}
	return p.drop()
}

// near sorts pieces by where they lie and cuts them into reads.
func near(pieces []piece) [][]piece {
	slices.SortFunc(pieces, func(a, b piece) int {
		return cmp.Or(comparePacks(a.ref.Pack, b.ref.Pack), cmp.Compare(a.ref.Off, b.ref.Off))
	})
	var out [][]piece
	start := 0
	end := uint64(0) // of the open read
	for i, p := range pieces {
		r := p.ref
		if i > start {
			first := pieces[start].ref
			if r.Pack != first.Pack || uint64(r.Off) > end+maxGap || uint64(r.Off)+uint64(r.Len)-uint64(first.Off) > maxSpan {
				out = append(out, pieces[start:i])
				start, end = i, 0
			}
		}
		end = max(end, uint64(r.Off)+uint64(r.Len))
	}
	if len(pieces) > 0 {
		out = append(out, pieces[start:])
	}
	return out
}

// together reads pieces that lie near each other, at once.
func (w *fileReader) together(part []piece) error {
	refs := make([]pack.Ref, len(part))
	for i := range part {
		refs[i] = part[i].ref
	}
	used := 0
	err := w.v.fetch(w.ctx, refs, func(i int, raw []byte) error {
		used = i + 1
		return part[i].use(raw)
	})
	if err == nil {
		return nil
	}
	errs := []error{err}
	for i := range part[used:] {
		errs = append(errs, part[used+i].abandon())
	}
	return errors.Join(errs...)
}
