package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/snapshot/tarstream"
	"github.com/disko/backupd/internal/snapshot/tree"
	"github.com/disko/backupd/internal/store"
)

// RestoreOptions say where a volume is restored to, and how.
type RestoreOptions struct {
	Volume string // of the snapshot
	Path   string // the directory that becomes it; made if its parent is there
	// Force allows a volume that holds something: what differs is changed, what
	// the snapshot does not have is removed.
	Force bool
	// Fresh, where set, says that the volume holds nothing worth keeping: Force
	// and Undo do not count then.
	Fresh   *Fresh
	Include []string // patterns; empty for all
	// NoOwner leaves owners as they come, for users who may not set them.
	NoOwner bool
	// Undo, where set, is called before anything that exists is changed, to
	// keep what Pick says yes to: bytes of it at the most, in files.
	Undo     func(ctx context.Context, u UndoRequest) error
	Progress *Progress
	Warn     func(w Warning)
}

// Fresh is what a volume that is to be seeded holds all the same. A restore into
// it gives files their names only when they are whole, so that what lies there
// after one that was killed can be told from what others wrote.
type Fresh struct {
	// Discard are paths that are removed once the mark is written, and nothing
	// else is: the engine's copy of an image.
	Discard []string
	// Keep are files in the root that stay as they are, and are not restored: .gitkeep and its like.
	Keep []string
}

// UndoRequest is what an undo snapshot has to keep.
type UndoRequest struct {
	Volume, Path string
	Pick         func(path string) bool
	Bytes        int64
}

// RestoreStats tells what a restore did.
type RestoreStats struct {
	Snapshot string    `json:"snapshot"`
	Volume   string    `json:"volume"`
	Path     string    `json:"path"`
	Files    int64     `json:"files"`   // entries written
	Bytes    int64     `json:"bytes"`   // of content written
	Removed  int64     `json:"removed"` // entries that the snapshot does not have
	Warnings []Warning `json:"warnings"`
}

// mark is the text of the incomplete mark in a volume's root.
type mark struct {
	Snapshot string    `json:"snapshot"`
	Volume   string    `json:"volume"`
	Started  time.Time `json:"started"`
	Fresh    bool      `json:"fresh"` // the volume was empty before
	Note     string    `json:"note"`
}

// restore is one run of Restore.
type restore struct {
	r       *Repository
	m       *Manifest
	v       *volumeReader
	o       RestoreOptions
	dest    *tree.Dest
	include patterns
	plan    *plan     // nil: the volume is empty, everything is to be written
	resumed bool      // an earlier restore into the fresh volume did not end
	exact   *Compared // of Compare, which restores nothing
	mu      sync.Mutex
	stats   RestoreStats
	root    *tarstream.Header // of the volume's root; read before the mark goes
	// standIns are paths that get the content of a hard link's holder which is not included.
	standIns map[string][]string
	lacks    []string // devices that nobody may make here
}

// Restore restores one volume of a snapshot.
func (r *Repository) Restore(ctx context.Context, m *Manifest, o RestoreOptions) (*RestoreStats, error) {
	vol := m.Volume(o.Volume)
	if vol == nil {
		return nil, fmt.Errorf("%w: snapshot %.8s has no volume %q; it has %s", ErrNoVolume, m.id, o.Volume, strings.Join(m.volumeNames(), ", "))
	}
	if r.keys != nil && !r.keys.CanRead() { // its cache may have index and manifest
		return nil, fmt.Errorf("restore volume %s: %w", o.Volume, sealed.ErrNoIdentity)
	}
	if o.Warn == nil {
		o.Warn = func(Warning) {}
	}
	o.Progress = o.Progress.orNew()
	include, err := parsePatterns(o.Include, m.volumeNames())
	if err != nil {
		return nil, err
	}
	if err := tree.MakeRoot(o.Path); err != nil {
		return nil, fmt.Errorf("restore volume %s: %w", o.Volume, err)
	}
	dest, err := tree.OpenDest(o.Path, tree.DestOptions{NoOwner: o.NoOwner})
	if err != nil {
		return nil, fmt.Errorf("restore volume %s to %s: %w", o.Volume, o.Path, err)
	}
	defer dest.Close()
	run := &restore{
		r: r, m: m, v: r.reader(m, vol), o: o, dest: dest, include: include,
		stats: RestoreStats{Snapshot: m.id, Volume: o.Volume, Path: o.Path, Warnings: []Warning{}},
	}
	o.Progress.TotalFiles.Add(int64(vol.Counts.Entries))
	o.Progress.TotalBytes.Add(int64(vol.Counts.Bytes))
	if err := run.run(ctx); err != nil {
		return nil, fmt.Errorf("restore volume %s to %s: %w", o.Volume, o.Path, err)
	}
	if len(o.Include) == 0 && !o.NoOwner && len(run.stats.Warnings) == 0 {
		_ = r.prime(ctx, m, vol, o.Path) // without it the next backup reads more
	}
	return &run.stats, nil
}

