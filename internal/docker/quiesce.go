package docker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"golang.org/x/sync/errgroup"
)

// QuiesceOptions say what is to stand still while its volumes are read.
type QuiesceOptions struct {
	// Project is the Compose project, or with Swarm the name of the stack. Of no
	// other one anything is stopped.
	Project string
	Swarm   bool
	// Volumes that are backed up: the engine's names, and absolute paths on the
	// engine's machine for bind mounts.
	Volumes []string
	// Own are the ids of backupd's own containers, which are left alone with all
	// of their services.
	Own []string
	// Pre and Post are hooks beside those of the labels: they come first, and last.
	Pre, Post []ServiceHook
	// StateDir is where the journal is kept, in journal/RUN.json.
	StateDir, Run string
	Now           func() time.Time // nil: time.Now
}

// Quiescer makes the services of a project stand still, and lets them go on. It
// runs their hooks around that. Its methods are called in this order, each at
// most once: Pre, Freeze, Thaw, Post; Thaw and Post always, whatever failed.
type Quiescer struct {
	engine *Engine
	opt    QuiesceOptions
	hands  hands

	mu       sync.Mutex
	journal  *journal
	warnings []string
	frozen   time.Duration
	since    time.Time
}

// Quiescer returns one for a run. Nothing is done yet.
func (e *Engine) Quiescer(opt QuiesceOptions) *Quiescer {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	return &Quiescer{engine: e, opt: opt, hands: hands{engine: e, now: opt.Now}}
}

// Plan looks at the engine and says what would be done now. Freeze looks again,
// because hours may lie between.
func (q *Quiescer) Plan(ctx context.Context) (*Plan, error) {
	look := q.engine.Stack
	if q.opt.Swarm {
		look = q.engine.SwarmStack
	}
	stack, err := look(ctx, q.opt.Project)
	if err != nil {
		return nil, err
	}
	running, err := q.engine.containers(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the containers that use the volumes of %s: %w", q.opt.Project, explainAccess(err))
	}
	return NewPlan(PlanInput{Stack: stack, Volumes: q.opt.Volumes, Own: q.opt.Own, Others: running, Pre: q.opt.Pre, Post: q.opt.Post, NoPause: q.engine.NoCgroups})
}

// Check says before anything is done whether the engine would allow the plan: an
// error that is ErrMayNot if not. If that is not Demanded, the hooks are allowed,
// and only Freeze is not.
func (q *Quiescer) Check(ctx context.Context, p *Plan) error {
	err := q.mayFreeze(ctx, p.Steps)
	if err != nil && (Demanded(err) || !errors.Is(err, ErrMayNot)) {
		return err
	}
	if herr := q.mayHook(ctx, p); herr != nil {
		return herr
	}
	return err
}

// Warnings are what was found that did not stop anything, in the order it was met.
func (q *Quiescer) Warnings() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.warnings)
}

func (q *Quiescer) warn(list ...string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range list {
		if !slices.Contains(q.warnings, w) {
			q.warnings = append(q.warnings, w)
		}
	}
}

// Frozen is how long services stood still, from the first that was told to until
// the last that goes on.
func (q *Quiescer) Frozen() time.Duration { return q.frozen }

// Freeze makes what has to stand still do so. If it returns an error, everything
// goes on again, as far as the error does not say otherwise. ErrMayNot: the
// engine does not allow it, and nothing was touched.
func (q *Quiescer) Freeze(ctx context.Context) error {
	p, err := q.Plan(ctx)
	if Forbidden(err) {
		return &MayNotError{Doing: "find out what must stand still", Permission: "GET /containers/json, /containers/ID/json or /volumes"}
	}
	if err != nil {
		return fmt.Errorf("make services stand still: %w", err)
	}
	q.warn(p.Warnings...)
	if len(p.Steps) == 0 {
		return nil
	}
	if err := q.mayFreeze(ctx, p.Steps); err != nil {
		return err
	}
	entries, err := q.entries(ctx, p.Steps)
	if err != nil {
		return fmt.Errorf("make services stand still: %w", err)
	}
	if len(entries) == 0 {
		return nil
	}
	if err := q.open(); err != nil {
		return fmt.Errorf("make services stand still: %w", err)
	}
	q.since = q.opt.Now()
	if err := q.act(ctx, entries); err != nil {
		err = fmt.Errorf("make services stand still: %w", err)
		if terr := q.Thaw(ctx); terr != nil {
			return fmt.Errorf("%w; and then: %w", err, terr)
		}
		return err
	}
	return nil
}

// open makes the journal, if there is none yet.
func (q *Quiescer) open() error {
	if q.journal != nil {
		return nil
	}
	q.hands.reach("journal")
	j, err := createJournal(q.opt.StateDir, q.opt.Run, q.engine, q.opt.Project, q.opt.Now)
	q.journal = j
	return err
}

