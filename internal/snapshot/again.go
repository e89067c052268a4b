package snapshot

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/tarstream"
	"github.com/disko/backupd/internal/snapshot/tree"
)

// print tells pieces apart within one run, as an id does forever, at a fraction of the cost.
type print [16]byte

// printer makes prints: GMAC with a key that nobody knows and that lives as
// long as the run. Two pieces of n bytes that differ have the same print with a
// probability of at most n/16 in 2^128, whoever chose them.
type printer struct{ mac cipher.AEAD }

func newPrinter() *printer {
	key := make([]byte, 16)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err == nil {
		var mac cipher.AEAD
		if mac, err = cipher.NewGCM(block); err == nil {
			return &printer{mac}
		}
	}
	panic(err) // of a constant length
}

// print returns the print of a piece. The nonce is the same each time, which
// is harmless: no print leaves the process.
func (p *printer) print(raw []byte) (out print) {
	var nonce [12]byte
	p.mac.Seal(out[:0], nonce[:], nil, raw)
	return out
}

// content returns the frames that hold a large file's content in the base, in
// order; none where that cannot be told: a small file, or one with holes.
func (b *base) content(ctx context.Context, e *index.Entry) ([]pack.Ref, error) {
	if e == nil || e.Kind != index.File || e.Size == 0 {
		return nil, nil
	}
	if s := b.slot(e.Slot); s == nil || s.members > 0 {
		return nil, nil
	}
	cur, err := index.SeekFrames(ctx, b.pages, b.vol.Frames, e.Slot)
	if err != nil {
		return nil, err
	}
	var refs []pack.Ref
	for {
		ok, err := cur.Next()
		if err != nil {
			return nil, err
		}
		if !ok || cur.Frame.Slot > e.Slot {
			break
		}
		if cur.Frame.Slot == e.Slot {
			if b.expired[cur.Frame.Pack] {
				return nil, nil
			}
			refs = append(refs, cur.Frame.Ref)
		}
	}
	// The header's frames come first; how many they are stands nowhere.
	want := e.Size + int64(tarstream.Padding(e.Size))
	for i := len(refs) - 1; i >= 0; i-- {
		if want -= int64(refs[i].Raw); want == 0 {
			return refs[i:], nil
		}
	}
	return nil, nil
}

// oldPiece is a piece of a large file as the base has it.
type oldPiece struct {
	ref  pack.Ref
	off  int64
	size int    // without the padding
	last bool   // the file ends with it, then and now
	same bool   // the file has it still
	raw  []byte // what the file has instead, if that is a piece too; with the padding
}

// compareAtOnce is how much of a large file is compared at a time, in bytes.
const compareAtOnce = 8 << 20

// again stores a large file of which the base has most: its pieces are
// compared where they lay, several at a time, and only what differs is stored
// anew. Where the next cut is depends on where the last one is and on what follows
// it, so that the result is what cutting all of it would give.
func (s *stream) again(j *slotJob, f *tree.File, h *tarstream.Header, oldSize int64, refs []pack.Ref) error {
	old := make([]oldPiece, 0, len(refs))
	off := int64(0)
	for i, ref := range refs {
		if off >= h.Size {
			break
		}
		old = append(old, oldPiece{
			ref: ref, off: off, size: int(min(int64(ref.Raw), oldSize-off)),
			last: i == len(refs)-1 && h.Size == oldSize,
		})
		off += int64(ref.Raw)
	}
	// Where the file ends now, no piece has to end.
	if n := len(old) - 1; n >= 0 && !old[n].last {
		old = old[:n]
	}
	compared := 0
	for i := 0; i < len(old); {
		if i >= compared {
			compared = i
			for n := 0; compared < len(old) && n < compareAtOnce; compared++ {
				n += old[compared].size
			}
			if err := s.compare(f, old[i:compared]); err != nil {
				return err
			}
		}
		p := &old[i]
		switch {
		case p.same:
			s.v.frames.reuse()
			j.mu.Lock()
			j.frames = append(j.frames, p.ref)
			j.mu.Unlock()
		case p.raw != nil:
			s.own(p.raw, s.piece(j))
			p.raw = nil
		default:
			at, more, err := s.recut(j, f, h, old, i)
			if err != nil || !more {
				return err
			}
			i = at
			continue
		}
		s.v.read(p.size)
		i++
	}
	if n := len(old); n > 0 && old[n-1].last {
		return nil
	}
	_, _, err := s.recut(j, f, h, old, len(old))
	return err
}

// recut cuts a file anew from where piece i began, up to where another one
// began, and says which; or up to its end: then there is no more.
func (s *stream) recut(j *slotJob, f *tree.File, h *tarstream.Header, old []oldPiece, i int) (at int, more bool, err error) {
	pos := int64(0)
	switch {
	case i < len(old):
		pos = old[i].off
	case i > 0:
		pos = old[i-1].off + int64(old[i-1].size)
	}
	r := newExtentReader(f, h, s.v.read)
	r.pos = pos
	s.cut.reset(r, pos)
	for {
		n, more, err := s.cutNext(j, h.DataSize)
		if err != nil || !more {
			return 0, false, err
		}
		pos += int64(n)
		for i < len(old) && old[i].off < pos {
			i++
		}
		if i < len(old) && old[i].off == pos {
			return i, true, nil
		}
	}
}

// compare looks what became of pieces.
func (s *stream) compare(f *tree.File, old []oldPiece) error {
	g, ctx := errgroup.WithContext(s.ctx)
	var next atomic.Int64
	for range s.v.encoders {
		g.Go(func() error {
			var buf []byte
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(old) {
					return nil
				}
				p := &old[i]
				if cap(buf) < int(p.ref.Raw) {
					buf = make([]byte, 0, chunkMax+len(zeros))
				}
				if n, err := f.ReadAt(buf[:p.size], p.off); err != nil || n < p.size || int(p.ref.Raw)-n > len(zeros) {
					continue // whoever cuts it anew will say so
				}
				raw := append(buf[:p.size], zeros[:int(p.ref.Raw)-p.size]...)
				if want := s.v.frames.noted(p.ref.ID); want != (print{}) {
					p.same = s.v.printer.print(raw) == want
				} else if p.same = pack.Sum(raw) == p.ref.ID; p.same {
					s.v.frames.note(p.ref.ID, s.v.printer.print(raw)) // the next pass is spared the sum
				}
				if p.same {
					continue
				}
				if cut := firstCut(raw[:p.size], p.off); cut == p.size || cut == 0 && p.last {
					p.raw = bytes.Clone(raw)
				}
			}
			return context.Cause(ctx)
		})
	}
	return g.Wait()
}
