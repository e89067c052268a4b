package snapshot

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/store"
)

// cache keeps copies of index packs in the state directory, under their keys.
// It is never believed: every page is checked against its id, and what is
// missing or wrong comes from the target. Without a directory it keeps nothing.
type cache struct {
	dir string
	mu  sync.Mutex
	// open are files that pages are read from, by key.
	open map[string]*os.File
}

// maxOpenCache bounds the descriptors of a cache.
const maxOpenCache = 64

func newCache(dir, repository string) *cache {
	c := &cache{open: map[string]*os.File{}}
	if dir != "" {
		c.dir = filepath.Join(dir, repository)
	}
	return c
}

func (c *cache) path(key string) string { return filepath.Join(c.dir, filepath.FromSlash(key)) }

// put keeps a copy of an object, and says whether it did. A full or read-only
// disk is no error: the cache is only ever a copy.
func (c *cache) put(key string, data []byte) bool {
	if c.dir == "" {
		return false
	}
	path := c.path(key)
	if os.MkdirAll(filepath.Dir(path), 0o700) != nil {
		return false
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return false
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err == nil
}

// has says whether an object of that size is kept.
func (c *cache) has(key string, size int64) bool {
	if c.dir == "" {
		return false
	}
	info, err := os.Stat(c.path(key))
	return err == nil && info.Size() == size
}

// get returns a kept object of that size, or nil.
func (c *cache) get(key string, size int64) []byte {
	if data := c.getAny(key); int64(len(data)) == size {
		return data
	}
	return nil
}

// getAny returns a kept object, or nil.
func (c *cache) getAny(key string) []byte {
	if c.dir == "" {
		return nil
	}
	data, err := os.ReadFile(c.path(key))
	if err != nil {
		return nil
	}
	return data
}

// intact says whether whole index packs are kept, and every page in them is
// what its id says.
func (c *cache) intact(key func(pack.Name) string, ranges []PackRange) bool {
	for _, r := range ranges {
		for i, size := range r.Sizes {
			name := pack.Name{Run: r.Run, N: r.First + uint32(i)}
			data := c.get(key(name), int64(size))
			refs, err := pack.Parse(name, data)
			if data == nil || err != nil {
				return false
			}
			for _, ref := range refs {
				if _, err := pack.Decode(nil, data[ref.Off:][:ref.Len], ref); err != nil {
					return false
				}
			}
		}
	}
	return true
}

// readAt reads a piece of a kept object; false where it is not kept.
func (c *cache) readAt(key string, p []byte, off int64) bool {
	if c.dir == "" {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.open[key]
	if f == nil {
		var err error
		if f, err = os.Open(c.path(key)); err != nil {
			return false
		}
		for k, old := range c.open {
			if len(c.open) < maxOpenCache {
				break
			}
			_ = old.Close() // was only read
			delete(c.open, k)
		}
		c.open[key] = f
	}
	_, err := f.ReadAt(p, off)
	return err == nil
}

// drop forgets a copy that turned out wrong.
func (c *cache) drop(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.open[key]; f != nil {
		_ = f.Close() // was only read
		delete(c.open, key)
	}
	if c.dir != "" {
		os.Remove(c.path(key))
	}
}

// retain removes the copies of a volume's index packs that are not in keep.
func (c *cache) retain(stack, volume string, keep map[pack.Name]bool) {
	if c.dir == "" {
		return
	}
	dir := filepath.Dir(c.path(indexKey(stack, volume, pack.Name{})))
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if name, err := pack.ParseName(e.Name()); err == nil && keep[name] {
			continue
		}
		c.drop("stacks/" + stack + "/volumes/" + volume + "/index/" + e.Name())
	}
}

// retainManifests removes the copies of a stack's manifests that are not listed.
func (c *cache) retainManifests(stack string, list []found) {
	if c.dir == "" {
		return
	}
	prefix := snapshotsPrefix(stack)
	entries, err := os.ReadDir(c.path(prefix))
	if err != nil {
		return
	}
	keep := map[string]bool{}
	for _, f := range list {
		keep[f.info.Key] = true
	}
	for _, e := range entries {
		if !keep[prefix+e.Name()] {
			c.drop(prefix + e.Name())
		}
	}
}

// close closes the files that are open.
func (c *cache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, f := range c.open {
		_ = f.Close() // was only read
		delete(c.open, k)
	}
}

// pages reads the index pages of one volume, from the cache or the target.
type pages struct {
	store         store.Getter
	cache         *cache
	stack, volume string

	mu    sync.Mutex
	sizes map[pack.Name]uint32 // of the index packs that the manifest names
	kept  map[pack.Name][]byte // packs that are nowhere else at hand
	held  held                 // where there is no cache, or none that can be written
}

func (r *Repository) pages(stack string, v *Volume) *pages {
	p := &pages{store: r.store, cache: r.cache, stack: stack, volume: v.Name}
	p.know(v.Index)
	return p
}

// know adds index packs to those that pages are read from.
func (p *pages) know(ranges []PackRange) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sizes == nil {
		p.sizes = map[pack.Name]uint32{}
	}
	for _, r := range ranges {
		for i, size := range r.Sizes {
			p.sizes[pack.Name{Run: r.Run, N: r.First + uint32(i)}] = size
		}
	}
}

