package docker

import (
	"context"
	"errors"
	"fmt"
	"slices"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
)

// Pre runs the hooks that come before the freeze, one after the other; what needs
// another service is told first. The first that fails ends it. What Post will owe
// is in the journal before.
func (q *Quiescer) Pre(ctx context.Context) error {
	p, err := q.Plan(ctx)
	if err != nil {
		return fmt.Errorf("run hooks: %w", err)
	}
	if len(p.Pre)+len(p.Post) == 0 {
		return nil
	}
	q.warn(p.Warnings...)
	if err := q.mayHook(ctx, p); err != nil {
		return err
	}
	if err := q.owe(p.Post); err != nil {
		return fmt.Errorf("run hooks: %w", err)
	}
	for _, h := range p.Pre {
		q.hands.reach("before pre %s", h.Service)
		err := q.engine.hook(ctx, labelPre, h.Service, h.Container, h.Hook)
		q.hands.reach("after pre %s", h.Service)
		if err != nil {
			return err
		}
	}
	return nil
}

// owe writes the post hooks to the journal.
func (q *Quiescer) owe(posts []HookStep) error {
	if len(posts) == 0 {
		return nil
	}
	if err := q.open(); err != nil {
		return err
	}
	var list []*entry
	for _, h := range posts {
		list = append(list, &entry{
			Act: actPost, Service: h.Service, Hook: &h.Hook,
			Container: h.Container.ID, Name: h.Container.Name, Number: h.Container.Number,
		})
	}
	q.hands.reach("owe")
	return q.journal.intend(list)
}

// Post runs the hooks that come after the thaw, whether or not ctx is cancelled;
// a deadline of ctx counts that has not passed yet. One that fails does not keep
// the others from being run.
func (q *Quiescer) Post(ctx context.Context) error {
	if q.journal == nil {
		return nil
	}
	deadline, bounded := ctx.Deadline()
	bounded = bounded && ctx.Err() == nil
	ctx = context.WithoutCancel(ctx)
	if bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	var errs []error
	for _, e := range slices.DeleteFunc(q.journal.open(), func(e *entry) bool { return e.Act != actPost }) {
		q.hands.reach("before post %s", e.Name)
		errs = append(errs, q.engine.postHook(ctx, q.opt.Project, e))
		q.hands.reach("after post %s", e.Name)
		errs = append(errs, q.journal.mark(nil, []*entry{e}))
	}
	return errors.Join(append(errs, q.settle())...)
}

// postHook runs a hook in the container that it was meant for, or in the one that
// was made in its place. If none is there, nobody waits for it. One of a swarm is
// never started again, but another comes, which is waited for.
func (e *Engine) postHook(ctx context.Context, project string, en *entry) error {
	c := Container{ID: en.Container, Name: en.Name}
	info, err := e.api.ContainerInspect(ctx, c.ID)
	gone := cerrdefs.IsNotFound(err)
	if err == nil && info.State != nil && !info.State.Running && info.Config != nil {
		gone = info.Config.Labels[labelSwarmService] != ""
	}
	if !gone {
		return e.hook(ctx, labelPost, en.Service, c, *en.Hook)
	}
	stack, err := e.Stack(ctx, project)
	if err != nil {
		return fmt.Errorf("find the container of service %s for its %s hook: %w", en.Service, labelPost, err)
	}
	svc := stack.Service(en.Service)
	if svc == nil {
		return nil
	}
	if svc.Swarm != nil {
		if svc.Swarm.Replicas == 0 && !svc.Swarm.Fixed {
			return nil
		}
		if c, err = e.nextTask(ctx, svc.Swarm); err != nil {
			return fmt.Errorf("run the %s hook of service %s: %w", labelPost, en.Service, err)
		}
		return e.hook(ctx, labelPost, en.Service, c, *en.Hook)
	}
	i := slices.IndexFunc(svc.Containers, func(o Container) bool { return o.Number == en.Number && !o.OneOff && o.State == "running" })
	if i < 0 {
		return nil
	}
	return e.hook(ctx, labelPost, en.Service, svc.Containers[i], *en.Hook)
}

// nextTask waits for a container of a Swarm service that runs on this machine.
func (e *Engine) nextTask(ctx context.Context, s *SwarmService) (Container, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		list, err := e.containers(ctx, filters.Arg("label", labelSwarmService+"="+s.ID))
		if err != nil {
			return Container{}, explainAccess(err)
		}
		if i := slices.IndexFunc(list, func(c Container) bool { return c.State == "running" }); i >= 0 {
			return list[i], nil
		}
		if sleep(ctx, pollEvery) != nil {
			return Container{}, fmt.Errorf("none of its containers runs on this machine after %s", startTime)
		}
	}
}

func (e *Engine) hook(ctx context.Context, label, service string, c Container, h Hook) error {
	if err := e.run(ctx, c, command{script: h.Command, user: h.User}, h.Timeout); err != nil {
		return fmt.Errorf("run the %s hook of service %s in container %s: %w", label, service, c.Name, err)
	}
	return nil
}

// mayHook asks whether commands may be run, if the labels want any.
func (q *Quiescer) mayHook(ctx context.Context, p *Plan) error {
	var asked []string
	for _, h := range slices.Concat(p.Pre, p.Post) {
		if !slices.Contains(asked, h.Service) {
			asked = append(asked, h.Service)
		}
	}
	if len(asked) == 0 {
		return nil
	}
	if permission := q.engine.mayExec(ctx); permission != "" {
		return &MayNotError{Doing: "run hooks", Permission: permission, Asked: asked}
	}
	return nil
}

// mayExec names what is not allowed of what running a command needs, or nothing.
func (e *Engine) mayExec(ctx context.Context) string {
	for _, p := range []permission{
		{"POST /containers/ID/exec", func() error {
			_, err := e.api.ContainerExecCreate(ctx, nobody, container.ExecOptions{Cmd: []string{"true"}})
			return err
		}},
		{"POST /exec/ID/start", func() error { return e.api.ContainerExecStart(ctx, nobody, container.ExecStartOptions{}) }},
		{"GET /exec/ID/json", func() error {
			_, err := e.api.ContainerExecInspect(ctx, nobody)
			return err
		}},
	} {
		if p.refused() {
			return p.name
		}
	}
	return ""
}