func (m *Manifest) volumeNames() []string {
	var out []string
	for _, v := range m.Volumes {
		out = append(out, v.Name)
	}
	return out
}

// run does the steps in their order. From the mark's writing to its removal
// the volume passes for no data, whatever happens.
func (r *restore) run(ctx context.Context) error {
	whole, err := r.whole()
	if err != nil {
		return err
	}
	if whole = whole && !store.IsNear(r.r.store); whole {
		r.v.spans = newSpans(r.v)
		defer r.v.spans.ahead(ctx)()
	}
	if err := r.v.pg.fetchAll(ctx); err != nil {
		return err
	}
	fresh, err := r.prepare(ctx)
	if err != nil {
		return err
	}
	text, err := json.Marshal(mark{
		Snapshot: r.m.id, Volume: r.o.Volume, Started: r.r.now().UTC(), Fresh: fresh,
		Note: "A backupd restore began here and did not end: this volume is not complete. Run the restore again.",
	})
	if err != nil {
		return err
	}
	if err := r.dest.WriteMark(append(text, '\n')); err != nil {
		return err
	}
	if !whole {
		defer r.v.beginTars(ctx)()
	}
	steps := []func(context.Context) error{r.discard, r.removeOthers, r.findStandIns, r.makeDirs, r.v.spans.count, r.writeFiles, r.writeSpecials, r.writeLinks, r.finishDirs}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return r.explain(err)
		}
	}
	if err := r.dest.Sync(); err != nil {
		return err
	}
	if err := r.dest.RemoveMark(); err != nil {
		return err
	}
	return r.finishRoot() // the mark's removal touched it
}

// whole says whether nothing of the snapshot is there yet, and all of it is wanted.
func (r *restore) whole() (bool, error) {
	names, err := r.there()
	return len(names) == 0 && len(r.o.Include) == 0, err
}

// there are the names in the volume's root that count as data.
func (r *restore) there() ([]string, error) {
	names, err := r.dest.ReadDirNames(index.Root)
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return n == "lost+found" || n == tree.IncompleteMark })
	if r.o.Fresh != nil {
		names = r.o.Fresh.others(names)
	}
	return names, nil
}

// explain adds what to do to the errors that a user can do something about.
func (r *restore) explain(err error) error {
	var owner *tree.OwnerError
	if errors.As(err, &owner) && errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("%w; this user namespace does not have that id: a rootless engine has as many as its user is given in /etc/subuid and /etc/subgid: give it more there and start the engine anew, or restore with --no-owner to have all files belong to root", err)
	}
	if errors.As(err, &owner) {
		return fmt.Errorf("%w; owners can be restored by root only: run it as root (sudo, or the container's default user), or with --no-owner to have all files belong to you", err)
	}
	return err
}