// keep keeps an index pack in memory.
func (p *pages) keep(n pack.Name, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kept == nil {
		p.kept = map[pack.Name][]byte{}
	}
	p.kept[n] = data
}

// ReadPage returns a page, decoded and checked.
func (p *pages) ReadPage(ctx context.Context, ref pack.Ref) ([]byte, error) {
	raw, err := p.read(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("read index of volume %s: %w", p.volume, err)
	}
	return raw, nil
}

func (p *pages) read(ctx context.Context, ref pack.Ref) ([]byte, error) {
	p.mu.Lock()
	size, known := p.sizes[ref.Pack]
	kept := p.kept[ref.Pack]
	p.mu.Unlock()
	if !known || uint64(ref.Off)+uint64(ref.Len) > uint64(size) {
		return nil, fmt.Errorf("%w: page %.12s lies outside the index packs of its manifest", ErrDamaged, ref.ID)
	}
	if kept != nil {
		return pack.Decode(nil, kept[ref.Off:][:ref.Len], ref)
	}
	key := indexKey(p.stack, p.volume, ref.Pack)
	if stored := make([]byte, ref.Len); p.cache.readAt(key, stored, int64(ref.Off)) {
		if raw, err := pack.Decode(nil, stored, ref); err == nil {
			return raw, nil
		}
		p.cache.drop(key)
	}
	if data := p.held.get(key); data != nil {
		if raw, err := pack.Decode(nil, data[ref.Off:][:ref.Len], ref); err == nil {
			return raw, nil
		}
		p.held.drop(key) // it may have been damaged on its way
	}
	if p.cache.dir == "" && size > maxHeld {
		stored, err := p.store.Get(ctx, key, int64(ref.Off), int64(ref.Len))
		if err != nil {
			return nil, err
		}
		return pack.Decode(nil, stored, ref)
	}
	// The whole pack: a reader of one of its pages mostly reads the others.
	data, err := p.fetch(ctx, key, size)
	if err != nil {
		return nil, err
	}
	return pack.Decode(nil, data[ref.Off:][:ref.Len], ref)
}

// fetch fetches an index pack and keeps it: in the cache, or in memory where that is not possible.
func (p *pages) fetch(ctx context.Context, key string, size uint32) ([]byte, error) {
	data, err := p.store.Get(ctx, key, 0, int64(size))
	if err == nil && !p.cache.put(key, data) {
		p.held.put(key, data)
	}
	return data, err
}

// fetchAll fetches all index packs that the cache does not have, several at a
// time: whoever reads the whole index would else wait for each in turn.
func (p *pages) fetchAll(ctx context.Context) error {
	if p.cache.dir == "" {
		return nil
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(indexReaders)
	room := semaphore.NewWeighted(maxHeld)
	p.mu.Lock()
	sizes := maps.Clone(p.sizes)
	p.mu.Unlock()
	for name, size := range sizes {
		key := indexKey(p.stack, p.volume, name)
		if int64(size) > maxHeld || p.cache.has(key, int64(size)) {
			continue
		}
		if room.Acquire(gctx, int64(size)) != nil {
			break // one failed, or ctx ended
		}
		g.Go(func() error {
			defer room.Release(int64(size))
			_, err := p.fetch(gctx, key, size)
			return err
		})
	}
	err := g.Wait()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("read index of volume %s: %w", p.volume, err)
	}
	return nil
}

const (
	// indexReaders is how many index packs are fetched at a time.
	indexReaders = 16
	// maxHeld bounds the index packs that are fetched at a time, and those that
	// are held in memory, in bytes.
	maxHeld = 16 << 20
)

// held are index packs in memory.
type held struct {
	mu    sync.Mutex
	packs map[string][]byte
	order []string // the latest last
	bytes int
}

func (h *held) get(key string) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.packs[key]
}

func (h *held) put(key string, data []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.packs[key]; ok || len(data) > maxHeld {
		return
	}
	for h.bytes+len(data) > maxHeld {
		h.remove(h.order[0])
	}
	if h.packs == nil {
		h.packs = map[string][]byte{}
	}
	h.packs[key] = data
	h.order = append(h.order, key)
	h.bytes += len(data)
}

func (h *held) drop(key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.packs[key]; ok {
		h.remove(key)
	}
}

// remove is drop of one that is there; h.mu is held.
func (h *held) remove(key string) {
	h.bytes -= len(h.packs[key])
	delete(h.packs, key)
	h.order = slices.DeleteFunc(h.order, func(k string) bool { return k == key })
}
