package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/disko/backupd/internal/snapshot/tree"
)

// Freezer makes what writes to the volumes stand still for a while.
type Freezer interface {
	// Settle is called once, after the volumes were read while all goes on. What is to
	// stand still may write now what it would write on its way down. It says
	// whether anything did: then what changed is read once more before Freeze.
	Settle(ctx context.Context) bool
	// Freeze returns when nothing writes to the volumes any more. Where it
	// fails, some of the writers may stand still: Thaw is called all the same.
	Freeze(ctx context.Context) error
	// Thaw lets go on what Freeze stopped. It is called exactly once after each
	// Freeze, also one that failed, and also if the backup fails or is interrupted. Its
	// ctx does not end with the backup and has no deadline: Thaw bounds its own waiting.
	Thaw(ctx context.Context) error
}

// ErrFreeze: the services could not be frozen. No snapshot was taken.
var ErrFreeze = errors.New("the services could not be frozen")

// ThawError says that services could not be resumed. If ID is not empty, that
// snapshot was taken all the same, and is whole.
type ThawError struct {
	ID  string
	Err error
}

func (e *ThawError) Error() string {
	if e.ID == "" {
		return fmt.Sprintf("the services that were frozen for the backup could not be resumed: %v; start them by hand", e.Err)
	}
	return fmt.Sprintf("snapshot %.8s was taken, but the services that were frozen for it could not be resumed: %v; start them by hand", e.ID, e.Err)
}

func (e *ThawError) Unwrap() error { return e.Err }

// frozen is the frozen part of a run.
type frozen struct {
	printer *printer
	hold    hold
	took    time.Duration
	thaw    error
	end     func() // of the context that the last pass runs under
}

// also adds to an error what is wrong with the services.
func (f *frozen) also(err error) error {
	if f == nil || f.thaw == nil {
		return err
	}
	return errors.Join(err, &ThawError{Err: f.thaw})
}

// told notes the frozen part in the summary of a snapshot that was taken.
func (f *frozen) told(s *Summary) error {
	if f == nil {
		return nil
	}
	s.FrozenSeconds = f.took.Seconds()
	if f.thaw != nil {
		return &ThawError{ID: s.ID, Err: f.thaw}
	}
	return nil
}

// defaultHold is BackupOptions.HoldBytes where that is 0.
const defaultHold = 48 << 20

// hold says what is put off until the services run again.
type hold struct {
	mu   sync.Mutex
	on   bool
	left int64
}

