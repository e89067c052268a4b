package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"github.com/disko/backupd/internal/statefile"
)

// UsersOptions say for which volumes nobody may run.
type UsersOptions struct {
	Project string
	// Volumes are the engine's names, or paths on its machine for bind mounts.
	Volumes []string
	Own     []string // backupd's own containers
	// StateDir remembers what was stopped, for a restore that is finished by another
	// process; empty for none.
	StateDir string
}

// Users are the services that use volumes which are about to be restored. Unlike a
// freeze for a backup, a restore that ends badly must not let them go on: they
// would start with half of their data. So there is no journal that does it by
// itself, but a note of what was stopped, for whoever finishes the restore.
type Users struct {
	e       *Engine
	file    string
	stopped []user // in the order in which they are started again
}

// user is a container that was stopped, or a service of a swarm that was scaled to
// no replicas.
type user struct {
	Service   string `json:"service"`
	Container string `json:"container,omitempty"`
	Name      string `json:"name"` // Swarm's, of one of its services
	Swarm     string `json:"swarm,omitempty"`
	Replicas  uint64 `json:"replicas,omitempty"`
}

// StopUsers stops the project's containers that mount one of the volumes, those
// that others depend on last, and scales Swarm services that do to no replicas.
// Containers of others that may write to them are an error, and so is a Swarm service
// that cannot be scaled: nothing is stopped then.
func (e *Engine) StopUsers(ctx context.Context, o UsersOptions) (*Users, error) {
	stack, err := e.Stack(ctx, o.Project)
	if err != nil {
		return nil, err
	}
	all, err := e.containers(ctx)
	if err != nil {
		return nil, fmt.Errorf("find out who uses the volumes: list containers: %w", explainAccess(err))
	}
	for _, c := range all {
		if c.Labels[labelProject] == o.Project || stack.has(c.ID) || c.Labels[labelWorker] != "" || slices.Contains(o.Own, c.ID) || !c.running() || !c.writes(o.Volumes) {
			continue
		}
		if name := c.Labels[labelSwarmName]; name != "" {
			return nil, fmt.Errorf("container %s uses a volume that is to be restored, and is of the Swarm service %s, which only a manager can scale; type `docker service scale %s=0` on one, restore again, and scale it back", c.Name, name, name)
		}
		return nil, fmt.Errorf("container %s, which is not of project %s, uses a volume that is to be restored; stop it with `docker stop %s`, then restore again", c.Name, o.Project, c.Name)
	}
	u := &Users{e: e}
	if o.StateDir != "" {
		u.file = filepath.Join(o.StateDir, "restore", o.Project+".json")
		if err := u.read(); err != nil {
			return nil, err
		}
	}
	var errs []error
	var now []user
	for i := range stack.Services {
		svc := &stack.Services[i]
		if svc.owned(o.Own) {
			continue
		}
		if s := svc.Swarm; s != nil {
			switch {
			case !svc.uses(o.Volumes) || !s.Fixed && s.Replicas == 0:
			case s.Fixed:
				return nil, fmt.Errorf("service %s uses a volume that is to be restored, and is global or a job, which cannot be scaled to nothing; remove it with `docker service rm %s`, restore, and deploy the stack again", svc.Name, s.Name)
			default:
				now = append(now, user{Service: svc.Name, Name: s.Name, Swarm: s.ID, Replicas: s.Replicas})
			}
			continue
		}
		for _, c := range svc.Containers {
			if c.running() && c.uses(o.Volumes) && c.Labels[labelWorker] == "" {
				now = append(now, user{Service: svc.Name, Container: c.ID, Name: c.Name})
			}
		}
	}
	if len(now) == 0 {
		return u, nil
	}
	for _, c := range now {
		if !slices.Contains(u.stopped, c) {
			u.stopped = append(u.stopped, c)
		}
	}
	if err := u.write(); err != nil {
		return nil, err
	}
	for _, c := range slices.Backward(now) {
		if err := e.stopUser(ctx, c); err != nil {
			errs = append(errs, err)
			break
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(err, u.Start(context.WithoutCancel(ctx)))
	}
	return u, nil
}

func (c *Container) running() bool {
	return c.State == "running" || c.State == "paused" || c.State == "restarting"
}

// uses says whether a container mounts one of the volumes, to write or to read.
func (c *Container) uses(volumes []string) bool {
	return slices.ContainsFunc(c.Mounts, func(m Mount) bool {
		m.RW = true
		return m.writes(volumes)
	})
}

// uses says whether a service mounts one of the volumes, to write or to read.
func (s *Service) uses(volumes []string) bool {
	anyOf := func(mounts []Mount) bool { return (&Container{Mounts: mounts}).uses(volumes) }
	return s.Swarm != nil && anyOf(s.Swarm.Mounts) || slices.ContainsFunc(s.Containers, func(c Container) bool { return c.uses(volumes) })
}

func (e *Engine) stopUser(ctx context.Context, c user) error {
	if c.Swarm != "" {
		ctx, cancel := context.WithTimeout(ctx, scaleTime+margin)
		defer cancel()
		if err := e.scaleDown(ctx, &entry{SwarmID: c.Swarm, Grace: scaleTime}); err != nil {
			return fmt.Errorf("scale service %s, which uses a volume that is to be restored, to no replicas: %w", c.Name, explainAccess(err))
		}
		return nil
	}
	err := e.api.ContainerStop(ctx, c.Container, container.StopOptions{})
	if cerrdefs.IsNotFound(err) || cerrdefs.IsNotModified(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop container %s of service %s, which uses a volume that is to be restored: %w", c.Name, c.Service, explainAccess(err))
	}
	return nil
}

// Names are the services that stand still.
func (u *Users) Names() []string {
	var out []string
	for _, c := range u.stopped {
		if !slices.Contains(out, c.Service) {
			out = append(out, c.Service)
		}
	}
	return out
}

const (
	startTime = time.Minute // how long starting one container may take
	// scaleTime is how long the containers of a Swarm service may take to end: longer
	// than a database needs to shut down.
	scaleTime = 10 * time.Minute
)

// Start lets all go on that was stopped, also by earlier restores that did not
// end. What does not start is an error that names it; the others are started.
func (u *Users) Start(ctx context.Context) error {
	var errs []error
	var left []user
	for _, c := range u.stopped {
		err := u.e.startUser(ctx, c)
		if err != nil {
			errs = append(errs, err)
			left = append(left, c)
		}
	}
	u.stopped = left
	return errors.Join(append(errs, u.write())...)
}

func (e *Engine) startUser(ctx context.Context, c user) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if c.Swarm != "" {
		err := e.scale(ctx, c.Swarm, c.Replicas, func(now uint64) bool { return now == 0 })
		if err == nil || cerrdefs.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("scale service %s back: %w; `docker service scale %s=%d` does it", c.Name, explainAccess(err), c.Name, c.Replicas)
	}
	err := e.api.ContainerStart(ctx, c.Container, container.StartOptions{})
	if cerrdefs.IsNotFound(err) || cerrdefs.IsNotModified(err) {
		return nil // made anew since: whoever did that decides whether it runs
	}
	if err != nil {
		return fmt.Errorf("start container %s of service %s again: %w; `docker start %s` does it", c.Name, c.Service, explainAccess(err), c.Name)
	}
	return nil
}

// read reads what an earlier restore that did not end has stopped.
func (u *Users) read() error {
	data, err := os.ReadFile(u.file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, &u.stopped)
	}
	if err != nil {
		return fmt.Errorf("read what an earlier restore has stopped: %w; start those services yourself, and remove %s", err, u.file)
	}
	return nil
}

// write notes what stands still; nothing does where there is no note.
func (u *Users) write() error {
	if u.file == "" {
		return nil
	}
	if len(u.stopped) == 0 {
		if err := os.Remove(u.file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the note of what was stopped: %w", err)
		}
		return nil
	}
	data, err := json.Marshal(u.stopped)
	if err == nil {
		err = statefile.Replace(u.file, data)
	}
	if err != nil {
		return fmt.Errorf("note what is about to be stopped: %w", err)
	}
	return nil
}
