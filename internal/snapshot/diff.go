package snapshot

import (
	"context"
	"fmt"
	"strings"

	"github.com/disko/backupd/internal/snapshot/index"
)

// Change is one difference between two snapshots.
type Change struct {
	Volume string `json:"volume"`
	Path   string `json:"path"` // escaped as in the index
	What   string `json:"what"` // added, removed, changed, or type
	// Before and After are the sizes in bytes, of files.
	Before int64 `json:"before"`
	After  int64 `json:"after"`
}

// Diff calls use for every path that two snapshots have differently, by volume and path.
func (r *Repository) Diff(ctx context.Context, a, b *Manifest, use func(Change) error) error {
	names := map[string]bool{}
	var order []string
	for _, n := range append(a.volumeNames(), b.volumeNames()...) {
		if !names[n] {
			names[n] = true
			order = append(order, n)
		}
	}
	for _, name := range order {
		if err := r.diffVolume(ctx, a, b, name, use); err != nil {
			return fmt.Errorf("compare volume %s: %w", name, err)
		}
	}
	return nil
}

func (r *Repository) diffVolume(ctx context.Context, a, b *Manifest, name string, use func(Change) error) error {
	ca, err := r.present(ctx, a, name)
	if err != nil {
		return err
	}
	cb, err := r.present(ctx, b, name)
	if err != nil {
		return err
	}
	x, err := ca.next()
	if err != nil {
		return err
	}
	y, err := cb.next()
	for err == nil && (x != nil || y != nil) {
		d := 0
		switch {
		case x == nil:
			d = 1
		case y == nil:
			d = -1
		default:
			d = index.ComparePaths(x.Path, y.Path)
		}
		c := Change{Volume: name}
		switch {
		case d < 0:
			c.Path, c.What, c.Before = index.Escape(x.Path), "removed", x.Size
		case d > 0:
			c.Path, c.What, c.After = index.Escape(y.Path), "added", y.Size
		default:
			c.Path, c.Before, c.After = index.Escape(x.Path), x.Size, y.Size
			switch {
			case x.Kind != y.Kind:
				c.What = "type"
			case x.Size != y.Size || x.Mtime != y.Mtime || x.Ctime != y.Ctime || x.Link != y.Link:
				c.What = "changed"
			}
		}
		if c.What != "" {
			if err := use(c); err != nil {
				return err
			}
		}
		if d <= 0 {
			if x, err = ca.next(); err != nil {
				return err
			}
		}
		if d >= 0 {
			y, err = cb.next()
		}
	}
	return err
}

// entries walks what a snapshot's volume has; a volume that it lacks is empty.
type entries struct{ m *merged }

func (r *Repository) present(ctx context.Context, m *Manifest, name string) (*entries, error) {
	vol := m.Volume(name)
	if vol == nil {
		return &entries{}, nil
	}
	c, err := newMerged(ctx, r.pages(m.Stack, vol), vol, nil, index.Files, index.Nodes)
	return &entries{c}, err
}

func (e *entries) next() (*index.Entry, error) {
	if e.m == nil {
		return nil, nil
	}
	en, _, err := e.m.next()
	if en != nil {
		c := *en
		en = &c
	}
	return en, err
}

// Walk calls use for every entry of a volume at or below a path, in the order
// of paths; with all, also for those that the snapshot left out.
func (r *Repository) Walk(ctx context.Context, m *Manifest, volume, below string, use func(e *index.Entry) error) error {
	vol := m.Volume(volume)
	if vol == nil {
		return fmt.Errorf("%w: snapshot %.8s has no volume %q; it has %s", ErrNoVolume, m.id, volume, strings.Join(m.volumeNames(), ", "))
	}
	c, err := newMerged(ctx, r.pages(m.Stack, vol), vol, nil)
	if err != nil {
		return err
	}
	found := below == index.Root
	for {
		e, _, err := c.next()
		if err != nil {
			return err
		}
		if e == nil {
			break
		}
		if e.Kind == index.Gone || e.Path != below && !index.Below(e.Path, below) && below != index.Root {
			continue
		}
		found = true
		if err := use(e); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("%w: volume %s of snapshot %.8s has no %q", ErrNoVolume, volume, m.id, below)
	}
	return nil
}