// entries are the steps as they are written to the journal, a container each.
// What has ended since it was listed is left out.
func (q *Quiescer) entries(ctx context.Context, steps []Step) ([]*entry, error) {
	var out []*entry
	for _, s := range steps {
		if s.Swarm != nil {
			out = append(out, s.Swarm.entry(s))
			continue
		}
		for _, c := range s.Containers {
			e := &entry{
				Act: s.Act, Wave: s.Wave, Service: s.Service, Grace: s.Timeout,
				Container: c.ID, Name: c.Name, Number: c.Number, OneOff: c.OneOff, idle: true,
			}
			ok, err := q.inspect(ctx, e)
			if err != nil {
				return nil, fmt.Errorf("inspect container %s of service %s: %w", c.Name, s.Service, err)
			}
			if ok {
				out = append(out, e)
			}
		}
	}
	return out, nil
}

// inspect completes an entry, and says whether its container still runs.
func (q *Quiescer) inspect(ctx context.Context, e *entry) (bool, error) {
	c, err := q.engine.api.ContainerInspect(ctx, e.Container)
	if cerrdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, explainAccess(err)
	}
	if c.State == nil || !c.State.Running || c.State.Paused {
		return false, nil
	}
	if e.Act == ActPause && c.State.Restarting {
		e.Act = ActStop
	}
	if e.Act == ActStop && c.HostConfig != nil && c.HostConfig.AutoRemove {
		if q.engine.NoCgroups {
			q.warn(fmt.Sprintf("container %s would be removed if it were stopped (--rm), and this engine cannot pause: it keeps running, and files may change while they are read", e.Name))
			return false, nil
		}
		e.Act = ActPause
		q.warn(fmt.Sprintf("container %s would be removed if it were stopped (--rm): it is paused", e.Name))
	}
	if e.Act == ActStop && e.Grace == 0 {
		e.Grace = defaultGrace
		if c.Config != nil && c.Config.StopTimeout != nil && *c.Config.StopTimeout >= 0 {
			e.Grace = time.Duration(*c.Config.StopTimeout) * time.Second
		}
	}
	return true, nil
}

// act does all entries, wave by wave; each is in the journal before it begins.
func (q *Quiescer) act(ctx context.Context, entries []*entry) error {
	for wave := range waves(entries) {
		if err := ctx.Err(); err != nil {
			return err
		}
		q.hands.reach("intent")
		if err := q.journal.intend(wave); err != nil {
			return err
		}
		q.hands.reach("intended")
		errs := each(wave, func(e *entry) error { return q.hands.do(ctx, e) })
		var acted []*entry
		for i, e := range wave {
			if errs[i] == nil {
				e.acted = true
				acted = append(acted, e)
			}
		}
		if err := errors.Join(append(errs, q.journal.mark(acted, nil))...); err != nil {
			return err
		}
	}
	return nil
}

// Thaw undoes what Freeze did, in the opposite order, whether or not ctx is
// cancelled. It does not wait until services are healthy. A container that does
// not start is an error that names it; all others are started all the same.
func (q *Quiescer) Thaw(ctx context.Context) error {
	if q.journal == nil {
		return nil
	}
	err := q.hands.undo(ctx, q.journal, func(e *entry) bool { return e.Act != actPost })
	if !q.since.IsZero() {
		q.frozen, q.since = q.opt.Now().Sub(q.since), time.Time{}
	}
	return errors.Join(err, q.settle())
}

// settle closes the journal if nothing but what failed is left in it.
func (q *Quiescer) settle() error {
	if q.journal == nil || slices.ContainsFunc(q.journal.open(), func(e *entry) bool { return e.Act == actPost }) {
		return nil
	}
	j := q.journal
	q.journal = nil
	q.hands.reach("settle")
	return j.settle()
}

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

// Recovered tells what a recovery found.
type Recovered struct {
	// Runs that died, whose services go on again.
	Runs []string
	// Resumed are the containers and services that had been left standing.
	Resumed []string
}

// Recover makes go on what runs that died have left stopped, paused or scaled to
// nothing, and runs the post hooks that they owe. Runs that live are left alone.
// It is called at every start, and may be called again at any time. On an error
// the journals of what could not be resumed stay, and all else goes on.
func (e *Engine) Recover(ctx context.Context, state string) (Recovered, error) {
	return e.recoverWith(ctx, state, hands{engine: e, now: time.Now})
}

