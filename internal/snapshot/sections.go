package snapshot

import (
	"context"
	"fmt"
	"sync"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// volumeReader reads one volume of a snapshot.
type volumeReader struct {
	r     *Repository
	stack string
	vol   *Volume
	pg    *pages
	sizes map[pack.Name]uint32 // of the data packs that the manifest names
	tars  tars
	spans *spans // nil: what is wanted of a pack is not most of it
}

func (r *Repository) reader(m *Manifest, vol *Volume) *volumeReader {
	v := &volumeReader{r: r, stack: m.Stack, vol: vol, pg: r.pages(m.Stack, vol), sizes: map[pack.Name]uint32{}}
	for _, p := range vol.Packs {
		for i, size := range p.Sizes {
			v.sizes[pack.Name{Run: p.Run, N: p.First + uint32(i)}] = size
		}
	}
	return v
}

// inPack refuses a reference to what the manifest does not name.
func (v *volumeReader) inPack(ref pack.Ref) error {
	if size, ok := v.sizes[ref.Pack]; !ok || uint64(ref.Off)+uint64(ref.Len) > uint64(size) {
		return fmt.Errorf("%w: frame %.12s lies outside the packs of its manifest (%s at %d)", ErrDamaged, ref.ID, ref.Pack, ref.Off)
	}
	return ref.Check()
}

// fetch reads frames that lie near each other in one pack, in ascending order,
// by one read, and decodes them one by one. use must not keep raw.
func (v *volumeReader) fetch(ctx context.Context, refs []pack.Ref, use func(i int, raw []byte) error) error {
	raw := decodeBuffers.Get().(*[]byte)
	defer decodeBuffers.Put(raw)
	return v.fetchStored(ctx, refs, func(i int, data []byte) error {
		b, err := pack.Decode(*raw, data, refs[i])
		if err != nil {
			return err
		}
		*raw = b
		return use(i, b)
	})
}

// fetchStored is fetch without the decoding; use must not keep data either.
func (v *volumeReader) fetchStored(ctx context.Context, refs []pack.Ref, use func(i int, data []byte) error) error {
	for _, ref := range refs {
		if err := v.inPack(ref); err != nil {
			return err
		}
	}
	if v.spans != nil {
		return v.spans.fetch(ctx, refs, use)
	}
	return v.fetchAlone(ctx, refs, use)
}

// fetchAlone reads what lies between the first frame and the last.
func (v *volumeReader) fetchAlone(ctx context.Context, refs []pack.Ref, use func(i int, data []byte) error) error {
	first, end := refs[0], int64(0)
	for _, ref := range refs {
		end = max(end, int64(ref.Off)+int64(ref.Len))
	}
	key := packKey(v.stack, v.vol.Name, first.Pack)
	data, err := v.r.store.Get(ctx, key, int64(first.Off), end-int64(first.Off))
	if err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	for i, ref := range refs {
		at := ref.Off - first.Off
		if err := use(i, data[at:at+ref.Len]); err != nil {
			return err
		}
	}
	return nil
}

var decodeBuffers = sync.Pool{New: func() any { return new([]byte) }}

// maxFetch bounds what one read brings, in stored bytes.
const maxFetch = 4 << 20

// runs cuts a list of frames into pieces that one read can bring.
func runs(refs []pack.Ref) [][]pack.Ref {
	var out [][]pack.Ref
	start, size := 0, uint32(0)
	for i, ref := range refs {
		if i > start {
			prev := refs[i-1]
			if ref.Pack != prev.Pack || ref.Off != prev.Off+prev.Len || size+ref.Len > maxFetch {
				out = append(out, refs[start:i])
				start, size = i, 0
			}
		}
		size += ref.Len
	}
	if len(refs) > 0 {
		out = append(out, refs[start:])
	}
	return out
}

// maxTar bounds the tar headers of one leaf: 256 lines or 1 MiB of them, each
// with up to a megabyte of attributes, would be more than anyone has.
const maxTar = 64 << 20

// nodes calls use for every entry of the nodes section, in the order of
// paths, with its tar header.
func (v *volumeReader) nodes(ctx context.Context, use func(e *index.Entry, h *tarstream.Header) error) error {
	const s = index.Nodes
	v.tars.ahead.Wait()
	cur, err := index.NewCursor(ctx, v.pg, v.vol.Nodes, nil)
	if err != nil {
		return err
	}
	var page *index.Page
	var tar []byte
	for {
		ok, err := cur.Next()
		if err != nil || !ok {
			if err == nil && len(tar) > 0 {
				err = fmt.Errorf("%w: %d bytes too many among the %s", ErrDamaged, len(tar), s)
			}
			return err
		}
		e := &cur.Entry
		if e.Kind.Section() != s {
			return fmt.Errorf("%w: index has %.200q, a %s, among the %s", ErrDamaged, e.Path, e.Kind, s)
		}
		if p := cur.Item().Page; p != page {
			if len(tar) > 0 {
				return fmt.Errorf("%w: %d bytes too many among the %s", ErrDamaged, len(tar), s)
			}
			page = p
			if tar, err = v.tar(ctx, p.Tar, cur.Following()); err != nil {
				return err
			}
		}
		h, n, err := tarstream.Parse(tar)
		if err != nil {
			return fmt.Errorf("%w: header of %.200q: %w", ErrDamaged, e.Path, err)
		}
		tar = tar[n:]
		if err := fits(e, &h); err != nil {
			return err
		}
		if err := use(e, &h); err != nil {
			return err
		}
	}
}

// fits makes sure that an entry's header is the one its index line means.
func fits(e *index.Entry, h *tarstream.Header) error {
	switch {
	case h.Path != e.Path, index.KindOf(h.Type) != e.Kind, h.Mtime != e.Mtime,
		e.Kind == index.File && h.Size != e.Size, e.Kind == index.Link && h.Link != e.Link:
		return fmt.Errorf("%w: the index has the %s %.200q where the stream has the %s %.200q", ErrDamaged, e.Kind, e.Path, index.KindOf(h.Type), h.Path)
	}
	return nil
}
