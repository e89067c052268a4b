package snapshot

import (
	"context"
	"fmt"
	"io"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// Export writes a volume of a snapshot as one tar stream in zstd frames. Frames
// are copied as they are stored, except groups that hold stale members: those
// are written again without them. warn is told of what tar cannot restore.
func (r *Repository) Export(ctx context.Context, m *Manifest, volume string, w io.Writer, warn func(Warning), p *Progress) error {
	vol := m.Volume(volume)
	if vol == nil {
		return fmt.Errorf("%w: snapshot %.8s has no volume %q", ErrNoVolume, m.id, volume)
	}
	x := &exporter{v: r.reader(m, vol), w: w, warn: warn, p: p.orNew(), enc: pack.NewEncoder(pack.Fast)}
	x.p.TotalFiles.Add(int64(vol.Counts.Entries))
	x.p.TotalBytes.Add(int64(vol.Counts.Bytes))
	if err := x.run(ctx); err != nil {
		return fmt.Errorf("export volume %s of snapshot %.8s: %w", volume, m.id, err)
	}
	return nil
}

type exporter struct {
	v    *volumeReader
	w    io.Writer
	warn func(Warning)
	p    *Progress
	enc  *pack.Encoder
	live map[uint64]uint32 // how many members of each group are live
	size map[uint64]int64  // what they have in bytes, holes included
}

// maxPath is the longest path that programs can name: PATH_MAX without its NUL.
const maxPath = 4095

func (x *exporter) run(ctx context.Context) error {
	if err := x.count(ctx); err != nil {
		return err
	}
	if err := x.files(ctx); err != nil {
		return err
	}
	if err := x.nodes(ctx); err != nil {
		return err
	}
	// Two zero blocks end a tar archive.
	_, err := x.w.Write(x.enc.Encode(nil, make([]byte, 1024)))
	return err
}

// count finds how many members of each group the snapshot has.
func (x *exporter) count(ctx context.Context) error {
	x.live, x.size = map[uint64]uint32{}, map[uint64]int64{}
	m, err := newMerged(ctx, x.v.pg, x.v.vol, nil)
	if err != nil {
		return err
	}
	for {
		e, _, err := m.next()
		if err != nil || e == nil {
			return err
		}
		if e.Kind == index.File {
			x.live[e.Slot]++
			x.size[e.Slot] += e.Size
		}
		if len(e.Path) > maxPath && e.Kind.Section() != index.Absent {
			x.warn(Warning{Path: index.Escape(e.Path), What: fmt.Sprintf("path of %d bytes: tar cannot create it, `backupd restore` can", len(e.Path))})
		}
	}
}

// files writes the first section, slot by slot.
func (x *exporter) files(ctx context.Context) error {
	cur, err := index.NewFrameCursor(ctx, x.v.pg, x.v.vol.Frames, nil)
	if err != nil {
		return err
	}
	var refs []pack.Ref // to be copied
	var slotNow uint64
	var raw, most int64 // of the slot, in bytes
	next := func() (bool, error) {
		ok, err := cur.Next()
		if !ok || err != nil {
			return ok, err
		}
		fr := &cur.Frame
		if most == 0 || fr.Slot != slotNow {
			slotNow, raw, most = fr.Slot, 0, maxTar
			if fr.Members == 0 {
				most = x.size[fr.Slot] + tarstream.MaxHeader + 512
			}
		}
		if raw += int64(fr.Raw); raw > most {
			return false, fmt.Errorf("%w: slot %d has more than its %d bytes", ErrDamaged, fr.Slot, most)
		}
		return true, nil
	}
	ok, err := next()
	for ok && err == nil {
		slot, members := cur.Frame.Slot, cur.Frame.Members
		if members == 0 || x.live[slot] == members {
			if x.live[slot] == 0 {
				return fmt.Errorf("%w: slot %d belongs to no file", ErrDamaged, slot)
			}
			refs = append(refs, cur.Frame.Ref)
			if len(refs) >= 1024 {
				if err := x.copy(ctx, refs); err != nil {
					return err
				}
				refs = refs[:0]
			}
			// A group's further frames follow it with no members of their own.
			ok, err = next()
			for ok && err == nil && members > 0 && cur.Frame.Slot == slot {
				refs = append(refs, cur.Frame.Ref)
				ok, err = next()
			}
			continue
		}
		var group []pack.Ref
		for ok && err == nil && cur.Frame.Slot == slot {
			group = append(group, cur.Frame.Ref)
			ok, err = next()
		}
		if err != nil {
			return err
		}
		if err := x.copy(ctx, refs); err != nil {
			return err
		}
		refs = refs[:0]
		if err := x.thin(ctx, slot, group); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	return x.copy(ctx, refs)
}

// copy copies frames as they are stored. They are decoded all the same: what
// an export hands out has been checked.
func (x *exporter) copy(ctx context.Context, refs []pack.Ref) error {
	for _, run := range runs(refs) {
		data, err := x.v.stored(ctx, run)
		if err != nil {
			return err
		}
		if _, err := x.w.Write(data); err != nil {
			return err
		}
		for _, ref := range run {
			x.p.Bytes.Add(int64(ref.Raw))
		}
	}
	return nil
}

// stored reads frames that lie one behind the other, checked but not decoded.
func (v *volumeReader) stored(ctx context.Context, run []pack.Ref) ([]byte, error) {
	var out []byte
	first := run[0].Off
	for _, ref := range run {
		if err := v.inPack(ref); err != nil {
			return nil, err
		}
	}
	last := run[len(run)-1]
	key := packKey(v.stack, v.vol.Name, last.Pack)
	out, err := v.r.store.Get(ctx, key, int64(first), int64(last.Off)+int64(last.Len)-int64(first))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	var raw []byte
	for _, ref := range run {
		if raw, err = pack.Decode(raw, out[ref.Off-first:][:ref.Len], ref); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// thin writes a group without its stale members.
func (x *exporter) thin(ctx context.Context, slot uint64, refs []pack.Ref) error {
	var raw []byte
	for _, run := range runs(refs) {
		err := x.v.fetch(ctx, run, func(_ int, b []byte) error {
			if raw = append(raw, b...); len(raw) > maxTar {
				return fmt.Errorf("%w: group in slot %d of more than %d bytes", ErrDamaged, slot, maxTar)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	var out []byte
	live := uint32(0)
	for off := 0; off < len(raw); {
		h, n, err := tarstream.Parse(raw[off:])
		if err != nil {
			return fmt.Errorf("%w: header in slot %d: %w", ErrDamaged, slot, err)
		}
		size := h.DataSize()
		end := int64(off+n) + size + int64(tarstream.Padding(size))
		if end > int64(len(raw)) {
			return fmt.Errorf("%w: content of %.200q goes beyond its group", ErrDamaged, h.Path)
		}
		e, err := x.v.find(ctx, index.Files, h.Path)
		if err != nil {
			return err
		}
		if e != nil && e.Slot == slot && int(e.Off) == off {
			out = append(out, raw[off:end]...)
			live++
		}
		off = int(end)
	}
	if live != x.live[slot] {
		return fmt.Errorf("%w: slot %d has %d live members instead of %d", ErrDamaged, slot, live, x.live[slot])
	}
	for len(out) > 0 {
		n := min(len(out), pack.MaxFrame)
		if _, err := x.w.Write(x.enc.Encode(nil, out[:n])); err != nil {
			return err
		}
		x.p.Bytes.Add(int64(n))
		out = out[n:]
	}
	return nil
}

// find returns the entry of a path in a section, or nil.
func (v *volumeReader) find(ctx context.Context, s index.Section, path string) (*index.Entry, error) {
	cur, err := index.SeekCursor(ctx, v.pg, *v.vol.Section(s), path)
	if err != nil {
		return nil, err
	}
	for {
		ok, err := cur.Next()
		if err != nil || !ok {
			return nil, err
		}
		switch d := index.ComparePaths(cur.Entry.Path, path); {
		case d == 0:
			return &cur.Entry, nil
		case d > 0:
			return nil, nil
		}
	}
}

// nodes copies the headers of the second section.
func (x *exporter) nodes(ctx context.Context) error {
	cur, err := index.NewCursor(ctx, x.v.pg, x.v.vol.Nodes, nil)
	if err != nil {
		return err
	}
	var page *index.Page
	for {
		ok, err := cur.Next()
		if err != nil || !ok {
			return err
		}
		x.p.Files.Add(1)
		if p := cur.Item().Page; p != page {
			page = p
			if err := x.copy(ctx, p.Tar); err != nil {
				return err
			}
		}
	}
}
