package sealed

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/disko/backupd/internal/store"
)

// Writer writes an encrypted repository, and reads it if its keys can. It
// implements store.Writer.
type Writer struct {
	*Reader
	w store.Writer

	buffers chan []byte // for large objects, used again: a collector would be late
	named   sync.Map    // directories whose name object is known to be there
}

// NewWriter returns a Writer of the repository on a store.
func NewWriter(w store.Writer, k *Keys) (*Writer, error) {
	r, err := NewReader(w, k)
	if err != nil {
		return nil, err
	}
	return &Writer{Reader: r, w: w, buffers: make(chan []byte, maxBuffers)}, nil
}

const (
	// bufferSize is that of any pack but those with a table of very many frames.
	bufferSize = 17 << 20
	// smallObject is what gets memory of its own: index packs and all below.
	smallObject = 5 << 20
	// maxBuffers is how many large objects are mostly under way at a time.
	maxBuffers = 2
)

// buffer returns memory for an object.
func (s *Writer) buffer(size int64) []byte {
	if size <= smallObject || size > bufferSize {
		return make([]byte, 0, size)
	}
	select {
	case buf := <-s.buffers:
		return buf
	default:
		return make([]byte, 0, bufferSize)
	}
}

// release takes memory back, after a put that succeeded: one that was broken
// off may still be read from by a connection that ends.
func (s *Writer) release(buf []byte) {
	if cap(buf) != bufferSize {
		return
	}
	select {
	case s.buffers <- buf[:0]:
	default:
	}
}

// Put implements store.Putter.
func (s *Writer) Put(ctx context.Context, key string, data []byte) error {
	if err := store.CheckKey(key); err != nil {
		return err
	}
	p, ok := split(key)
	if !ok {
		return s.w.Put(ctx, key, data)
	}
	if err := s.nameIt(ctx, p); err != nil {
		return err
	}
	if !p.secret() {
		return s.w.Put(ctx, s.hide(key), data)
	}
	if p.signed() {
		data = s.k.sign(key, data)
	}
	return s.put(ctx, s.hide(key), data)
}

func (s *Writer) put(ctx context.Context, hidden string, data []byte) error {
	out, err := encrypt(s.buffer(s.sealedSize(int64(len(data)))), data, s.recipient)
	if err != nil {
		return fmt.Errorf("write %s: %w", hidden, err)
	}
	if err := s.w.Put(ctx, hidden, out); err != nil {
		return err
	}
	s.release(out)
	return nil
}

// nameIt sees to the objects that tell the names behind the hashes.
func (s *Writer) nameIt(ctx context.Context, p path) error {
	dir := "stacks/" + s.k.stackName(p.stack)
	if err := s.nameDir(ctx, dir, p.stack); err != nil || p.volume == "" {
		return err
	}
	return s.nameDir(ctx, dir+"/volumes/"+s.k.volumeName(p.stack, p.volume), p.volume)
}

func (s *Writer) nameDir(ctx context.Context, dir, name string) error {
	if _, ok := s.named.Load(dir); ok {
		return nil
	}
	key := dir + "/" + nameObject
	_, err := s.st.Stat(ctx, key)
	if errors.Is(err, store.ErrNotExist) {
		if err = s.put(ctx, key, padName(name)); errors.Is(err, store.ErrExist) {
			err = nil
		}
	}
	if err == nil {
		s.named.Store(dir, nil)
	}
	return err
}

// Delete implements store.Deleter.
func (s *Writer) Delete(ctx context.Context, key string) error {
	if err := store.CheckKey(key); err != nil {
		return err
	}
	return s.w.Delete(ctx, s.hide(key))
}

// Retain implements store.Retainer, where the store below does.
func (s *Writer) Retain(ctx context.Context, key string) error {
	if l, ok := s.w.(store.Retainer); ok {
		return l.Retain(ctx, s.hide(key))
	}
	return nil
}