// prepare says whether the volume is empty; where it is not, it plans the
// changes and has the present state kept.
func (r *restore) prepare(ctx context.Context) (fresh bool, err error) {
	names, err := r.there()
	if err != nil {
		return false, err
	}
	marked := r.dest.HasMark()
	if len(names) == 0 {
		return true, nil
	}
	if marked {
		var was mark
		if text, err := r.dest.ReadMark(); err == nil && json.Unmarshal(text, &was) == nil && was.Fresh && was.Volume == r.o.Volume {
			fresh = true // all that is here, an earlier restore wrote
		}
	}
	if r.o.Fresh != nil {
		if fresh {
			r.resumed = true
			return true, nil // discard plans
		}
		return false, fmt.Errorf("%w: it is not fresh any more, it holds data (%s); nothing was changed", ErrNotEmpty, some(names))
	}
	if !r.o.Force && !fresh {
		if marked {
			return false, fmt.Errorf("%w: it holds an unfinished restore over earlier data; --force finishes it, `backupd restore --undo --volume %s=%s` brings the earlier data back", ErrNotEmpty, r.o.Volume, r.o.Path)
		}
		return false, fmt.Errorf("%w: it holds data (%s); nothing was changed; --force changes what differs from the snapshot and removes what it does not have, and can be undone", ErrNotEmpty, some(names))
	}
	if r.plan, err = r.makePlan(ctx); err != nil {
		return false, err
	}
	// Over a half-restored volume no new undo is taken: the first one has the data.
	if r.o.Undo != nil && !marked && len(r.plan.changed) > 0 {
		u := UndoRequest{Volume: r.o.Volume, Path: r.o.Path, Pick: r.plan.touches, Bytes: r.plan.bytes}
		if err := r.o.Undo(ctx, u); err != nil {
			return false, fmt.Errorf("keep what is there for an undo: %w; nothing was changed; --no-undo restores without", err)
		}
	}
	return fresh, nil
}

// others are the names in the root that are neither discarded nor kept.
func (f *Fresh) others(names []string) []string {
	known := map[string]bool{}
	for _, n := range append(slices.Clone(f.Discard), f.Keep...) {
		known[n] = true
	}
	return slices.DeleteFunc(names, func(n string) bool { return known[n] })
}

// discard removes what a fresh volume holds. What was not announced stays, and
// then the volume is not fresh any more; except after an earlier restore:
// there is a plan for what that wrote.
func (r *restore) discard(ctx context.Context) error {
	if r.o.Fresh == nil {
		return nil
	}
	drop := make(map[string]bool, len(r.o.Fresh.Discard))
	for _, p := range r.o.Fresh.Discard {
		drop[p] = true
	}
	for _, p := range r.o.Fresh.Discard {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.dest.Remove(p, func(p string) bool { return !drop[p] }); err != nil {
			return err
		}
	}
	names, err := r.dest.ReadDirNames(index.Root)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(n string) bool {
		return n == "lost+found" || n == tree.IncompleteMark || slices.Contains(r.o.Fresh.Keep, n)
	})
	if len(names) == 0 {
		return nil
	}
	if !r.resumed || slices.ContainsFunc(names, func(n string) bool { return drop[n] }) {
		return fmt.Errorf("%w: it is not fresh any more: meanwhile something was written to it (%s)", ErrNotEmpty, some(names))
	}
	r.plan, err = r.makePlan(ctx)
	return err
}

func some(names []string) string {
	if len(names) > 3 {
		return fmt.Sprintf("%q, %q, %q and %d more", names[0], names[1], names[2], len(names)-3)
	}
	return fmt.Sprintf("%q", names)
}

func (r *restore) included(path string, dir bool) bool {
	if r.o.Fresh != nil && slices.Contains(r.o.Fresh.Keep, path) {
		return false
	}
	return len(r.include) == 0 || r.include.matchTree(r.o.Volume, path, dir)
}

// wants says whether an entry that is no directory is to be restored.
func (r *restore) wants(path string) bool { return r.included(path, false) }

func (r *restore) warn(path string, err error) {
	w := Warning{Path: index.Escape(path), What: err.Error()}
	r.mu.Lock()
	r.stats.Warnings = append(r.stats.Warnings, w)
	r.mu.Unlock()
	r.o.Warn(w)
}

// soft turns an attribute that cannot be set into a warning.
func (r *restore) soft(path string, err error) error {
	var x *tree.XattrError
	if errors.As(err, &x) {
		r.warn(path, fmt.Errorf("attribute %s not restored: %w", x.Name, x.Err))
		return nil
	}
	return err
}

func (r *restore) wrote(files, bytes int64) {
	r.o.Progress.Files.Add(files)
	r.mu.Lock()
	r.stats.Files += files
	r.stats.Bytes += bytes
	r.mu.Unlock()
}

