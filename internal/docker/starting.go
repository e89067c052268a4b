package docker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
)

const (
	// startLimit bounds how long services that start are waited for.
	startLimit = 5 * time.Minute
	// startEvery is how often they are asked, as Compose does.
	startEvery = 500 * time.Millisecond
	// startedFor is how long one has been healthy before it is touched: whoever
	// waits for it, as `up` does, must have seen it.
	startedFor = 4 * startEvery
)

// AwaitStart waits until nothing that the plan would touch is still starting, as
// health checks tell. A database that is stopped while it makes its files has
// them half, and `docker compose up` fails on a service that ends while others
// wait for it: a run that is made up after a reboot would do both. Those that
// take longer than five minutes get a warning, and are touched all the same.
func (q *Quiescer) AwaitStart(ctx context.Context, p *Plan, waiting func(services []string)) error {
	var deadline time.Time
	for told := false; ; told = true {
		services, err := q.starting(ctx, p)
		if err != nil {
			return fmt.Errorf("find out whether services have started: %w", explainAccess(err))
		}
		pause := startEvery
		switch {
		case len(services) == 0 && !told:
			return nil
		case len(services) == 0:
			pause = startedFor
		case !told:
			deadline = q.opt.Now().Add(startLimit)
			if waiting != nil {
				waiting(services)
			}
		case q.opt.Now().After(deadline):
			q.warn(fmt.Sprintf("%s had not started within %v, as the health check tells, and was made to stand still all the same", strings.Join(services, ", "), startLimit))
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		if len(services) == 0 {
			return nil
		}
	}
}

// starting names the services that the plan touches and that are not yet there.
func (q *Quiescer) starting(ctx context.Context, p *Plan) ([]string, error) {
	var out []string
	look := func(service string, containers ...Container) error {
		for _, c := range containers {
			if slices.Contains(out, service) {
				return nil
			}
			got, err := q.engine.api.ContainerInspect(ctx, c.ID)
			if cerrdefs.IsNotFound(err) {
				continue
			}
			if err != nil {
				return err
			}
			if s := got.State; s != nil && s.Running && !s.Paused && s.Health != nil && s.Health.Status == container.Starting {
				out = append(out, service)
			}
		}
		return nil
	}
	for _, s := range p.Steps {
		if err := look(s.Service, s.Containers...); err != nil {
			return nil, err
		}
	}
	for _, h := range p.Pre {
		if err := look(h.Service, h.Container); err != nil {
			return nil, err
		}
	}
	return out, nil
}
