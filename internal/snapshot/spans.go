package snapshot

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
)

// spans reads packs in long pieces for a restore that wants (nearly) all of
// them. What lies in a pack side by side is asked for at different times: the
// headers of large files before their content, the headers of directories
// last. Each for itself would be a request; so a span is read once, and stays
// until all that the frame table wants of it was taken, as far as there is room.
//
// What is not worth it, or has no room, is read by itself.
type spans struct {
	v *volumeReader

	mu    sync.Mutex
	wants map[pack.Name][]want
	held  map[spanKey]*span
	bytes int64 // of those held and of those under way
	tick  uint64
	// tars are frames of the nodes section: they are kept when their span comes.
	tars      map[spanKey][]pack.Ref
	tarBytes  int
	lookahead sync.WaitGroup // for what is fetched in the background
}

type spanKey struct {
	pack pack.Name
	n    uint32 // the span begins at n spanSizes
}

// want is what a restore still wants of a span.
type want struct {
	bytes int64 // of frames, as often as they are wanted
	read  bool  // whole, before: never twice
}

// span is a piece of a pack in memory. Its fields are of spans.mu, but data
// and err, which are there once done is closed.
type span struct {
	done  chan struct{}
	data  []byte
	err   error
	size  int64
	users int
	used  uint64 // when, by spans.tick
}

const (
	// spanSize is how much of a pack is read at once: far more than a target's
	// delay costs, and little enough for several workers and a bounded memory.
	spanSize = 2 << 20
	// maxSpans bounds the spans that are held and fetched at a time, in bytes.
	maxSpans = 32 << 20
	// maxStage is how many stored bytes of files are asked for together, and how
	// many wait for the workers: what is read ahead is to be there still when they come to it.
	maxStage = maxSpans / 4
)

func newSpans(v *volumeReader) *spans {
	return &spans{v: v, wants: map[pack.Name][]want{}, held: map[spanKey]*span{}, tars: map[spanKey][]pack.Ref{}}
}

// ahead begins to read the packs that are most likely wanted first, which the
// manifest names, before the index is there. end waits for it.
func (s *spans) ahead(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	var most PackRange
	stored := func(r PackRange) (sum int64) {
		for _, size := range r.Sizes {
			sum += int64(size)
		}
		return sum
	}
	for _, r := range s.v.vol.Packs {
		if stored(r) > stored(most) {
			most = r
		}
	}
	room := int64(maxStage)
	for i, size := range most.Sizes {
		for n := uint32(0); int64(n)*spanSize < int64(size) && room > 0; n++ {
			k := spanKey{pack.Name{Run: most.Run, N: most.First + uint32(i)}, n}
			room -= min(spanSize, int64(size)-int64(n)*spanSize)
			s.lookahead.Go(func() {
				if sp, _ := s.take(ctx, k, guessed); sp != nil { // whoever wants it meets the error
					s.giveBack(k, sp, 0)
				}
			})
		}
	}
	return func() {
		cancel()
		s.lookahead.Wait()
	}
}

// maxCounted is how often over the packs may be wanted before nobody counts any
// more: a frame may stand in a table again and again, in a forged one without end.
const maxCounted = 4

// count adds up what the frame table wants of each span.
func (s *spans) count(ctx context.Context) error {
	if s == nil {
		return nil
	}
	left := int64(0)
	for _, r := range s.v.vol.Packs {
		for _, size := range r.Sizes {
			left += maxCounted * int64(size)
		}
	}
	cur, err := index.NewFrameCursor(ctx, s.v.pg, s.v.vol.Frames, nil)
	if err != nil {
		return err
	}
	for {
		ok, err := cur.Next()
		if err != nil || !ok || left < 0 {
			return err
		}
		ref := cur.Frame.Ref
		if s.v.inPack(ref) != nil {
			continue // whoever reads it says so
		}
		left -= int64(ref.Len)
		s.mu.Lock()
		for k, n := range s.parts(ref) {
			s.want(k).bytes += n
		}
		s.mu.Unlock()
	}
}

// parts are the spans that a frame lies in, and how much of it.
func (s *spans) parts(ref pack.Ref) func(yield func(spanKey, int64) bool) {
	return func(yield func(spanKey, int64) bool) {
		for off, end := int64(ref.Off), int64(ref.Off)+int64(ref.Len); off < end; {
			n := off / spanSize
			next := min(end, (n+1)*spanSize)
			if !yield(spanKey{ref.Pack, uint32(n)}, next-off) {
				return
			}
			off = next
		}
	}
}

