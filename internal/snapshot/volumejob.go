package snapshot

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/tree"
)

// indexPackSize is when a pack of index pages is closed: there are few, and
// memory for a large one would mostly lie idle.
const indexPackSize = 4 << 20

// inFlight is how many packs of a volume may be on their way to the target.
const inFlight = 2

// maxKept bounds the index packs that a run keeps in memory where the cache
// does not keep them, in bytes.
const maxKept = 32 << 20

// volumeJob is one volume on its way into a snapshot: begun, gone over once or
// several times, settled.
type volumeJob struct {
	b        *backupRun
	source   Source
	src      *tree.Source    // nil for a dump
	ctx      context.Context //nolint:containedctx // of the packs' uploads; ends with the job
	cancel   context.CancelFunc
	v        *volumeRun
	known    *Volume // the parent's, or an empty one
	identity *tree.Identity
	base     *base // of the next pass
	pass     *pass // was gathered and is not finished
	data     *pack.Writer
	index    *pack.Writer
	lost     atomic.Bool // an index pack was kept nowhere that this run can read
}

// begin opens what a volume's packs are written through. A job that was begun
// is settled or failed.
func (b *backupRun) begin(ctx context.Context, s Source, src *tree.Source) *volumeJob {
	j := &volumeJob{b: b, source: s, src: src, known: &Volume{Name: s.Name}}
	j.ctx, j.cancel = context.WithCancel(ctx)
	j.data = pack.NewWriter(j.ctx, b.run, inFlight, func(ctx context.Context, n pack.Name, data []byte) error {
		return j.put(ctx, packKey(b.o.Stack, s.Name, n), data, false)
	})
	j.index = pack.NewWriter(j.ctx, b.run, inFlight, func(ctx context.Context, n pack.Name, data []byte) error {
		key := indexKey(b.o.Stack, s.Name, n)
		if !b.r.cache.put(key, data) && b.frozen != nil && !j.keep(n, data) && b.r.keys != nil && !b.r.keys.CanRead() {
			j.lost.Store(true)
		}
		return j.put(ctx, key, data, true)
	})
	j.index.Size = indexPackSize
	v := &volumeRun{
		run: b.run, name: s.Name, src: src, pick: b.o.Pick, crossMounts: b.o.CrossMounts,
		readers: max(2, runtime.GOMAXPROCS(0)), encoders: runtime.GOMAXPROCS(0),
		frames: newFrameStore(j.data, b.fast, b.dense), pages: newFrameStore(j.index, b.dense, nil),
		progress: b.o.Progress, expiredIdx: map[pack.Name]bool{},
		warn: func(w Warning) { b.o.Warn(s.Name, w) },
	}
	v.frames.total, v.pages.total = &b.known[0], &b.known[1]
	if b.frozen != nil {
		v.printer = b.frozen.printer
	}
	for i := range v.buffers {
		v.buffers[i].New = func() any { return new([]byte) }
	}
	j.v = v
	return j
}

func (j *volumeJob) put(ctx context.Context, key string, data []byte, cached bool) error {
	if err := j.b.put(ctx, key, data, cached); err != nil {
		return err
	}
	j.b.o.Progress.Stored.Add(int64(len(data)))
	return nil
}

// keep keeps an index pack for the next pass.
func (j *volumeJob) keep(n pack.Name, data []byte) bool {
	if j.b.kept.Add(int64(len(data))) > maxKept {
		j.b.kept.Add(-int64(len(data)))
		return false
	}
	j.v.pg.keep(n, slices.Clone(data))
	return true
}

// openParent makes the parent's volume the base of the first pass.
func (j *volumeJob) openParent(ctx context.Context) error {
	b, v, s := j.b, j.v, j.source
	exclude, err := parsePatterns(b.o.Exclude, names(b.o.Volumes))
	if err != nil {
		return err
	}
	v.exclude = exclude
	if j.src != nil {
		j.renewTrust()
		identity, err := j.src.Identity()
		if err != nil {
			return err
		}
		j.identity = &identity
	}
	parent := b.parentVolume(s.Name)
	if parent != nil {
		j.known = parent
		for _, n := range parent.Rewrite.Index {
			if name, err := pack.ParseName(n); err == nil {
				v.expiredIdx[name] = true
			}
		}
		b.o.Progress.TotalFiles.Add(int64(parent.Counts.Entries))
		b.o.Progress.TotalBytes.Add(int64(parent.Counts.Bytes))
	}
	v.pg = b.r.pages(b.o.Stack, j.known)
	if parent == nil {
		return nil
	}
	trusted := false
	if v.trust.Stats {
		trusted = parent.Identity != nil && *parent.Identity == *j.identity && b.parent.Origin == b.o.Origin
		if p := b.r.primed(b.parent, s.Name, *j.identity); p != nil {
			// The files are those of the restore, and so are their stats.
			trusted = true
			as := *parent
			as.Files = p.Files
			parent = &as
			v.pg.know(p.Index)
			for _, r := range p.Index {
				for k := range r.Sizes { // which are not on the target
					v.expiredIdx[pack.Name{Run: r.Run, N: r.First + uint32(k)}] = true
				}
			}
		}
	}
	j.base, err = openBase(ctx, parent, v.pg, trusted, nil, v.frames.know)
	return err
}

