package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/tree"
	"github.com/disko/backupd/internal/store"
)

// Source is a volume to be backed up: its name and where it is mounted.
type Source struct {
	Name string
	Path string
	// What the engine that keeps the volume says of it, for the manifest.
	Driver  string
	Options map[string]string
	Labels  map[string]string
}

// BackupOptions say what to take.
type BackupOptions struct {
	Stack   string
	Volumes []Source
	// Exclude are patterns of what to leave out; see docs for their form.
	Exclude []string
	Tags    []string
	// CrossMounts takes also what is mounted inside a volume.
	CrossMounts bool
	Origin      string // which installation this is
	Trigger     string // "manual" where empty
	Version     string // of backupd
	// Freeze, where set, has the volumes read twice: while all goes on, and,
	// for what changed meanwhile, while it stands still.
	Freeze Freezer
	// HoldBytes is how much of what is read while frozen may be kept in memory and
	// dealt with afterwards; what is beyond it is compressed and uploaded while
	// all stands still. 48 MiB where 0.
	HoldBytes int64
	// FreezeLimit is how long it may take, from the end of Freeze on, to read what is
	// read while frozen: beyond it the services run again and the backup fails. No limit where 0.
	FreezeLimit time.Duration
	// Dumps become volumes of one file each. They are read before the freeze.
	Dumps []Dump
	// Seeded is the id of the snapshot that this installation was seeded from,
	// where it is a clone: what it takes does not lead its stack.
	Seeded string
	// About says what the stack was, for the manifest.
	About *About
	// Pick, where set, leaves out what it says no to, as untouched: what an
	// undo snapshot does. Directories are always taken.
	Pick     func(path string) bool
	Progress *Progress
	// Warn, where set, is told of each warning when it arises.
	Warn func(volume string, w Warning)
	// Notice, where set, is told what is worth knowing of the run as a whole.
	Notice func(text string)
}

// Summary tells what a backup did. Its JSON form is stable.
type Summary struct {
	ID       string        `json:"id"`
	Stack    string        `json:"stack"`
	Sequence uint64        `json:"sequence"`
	Started  time.Time     `json:"started"`
	Finished time.Time     `json:"finished"`
	Volumes  []VolumeStats `json:"volumes"`
	// FrozenSeconds is how long it took from the call of Freeze to the end of
	// Thaw; 0 where nothing was frozen.
	FrozenSeconds float64 `json:"frozen_seconds,omitempty"`
}

// VolumeStats tells what a backup did with one volume. Sizes are in bytes.
type VolumeStats struct {
	Name         string    `json:"name"`
	Files        uint64    `json:"files"`
	Bytes        uint64    `json:"bytes"`
	BytesRead    uint64    `json:"bytes_read"`
	BytesStored  uint64    `json:"bytes_stored"` // what this run uploaded
	FramesNew    uint64    `json:"frames_new"`
	FramesReused uint64    `json:"frames_reused"`
	Warnings     []Warning `json:"warnings"`
	// WarningCount counts the warnings that are no notices, beyond the listed too.
	WarningCount uint64 `json:"warning_count"`
}

// Warned says whether something could not be read as it should.
func (s *Summary) Warned() bool {
	return slices.ContainsFunc(s.Volumes, func(v VolumeStats) bool { return v.WarningCount > 0 })
}

// backupRun is one run of Backup.
type backupRun struct {
	r      *Repository
	w      store.Writer
	o      BackupOptions
	run    string
	parent *Manifest
	m      *Manifest
	stats  []VolumeStats
	intent *intents
	tees   []*tee

	fast, dense *pack.Encoder
	known       [2]atomic.Int64 // frames and pages that all volumes remember
	kept        atomic.Int64    // bytes of index packs in memory
	frozen      *frozen         // nil where nothing is frozen
}

// Backup takes a snapshot of volumes and returns when it is committed. On
// an error there is no snapshot, and all earlier ones are as they were; but for a
// ThawError, with which the summary is returned.
func (r *Repository) Backup(ctx context.Context, w store.Writer, o BackupOptions) (*Summary, error) {
	sum, _, err := r.backup(ctx, w, o, nil)
	return sum, err
}

