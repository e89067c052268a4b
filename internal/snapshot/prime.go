package snapshot

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/tree"
)

// primed is what a restore leaves in the cache, so that the first backup after
// it reads only what changed since: the snapshot's files with the inodes and
// change times that they have in this volume. It never reaches a target.
type primed struct {
	Snapshot string         `json:"snapshot"`
	Identity *tree.Identity `json:"identity"`
	Files    index.Tree     `json:"files"`
	Index    []PackRange    `json:"index"` // packs with its pages, in the cache alone
}

func primedKey(stack, volume string) string { return "primed/" + stack + "/" + volume }

// prime walks a volume that was just restored from a snapshot, beside the
// snapshot's index. A file of the size and the time that the snapshot has, to
// the nanosecond, is the one that the restore wrote or compared. It is best
// effort: without it the next backup reads more.
func (r *Repository) prime(ctx context.Context, m *Manifest, vol *Volume, path string) error {
	if r.cache.dir == "" {
		return nil
	}
	src, err := tree.OpenSource(path)
	if err != nil {
		return err
	}
	defer src.Close()
	trust := src.Trust()
	if forceTrust {
		trust = tree.Settled()
	}
	identity, err := src.Identity()
	if err != nil || !trust.Stats {
		return err
	}
	put := func(_ context.Context, n pack.Name, data []byte) error {
		r.cache.put(indexKey(m.Stack, vol.Name, n), data)
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	packs := pack.NewWriter(ctx, newRun(), 1, put)
	packs.Size = indexPackSize
	pages := newFrameStore(packs, pack.NewEncoder(pack.Dense), nil)
	p := &primer{trust: trust, mounted: src.Root().Dev, builder: index.NewBuilder(pages)}
	p.leaves = index.NewLeaves(p.builder, pages)
	if p.cur, err = index.NewCursor(ctx, r.pages(m.Stack, vol), vol.Files, nil); err != nil {
		return err
	}
	err = p.advance()
	if err == nil {
		err = src.Walk(ctx, p)
	}
	for err == nil && p.more {
		err = p.keep(nil)
	}
	if err == nil {
		err = p.leaves.Close(p.last)
	}
	out := primed{Snapshot: m.id, Identity: &identity}
	if err == nil {
		out.Files, err = p.builder.Close()
	}
	sizes, ferr := packs.Flush()
	if cerr := packs.Close(); ferr == nil {
		ferr = cerr
	}
	if err != nil || ferr != nil {
		return fmt.Errorf("note the state of volume %s: %w", vol.Name, firstOf(err, ferr))
	}
	if len(sizes) > 0 {
		out.Index = []PackRange{{Run: packs.Run(), Sizes: sizes}}
	}
	text, err := json.Marshal(out)
	if err != nil {
		return err
	}
	r.cache.put(primedKey(m.Stack, vol.Name), withSum(primedKey(m.Stack, vol.Name), append(text, '\n')))
	return nil
}

func firstOf(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// primer is the walk of prime.
type primer struct {
	trust   tree.Trust
	mounted uint64 // the volume's device
	cur     *index.Cursor
	more    bool
	builder *index.Builder
	leaves  *index.Leaves
	last    uint64
	line    []byte
}

func (p *primer) advance() (err error) {
	p.more, err = p.cur.Next()
	return err
}

// keep writes the cursor's entry, with what the volume has of it, and goes on.
func (p *primer) keep(st *tree.Stat) error {
	e := p.cur.Entry
	if st != nil {
		e.Ctime, e.Ino, e.Racy, e.Sum = st.Ctime, st.Ino, p.trust.Racy(st), ""
	}
	p.line = e.AppendTo(p.line[:0])
	p.last = index.Hash(e.Path)
	if err := p.leaves.Add(p.last, p.line, nil, nil); err != nil {
		return err
	}
	return p.advance()
}

// Skip implements tree.Visitor.
func (p *primer) Skip(n *tree.Node) bool { return n.Stat.MountRoot || n.Stat.Dev != p.mounted }

// Visit implements tree.Visitor.
func (p *primer) Visit(n *tree.Node) error {
	defer n.Release()
	for p.more {
		d := index.ComparePaths(p.cur.Entry.Path, n.Path)
		if d > 0 {
			return nil
		}
		if d < 0 {
			if err := p.keep(nil); err != nil {
				return err
			}
			continue
		}
		e := &p.cur.Entry
		if n.Err == nil && index.KindOf(n.Stat.Type) == index.File && n.Stat.Size == e.Size && n.Stat.Mtime == e.Mtime {
			return p.keep(&n.Stat)
		}
		return p.keep(nil)
	}
	return nil
}

// primed returns what the last restore noted of a volume, if it still counts:
// nothing newer than the restored snapshot is the parent, the volume is the
// same, and the pages are whole.
func (r *Repository) primed(m *Manifest, volume string, identity tree.Identity) *primed {
	note := primedKey(m.Stack, volume)
	data := r.cache.getAny(note)
	var p primed
	if !sumFits(note, data) || json.NewDecoder(bytes.NewReader(data)).Decode(&p) != nil || p.Snapshot != m.id || p.Identity == nil || *p.Identity != identity {
		return nil
	}
	key := func(n pack.Name) string { return indexKey(m.Stack, volume, n) }
	if !r.cache.intact(key, p.Index) {
		return nil
	}
	return &p
}
