package sealed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"

	"filippo.io/age"
	"golang.org/x/sync/errgroup"

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
	opened map[string]*opened // headers of packs that were read from
	recent []string           // keys in opened, in their order
}

// opened is what every read of a piece needs again: the file's key is unwrapped once.
type opened struct {
	head, tail span
	id         age.Identity
}

const (
	maxSizes  = 1 << 20
	maxOpened = 64
	// wholeObject is the size up to which an object is read whole, whatever is
	// asked of it: one request instead of three.
	wholeObject = 512 << 10
)

// NewReader returns a Reader of the repository on a store.
func NewReader(st store.Reader, k *Keys) (*Reader, error) {
	r, err := parseRecipient(k.Recipient)
	if err != nil {
		return nil, err
	}
	s := &Reader{st: st, k: k, recipient: r, names: map[string]string{}, sizes: map[string]int64{}, opened: map[string]*opened{}}
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

// show is the reverse of hide: it looks up names that are not known yet. One
// that cannot be read stays a hash, and the manifests below it do not verify.
func (s *Reader) show(ctx context.Context, key string) (string, error) {
	p, ok := split(key)
	if !ok {
		return key, nil
	}
	stack := p.stack
	name, err := s.name(ctx, "stacks/"+stack, stack, s.k.stackName)
	if err != nil {
		return "", err
	}
	p.stack = name
	if p.volume != "" {
		p.volume, err = s.name(ctx, "stacks/"+stack+"/volumes/"+p.volume, p.volume, func(v string) string { return s.k.volumeName(name, v) })
	}
	return p.join(), err
}

func (s *Reader) name(ctx context.Context, dir, hash string, hashOf func(string) string) (string, error) {
	s.mu.Lock()
	name, ok := s.names[hash]
	s.mu.Unlock()
	if ok {
		return name, nil
	}
	name = hash
	if len(s.ids) > 0 {
		data, err := s.get(ctx, dir+"/"+nameObject, 0, -1)
		switch {
		case err == nil && hashOf(string(data)) == hash:
			name = string(data)
		case err != nil && !errors.Is(err, pack.ErrCorrupt) && !errors.Is(err, ErrForged) && !errors.Is(err, store.ErrNotExist):
			return "", err
		}
	}
	s.mu.Lock()
	s.names[hash] = name
	s.mu.Unlock()
	return name, nil
}

// Get implements store.Getter.
func (s *Reader) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
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

// get reads a piece of an object by its real key.
func (s *Reader) get(ctx context.Context, key string, off, n int64) ([]byte, error) {
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
	if size <= wholeObject || n == plain {
		data, err := s.st.Get(ctx, key, 0, size)
		if err != nil {
			return nil, s.short(key, err)
		}
		out, err := decrypt(spans{{0, data}}, size, off, n, s.ids...)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", key, err)
		}
		return out, nil
	}
	return s.piece(ctx, key, size, off, n)
}

// short forgets the size of an object that turned out to be shorter.
func (s *Reader) short(key string, err error) error {
	if errors.Is(err, store.ErrShort) || errors.Is(err, store.ErrNotExist) {
		s.mu.Lock()
		delete(s.sizes, key)
		delete(s.opened, key)
		s.mu.Unlock()
	}
	return err
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

// remember keeps the sizes of packs, which are read in pieces.
func (s *Reader) remember(key string, size int64) {
	if !strings.Contains(key, "/volumes/") {
		return
	}
	s.mu.Lock()
	if len(s.sizes) < maxSizes {
		s.sizes[key] = size
	}
	s.mu.Unlock()
}

// piece reads the chunks that hold n bytes from off, and at the first time the
// header and the last chunk, which vouches for the size.
func (s *Reader) piece(ctx context.Context, key string, size, off, n int64) ([]byte, error) {
	s.mu.Lock()
	o := s.opened[key]
	s.mu.Unlock()
	first := s.overhead + off/chunkSize*encChunkSize
	end := min(size, s.overhead+((off+max(n, 1)-1)/chunkSize+1)*encChunkSize)
	body := span{off: first}
	ids := s.ids
	g, gctx := errgroup.WithContext(ctx)
	read := func(x *span, n int64) {
		g.Go(func() (err error) {
			x.data, err = s.st.Get(gctx, key, x.off, n)
			return err
		})
	}
	read(&body, end-first)
	fresh := o == nil
	if fresh {
		o = &opened{}
		last := s.overhead + (size-s.overhead-1)/encChunkSize*encChunkSize
		o.tail.off = last
		read(&o.head, s.overhead)
		read(&o.tail, size-last)
	} else {
		ids = []age.Identity{o.id}
	}
	if err := g.Wait(); err != nil {
		return nil, s.short(key, err)
	}
	if fresh {
		fileKey, err := fileKey(o.head.data, s.ids)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", key, err)
		}
		o.id = age.NewInjectedFileKeyIdentity(fileKey)
		ids = []age.Identity{o.id}
	}
	out, err := decrypt(spans{o.head, body, o.tail}, size, off, n, ids...)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	if fresh {
		s.keep(key, o)
	}
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

func (s *Reader) keep(key string, o *opened) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.opened[key]; ok {
		return
	}
	if len(s.recent) >= maxOpened {
		delete(s.opened, s.recent[0])
		s.recent = slices.Delete(s.recent, 0, 1)
	}
	s.opened[key] = o
	s.recent = append(s.recent, key)
}

// Stat implements store.Getter.
func (s *Reader) Stat(ctx context.Context, key string) (store.Info, error) {
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
				if strings.HasSuffix(info.Key, "/"+nameObject) {
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

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// Put implements store.Putter.
func (s *Writer) Put(ctx context.Context, key string, data []byte) error {
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
	buf := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(buf)
	buf.Reset()
	buf.Grow(int(s.sealedSize(int64(len(data)))))
	out, err := encrypt(buf, data, s.recipient)
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
		if err = s.put(ctx, key, []byte(name)); errors.Is(err, store.ErrExist) {
			err = nil
		}
	}
	if err == nil {
		s.named.Store(dir, nil)
	}
	return err
}

// Delete implements store.Deleter.
func (s *Writer) Delete(ctx context.Context, key string) error { return s.w.Delete(ctx, s.hide(key)) }
