package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/snapshot/tarstream"
	"github.com/disko/backupd/internal/store"
)

// Damage is something that is not as it was written.
type Damage struct {
	Snapshot string `json:"snapshot,omitempty"` // empty: what cannot be read as one
	Object   string `json:"object,omitempty"`
	What     string `json:"what"`
}

func (d Damage) String() string {
	parts := make([]string, 0, 3)
	if d.Snapshot != "" {
		parts = append(parts, fmt.Sprintf("snapshot %.8s", d.Snapshot))
	}
	if d.Object != "" {
		parts = append(parts, d.Object)
	}
	return strings.Join(append(parts, d.What), ": ")
}

// Verified tells what Verify looked at and what it found.
type Verified struct {
	Snapshots int      `json:"snapshots"`
	Objects   int      `json:"objects"`
	Bytes     int64    `json:"bytes"` // of the objects
	Deep      bool     `json:"deep"`
	Damage    []Damage `json:"damage"`
}

// verifier is one run of Verify.
type verifier struct {
	r     *Repository
	out   *Verified
	p     *Progress
	packs map[string]bool // keys read already
	bad   map[string]bool // keys found damaged
	mu    sync.Mutex
}

// Verify checks snapshots. Without deep, every object that they need must be
// there and have its size. With deep every byte of them is read, and every checksum,
// frame id and line is checked. Damage is no error: it is in the result.
func (r *Repository) Verify(ctx context.Context, list []Listed, deep bool, p *Progress) (*Verified, error) {
	v := &verifier{r: r, out: &Verified{Deep: deep, Damage: []Damage{}}, p: p.orNew(), packs: map[string]bool{}, bad: map[string]bool{}}
	v.extras(ctx)
	for _, l := range list {
		v.out.Snapshots++
		if l.Err != nil {
			v.damage(l.ID, "", l.Err)
			continue
		}
		if err := v.manifest(ctx, l); err != nil {
			return nil, err
		}
		if err := v.objects(ctx, l.Manifest); err != nil {
			return nil, err
		}
	}
	if !deep {
		return v.out, nil
	}
	for _, l := range list {
		if l.Err != nil {
			continue
		}
		for i := range l.Manifest.Volumes {
			v.p.TotalFiles.Add(int64(l.Manifest.Volumes[i].Counts.Entries))
		}
	}
	for _, l := range list {
		if l.Err != nil {
			continue
		}
		if err := v.deep(ctx, l.Manifest); err != nil {
			return nil, err
		}
	}
	return v.out, nil
}

func (v *verifier) damage(snapshot, object string, err error) {
	v.mu.Lock()
	v.out.Damage = append(v.out.Damage, Damage{snapshot, object, err.Error()})
	v.mu.Unlock()
}

// extras checks what restores without backupd.
func (v *verifier) extras(ctx context.Context) {
	for key := range extras() {
		data, err := v.r.store.Get(ctx, key, 0, -1)
		v.out.Objects++
		switch {
		case err != nil:
			v.damage("", key, err)
		case !sumFits(key, data):
			v.damage("", key, errors.New("is cut or altered; remove it, the next backup writes it again"))
		}
	}
	if v.r.keys == nil {
		return
	}
	locks, err := listLocks(ctx, v.r.store, v.r.ID)
	if err != nil {
		v.damage("", keysPrefix, err)
	}
	for _, l := range locks {
		v.out.Objects++
		if err := v.r.checkLock(ctx, l); err != nil {
			v.damage("", lockKey(v.r.ID, l.name), err)
		}
	}
	if names, ok := v.r.store.(*sealed.Reader); ok && v.r.keys.CanRead() {
		for key, err := range names.CheckNames(ctx) {
			v.out.Objects++
			if err != nil {
				v.damage("", key, err)
			}
		}
	}
}

// manifest reads a manifest from the target: the list may be from the cache.
func (v *verifier) manifest(ctx context.Context, l Listed) error {
	if v.r.keys != nil && !v.r.keys.CanRead() {
		return nil // an agent: the listing has it with its size
	}
	key := snapshotKey(l.Stack, l.Sequence, l.ID)
	data, err := v.r.store.Get(ctx, key, 0, -1)
	if err == nil {
		_, err = v.r.checkManifest(data, l)
	}
	if err != nil && ctx.Err() == nil {
		v.damage(l.ID, key, err)
	}
	return ctx.Err()
}

// objects checks that all that a snapshot needs is there with its size.
func (v *verifier) objects(ctx context.Context, m *Manifest) error {
	sizes := m.sizes()
	for key, size := range sizes {
		if !v.packs[key] {
			v.packs[key] = true
			v.out.Objects++
			v.out.Bytes += size
			v.p.TotalBytes.Add(size)
		}
	}
	v.out.Objects++ // the manifest
	missing, err := v.r.missing(ctx, m)
	if err != nil {
		return err
	}
	for _, key := range missing {
		v.bad[key] = true
		info, err := v.r.store.Stat(ctx, key)
		switch {
		case errors.Is(err, store.ErrNotExist):
			v.damage(m.id, key, errors.New("is missing"))
		case err != nil:
			return err
		default:
			v.damage(m.id, key, fmt.Errorf("has %d bytes instead of %d", info.Size, sizes[key]))
		}
	}
	return nil
}