// want is what is wanted of a span; mu is held, and the pack is in the manifest.
func (s *spans) want(k spanKey) *want {
	w := s.wants[k.pack]
	if w == nil {
		w = make([]want, (int64(s.v.sizes[k.pack])+spanSize-1)/spanSize)
		s.wants[k.pack] = w
	}
	return &w[k.n]
}

// size is how many bytes a span has.
func (s *spans) size(k spanKey) int64 {
	return min(spanSize, int64(s.v.sizes[k.pack])-int64(k.n)*spanSize)
}

// worth says whether a span is wanted as a whole; mu is held.
func (s *spans) worth(k spanKey) bool {
	if s.held[k] != nil {
		return true
	}
	w := s.want(k)
	return !w.read && 2*w.bytes >= s.size(k)
}

// whole says whether a frame is to be read with the others in its span, and
// which one that is.
func (s *spans) whole(ref pack.Ref) (k spanKey, ok bool) {
	k = spanOf(ref)
	if s.v.inPack(ref) != nil {
		return k, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return k, s.worth(k)
}

// spanOf is the span that a frame begins in.
func spanOf(ref pack.Ref) spanKey { return spanKey{ref.Pack, ref.Off / spanSize} }

// keepTar has a frame of the nodes section kept in the reader's tars when its
// span comes, as long as these have room.
func (s *spans) keepTar(ref pack.Ref) {
	if s.v.inPack(ref) != nil || ref.Off/spanSize != (ref.Off+ref.Len-1)/spanSize {
		return // or lies in two
	}
	k := spanOf(ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tarBytes += int(ref.Len); s.tarBytes > maxTars {
		return
	}
	if sp := s.held[k]; sp != nil && sp.data != nil && sp.err == nil {
		s.v.tars.put(ref, within(sp, ref))
		return
	}
	s.tars[k] = append(s.tars[k], ref)
}

// within is a frame's part of the span that it begins in.
func within(sp *span, ref pack.Ref) []byte {
	from := ref.Off % spanSize
	return sp.data[from:min(from+ref.Len, uint32(len(sp.data)))]
}

// urgency is how much a span is wanted.
type urgency int

const (
	needed  urgency = iota // now, if it is worth it: others may have to go for it
	soon                   // as long as no other has to
	guessed                // before anybody knows what it is worth
)

// take returns a span, which it fetches if need be; nil where that is not worth
// it, or there is no room.
func (s *spans) take(ctx context.Context, k spanKey, u urgency) (*span, error) {
	s.mu.Lock()
	s.tick++
	if sp := s.held[k]; sp != nil {
		sp.users++
		sp.used = s.tick
		s.mu.Unlock()
		select {
		case <-sp.done:
		case <-ctx.Done():
			s.giveBack(k, sp, 0)
			return nil, ctx.Err()
		}
		if sp.err != nil {
			s.giveBack(k, sp, 0)
			return nil, sp.err
		}
		return sp, nil
	}
	size := s.size(k)
	if u != guessed && !s.worth(k) || u == needed && !s.makeRoom(size) || s.bytes+size > maxSpans {
		s.mu.Unlock()
		return nil, nil
	}
	sp := &span{done: make(chan struct{}), size: size, users: 1, used: s.tick}
	s.held[k] = sp
	s.bytes += size
	s.want(k).read = true
	s.mu.Unlock()

	key := packKey(s.v.stack, s.v.vol.Name, k.pack)
	data, err := s.v.r.store.Get(ctx, key, int64(k.n)*spanSize, size)
	s.mu.Lock()
	if sp.data = data; err != nil { // it stays until whoever wants it has met the error
		sp.err = fmt.Errorf("read %s: %w", key, err)
		sp.users--
	}
	tars := s.tars[k]
	delete(s.tars, k)
	s.mu.Unlock()
	close(sp.done)
	if sp.err != nil {
		return nil, sp.err
	}
	for _, ref := range tars {
		s.v.tars.put(ref, within(sp, ref))
	}
	return sp, nil
}

// makeRoom drops spans that nobody uses, the longest unused first, until one
// of that size has room; false where it has none. mu is held.
func (s *spans) makeRoom(size int64) bool {
	for s.bytes+size > maxSpans {
		var oldest spanKey
		var found *span
		for k, sp := range s.held {
			if sp.users == 0 && (found == nil || sp.used < found.used) {
				oldest, found = k, sp
			}
		}
		if found == nil {
			return false
		}
		s.drop(oldest, found)
	}
	return true
}

// drop forgets a span; mu is held.
func (s *spans) drop(k spanKey, sp *span) {
	if s.held[k] == sp {
		delete(s.held, k)
		s.bytes -= sp.size
	}
}

// giveBack ends the use of a span, of which bytes were taken.
func (s *spans) giveBack(k spanKey, sp *span, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sp.users--
	w := s.want(k)
	w.bytes -= bytes
	if bytes > 0 && w.bytes <= 0 && sp.users == 0 {
		s.drop(k, sp)
	}
}

// fetch is volumeReader.fetchStored out of spans: of frames in ascending order
// in one pack. What no span has is read by itself.
func (s *spans) fetch(ctx context.Context, refs []pack.Ref, use func(i int, data []byte) error) error {
	for from := 0; from < len(refs); {
		k := spanOf(refs[from])
		to := from + 1
		for to < len(refs) && spanOf(refs[to]) == k {
			to++
		}
		if err := s.fetchSpan(ctx, k, refs[from:to], func(i int, data []byte) error { return use(from+i, data) }); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// fetchSpan is fetch of frames that begin in one span.
func (s *spans) fetchSpan(ctx context.Context, k spanKey, refs []pack.Ref, use func(i int, data []byte) error) error {
	sp, err := s.take(ctx, k, needed)
	if err != nil {
		return err
	}
	if sp == nil {
		return s.v.fetchAlone(ctx, refs, use)
	}
	taken := int64(0)
	defer func() { s.giveBack(k, sp, taken) }()
	for i, ref := range refs {
		data := within(sp, ref)
		taken += int64(len(data))
		if len(data) < int(ref.Len) {
			if data, err = s.join(ctx, data, ref); err != nil {
				return err
			}
			if data == nil { // the last ones only: a span ends in one frame
				return s.v.fetchAlone(ctx, refs[i:], func(n int, data []byte) error { return use(i+n, data) })
			}
		}
		if err := use(i, data); err != nil {
			return err
		}
	}
	return nil
}

// join puts a frame together whose beginning is given, and whose rest lies in
// the spans behind; nil where one of these is not to be had.
func (s *spans) join(ctx context.Context, data []byte, ref pack.Ref) ([]byte, error) {
	data = append(make([]byte, 0, ref.Len), data...)
	for k, n := range s.parts(ref) {
		if k.n == ref.Off/spanSize {
			continue
		}
		sp, err := s.take(ctx, k, needed)
		if sp == nil {
			return nil, err
		}
		data = append(data, sp.data[:n]...)
		s.giveBack(k, sp, n)
	}
	return data, nil
}

// stage are the files that were passed since the last were asked for: how much
// is stored of them, and in which spans.
type stage struct {
	bytes int64
	seen  map[spanKey]bool
	spans []spanKey // the first of them
}

// pass notes a frame that the restore came to.
func (w *fileReader) pass(ref pack.Ref) {
	if w.v.spans == nil {
		return
	}
	p := &w.passed
	p.bytes += int64(ref.Len)
	if k := spanOf(ref); !p.seen[k] && len(p.spans) < 2*maxStage/spanSize {
		if p.seen == nil {
			p.seen = map[spanKey]bool{}
		}
		p.seen[k] = true
		p.spans = append(p.spans, k)
	}
}

// stage has the files read that were passed, once these are many: what lies in
// one span is to be wanted while that is there.
func (w *fileReader) stage() error {
	if w.passed.bytes < maxStage {
		return nil
	}
	keys := w.passed.spans
	w.passed = stage{}
	if err := w.ask(); err != nil {
		return err
	}
	w.v.spans.readAhead(w.ctx, keys)
	w.flush()
	return nil
}

// readAhead begins to fetch spans, as long as there is room.
func (s *spans) readAhead(ctx context.Context, keys []spanKey) {
	for _, k := range keys {
		s.lookahead.Go(func() {
			if sp, _ := s.take(ctx, k, soon); sp != nil { // likewise
				s.giveBack(k, sp, 0)
			}
		})
	}
}

// cut is near for pieces of which most lie in spans: one read for each.
func (s *spans) cut(pieces []piece) [][]piece {
	if s == nil {
		return near(pieces)
	}
	byPack := func(a, b piece) int {
		return cmp.Or(comparePacks(a.ref.Pack, b.ref.Pack), cmp.Compare(a.ref.Off, b.ref.Off))
	}
	slices.SortFunc(pieces, byPack)
	var out [][]piece
	var others []piece
	for i := 0; i < len(pieces); i++ {
		k, ok := s.whole(pieces[i].ref)
		if !ok {
			others = append(others, pieces[i])
			continue
		}
		start := i
		for i+1 < len(pieces) && spanOf(pieces[i+1].ref) == k {
			i++
		}
		out = append(out, pieces[start:i+1])
	}
	out = append(out, near(others)...)
	slices.SortStableFunc(out, func(a, b []piece) int { return byPack(a[0], b[0]) })
	return out
}
