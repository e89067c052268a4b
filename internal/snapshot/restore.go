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
	names, err := r.o.there(r.dest)
	return len(names) == 0 && len(r.o.Include) == 0, err
}

// there are the names in the volume's root that count as data.
func (o *RestoreOptions) there(dest *tree.Dest) ([]string, error) {
	names, err := dest.ReadDirNames(index.Root)
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return n == "lost+found" || n == tree.IncompleteMark })
	if o.Fresh != nil {
		names = o.Fresh.others(names)
	}
	return names, nil
}

// holding is what a volume holds before a restore.
type holding struct {
	names   []string // in its root, that count as data
	marked  bool     // it holds half a restore
	resumed bool     // and all that is there, a restore into an empty volume wrote
}

func (f *holding) fresh() bool { return len(f.names) == 0 || f.resumed }

func (o *RestoreOptions) look(dest *tree.Dest) (*holding, error) {
	names, err := o.there(dest)
	if err != nil {
		return nil, err
	}
	f := &holding{names: names, marked: dest.HasMark()}
	if f.marked && len(names) > 0 {
		var was mark
		text, err := dest.ReadMark()
		f.resumed = err == nil && json.Unmarshal(text, &was) == nil && was.Fresh && was.Volume == o.Volume
	}
	return f, nil
}

// refuse is why what a volume holds must stay as it is; nil if it need not.
func (o *RestoreOptions) refuse(f *holding) error {
	switch {
	case f.fresh():
		return nil
	case o.Fresh != nil:
		return fmt.Errorf("%w: it is not fresh any more, it holds data (%s); nothing was changed", ErrNotEmpty, some(f.names))
	case o.Force:
		return nil
	case f.marked:
		return fmt.Errorf("%w: it holds an unfinished restore over earlier data; --force finishes it, `backupd restore --undo --volume %s=%s` brings the earlier data back", ErrNotEmpty, o.Volume, o.Path)
	}
	return fmt.Errorf("%w: it holds data (%s); nothing was changed; --force changes what differs from the snapshot and removes what it does not have, and can be undone", ErrNotEmpty, some(f.names))
}

// Refused is the error, an ErrNotEmpty, with which Restore would not touch the
// volume for what it holds now; for those who stop services before they restore.
// A directory that is not there, or not to be read, Restore speaks of itself.
func (o RestoreOptions) Refused() error {
	dest, err := tree.OpenDest(o.Path, tree.DestOptions{NoOwner: o.NoOwner})
	if err != nil {
		return nil
	}
	defer dest.Close()
	f, err := o.look(dest)
	if err != nil {
		return nil
	}
	if err := o.refuse(f); err != nil {
		return fmt.Errorf("restore volume %s to %s: %w", o.Volume, o.Path, err)
	}
	return nil
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
	f, err := r.o.look(r.dest)
	if err == nil {
		err = r.o.refuse(f)
	}
	if err != nil {
		return false, err
	}
	if len(f.names) == 0 {
		return true, nil
	}
	if r.o.Fresh != nil {
		r.resumed = true
		return true, nil // discard plans
	}
	if r.plan, err = r.makePlan(ctx); err != nil {
		return false, err
	}
	// Over a half-restored volume no new undo is taken: the first one has the data.
	if r.o.Undo != nil && !f.marked && len(r.plan.changed) > 0 {
		u := UndoRequest{Volume: r.o.Volume, Path: r.o.Path, Pick: r.plan.touches, Bytes: r.plan.bytes}
		if err := r.o.Undo(ctx, u); err != nil {
			return false, fmt.Errorf("keep what is there for an undo: %w; nothing was changed; --no-undo restores without", err)
		}
	}
	return f.fresh(), nil
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
