package docker

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/swarm"
)

// Labels that `docker stack deploy` and Swarm give.
const (
	labelStack        = "com.docker.stack.namespace"
	labelSwarmService = "com.docker.swarm.service.id"
	labelSwarmName    = "com.docker.swarm.service.name" // STACK_SERVICE
)

// SwarmService is what is known of a service of a Swarm stack.
type SwarmService struct {
	ID, Name string // Name as Swarm has it: STACK_SERVICE
	Replicas uint64
	// Fixed says that it has no number of replicas that could be set to zero: it is
	// global, or a job.
	Fixed  bool
	Mounts []Mount
}

// swarmServices are the services of a stack of a swarm, by name. Their containers
// are those on this machine. Only a manager can tell: elsewhere there are none, and
// their containers are another's, that nobody here may stop.
func (e *Engine) swarmServices(ctx context.Context, stack string) ([]Service, error) {
	if !e.Swarm {
		return nil, nil
	}
	local, err := e.containers(ctx, filters.Arg("label", labelStack+"="+stack))
	if err != nil {
		return nil, fmt.Errorf("list the containers of Swarm stack %s: %w", stack, explainAccess(err))
	}
	list, err := e.api.ServiceList(ctx, swarm.ServiceListOptions{Filters: filters.NewArgs(filters.Arg("label", labelStack+"="+stack))})
	if err = explainAccess(err); Forbidden(err) && len(local) == 0 {
		return nil, nil // a project of Compose, on a manager whose swarm is not ours to see
	}
	if err != nil {
		return nil, fmt.Errorf("list the services of Swarm stack %s: %w", stack, err)
	}
	var out []Service
	for i := range list {
		svc := swarmService(&list[i], stack)
		for _, c := range local {
			if c.Labels[labelSwarmService] == svc.Swarm.ID {
				svc.Containers = append(svc.Containers, c)
			}
		}
		out = append(out, svc)
	}
	slices.SortFunc(out, func(a, b Service) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// swarmService reads a service. Labels may stand on it (deploy.labels) and on its
// containers (labels); those of the service win.
func swarmService(s *swarm.Service, stack string) Service {
	svc := Service{Name: s.Spec.Name, Labels: map[string]string{}, Swarm: &SwarmService{ID: s.ID, Name: s.Spec.Name, Fixed: true}}
	svc.Name = strings.TrimPrefix(svc.Name, stack+"_")
	if r := s.Spec.Mode.Replicated; r != nil {
		svc.Swarm.Fixed = false
		if r.Replicas != nil {
			svc.Swarm.Replicas = *r.Replicas
		}
	}
	if c := s.Spec.TaskTemplate.ContainerSpec; c != nil {
		svc.Image = c.Image
		if h := c.Healthcheck; h != nil && len(h.Test) > 0 && h.Test[0] != "NONE" {
			svc.Healthcheck = true
		}
		for k, v := range c.Labels {
			svc.Labels[k] = v
		}
		for _, m := range c.Mounts {
			own := Mount{Type: string(cmp.Or(m.Type, mount.TypeVolume)), Destination: m.Target, RW: !m.ReadOnly}
			if m.Type == mount.TypeBind {
				own.Source = m.Source
			} else {
				own.Name = m.Source
			}
			svc.Swarm.Mounts = append(svc.Swarm.Mounts, own)
		}
	}
	for k, v := range s.Spec.Labels {
		svc.Labels[k] = v
	}
	return svc
}

// swarmSteps is the step of a Swarm service: to no replicas and back. Swarm would
// replace what is stopped or paused behind its back.
func (p *Plan) swarmSteps(svc *Service, policy Policy, asked bool) []Step {
	switch {
	case svc.Swarm.Fixed:
		p.warn("service %s is global or a job, which cannot be scaled to nothing: it keeps running, and its files may change while they are read; "+
			"stop it in a %s hook, or label it %s=none to have it said", svc.Swarm.Name, labelPre, labelQuiesce)
		return nil
	case policy.Quiesce == QuiescePause:
		p.warn("service %s is Swarm's, which replaces paused containers: it is scaled to nothing instead", svc.Swarm.Name)
	}
	if svc.Swarm.Replicas == 0 {
		return nil
	}
	here := slices.DeleteFunc(slices.Clone(svc.Containers), func(c Container) bool { return c.State != "running" })
	return []Step{{Service: svc.Name, Act: ActScale, Containers: here, Timeout: policy.StopTimeout, Asked: asked, Swarm: svc.Swarm}}
}

func (s *SwarmService) entry(step Step) *entry {
	replicas := s.Replicas
	return &entry{
		Act: ActScale, Wave: step.Wave, Service: step.Service, Name: s.Name, SwarmID: s.ID, Replicas: &replicas,
		Grace: cmp.Or(step.Timeout, time.Minute), idle: true,
	}
}

// scaleDown sets a service to no replicas, and waits until none runs.
func (e *Engine) scaleDown(ctx context.Context, en *entry) error {
	if err := e.scale(ctx, en.SwarmID, 0, func(now uint64) bool { return now > 0 }); err != nil {
		return err
	}
	for {
		tasks, err := e.api.TaskList(ctx, swarm.TaskListOptions{Filters: filters.NewArgs(filters.Arg("service", en.SwarmID))})
		if err != nil {
			return err
		}
		var left []string
		for _, t := range tasks {
			if lives(t) {
				left = append(left, fmt.Sprintf("task %s is %s and shall be %s", t.ID, t.Status.State, t.DesiredState))
			}
		}
		if len(left) == 0 {
			return nil
		}
		if err := sleep(ctx, pollEvery); err != nil {
			return fmt.Errorf("its containers have not ended in %s (%s): %w", en.Grace+margin, strings.Join(left, ", "), err)
		}
	}
}

// lives says whether a task may have, or come to have, a container that runs.
func lives(t swarm.Task) bool {
	switch t.Status.State {
	case swarm.TaskStateComplete, swarm.TaskStateShutdown, swarm.TaskStateFailed, swarm.TaskStateRejected, swarm.TaskStateOrphaned, swarm.TaskStateRemove:
		return false
	}
	// What was never given to a node and is not to run will not.
	return t.NodeID != "" || t.DesiredState <= swarm.TaskStateRunning
}

// scaledDown says whether a service is there and has no replicas.
func (e *Engine) scaledDown(ctx context.Context, en *entry) (bool, error) {
	s, _, err := e.api.ServiceInspectWithRaw(ctx, en.SwarmID, swarm.ServiceInspectOptions{})
	if cerrdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	r := s.Spec.Mode.Replicated
	return r != nil && r.Replicas != nil && *r.Replicas == 0, nil
}

// scale sets the number of replicas, if the present number is one to change. A
// change by someone else in between is taken in, and the request repeated.
func (e *Engine) scale(ctx context.Context, id string, to uint64, from func(uint64) bool) error {
	for {
		s, _, err := e.api.ServiceInspectWithRaw(ctx, id, swarm.ServiceInspectOptions{})
		if err != nil {
			return err
		}
		r := s.Spec.Mode.Replicated
		if r == nil || r.Replicas == nil || !from(*r.Replicas) {
			return nil
		}
		r.Replicas = &to
		_, err = e.api.ServiceUpdate(ctx, id, s.Version, s.Spec, swarm.ServiceUpdateOptions{})
		if err == nil || !outOfSequence(err) {
			return err
		}
		if err := sleep(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// mayScale asks for a service that is not there.
func (e *Engine) mayScale(ctx context.Context) permission {
	return permission{"POST /services/ID/update", func() error {
		spec := swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{}}}
		_, err := e.api.ServiceUpdate(ctx, nobody, swarm.Version{}, spec, swarm.ServiceUpdateOptions{})
		return err
	}}
}

// outOfSequence says whether an update was refused because someone else's came
// first. The engine has no status of its own for it.
func outOfSequence(err error) bool { return strings.Contains(err.Error(), "update out of sequence") }

// sleep waits, or returns why it must not go on.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
