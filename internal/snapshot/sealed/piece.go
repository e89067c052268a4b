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

// piece reads the chunks that hold n bytes from off, and at the first time the
// header and the last chunk, which vouches for the size.
func (s *Reader) piece(ctx context.Context, key string, size, off, n int64) ([]byte, error) {
	o, fresh := s.known(key)
	body := span{off: s.overhead + off/chunkSize*encChunkSize}
	end := min(size, s.overhead+((off+max(n, 1)-1)/chunkSize+1)*encChunkSize)
	g, gctx := errgroup.WithContext(ctx)
	read := func(x *span, n int64) {
		g.Go(func() (err error) {
			x.data, err = s.st.Get(gctx, key, x.off, n)
			return err
		})
	}
	if o.last.has(body.off, end) {
		body = o.last
	} else {
		read(&body, end-body.off)
	}
	if fresh {
		o.tail.off = s.overhead + (size-s.overhead-1)/encChunkSize*encChunkSize
		read(&o.head, s.overhead)
		read(&o.tail, size-o.tail.off)
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if fresh {
		fileKey, err := fileKey(o.head.data, s.ids)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", key, err)
		}
		o.id = age.NewInjectedFileKeyIdentity(fileKey)
	}
	out, err := decrypt(spans{o.head, body, o.tail}, size, off, n, o.id)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	if len(body.data) <= keptChunks*encChunkSize {
		o.last = body
	}
	s.keep(key, o)
	return out, nil
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

// known returns a copy of what is remembered of an object.
func (s *Reader) known(key string) (o opened, fresh bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.opened[key]; ok {
		return *known, false
	}
	return opened{}, true
}

func (s *Reader) keep(key string, o opened) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.opened[key]; ok {
		known.last = o.last
		return
	}
	if len(s.recent) >= maxOpened {
		delete(s.opened, s.recent[0])
		s.recent = slices.Delete(s.recent, 0, 1)
	}
	s.opened[key] = &o
	s.recent = append(s.recent, key)
}