// deep reads all of a snapshot. A pack that several share is read once.
func (v *verifier) deep(ctx context.Context, m *Manifest) error {
	for _, key := range slices.Sorted(maps.Keys(m.sizes())) {
		if !v.packs[key] || v.bad[key] {
			continue
		}
		delete(v.packs, key)
		if err := v.pack(ctx, m, key, m.sizes()[key]); err != nil {
			return err
		}
	}
	for i := range m.Volumes {
		if err := v.volume(ctx, m, &m.Volumes[i]); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			v.damage(m.id, "volume "+m.Volumes[i].Name, err)
		}
	}
	return nil
}

// pack checks every byte of a pack: frames and table.
func (v *verifier) pack(ctx context.Context, m *Manifest, key string, size int64) error {
	data, err := v.r.store.Get(ctx, key, 0, size)
	v.p.Bytes.Add(size)
	if err == nil {
		var refs []pack.Ref
		var name pack.Name
		if name, err = packName(key); err == nil {
			refs, err = pack.Parse(name, data)
		}
		var raw []byte
		for _, ref := range refs {
			if err == nil {
				raw, err = pack.Decode(raw, data[ref.Off:][:ref.Len], ref)
			}
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		v.damage(m.id, key, err)
	}
	return nil
}

// volume checks that the index is whole, that it fits the stream, and that
// the stream has nothing that the index does not know of.
func (v *verifier) volume(ctx context.Context, m *Manifest, vol *Volume) error {
	rd := v.r.reader(m, vol)
	rd.pg = v.r.uncachedPages(m.Stack, vol) // the target is what is to be checked
	var counts Counts
	live := map[uint64]uint32{}
	all, err := newMerged(ctx, rd.pg, vol, nil)
	if err != nil {
		return err
	}
	dirs, links := []string{}, []string{}
	for {
		e, _, err := all.next()
		if err != nil {
			return err
		}
		if e == nil {
			break
		}
		for len(dirs) > 0 && !index.Below(e.Path, dirs[len(dirs)-1]) {
			dirs = dirs[:len(dirs)-1]
		}
		if e.Kind.Section() == index.Absent {
			continue
		}
		if e.Path != index.Root && (len(dirs) == 0 || parent(e.Path) != dirs[len(dirs)-1]) {
			return fmt.Errorf("%w: index has %q and not its directory", ErrDamaged, e.Path)
		}
		counts.Entries++
		if e.Kind == index.Link {
			links = append(links, e.Link)
		}
		switch e.Kind {
		case index.Dir:
			dirs = append(dirs, e.Path)
		case index.File:
			counts.Files++
			counts.Bytes += uint64(e.Size)
			live[e.Slot]++
		}
	}
	if counts.Entries != vol.Counts.Entries || counts.Files != vol.Counts.Files || counts.Bytes != vol.Counts.Bytes {
		return fmt.Errorf("%w: the index has %d entries, %d files, %d bytes; the manifest says %d, %d, %d", ErrDamaged,
			counts.Entries, counts.Files, counts.Bytes, vol.Counts.Entries, vol.Counts.Files, vol.Counts.Bytes)
	}
	for _, l := range links {
		held, err := rd.find(ctx, index.Files, l)
		if err == nil && held == nil {
			held, err = rd.find(ctx, index.Nodes, l)
		}
		if err == nil && (held == nil || held.Kind == index.Dir || held.Kind == index.Link) {
			err = fmt.Errorf("%w: a hard link leads to %q, which the snapshot does not have", ErrDamaged, l)
		}
		if err != nil {
			return err
		}
	}
	if err := slotsFit(ctx, rd, live); err != nil {
		return err
	}
	err = rd.files(ctx, nil, func(e *index.Entry, h *tarstream.Header) (fileSink, error) {
		v.p.Files.Add(1)
		return nil, nil
	})
	if err != nil {
		return err
	}
	return rd.nodes(ctx, func(*index.Entry, *tarstream.Header) error { v.p.Files.Add(1); return nil })
}

// slotsFit makes sure that every slot of the frame table belongs to a file,
// and that no group has more live entries than members.
func slotsFit(ctx context.Context, rd *volumeReader, live map[uint64]uint32) error {
	cur, err := index.NewFrameCursor(ctx, rd.pg, rd.vol.Frames, nil)
	if err != nil {
		return err
	}
	seen := 0
	last, first := uint64(0), true
	for {
		ok, err := cur.Next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		f := &cur.Frame
		if err := rd.inPack(f.Ref); err != nil {
			return err
		}
		if !first && f.Slot == last {
			continue
		}
		first, last = false, f.Slot
		n := live[f.Slot]
		if n == 0 || f.Members > 0 && n > f.Members || f.Members == 0 && n > 1 || f.Slot >= rd.vol.NextSlot {
			return fmt.Errorf("%w: slot %d has %d entries and %d members", ErrDamaged, f.Slot, n, f.Members)
		}
		seen++
	}
	if seen != len(live) {
		return fmt.Errorf("%w: %d slots are missing from the frame table", ErrDamaged, len(live)-seen)
	}
	return nil
}

// uncachedPages reads a volume's index from the target only.
func (r *Repository) uncachedPages(stack string, vol *Volume) *pages {
	p := r.pages(stack, vol)
	p.cache = newCache("", "")
	return p
}

// parent is the directory that a path lies in.
func parent(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return index.Root
}
