package snapshot

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/disko/backupd/internal/snapshot/pack"
)

// maxHave bounds the frames that a run remembers to avoid storing twice: 88
// bytes each, of 80 GB of large files. Beyond it, a large file that changed is
// looked up where its base has it; what moved from file to file is stored again:
// larger, never wrong. Tests lower it.
var maxHave int64 = 512 << 10

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
	seen   map[pack.ID]sighted
	total  *atomic.Int64 // of have, and of others that share the bound
	full   atomic.Bool   // the bound was met: not all of the base is in have
	newN   uint64        // frames stored
	reused uint64        // frames that were there
}

func newFrameStore(w *pack.Writer, enc, slow *pack.Encoder) *frameStore {
	return &frameStore{w: w, enc: enc, slow: slow, have: map[pack.ID]haveFrame{}, seen: map[pack.ID]sighted{}, total: new(atomic.Int64)}
}

// know remembers a frame that the target has.
func (f *frameStore) know(ref pack.Ref) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h, there := f.have[ref.ID]
	if !there && f.total.Load() >= maxHave {
		f.full.Store(true)
		return
	}
	if !there {
		f.total.Add(1)
	}
	h.ref = ref
	f.have[ref.ID] = h
}

// sighted is a frame in a window.
type sighted struct {
	ref pack.Ref
	end int64 // of its last occurrence in the file
}

// sight has a frame known until that occurrence of it is overlooked.
func (f *frameStore) sight(ref pack.Ref, at windowed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.have[at.id]; !known {
		f.seen[at.id] = sighted{ref, at.end}
	}
}

func (f *frameStore) overlook(at windowed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seen[at.id].end <= at.end {
		delete(f.seen, at.id)
	}
}

// lookup returns where a frame is stored, if that is known. The lock is held.
func (f *frameStore) lookup(id pack.ID) (ref pack.Ref, ok bool) {
	if h, ok := f.have[id]; ok {
		return h.ref, true
	}
	s, ok := f.seen[id]
	return s.ref, ok
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
func (f *frameStore) store(raw []byte) (pack.Ref, error) { return f.storeBy(f.w.Add, raw) }

// storeApart is store for pieces of large files. A database's die within days,
// groups of small files within months: in one pack, what lives of the groups
// would be stored again and again to be rid of the dead rest.
func (f *frameStore) storeApart(raw []byte) (pack.Ref, error) { return f.storeBy(f.w.AddApart, raw) }

func (f *frameStore) storeBy(add func(id pack.ID, raw int, frame []byte) (pack.Ref, error), raw []byte) (pack.Ref, error) {
	if len(raw) > pack.MaxFrame {
		return pack.Ref{}, fmt.Errorf("piece of %d bytes is larger than the format allows", len(raw))
	}
	id := pack.Sum(raw)
	f.mu.Lock()
	ref, ok := f.lookup(id)
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
	ref, err := add(id, len(raw), *buf)
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
func (f *frameStore) storeAll(raw []byte) ([]pack.Ref, error) { return inFrames(raw, f.store) }

// inFrames has a piece of any length stored as frames of at most pack.MaxFrame.
func inFrames(raw []byte, store func(raw []byte) (pack.Ref, error)) ([]pack.Ref, error) {
	var refs []pack.Ref
	for len(raw) > 0 {
		n := min(len(raw), pack.MaxFrame)
		ref, err := store(raw[:n])
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
