package docker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"golang.org/x/sync/errgroup"
)

// hands do what is in a journal, and undo it.
type hands struct {
	engine *Engine
	now    func() time.Time
	// fault is called before and after each request and each line of the
	// journal, so that tests can end the process there.
	fault func(point string)
}

func (h *hands) reach(format string, args ...any) {
	if h.fault != nil {
		h.fault(fmt.Sprintf(format, args...))
	}
}

const (
	// defaultGrace is the engine's: what a container is given to stop.
	defaultGrace = 10 * time.Second
	// margin is what the engine may take beyond that, and for all that should be quick.
	margin = time.Minute
	// settleTime is how long a request that was sent by a process that died may
	// take until its effect is seen, beyond the grace of a stop.
	settleTime = 2 * time.Second
	// outage is how long an engine may be away when something has to go on.
	outage = 30 * time.Second
	// atOnce bounds the requests at the same time.
	atOnce = 16
)

// do stops, pauses or scales. A request that was sent is waited for: were it
// given up, the container would stop after it was started again.
func (h *hands) do(ctx context.Context, e *entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.Grace+margin)
	defer cancel()
	e.idle = false
	h.reach("before %s %s", e.Act, e.name())
	defer h.reach("after %s %s", e.Act, e.name())
	var err error
	switch e.Act {
	case ActStop:
		seconds := int((e.Grace + time.Second - 1) / time.Second)
		err = h.engine.api.ContainerStop(ctx, e.Container, container.StopOptions{Timeout: &seconds})
	case ActPause:
		err = h.engine.api.ContainerPause(ctx, e.Container)
	case ActScale:
		err = h.engine.scaleDown(ctx, e)
	}
	if cerrdefs.IsNotFound(err) {
		return nil // `up` or `down` was quicker
	}
	// Refused, and not merely unanswered: nothing is under way.
	e.idle = cerrdefs.IsConflict(err) || cerrdefs.IsPermissionDenied(err) || cerrdefs.IsInvalidArgument(err)
	if err != nil {
		return fmt.Errorf("%s %s of service %s: %w", e.Act, e.name(), e.Service, explainAccess(err))
	}
	return nil
}

// undo undoes the chosen entries of a journal, backwards, and marks them. What
// fails stays open.
func (h *hands) undo(ctx context.Context, j *journal, which func(*entry) bool) error {
	ctx = context.WithoutCancel(ctx)
	var all []error
	for wave := range waves(slices.DeleteFunc(j.open(), func(e *entry) bool { return !which(e) })) {
		errs := each(wave, func(e *entry) error { return h.undoOne(ctx, e) })
		var done []*entry
		for i, e := range wave {
			if errs[i] == nil {
				done = append(done, e)
			}
		}
		all = append(all, errs...)
		all = append(all, j.mark(nil, done))
	}
	return errors.Join(all...)
}

// undoOne makes a container or a service go on.
func (h *hands) undoOne(ctx context.Context, e *entry) error {
	if e.idle {
		return nil
	}
	grace := settleTime
	if e.Act == ActStop {
		grace += e.Grace
	}
	// A request that got no answer, or was sent by a process that died, may still
	// be under way: for so long, what runs is watched.
	var wait time.Duration
	if !e.acted {
		wait = min(max(0, e.begun.Add(grace).Sub(h.now())), grace)
	}
	ctx, cancel := context.WithTimeout(ctx, wait+margin)
	defer cancel()
	for patience := outage; ; wait -= pollEvery {
		still, err := h.still(ctx, e)
		if err == nil && still {
			err = h.resume(ctx, e)
			if err == nil {
				return nil
			}
		}
		if err != nil {
			// An engine that is being restarted comes back.
			if patience <= 0 || !client.IsErrConnectionFailed(err) || sleep(ctx, pollEvery) != nil {
				return e.unresumed(explainAccess(err))
			}
			patience -= pollEvery
			continue
		}
		if wait <= 0 {
			return nil
		}
		if err := sleep(ctx, pollEvery); err != nil {
			return e.unresumed(err)
		}
	}
}

// still says whether something stands still as the entry has made it. What was
// removed or made anew does not: whoever did that decides whether it runs.
func (h *hands) still(ctx context.Context, e *entry) (bool, error) {
	if e.Act == ActScale {
		return h.engine.scaledDown(ctx, e)
	}
	c, err := h.engine.api.ContainerInspect(ctx, e.Container)
	if cerrdefs.IsNotFound(err) || err == nil && (c.State == nil || c.State.Status == "removing" || c.State.Dead) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if e.Act == ActPause {
		return c.State.Paused, nil
	}
	return !c.State.Running, nil
}

// resume starts, unpauses or scales back.
func (h *hands) resume(ctx context.Context, e *entry) error {
	h.reach("before resuming %s", e.Name)
	defer h.reach("after resuming %s", e.Name)
	var err error
	switch e.Act {
	case ActStop:
		err = h.engine.api.ContainerStart(ctx, e.Container, container.StartOptions{})
	case ActPause:
		err = h.engine.api.ContainerUnpause(ctx, e.Container)
	case ActScale:
		err = h.engine.scale(ctx, e.SwarmID, *e.Replicas, func(now uint64) bool { return now == 0 })
	}
	if err == nil {
		e.resumed = true
		return nil
	}
	// Someone else may have been quicker. "Not found" alone does not say so: a
	// container whose network is gone is refused with it, too.
	if still, serr := h.still(ctx, e); serr == nil && !still {
		return nil
	}
	return err
}

// pollEvery is how often something is looked at that is about to change.
const pollEvery = 100 * time.Millisecond

// unresumed is the error of a container that stays as it was made.
func (e *entry) unresumed(err error) error {
	command, state := "docker start "+e.Name, "stopped"
	switch e.Act {
	case ActPause:
		command, state = "docker unpause "+e.Name, "paused"
	case ActScale:
		command, state = fmt.Sprintf("docker service scale %s=%d", e.Name, *e.Replicas), "scaled to nothing"
	}
	return fmt.Errorf("%s of service %s is still %s: %w; when that is mended, run: %s", e.name(), e.Service, state, err, command)
}

func (e *entry) name() string {
	if e.Act == ActScale {
		return "service " + e.Name
	}
	return "container " + e.Name
}

// waves yields entries that follow each other and are of one wave.
func waves(entries []*entry) func(yield func([]*entry) bool) {
	return func(yield func([]*entry) bool) {
		for len(entries) > 0 {
			n := 1
			for n < len(entries) && entries[n].Wave == entries[0].Wave {
				n++
			}
			if !yield(entries[:n:n]) {
				return
			}
			entries = entries[n:]
		}
	}
}

// each calls f for all entries at once, and returns their errors in their places.
func each(entries []*entry, f func(*entry) error) []error {
	errs := make([]error, len(entries))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, e := range entries {
		g.Go(func() error {
			errs[i] = f(e)
			return nil
		})
	}
	g.Wait() //nolint:errcheck // the errors stand in errs
	return errs
}