// backup takes a snapshot; what it writes goes to the other places as well, if
// those announce the run.
func (r *Repository) backup(ctx context.Context, w store.Writer, o BackupOptions, others []*tee) (*Summary, *Manifest, error) {
	w, err := r.writer(w)
	if err != nil {
		return nil, nil, err
	}
	b := &backupRun{r: r, w: w, o: o, run: newRun(), fast: pack.NewEncoder(pack.Fast), dense: pack.NewEncoder(pack.Dense)}
	b.o.Progress = o.Progress.orNew()
	b.o.Trigger = cmp.Or(o.Trigger, "manual")
	if b.o.Warn == nil {
		b.o.Warn = func(string, Warning) {}
	}
	if b.o.Notice == nil {
		b.o.Notice = func(string) {}
	}
	if o.Freeze != nil {
		b.frozen = &frozen{printer: newPrinter()}
	}
	sources, err := b.open()
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		for _, s := range sources {
			s.Close()
		}
	}()
	started := r.now().UTC()
	seq, err := b.chooseParent(ctx)
	if err != nil {
		return nil, nil, err
	}
	b.intent = &intents{r: r, w: w, stack: o.Stack, run: b.run}
	defer b.intent.end(ctx)
	if err := b.announce(ctx); err != nil {
		return nil, nil, err
	}
	b.openTees(ctx, others)
	defer b.closeTees(ctx)
	if err := b.shunCondemned(ctx); err != nil {
		return nil, nil, err
	}
	b.m = &Manifest{
		Format: FormatVersion, Repository: r.ID, Stack: o.Stack, Sequence: seq, Run: b.run, Salt: randomID(), Started: started,
		Origin: o.Origin, Trigger: b.o.Trigger, Version: o.Version, Tags: o.Tags, Seeded: o.Seeded, About: o.About,
	}
	if b.parent != nil {
		b.m.Parent = b.parent.id
	}
	if err := b.takeAll(ctx, sources); err != nil {
		return nil, nil, err
	}
	b.m.Finished = r.now().UTC()
	id, err := r.commit(ctx, w, b.m)
	if err != nil {
		return nil, nil, b.frozen.also(&placeError{err})
	}
	b.intent.succeeded(b.m)
	sum := &Summary{ID: id, Stack: o.Stack, Sequence: seq, Started: started, Finished: b.m.Finished, Volumes: b.stats}
	return sum, b.m, b.frozen.told(sum)
}

// Check refuses options that make no sense, before anything is touched.
func (o *BackupOptions) Check() error {
	if err := CheckName("stack", o.Stack); err != nil {
		return err
	}
	if o.Seeded != "" && !validID(o.Seeded) {
		return fmt.Errorf("%w: %q, which this installation is said to be seeded from, is no snapshot's id", ErrUsage, o.Seeded)
	}
	if len(o.Volumes) == 0 && len(o.Dumps) == 0 {
		return fmt.Errorf("%w: no volume named; say --volume NAME=PATH, or mount the volumes below /volumes", ErrUsage)
	}
	for _, t := range o.Tags {
		if err := CheckName("tag", t); err != nil {
			return err
		}
		if t == "latest" {
			return fmt.Errorf("%w: tag %q: that name means the newest snapshot", ErrUsage, t)
		}
	}
	seen := map[string]bool{}
	for _, s := range o.Volumes {
		if err := CheckName("volume", s.Name); err != nil {
			return err
		}
		if seen[s.Name] {
			return fmt.Errorf("%w: volume %s is named twice", ErrUsage, s.Name)
		}
		seen[s.Name] = true
		st, err := os.Stat(s.Path)
		if err == nil && !st.IsDir() {
			err = fmt.Errorf("%s is not a directory", s.Path)
		}
		if err != nil {
			return fmt.Errorf("%w: volume %s: %w; check the path, or whether the volume is mounted", ErrNoVolume, s.Name, err)
		}
	}
	for i := range o.Dumps {
		d := &o.Dumps[i]
		if err := d.check(); err != nil {
			return err
		}
		if seen[d.Volume] {
			return fmt.Errorf("%w: volume %s is named twice, once for a dump", ErrUsage, d.Volume)
		}
		seen[d.Volume] = true
	}
	_, err := parsePatterns(o.Exclude, names(o.Volumes))
	return err
}

// open opens the volumes, all before the first is read.
func (b *backupRun) open() ([]*tree.Source, error) {
	if err := b.o.Check(); err != nil {
		return nil, err
	}
	b.o.Volumes = slices.Clone(b.o.Volumes)
	slices.SortFunc(b.o.Volumes, func(x, y Source) int { return cmp.Compare(x.Name, y.Name) })
	var sources []*tree.Source
	for _, s := range b.o.Volumes {
		src, err := tree.OpenSource(s.Path)
		if err == nil && src.HasMark() {
			src.Close()
			err = fmt.Errorf("it holds an unfinished restore; finish that with `backupd restore --force`, or bring back what was there with `backupd restore --undo --volume %s=%s`", s.Name, s.Path)
		}
		if err != nil {
			for _, open := range sources {
				open.Close()
			}
			return nil, fmt.Errorf("back up volume %s: %w", s.Name, err)
		}
		sources = append(sources, src)
	}
	return sources, nil
}

