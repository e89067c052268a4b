package snapshot

import (
	"fmt"
	"sync"

	"github.com/disko/backupd/internal/snapshot/pack"
)

// maxHave bounds the frames that a run remembers to avoid storing twice: 72
// bytes each, of 160 GB of large files. Beyond it, frames are stored again:
// larger, never wrong.
const maxHave = 512 << 10

// frameStore stores raw pieces as frames, each once. Safe for concurrent use.
type frameStore struct {
	w   *pack.Writer
	enc *pack.Encoder
	// slow, where there is one, is used while all else waits for the target:
	// what it saves there costs no time.
	slow *pack.Encoder

	mu     sync.Mutex
	have   map[pack.ID]pack.Ref
	newN   uint64 // frames stored
	reused uint64 // frames that were there
}

func newFrameStore(w *pack.Writer, enc, slow *pack.Encoder) *frameStore {
	return &frameStore{w: w, enc: enc, slow: slow, have: map[pack.ID]pack.Ref{}}
}

// know remembers a frame that the target has.
func (f *frameStore) know(ref pack.Ref) {
	f.mu.Lock()
	if len(f.have) < maxHave {
		f.have[ref.ID] = ref
	}
	f.mu.Unlock()
}

var encodeBuffers = sync.Pool{New: func() any { return new([]byte) }}

// store returns where raw is stored, storing it if it is not.
func (f *frameStore) store(raw []byte) (pack.Ref, error) {
	if len(raw) > pack.MaxFrame {
		return pack.Ref{}, fmt.Errorf("piece of %d bytes is larger than the format allows", len(raw))
	}
	id := pack.Sum(raw)
	f.mu.Lock()
	ref, ok := f.have[id]
	if ok {
		f.reused++
	} else {
		f.newN++
	}
	f.mu.Unlock()
	if ok {
		return ref, nil
	}
	enc := f.enc
	if f.slow != nil && f.w.Late() {
		enc = f.slow
	}
	buf := encodeBuffers.Get().(*[]byte)
	*buf = enc.Encode((*buf)[:0], raw)
	ref, err := f.w.Add(id, len(raw), *buf)
	encodeBuffers.Put(buf)
	if err != nil {
		return pack.Ref{}, err
	}
	f.know(ref)
	return ref, nil
}

// StorePage makes a frameStore a store of index pages.
func (f *frameStore) StorePage(raw []byte) (pack.Ref, error) { return f.store(raw) }

// storeAll stores a piece of any length as frames of at most pack.MaxFrame.
func (f *frameStore) storeAll(raw []byte) ([]pack.Ref, error) {
	var refs []pack.Ref
	for len(raw) > 0 {
		n := min(len(raw), pack.MaxFrame)
		ref, err := f.store(raw[:n])
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
		raw = raw[n:]
	}
	return refs, nil
}

// usage counts how much of each pack a snapshot uses.
type usage map[pack.Name]uint64

func (u usage) add(refs ...pack.Ref) {
	for _, r := range refs {
		u[r.Pack] += uint64(r.Len)
	}
}
