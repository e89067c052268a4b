package snapshot

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/snapshot/tarstream"
	"github.com/disko/backupd/internal/snapshot/tree"
)

// Difference is a path that is not as the snapshot has it. The path is written as in the index.
type Difference struct {
	Path string `json:"path"`
	How  string `json:"how"`
}

func (d Difference) String() string { return d.Path + " " + d.How }

// maxDifferences bounds the differences that are named; all are counted.
const maxDifferences = 20

// Compared tells what a comparison of a directory with a volume of a snapshot found.
type Compared struct {
	Volume  string `json:"volume"`
	Entries int64  `json:"entries"` // that were looked at and are in both
	Bytes   int64  `json:"bytes"`   // of content that was compared
	// Differ counts the paths that differ; Differences are the first of them.
	Differ      int          `json:"differ"`
	Differences []Difference `json:"differences,omitempty"`

	mu     sync.Mutex
	except map[string]bool
}

func (c *Compared) differs(path, how string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	path = index.Escape(path)
	if c.except[path] {
		return
	}
	c.Differ++
	if len(c.Differences) < maxDifferences {
		c.Differences = append(c.Differences, Difference{path, how})
	}
}

func (c *Compared) add(bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Entries++
	c.Bytes += bytes
}

// CompareOptions say what is compared with a volume of a snapshot.
type CompareOptions struct {
	Volume, Path string
	// NoOwner: owners do not count, as in a restore without them.
	NoOwner bool
	// Except are what a restore warned of, because it could not be set here: these
	// paths do not count.
	Except []Warning
}

// Compare compares a directory with a volume of a snapshot: names, types, metadata
// and every byte of content, hard links and directories included. Both are read, and
// nothing is written. What the snapshot left out does not count.
func (r *Repository) Compare(ctx context.Context, m *Manifest, o CompareOptions) (*Compared, error) {
	vol := m.Volume(o.Volume)
	if vol == nil {
		return nil, fmt.Errorf("%w: snapshot %.8s has no volume %q; it has %s", ErrNoVolume, m.id, o.Volume, strings.Join(m.volumeNames(), ", "))
	}
	if r.keys != nil && !r.keys.CanRead() {
		return nil, fmt.Errorf("compare volume %s: %w", o.Volume, sealed.ErrNoIdentity)
	}
	dest, err := tree.OpenDest(o.Path, tree.DestOptions{NoOwner: o.NoOwner})
	if err != nil {
		return nil, fmt.Errorf("compare %s with volume %s: %w", o.Path, o.Volume, err)
	}
	defer dest.Close()
	c := &Compared{Volume: o.Volume, except: map[string]bool{}}
	for _, w := range o.Except {
		c.except[w.Path] = true
	}
	run := &restore{r: r, m: m, v: r.reader(m, vol), o: RestoreOptions{Volume: o.Volume, Path: o.Path, NoOwner: o.NoOwner}, dest: dest, exact: c}
	if err := run.v.pg.fetchAll(ctx); err != nil {
		return nil, fmt.Errorf("compare %s with volume %s: %w", o.Path, o.Volume, err)
	}
	if dest.HasMark() {
		c.differs(tree.IncompleteMark, "says that a restore did not end")
	}
	if _, err := run.makePlan(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// compareNode compares a directory's metadata, or whether a hard link is one.
func (r *restore) compareNode(p *plan, e *index.Entry, h *tarstream.Header) error {
	st, err := r.dest.Lstat(e.Path)
	if err != nil {
		return err
	}
	p.found.add(0)
	if e.Kind == index.Link {
		if p.touches(e.Link) {
			return nil // said already
		}
		of, err := r.dest.Lstat(e.Link)
		if err == nil && (of.Ino != st.Ino || of.Dev != st.Dev) {
			p.touch(e.Path, "is not the hard link that it was")
		}
		return err
	}
	same, err := r.sameMeta(h, &st)
	if err == nil && !same {
		p.touch(e.Path, "has another time, mode, owner or attribute")
	}
	return err
}