// chooseParent finds the latest complete snapshot and the next sequence number.
func (b *backupRun) chooseParent(ctx context.Context) (seq uint64, err error) {
	list, err := b.r.find(ctx, b.o.Stack)
	if err != nil {
		return 0, err
	}
	for _, s := range list {
		seq = max(seq, s.Sequence)
	}
	b.r.cache.retainManifests(b.o.Stack, list)
	for i := len(list) - 1; i >= 0; i-- {
		s := &list[i]
		if s.Forgotten {
			continue
		}
		if err := s.read(ctx, b.r); err != nil {
			return 0, err
		}
		if s.Err != nil {
			continue
		}
		missing, err := b.r.missing(ctx, s.Manifest)
		if err != nil {
			return 0, err
		}
		if len(missing) == 0 {
			b.parent = s.Manifest
			break
		}
	}
	if b.r.keys != nil {
		if b.parent != nil { // the others' numbers may be anybody's
			b.r.trust.advance(b.o.Stack, b.parent.Sequence)
		}
		if seen := b.r.trust.highest(b.o.Stack); seen > seq {
			b.o.Notice(fmt.Sprintf("this machine has seen snapshot number %d of stack %s in %s, and the newest there is number %d: newer ones were deleted, or the target was set back; look after it", seen, b.o.Stack, b.r.Location(), seq))
			seq = seen
		}
		if !b.r.keys.CanRead() {
			b.dropUnreadable(len(list))
		}
	}
	return seq + 1, nil
}

// dropUnreadable sees to an agent's parent: what the cache does not have of
// its index, an agent cannot read from the target.
func (b *backupRun) dropUnreadable(snapshots int) {
	lost := b.parent == nil && snapshots > 0
	if b.parent != nil {
		b.parent.Volumes = slices.DeleteFunc(b.parent.Volumes, func(v Volume) bool {
			key := func(n pack.Name) string { return indexKey(b.o.Stack, v.Name, n) }
			kept := b.r.cache.intact(key, v.Index)
			lost = lost || !kept
			return !kept
		})
	}
	if lost {
		b.o.Notice("the cache in the state directory does not have the last snapshot, and the agent key cannot read it from the target: everything is read and stored again this once; keep the state directory in a volume")
	}
}

// shunCondemned has what a prune is about to delete stored again.
func (b *backupRun) shunCondemned(ctx context.Context) error {
	condemned, err := b.r.condemned(ctx, b.o.Stack)
	if err != nil || len(condemned) == 0 || b.parent == nil || b.r.broken.relyOnCondemned {
		return err
	}
	for i := range b.parent.Volumes {
		v := &b.parent.Volumes[i]
		for _, p := range v.Packs {
			for k := range p.Sizes {
				if n := (pack.Name{Run: p.Run, N: p.First + uint32(k)}); condemned[b.r.stored(packKey(b.o.Stack, v.Name, n))] {
					v.Rewrite.Packs = append(v.Rewrite.Packs, n.String())
				}
			}
		}
		for _, p := range v.Index {
			for k := range p.Sizes {
				if n := (pack.Name{Run: p.Run, N: p.First + uint32(k)}); condemned[b.r.stored(indexKey(b.o.Stack, v.Name, n))] {
					v.Rewrite.Index = append(v.Rewrite.Index, n.String())
				}
			}
		}
	}
	return nil
}

// announce writes the intent, and only then makes sure that the parent still
// is there: prune reads intents before manifests.
func (b *backupRun) announce(ctx context.Context) error {
	if b.parent != nil {
		b.intent.parent = b.parent.id
	}
	if err := b.intent.begin(ctx); err != nil {
		return err
	}
	if b.parent == nil || b.r.broken.parentUnconfirmed {
		return nil
	}
	_, err := b.w.Stat(ctx, snapshotKey(b.o.Stack, b.parent.Sequence, b.parent.id))
	if errors.Is(err, store.ErrNotExist) {
		b.parent = nil // was forgotten in between: take everything
		return nil
	}
	return err
}

func (v *volumeRun) summary(vol *Volume, stored int64) VolumeStats {
	s := v.stats
	s.Name, s.Files, s.Bytes = v.name, vol.Counts.Files, vol.Counts.Bytes
	s.BytesStored = uint64(stored)
	s.FramesNew = v.frames.newN
	s.FramesReused += v.frames.reused
	s.Warnings, s.WarningCount = slices.Clone(vol.Warnings), vol.Counts.Warnings
	if s.Warnings == nil {
		s.Warnings = []Warning{}
	}
	return s
}

func (b *backupRun) parentVolume(name string) *Volume {
	if b.parent == nil || b.o.Pick != nil {
		return nil
	}
	return b.parent.Volume(name)
}

func names(sources []Source) []string {
	var out []string
	for _, s := range sources {
		out = append(out, s.Name)
	}
	return out
}

// forceTrust makes runs believe the stats of files that were just written: tests set it.
var forceTrust bool
