package snapshot

import (
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
	size int  // without the padding
	same bool // the file has it still
}

// again stores a large file of which the base has most: its pieces are
// compared where they lay, several at a time, and only what differs is cut
// anew. A cut depends on what follows the one before, and on nothing else, so that
// the result is what cutting all of it would give.
func (s *stream) again(j *slotJob, f *tree.File, h *tarstream.Header, oldSize int64, refs []pack.Ref) error {
	old := make([]oldPiece, 0, len(refs))
	off := int64(0)
	for _, ref := range refs {
		if off >= h.Size {
			break
		}
		p := oldPiece{ref: ref, off: off, size: int(min(int64(ref.Raw), oldSize-off))}
		off += int64(ref.Raw)
		old = append(old, p)
	}
	if err := s.compare(f, old, h.Size == oldSize); err != nil {
		return err
	}
	for i := 0; i < len(old); {
		if p := &old[i]; p.same {
			j.mu.Lock()
			j.frames = append(j.frames, p.ref)
			j.mu.Unlock()
			s.v.frames.reuse()
			s.v.read(p.size)
			i++
			continue
		}
		pos := old[i].off
		r := newExtentReader(f, h, s.v.read)
		r.pos = pos
		s.cut.reset(r)
		for more := true; more; {
			var n int
			var err error
			if n, more, err = s.cutNext(j, h.DataSize); err != nil {
				return err
			}
			pos += int64(n)
			for i < len(old) && old[i].off < pos {
				i++
			}
			if more && i < len(old) && old[i].off == pos && old[i].same {
				break
			}
			if !more {
				return nil // the file ended here, whatever the base has
			}
		}
	}
	return nil
}

// compare notes which pieces are as they were. The last one ends where the
// file ended: it counts only if that is still so.
func (s *stream) compare(f *tree.File, old []oldPiece, sameSize bool) error {
	g, ctx := errgroup.WithContext(s.ctx)
	var next atomic.Int64
	for range s.v.encoders {
		g.Go(func() error {
			buf := make([]byte, 0, chunkMax+len(zeros))
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(old) {
					return nil
				}
				p := &old[i]
				if i == len(old)-1 && !sameSize || int(p.ref.Raw) > cap(buf) {
					continue
				}
				n, err := f.ReadAt(buf[:p.size], p.off)
				if err != nil || n < p.size {
					continue // whoever reads it again will say so
				}
				raw := append(buf[:n], zeros[:int(p.ref.Raw)-n]...)
				if want := s.v.frames.noted(p.ref.ID); want != (print{}) {
					p.same = s.v.printer.print(raw) == want
				} else {
					p.same = pack.Sum(raw) == p.ref.ID
				}
			}
			return context.Cause(ctx)
		})
	}
	return g.Wait()
}
