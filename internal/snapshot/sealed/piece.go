package sealed

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"filippo.io/age"
	"golang.org/x/sync/errgroup"
)

// opened is what every read of a piece needs again. The file's key is unwrapped once.
type opened struct {
	head, tail span
	id         age.Identity
	last       span // chunks that were read last, where they are few: pages lie side by side
}

const (
	// maxOpened bounds the packs that are remembered; at most 200 KiB each.
	maxOpened = 64
	// wholeChunks is how many chunks an object may have to be read whole
	// whatever is asked of it: one request instead of three.
	wholeChunks = 2
	// keptChunks is how many chunks of a piece are kept for the next read.
	keptChunks = 2
)

// opening is a pack whose header and end are being read. opened and failed are
// there once done is closed.
type opening struct {
	done   chan struct{}
	opened opened
	failed bool
}

// piece reads the chunks that hold n bytes from off, and at the first time the
// header and the last chunk, which vouches for the size. Of several at the
// first time, one does that and the others wait for it.
func (s *Reader) piece(ctx context.Context, key string, size, off, n int64) ([]byte, error) {
	for {
		o, under, ours := s.known(key)
		body := span{off: s.overhead + off/chunkSize*encChunkSize}
		end := min(size, s.overhead+((off+max(n, 1)-1)/chunkSize+1)*encChunkSize)
		var err error
		switch {
		case ours:
			o, body, err = s.open(ctx, key, size, body, end)
			s.openedNow(key, under, o, err)
		case o.last.has(body.off, end):
			body = o.last
		default:
			body.data, err = s.st.Get(ctx, key, body.off, end-body.off)
		}
		if err != nil {
			return nil, err
		}
		if !ours && under != nil {
			select {
			case <-under.done:
			case <-ctx.Done():
				return nil, fmt.Errorf("read %s: %w", key, ctx.Err())
			}
			if under.failed {
				continue // whoever it was may have been interrupted, and we are not
			}
			o = under.opened
		}
		out, err := decrypt(spans{o.head, body, o.tail}, size, off, n, o.id)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", key, err)
		}
		if len(body.data) <= keptChunks*encChunkSize {
			s.lastRead(key, body)
		}
		return out, nil
	}
}

// open reads a pack's header and last chunk, and the chunks up to end that are
// wanted at the same time. What lies side by side is one read.
func (s *Reader) open(ctx context.Context, key string, size int64, body span, end int64) (opened, span, error) {
	var o opened
	o.tail.off = s.overhead + (size-s.overhead-1)/encChunkSize*encChunkSize
	g, gctx := errgroup.WithContext(ctx)
	read := func(x *span, off, n int64) {
		g.Go(func() (err error) {
			x.off = off
			x.data, err = s.st.Get(gctx, key, off, n)
			return err
		})
	}
	from := body.off
	if from == s.overhead {
		from = 0
	} else {
		read(&o.head, 0, s.overhead)
	}
	last := end == size && from <= o.tail.off
	if !last {
		read(&o.tail, o.tail.off, size-o.tail.off)
	}
	read(&body, from, end-from)
	if err := g.Wait(); err != nil {
		return o, body, err
	}
	if from == 0 { // copied: it is kept for longer than the rest
		o.head.data = slices.Clone(body.data[:s.overhead])
	}
	if last {
		o.tail.data = slices.Clone(body.data[o.tail.off-from:])
	}
	fileKey, err := fileKey(o.head.data, s.ids)
	if err != nil {
		return o, body, fmt.Errorf("read %s: %w", key, err)
	}
	o.id = age.NewInjectedFileKeyIdentity(fileKey)
	return o, body, nil
}

func fileKey(head []byte, ids []age.Identity) ([]byte, error) {
	header, err := age.ExtractHeader(bytes.NewReader(head))
	if err != nil {
		return nil, corrupt(err)
	}
	key, err := age.DecryptHeader(header, ids...)
	if err != nil {
		return nil, corrupt(err)
	}
	return key, nil
}

// known returns a copy of what is remembered of an object; or else who is about
// to read it, which may be the caller.
func (s *Reader) known(key string) (o opened, under *opening, ours bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.opened[key]; ok {
		return *known, nil, false
	}
	if under = s.opening[key]; under != nil {
		return o, under, false
	}
	under = &opening{done: make(chan struct{})}
	s.opening[key] = under
	return o, under, true
}

// openedNow tells those who wait what became of it.
func (s *Reader) openedNow(key string, under *opening, o opened, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.opening, key)
	under.opened, under.failed = o, err != nil
	close(under.done)
	if err != nil {
		return
	}
	if len(s.recent) >= maxOpened {
		delete(s.opened, s.recent[0])
		s.recent = slices.Delete(s.recent, 0, 1)
	}
	s.opened[key] = &o
	s.recent = append(s.recent, key)
}

// lastRead keeps chunks for the next read.
func (s *Reader) lastRead(key string, body span) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.opened[key]; ok {
		known.last = body
	}
}
