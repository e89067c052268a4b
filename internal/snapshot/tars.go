package snapshot

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
)

// tars keeps frames of the nodes section as they are stored. A restore goes
// through that section several times, and its frames are small and lie far apart:
// each for itself would make a distant target's delay count as often.
type tars struct {
	ahead sync.WaitGroup // for what is fetched in the background

	mu     sync.Mutex
	frames map[pack.Ref][]byte
	order  []pack.Ref
	bytes  int
}

const (
	// maxTars bounds what is kept, in stored bytes: the headers of some 200,000 directories.
	maxTars = 8 << 20
	// tarsAhead bounds what is fetched at a time, beside the leaf that is needed.
	tarsAhead = 1 << 20
	// tarReaders is how many reads of it are under way at a time.
	tarReaders = 32
)

func (t *tars) get(ref pack.Ref) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.frames[ref]
}

func (t *tars) put(ref pack.Ref, stored []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.frames == nil {
		t.frames = map[pack.Ref][]byte{}
	}
	if _, ok := t.frames[ref]; ok {
		return
	}
	for len(t.order) > 0 && t.bytes+len(stored) > maxTars {
		t.bytes -= len(t.frames[t.order[0]])
		delete(t.frames, t.order[0])
		t.order = t.order[1:]
	}
	t.frames[ref] = slices.Clone(stored)
	t.order = append(t.order, ref)
	t.bytes += len(stored)
}

// tar reads the headers of one leaf, and those of the next along with them.
func (v *volumeReader) tar(ctx context.Context, refs []pack.Ref, next []index.Child) ([]byte, error) {
	total, stored := 0, 0
	for _, ref := range refs {
		if total += int(ref.Raw); total > maxTar {
			return nil, fmt.Errorf("%w: headers of more than %d bytes", ErrDamaged, maxTar)
		}
		stored += int(ref.Len)
	}
	tar := make([]byte, 0, total)
	if stored > maxTars/2 { // is no use to keep
		for _, run := range runs(refs) {
			err := v.fetch(ctx, run, func(_ int, raw []byte) error {
				tar = append(tar, raw...)
				return nil
			})
			if err != nil {
				return nil, err
			}
		}
		return tar, nil
	}
	if slices.ContainsFunc(refs, func(ref pack.Ref) bool { return v.tars.get(ref) == nil }) {
		if err := v.fetchTars(ctx, refs, next); err != nil {
			return nil, err
		}
	}
	raw := decodeBuffers.Get().(*[]byte)
	defer decodeBuffers.Put(raw)
	for _, ref := range refs {
		b, err := pack.Decode(*raw, v.tars.get(ref), ref)
		if err != nil {
			return nil, err
		}
		*raw = b
		tar = append(tar, b...)
	}
	return tar, nil
}

// fetchTars fetches the frames of a leaf, and of the leaves behind it that are not there yet.
func (v *volumeReader) fetchTars(ctx context.Context, refs []pack.Ref, next []index.Child) error {
	var pieces []piece
	add := func(refs []pack.Ref) (bytes int) {
		for _, ref := range refs {
			if v.tars.get(ref) == nil {
				pieces = append(pieces, piece{ref: ref})
				bytes += int(ref.Len)
			}
		}
		return bytes
	}
	add(refs)
	ahead := 0
	for _, c := range next {
		size := 0
		for _, ref := range c.Tar {
			size += int(ref.Len)
		}
		if ahead += size; ahead > tarsAhead {
			break
		}
		add(c.Tar)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(tarReaders)
	for _, part := range v.spans.cut(pieces) {
		g.Go(func() error {
			refs := make([]pack.Ref, len(part))
			for i := range part {
				refs[i] = part[i].ref
			}
			return v.fetchStored(ctx, refs, func(i int, data []byte) error {
				v.tars.put(refs[i], data)
				return nil
			})
		})
	}
	return g.Wait()
}

// beginTars fetches the first headers of the nodes section, as many as nodes
// will at once, while something else is done. end waits for it.
func (v *volumeReader) beginTars(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	v.tars.ahead.Go(func() {
		cur, err := index.NewCursor(ctx, v.pg, v.vol.Nodes, nil)
		if err != nil {
			return
		}
		if ok, err := cur.Next(); err == nil && ok {
			_, _ = v.tar(ctx, cur.Item().Page.Tar, cur.Following()) // nodes meets the same error
		}
	})
	return func() {
		cancel()
		v.tars.ahead.Wait()
	}
}
