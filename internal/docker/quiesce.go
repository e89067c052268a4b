package docker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
)

// QuiesceOptions say what is to stand still while its volumes are read.
type QuiesceOptions struct {
	// Project is the Compose project, or the name of a Swarm stack. Of no other one
	// anything is stopped.
	Project string
	// Volumes that are backed up: the engine's names, and absolute paths on the
	// engine's machine for bind mounts.
	Volumes []string
	// UsersOnly leaves alone what mounts none of the volumes, whatever its labels ask
	// for: hooks and acts for a project's snapshot are not for that of a volume which it
	// only uses.
	UsersOnly bool
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
	stack, err := q.engine.Stack(ctx, q.opt.Project)
	if err != nil {
		return nil, err
	}
	if q.opt.UsersOnly {
		stack = stack.Using(q.opt.Volumes)
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
