package snapshot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

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
	if p.cache.dir == "" {
		stored, err := p.store.Get(ctx, key, int64(ref.Off), int64(ref.Len))
		if err != nil {
			return nil, err
		}
		return pack.Decode(nil, stored, ref)
	}
	// The whole pack: a reader of one of its pages mostly reads the others.
	data, err := p.store.Get(ctx, key, 0, int64(size))
	if err != nil {
		return nil, err
	}
	p.cache.put(key, data)
	return pack.Decode(nil, data[ref.Off:][:ref.Len], ref)
}