// keep says whether n bytes may be kept for later.
func (h *hold) keep(n int) bool {
	if h == nil {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.left -= int64(n); h.left < 0 {
		h.on = false
	}
	return h.on
}

// begin puts off from now on, up to that many bytes.
func (h *hold) begin(most int64) {
	h.mu.Lock()
	h.on, h.left = true, most
	h.mu.Unlock()
}

// end has everything done at once again.
func (h *hold) end() {
	h.mu.Lock()
	h.on = false
	h.mu.Unlock()
}

const (
	// maxLive bounds the passes before the services settle.
	maxLive = 3
	// liveEnough is how short a pass must be for what changed meanwhile to be
	// read quickly: no further one is worth its reads.
	liveEnough = 2 * time.Second
)

// takeAll takes the volumes and the dumps.
func (b *backupRun) takeAll(ctx context.Context, sources []*tree.Source) error {
	var jobs []*volumeJob
	defer func() {
		for _, j := range jobs {
			_ = j.end() // what it could return was returned, or another error is on its way
		}
	}()
	if b.frozen != nil {
		b.frozen.end = func() {}
		defer func() { b.frozen.end() }()
	} else {
		// What a dump refers to is in the volumes when these are read later.
		if err := b.dumps(ctx); err != nil {
			return err
		}
	}
	for i, s := range b.o.Volumes {
		j := b.begin(ctx, s, sources[i])
		jobs = append(jobs, j)
		if b.frozen != nil {
			continue
		}
		if err := each(jobs[i:], func(j *volumeJob) error { return j.whole(ctx) }); err != nil {
			return err
		}
	}
	if b.frozen != nil {
		if err := b.live(ctx, jobs); err != nil {
			return err
		}
		if err := b.freeze(ctx, jobs); err != nil {
			return err
		}
		if err := each(jobs, func(j *volumeJob) error { return j.settle(ctx) }); err != nil {
			return b.frozen.also(err)
		}
	}
	slices.SortFunc(b.m.Volumes, func(x, y Volume) int { return cmp.Compare(x.Name, y.Name) })
	slices.SortFunc(b.stats, func(x, y VolumeStats) int { return cmp.Compare(x.Name, y.Name) })
	return nil
}

// each does something with one job after the other, until one fails.
func each(jobs []*volumeJob, do func(j *volumeJob) error) error {
	for _, j := range jobs {
		if err := do(j); err != nil {
			return j.fail(err)
		}
	}
	return nil
}

// live goes over all volumes while the services run: once, and again as long
// as the last time took so long that much may have changed meanwhile, and there
// was less to read than the time before; and once more when they have settled.
func (b *backupRun) live(ctx context.Context, jobs []*volumeJob) error {
	before := uint64(0)
	for n, settled := 0, false; ; n++ {
		began, read := b.r.now(), uint64(0)
		err := each(jobs, func(j *volumeJob) error {
			switch {
			case n == 0:
				if err := j.openParent(ctx); err != nil {
					return err
				}
			case !j.v.trust.Stats:
				return nil // each time all of it is read
			default:
				j.renewTrust()
			}
			was := j.v.stats.BytesRead
			err := j.rehearse(ctx)
			read += j.v.stats.BytesRead - was
			return err
		})
		if err == nil && n == 0 {
			err = b.dumps(ctx)
		}
		if err != nil {
			return err
		}
		if settled {
			return nil
		}
		if n+1 >= maxLive || b.r.now().Sub(began) < liveEnough || n > 0 && 2*read > before {
			if settled = b.o.Freeze.Settle(ctx); !settled {
				return nil
			}
		}
		before = read
	}
}

// freeze reads what is to be read while the services stand still.
func (b *backupRun) freeze(ctx context.Context, jobs []*volumeJob) error {
	// Flushing takes long where much was written, so it is done before: what
	// changes from here on is racy in the next backup's eyes.
	for _, j := range jobs {
		j.renewTrust()
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	failed, err := b.readFrozen(ctx, jobs)
	if err != nil && failed != nil {
		err = failed.fail(err) // which waits for uploads
	}
	if err != nil {
		return b.frozen.also(err)
	}
	return nil
}

// readFrozen is the part of a run in which the services stand still. It
// returns the job that an error is of, where it is one's.
func (b *backupRun) readFrozen(ctx context.Context, jobs []*volumeJob) (*volumeJob, error) {
	f := b.frozen
	began := b.r.now()
	defer func() { // a panic's way out too
		f.hold.end()
		f.thaw = b.o.Freeze.Thaw(context.WithoutCancel(ctx))
		f.took = b.r.now().Sub(began)
	}()
	if err := b.o.Freeze.Freeze(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFreeze, err)
	}
	if b.o.FreezeLimit > 0 {
		// What is read now is dealt with after the thaw and under this context: it
		// does not end here, only its limit does.
		var cancel context.CancelCauseFunc
		ctx, cancel = context.WithCancelCause(ctx)
		f.end = func() { cancel(nil) }
		limit := time.AfterFunc(b.o.FreezeLimit, func() {
			cancel(errFrozenLong)
			for _, j := range jobs {
				j.cancel() // an upload that hangs
			}
		})
		defer limit.Stop()
	}
	f.hold.begin(cmp.Or(b.o.HoldBytes, defaultHold))
	for _, j := range jobs {
		j.perform()
		err := j.gather(ctx)
		if err == nil {
			err = restIfLarge(jobs)
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return j, err
		}
	}
	return nil, nil
}

// errFrozenLong is why a backup ends at BackupOptions.FreezeLimit.
var errFrozenLong = errors.New("reading what changed took longer than the services may stand still; what had to be uploaded meanwhile may have waited for the target")

// maxResting bounds the memory of packs that wait for the end of the freeze, in bytes.
const maxResting = 48 << 20

// restIfLarge uploads what was stored, where it takes much memory.
func restIfLarge(jobs []*volumeJob) error {
	held := int64(0)
	for _, j := range jobs {
		held += j.data.Held() + j.index.Held()
	}
	if held <= maxResting {
		return nil
	}
	for _, j := range jobs {
		if err := j.rest(); err != nil {
			return err
		}
	}
	return nil
}
