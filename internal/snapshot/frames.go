package snapshot

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/disko/backupd/internal/snapshot/pack"
)

// maxHave bounds the frames that a run remembers to avoid storing twice: 88
// bytes each, of 160 GB of large files. Beyond it, frames are stored again:
// larger, never wrong.
const maxHave = 512 << 10

// haveFrame is a frame that the target has.
type haveFrame struct {
	ref   pack.Ref
	print print // zero where it was not read in this run
}

// frameStore stores raw pieces as frames, each once. Safe for concurrent use.
type frameStore struct {
	w   *pack.Writer
	enc *pack.Encoder
	// slow, where there is one, is used while all else waits for the target:
	// what it saves there costs no time.
	slow *pack.Encoder

	mu     sync.Mutex
	have   map[pack.ID]haveFrame
	total  *atomic.Int64 // of have, and of others that share the bound
	newN   uint64        // frames stored
	reused uint64        // frames that were there
}

func newFrameStore(w *pack.Writer, enc, slow *pack.Encoder) *frameStore {
	return &frameStore{w: w, enc: enc, slow: slow, have: map[pack.ID]haveFrame{}, total: new(atomic.Int64)}
}

// know remembers a frame that the target has.
func (f *frameStore) know(ref pack.Ref) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h, there := f.have[ref.ID]
	if !there && f.total.Load() >= maxHave {
		return
	}
	if !there {
		f.total.Add(1)
	}
	h.ref = ref
	f.have[ref.ID] = h
}

// note remembers the print of a frame that was read, if the frame is known.
func (f *frameStore) note(id pack.ID, p print) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if h, ok := f.have[id]; ok {
		h.print = p
		f.have[id] = h
	}
}

// noted returns what note was told; zero where that was nothing.
func (f *frameStore) noted(id pack.ID) print {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.have[id].print
}

// reuse counts a frame that was found without being hashed.
func (f *frameStore) reuse() {
	f.mu.Lock()
	f.reused++
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
	have, ok := f.have[id]
	if ok {
		f.reused++
	} else {
		f.newN++
	}
	f.mu.Unlock()
	if ok {
		return have.ref, nil
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