func (r *restore) removeOthers(ctx context.Context) error {
	if r.plan == nil {
		return nil
	}
	r.plan.absent = map[string]index.Kind{}
	m, err := newMerged(ctx, r.v.pg, r.v.vol, nil, index.Absent)
	if err != nil {
		return err
	}
	for {
		e, _, err := m.next()
		if err != nil {
			return err
		}
		if e == nil {
			break
		}
		if e.Kind.LeftOut() {
			r.plan.absent[e.Path] = e.Kind
		}
	}
	for _, path := range r.plan.remove {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := r.dest.Remove(path, func(p string) bool {
			_, left := r.plan.absent[p]
			return left || !r.included(p, false)
		})
		if err != nil {
			return err
		}
		r.stats.Removed++
	}
	return nil
}

// findStandIns looks for hard links that are included while the path that
// holds their content is not: the first of them gets the content.
func (r *restore) findStandIns(ctx context.Context) error {
	r.standIns = map[string][]string{}
	if len(r.include) == 0 {
		return nil
	}
	return r.v.nodes(ctx, func(e *index.Entry, _ *tarstream.Header) error {
		if e.Kind == index.Link && r.wants(e.Path) && !r.wants(e.Link) {
			r.standIns[e.Link] = append(r.standIns[e.Link], e.Path)
		}
		return nil
	})
}

// makeDirs makes the directories, open to us until their time comes. Of those
// that are not included, the ones that something included lies in.
func (r *restore) makeDirs(ctx context.Context) error {
	var above []string // of the current path
	parents := func(path string) error {
		for len(above) > 0 && !index.Below(path, above[len(above)-1]) {
			above = above[:len(above)-1]
		}
		from := 0
		if len(above) > 0 {
			from = len(above[len(above)-1]) + 1
		}
		for i := from; i < len(path); i++ {
			if path[i] == '/' {
				if _, err := r.dest.Mkdir(path[:i]); err != nil {
					return err
				}
				above = append(above, path[:i])
			}
		}
		return nil
	}
	m, err := newMerged(ctx, r.v.pg, r.v.vol, nil, index.Nodes)
	if len(r.include) > 0 && err == nil {
		m, err = newMerged(ctx, r.v.pg, r.v.vol, nil, index.Files, index.Nodes)
	}
	if err != nil {
		return err
	}
	var page *index.Page
	for {
		e, it, err := m.next()
		if err != nil || e == nil {
			return err
		}
		if r.v.spans != nil && it.Page != page {
			page = it.Page
			for _, ref := range page.Tar {
				r.v.spans.keepTar(ref)
			}
		}
		if e.Path == index.Root || !r.included(e.Path, e.Kind == index.Dir) {
			continue
		}
		if len(r.include) > 0 {
			if err := parents(e.Path); err != nil {
				return err
			}
		}
		if e.Kind != index.Dir {
			continue
		}
		if _, err := r.dest.Mkdir(e.Path); err != nil {
			return err
		}
		above = append(above, e.Path)
	}
}

func (r *restore) writeFiles(ctx context.Context) error {
	want := func(e *index.Entry) bool {
		if _, ok := r.standIns[e.Path]; ok {
			return true
		}
		if !r.wants(e.Path) {
			return false
		}
		if !r.plan.touches(e.Path) {
			r.o.Progress.Files.Add(1)
			r.o.Progress.Bytes.Add(e.Size)
			return false
		}
		return true
	}
	return r.v.files(ctx, want, func(e *index.Entry, h *tarstream.Header) (fileSink, error) {
		if in := r.standIns[e.Path]; len(in) > 0 {
			h.Path = in[0]
		}
		return &writer{r: r, h: *h}, nil
	})
}

// writer is a fileSink that writes a file into the volume.
type writer struct {
	r *restore
	h tarstream.Header

	mu sync.Mutex
	f  *tree.DestFile
}

// replace says whether the file gets its name only when it is whole.
func (w *writer) replace() bool { return w.r.plan != nil || w.r.o.Fresh != nil }

// Write implements fileSink. A file that comes in one piece takes the short way.
func (w *writer) Write(p []byte, off int64) error {
	w.mu.Lock()
	if w.f == nil {
		if off == 0 && w.h.Sparse == nil && int64(len(p)) == w.h.Size {
			defer w.mu.Unlock()
			return w.small(p)
		}
		f, err := w.r.dest.CreateFile(&w.h, w.replace())
		if err != nil {
			w.mu.Unlock()
			return err
		}
		w.f = f
	}
	w.mu.Unlock()
	err := spread(layout(&w.h), p, off, func(p []byte, at int64) error {
		_, err := w.f.WriteAt(p, at)
		return err
	})
	w.r.o.Progress.Bytes.Add(int64(len(p)))
	return err
}

