package sealed

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"

	"filippo.io/age"

	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/store"
)

// Reader reads an encrypted repository. Its keys and sizes are those of what
// is inside. It implements store.Reader; safe for concurrent use.
type Reader struct {
	st        store.Reader
	k         *Keys
	recipient age.Recipient
	ids       []age.Identity
	overhead  int64

	mu     sync.Mutex
	names  map[string]string  // of stacks and volumes, by their hashes
	sizes  map[string]int64   // of objects as they are stored, from listings
	opened map[string]*opened // packs that were read from
	recent []string           // keys in opened, in their order
	// opening are packs that somebody reads the first piece of.
	opening map[string]*opening
}

// maxSizes bounds the sizes that are remembered; about 150 bytes each. Beyond
// it, reading asks for them.
const maxSizes = 1 << 17

// NewReader returns a Reader of the repository on a store.
func NewReader(st store.Reader, k *Keys) (*Reader, error) {
	r, err := parseRecipient(k.Recipient)
	if err != nil {
		return nil, err
	}
	s := &Reader{st: st, k: k, recipient: r, names: map[string]string{}, sizes: map[string]int64{}, opened: map[string]*opened{}, opening: map[string]*opening{}}
	if s.ids, err = k.identities(); err != nil {
		return nil, err
	}
	s.overhead, err = overhead(r)
	return s, err
}

// Overhead is how many bytes stand before an object's content: restore.sh compares sizes.
func Overhead(k *Keys) (int64, error) {
	r, err := parseRecipient(k.Recipient)
	if err != nil {
		return 0, err
	}
	return overhead(r)
}

// Location implements store.Reader.
func (s *Reader) Location() string { return s.st.Location() }

// Near implements store.Near.
func (s *Reader) Near() bool { return store.IsNear(s.st) }

// hide returns the key that an object really has, and remembers the names in it.
func (s *Reader) hide(key string) string {
	p, ok := split(key)
	if !ok {
		return key
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names[p.stack] == p.stack && len(p.stack) == 32 { // a hash whose name is lost
		return key
	}
	s.names[s.k.stackName(p.stack)] = p.stack
	if p.volume != "" {
		s.names[s.k.volumeName(p.stack, p.volume)] = p.volume
	}
	return s.k.Hide(key)
}

// Get implements store.Getter.
func (s *Reader) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	if err := store.CheckKey(key); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err) // a piece may be here already
	}
	p, ok := split(key)
	if !ok || !p.secret() {
		return s.st.Get(ctx, s.hide(key), off, n)
	}
	if len(s.ids) == 0 {
		return nil, ErrNoIdentity
	}
	if !p.signed() {
		return s.get(ctx, s.hide(key), off, n)
	}
	// A signature is one of the whole.
	data, err := s.get(ctx, s.hide(key), 0, -1)
	if err != nil {
		return nil, err
	}
	if data, err = s.k.verify(key, data); err != nil {
		return nil, err
	}
	return cut(key, data, off, n)
}

func cut(key string, data []byte, off, n int64) ([]byte, error) {
	size := int64(len(data))
	if n < 0 {
		n = max(size-off, 0)
	}
	if off < 0 || off > size || n > size-off {
		return nil, fmt.Errorf("read %s: %w: has %d bytes, wanted %d from %d", key, store.ErrShort, size, n, off)
	}
	return data[off : off+n : off+n], nil
}

// get reads a piece of an object by its real key. What is remembered of it may
// be of another that lay there before: then it is read anew.
func (s *Reader) get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	data, err := s.read(ctx, key, off, n)
	stale := errors.Is(err, pack.ErrCorrupt) || errors.Is(err, ErrForged) || errors.Is(err, store.ErrShort) || errors.Is(err, store.ErrNotExist)
	if stale && s.forget(key) {
		data, err = s.read(ctx, key, off, n)
	}
	return data, err
}

func (s *Reader) read(ctx context.Context, key string, off, n int64) ([]byte, error) {
	size, err := s.size(ctx, key)
	if err != nil {
		return nil, err
	}
	plain := s.plainSize(size)
	if plain < 0 {
		return nil, fmt.Errorf("read %s: %w: %d bytes are no encrypted object's size", key, pack.ErrCorrupt, size)
	}
	if n < 0 {
		n = max(plain-off, 0)
	}
	if off < 0 || off > plain || n > plain-off {
		return nil, fmt.Errorf("read %s: %w: has %d bytes, wanted %d from %d", key, store.ErrShort, plain, n, off)
	}
	if size > s.overhead+wholeChunks*encChunkSize && n < plain/2 {
		return s.piece(ctx, key, size, off, n)
	}
	data, err := s.st.Get(ctx, key, 0, size)
	if err != nil {
		return nil, err
	}
	out, err := decrypt(spans{{0, data}}, size, off, n, s.ids...)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	return out, nil
}

// forget forgets what is remembered of an object, and says whether that was anything.
func (s *Reader) forget(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, sized := s.sizes[key]
	_, open := s.opened[key]
	delete(s.sizes, key)
	delete(s.opened, key)
	s.recent = slices.DeleteFunc(s.recent, func(k string) bool { return k == key })
	return sized || open
}

func (s *Reader) size(ctx context.Context, key string) (int64, error) {
	s.mu.Lock()
	size, ok := s.sizes[key]
	s.mu.Unlock()
	if ok {
		return size, nil
	}
	info, err := s.st.Stat(ctx, key)
	if err != nil {
		return 0, err
	}
	s.remember(key, info.Size)
	return info.Size, nil
}

// remember keeps the size of an encrypted object: what it holds is known by it.
func (s *Reader) remember(key string, size int64) {
	if p, ok := split(key); !ok || !p.secret() {
		return
	}
	s.mu.Lock()
	if len(s.sizes) < maxSizes {
		s.sizes[key] = size
	}
	s.mu.Unlock()
}

// Stat implements store.Getter.
func (s *Reader) Stat(ctx context.Context, key string) (store.Info, error) {
	if err := store.CheckKey(key); err != nil {
		return store.Info{}, err
	}
	info, err := s.st.Stat(ctx, s.hide(key))
	if err != nil {
		return store.Info{}, err
	}
	return store.Info{Key: key, Size: s.inner(key, info.Size)}, nil
}

// inner is the size of what is inside an object, or -1 where it is none of ours.
func (s *Reader) inner(key string, size int64) int64 {
	p, ok := split(key)
	if !ok || !p.secret() {
		return size
	}
	plain := s.plainSize(size)
	if p.signed() && plain >= 0 {
		plain = max(plain-signedLen, 0)
	}
	return plain
}

// List implements store.Lister.
func (s *Reader) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		hidden := s.hide(strings.TrimSuffix(prefix, "/"))
		if prefix != "" {
			hidden += "/"
		}
		for info, err := range s.st.List(ctx, hidden) {
			if err == nil {
				s.remember(info.Key, info.Size)
				if strings.HasSuffix(info.Key, "/"+nameObject) || foreign(info.Key) {
					continue
				}
				info.Key, err = s.show(ctx, info.Key)
				info.Size = s.inner(info.Key, info.Size)
			}
			if !yield(info, err) || err != nil {
				return
			}
		}
	}
}

// Know tells the reader the names in a prefix, which an agent cannot look up.
func (s *Reader) Know(prefix string) { s.hide(strings.TrimSuffix(prefix, "/")) }