func (e *Engine) recoverWith(ctx context.Context, state string, h hands) (Recovered, error) {
	var out Recovered
	names, err := LeftOver(state)
	errs := []error{err}
	for _, name := range names {
		j, err := openLeftOver(name, h.now)
		switch {
		case errors.Is(err, errOwned) || err == nil && j == nil:
			continue
		case err != nil:
			errs = append(errs, fmt.Errorf("read journal %s, which a run that died has left: %w; start by hand what stands still (docker ps -a), then remove it", name, err))
			continue
		}
		if err := h.recover(ctx, j, &out); err != nil {
			errs = append(errs, fmt.Errorf("resume what run %s has left standing still: %w", j.run, err))
		}
	}
	return out, errors.Join(errs...)
}

// recover undoes a journal and closes it.
func (h *hands) recover(ctx context.Context, j *journal, out *Recovered) error {
	if j.id != "" && h.engine.ID != "" && j.id != h.engine.ID && len(j.open()) > 0 {
		return errors.Join(fmt.Errorf("journal %s is of another engine (%s): connect to that one, or remove the file", j.f.Name(), j.id), j.f.Close())
	}
	if j.run != "" {
		out.Runs = append(out.Runs, j.run)
	}
	before := j.open()
	err := h.undo(ctx, j, func(e *entry) bool { return e.Act != actPost })
	// Hooks last, as in a run; one that fails is told and not tried for ever.
	posts := slices.DeleteFunc(j.open(), func(e *entry) bool { return e.Act != actPost })
	for _, p := range posts {
		h.reach("before post %s", p.Name)
		err = errors.Join(err, h.engine.postHook(context.WithoutCancel(ctx), j.project, p))
		h.reach("after post %s", p.Name)
	}
	err = errors.Join(err, j.mark(nil, posts))
	for _, e := range before {
		if e.resumed {
			out.Resumed = append(out.Resumed, e.Name)
		}
	}
	h.reach("settle")
	return errors.Join(err, j.settle())
}

// ErrMayNot: the engine, or a proxy before it, does not allow what would be done.
var ErrMayNot = errors.New("the Docker engine does not allow it")

// MayNotError is an ErrMayNot that says what is not allowed. Nothing was done.
type MayNotError struct {
	Doing      string   // what could not be done
	Permission string   // "POST /containers/ID/stop"
	Asked      []string // services whose labels ask for it; none: it is the default
}

func (e *MayNotError) Error() string {
	text := fmt.Sprintf("%s: %v: it refuses %s; allow that in the proxy before it (docs/quiesce.md has the list)", e.Doing, ErrMayNot, e.Permission)
	if len(e.Asked) > 0 {
		return text + ", or take the label off " + strings.Join(e.Asked, ", ")
	}
	return text + ", or label services " + labelQuiesce + "=none"
}

// Is makes it an ErrMayNot.
func (e *MayNotError) Is(target error) bool { return target == ErrMayNot }

// Demanded says whether an ErrMayNot is about something that a label asks for:
// then a backup without it is not what its owner wants, and fails.
func Demanded(err error) bool {
	var m *MayNotError
	return errors.As(err, &m) && len(m.Asked) > 0
}

// nobody is the name of a container that is not there. A request for it is
// answered by "not found" where it would be allowed, and refused where not.
const nobody = "backupd-asks-whether-it-may"

// mayFreeze asks whether all that the steps need is allowed, undoing included:
// there are proxies that let stop pass, but not start.
func (q *Quiescer) mayFreeze(ctx context.Context, steps []Step) error {
	if len(steps) == 0 {
		return nil
	}
	requests := map[Act][]permission{
		ActStop: {
			{"POST /containers/ID/start", func() error {
				return q.engine.api.ContainerStart(ctx, nobody, container.StartOptions{})
			}},
			{"POST /containers/ID/stop", func() error {
				return q.engine.api.ContainerStop(ctx, nobody, container.StopOptions{})
			}},
		},
		ActPause: {
			{"POST /containers/ID/unpause", func() error { return q.engine.api.ContainerUnpause(ctx, nobody) }},
			{"POST /containers/ID/pause", func() error { return q.engine.api.ContainerPause(ctx, nobody) }},
		},
		ActScale: {q.engine.mayScale(ctx)},
	}
	doing := "make " + strings.Join(services(steps, func(Step) bool { return true }), ", ") + " stand still"
	var refused []string // all of them, so that the proxy's settings are changed once
	for _, act := range []Act{ActStop, ActPause, ActScale} {
		of := func(s Step) bool { return s.Act == act }
		if !slices.ContainsFunc(steps, of) {
			continue
		}
		for _, p := range requests[act] {
			if p.refused() {
				refused = append(refused, p.name)
			}
		}
	}
	if len(refused) > 0 {
		return &MayNotError{Doing: doing, Permission: strings.Join(refused, " and "), Asked: services(steps, func(s Step) bool { return s.Asked })}
	}
	return nil
}

// permission asks for something that is not there.
type permission struct {
	name    string
	request func() error
}

func (p permission) refused() bool { return Forbidden(p.request()) }