func (w *writer) small(p []byte) error {
	err := w.r.soft(w.h.Path, w.r.dest.WriteSmall(&w.h, p, w.replace()))
	if err == nil {
		w.r.o.Progress.Bytes.Add(int64(len(p)))
		w.r.wrote(1, int64(len(p)))
		w.h.Size = -1 // done
	}
	return err
}

// Done implements fileSink.
func (w *writer) Done() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.h.Size < 0 {
		return nil
	}
	if w.f == nil {
		if w.h.Sparse == nil && w.h.Size == 0 {
			return w.small(nil)
		}
		var err error
		if w.f, err = w.r.dest.CreateFile(&w.h, w.replace()); err != nil {
			return err
		}
	}
	if w.h.Sparse != nil {
		if err := w.f.Truncate(w.h.Size); err != nil {
			w.f.Abort()
			return err
		}
	}
	w.r.wrote(1, w.h.DataSize())
	return w.r.soft(w.h.Path, w.f.Finish())
}

// Abort implements fileSink.
func (w *writer) Abort() {
	if w.f != nil {
		w.f.Abort()
	}
}

func (r *restore) writeSpecials(ctx context.Context) error {
	return r.v.nodes(ctx, func(e *index.Entry, h *tarstream.Header) error {
		if e.Kind == index.Dir || e.Kind == index.Link {
			return nil
		}
		if in := r.standIns[e.Path]; len(in) > 0 {
			h.Path = in[0]
		} else if !r.wants(e.Path) || !r.plan.touches(e.Path) {
			return nil
		}
		r.wrote(1, 0)
		if h.Type == tarstream.Symlink {
			return r.soft(h.Path, r.dest.Symlink(h, r.plan != nil))
		}
		err := r.dest.Special(h, r.plan != nil)
		var device *tree.DeviceError
		if errors.As(err, &device) {
			r.lacks = append(r.lacks, h.Path)
			r.warn(h.Path, fmt.Errorf("device not restored: %w: a user namespace has no devices of its own; restore this volume with an engine that is not rootless if they are needed", device.Err))
			return nil
		}
		return r.soft(h.Path, err)
	})
}

func (r *restore) writeLinks(ctx context.Context) error {
	return r.v.nodes(ctx, func(e *index.Entry, h *tarstream.Header) error {
		if e.Kind != index.Link || !r.wants(e.Path) {
			return nil
		}
		if in := r.standIns[e.Link]; len(in) > 0 {
			if in[0] == e.Path {
				return nil
			}
			h.Link = in[0]
		}
		r.wrote(1, 0)
		if slices.Contains(r.lacks, h.Link) {
			r.warn(h.Path, fmt.Errorf("device not restored: it is a link to %q", h.Link))
			return nil
		}
		return r.dest.Link(h, r.plan != nil)
	})
}

// finishDirs gives directories their metadata, each after all that is below it.
func (r *restore) finishDirs(ctx context.Context) error {
	var open []*tarstream.Header
	finish := func(n int) error {
		for len(open) > n {
			h := open[len(open)-1]
			open = open[:len(open)-1]
			if h.Path == index.Root {
				r.root = h
				continue
			}
			if err := r.soft(h.Path, r.dest.FinishDir(h)); err != nil {
				return err
			}
			r.wrote(1, 0)
		}
		return nil
	}
	err := r.v.nodes(ctx, func(e *index.Entry, h *tarstream.Header) error {
		if e.Kind != index.Dir || !r.included(e.Path, true) {
			return nil
		}
		n := len(open)
		for n > 0 && !index.Below(e.Path, open[n-1].Path) {
			n--
		}
		if err := finish(n); err != nil {
			return err
		}
		c := *h
		open = append(open, &c)
		return nil
	})
	if err != nil {
		return err
	}
	return finish(0)
}

// finishRoot gives the root its metadata, last of all. It reads nothing from
// the target: the mark is gone, so it must not fail for the target's sake.
func (r *restore) finishRoot() error {
	if len(r.include) > 0 || r.root == nil {
		return nil
	}
	r.wrote(1, 0)
	return r.explain(r.soft(index.Root, r.dest.FinishDir(r.root)))
}