// renewTrust flushes what is written until now, and trusts stats from there on.
func (j *volumeJob) renewTrust() {
	j.v.trust = j.src.Trust()
	if forceTrust {
		j.v.trust = tree.Settled()
	}
}

// whole takes the volume in one pass.
func (j *volumeJob) whole(ctx context.Context) error {
	err := j.openParent(ctx)
	if err == nil {
		err = j.gather(ctx)
	}
	if err == nil {
		err = j.settle(ctx)
	}
	return err
}

// rehearse goes over the volume for the sake of the next pass. What it warns
// of may be over by then.
func (j *volumeJob) rehearse(ctx context.Context) error {
	warn := j.v.warn
	j.v.warn = func(Warning) {}
	// Groups that a change of types has rewritten are left to the next pass.
	var err error
	if j.pass, err = j.v.gather(ctx, j.base); err == nil {
		err = j.rebase(ctx)
	}
	j.v.warn = warn
	if err == nil {
		err = j.rest()
	}
	return err
}

// perform prepares the pass that counts.
func (j *volumeJob) perform() { j.v.hold = &j.b.frozen.hold }

// gather goes over the volume. The pass is left to be finished.
func (j *volumeJob) gather(ctx context.Context) (err error) {
	j.pass, err = j.v.take(ctx, j.base)
	return err
}

// rest gives up what memory waits for more to come.
func (j *volumeJob) rest() error {
	if err := j.data.Rest(); err != nil {
		return err
	}
	return j.index.Rest()
}

// rebase finishes a pass and makes its result the base of the next.
func (j *volumeJob) rebase(ctx context.Context) error {
	vol, err := j.pass.finish(ctx)
	if err != nil {
		return err
	}
	forced := j.pass.forced
	j.pass, j.base = nil, nil
	base, err := j.v.baseOf(ctx, vol, forced)
	switch {
	case j.lost.Load(): // all is read again, and found to be known
	case err != nil:
		return err
	default:
		j.base = base
	}
	j.v.recheck = true
	j.v.progress = &Progress{} // what is read again was counted
	return nil
}

// settle finishes the last pass, waits for the volume's packs and lists them in its manifest.
func (j *volumeJob) settle(ctx context.Context) error {
	b, v := j.b, j.v
	vol, err := j.pass.finish(ctx)
	if err != nil {
		return err
	}
	j.pass = nil
	vol.Driver, vol.Options, vol.Labels = j.source.Driver, j.source.Options, j.source.Labels
	if vol.Dump = j.src == nil; !vol.Dump {
		vol.Excludes = b.o.Exclude
	}
	if v.trust.Stats {
		vol.Identity = j.identity
	}
	sizes, err := j.data.Flush()
	if err != nil {
		return err
	}
	if vol.Packs, vol.Rewrite.Packs, err = settle(v.used, j.known.Packs, b.run, sizes); err != nil {
		return err
	}
	if sizes, err = j.index.Flush(); err != nil {
		return err
	}
	if vol.Index, vol.Rewrite.Index, err = settle(v.usedIdx, j.known.Index, b.run, sizes); err != nil {
		return err
	}
	keep := map[pack.Name]bool{}
	for n := range v.usedIdx {
		keep[n] = true
	}
	b.r.cache.retain(b.o.Stack, vol.Name, keep)
	if err := j.data.Close(); err != nil {
		return err
	}
	if err := j.index.Close(); err != nil {
		return err
	}
	j.cancel()
	b.stats = append(b.stats, v.summary(vol, j.data.Stored()+j.index.Stored()))
	b.m.Volumes = append(b.m.Volumes, *vol)
	return nil
}

// fail ends a job and returns what to say of the error that ended it.
func (j *volumeJob) fail(err error) error {
	// The first failure of a put is the cause of all that followed.
	if cause := j.end(); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	if j.src == nil {
		return fmt.Errorf("back up dump %s: %w", j.source.Name, err)
	}
	return fmt.Errorf("back up volume %s (%s): %w", j.source.Name, j.source.Path, err)
}

// end releases what a job holds, and returns the error of its uploads. It may be called twice.
func (j *volumeJob) end() error {
	j.cancel()
	if j.pass != nil {
		j.pass.abandon()
		j.pass = nil
	}
	derr, ierr := j.data.Close(), j.index.Close()
	if errors.Is(derr, context.Canceled) {
		derr = nil
	}
	return firstOf(derr, ierr)
}
