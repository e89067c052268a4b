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

	named sync.Map // directories whose name object is known to be there
}

// NewWriter returns a Writer of the repository on a store.
func NewWriter(w store.Writer, k *Keys) (*Writer, error) {
	r, err := NewReader(w, k)
	if err != nil {
		return nil, err
	}
	return &Writer{Reader: r, w: w}, nil
}

// buffers are for objects of many sizes, and so all large enough for any pack
// but those with a table of many frames.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, bufferSize); return &b }}

const (
	bufferSize = 17 << 20
	// smallObject is what a buffer of its own is made for.
	smallObject = 1 << 20
)

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
	size := s.sealedSize(int64(len(data)))
	var dst []byte
	if size <= smallObject || size > bufferSize {
		dst = make([]byte, 0, size)
	} else {
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		dst = (*buf)[:0]
	}
	out, err := encrypt(dst, data, s.recipient)
	if err != nil {
		return fmt.Errorf("write %s: %w", hidden, err)
	}
	return s.w.Put(ctx, hidden, out)
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
