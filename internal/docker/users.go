package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
// itself, but a note of what was stopped and for which volumes, for whoever finishes
// the restore.
type Users struct {
	e       *Engine
	file    string
	project string
	note    usersNote
}

// usersNote is what is kept of restores that did not end.
type usersNote struct {
	// Stopped are in the order in which they are started again.
	Stopped []user `json:"stopped"`
	// Begun are the volumes, named as in UsersOptions, whose restore has not ended as
	// far as anybody knows.
	Begun []string `json:"begun"`
}

// user is a container that was stopped, or a service of a swarm that was scaled to
// no replicas.
type user struct {
	Service   string  `json:"service"`
	Container string  `json:"container,omitempty"`
	Name      string  `json:"name"` // Swarm's, of one of its services
	Swarm     string  `json:"swarm,omitempty"`
	Replicas  uint64  `json:"replicas,omitempty"`
	Mounts    []Mount `json:"mounts"`
}

// ErrInUse: a volume is used by what may not be stopped.
var ErrInUse = errors.New("it is in use")

// StopUsers stops the project's containers that mount one of the volumes, those
// that others depend on last, and scales Swarm services that do to no replicas.
// An ErrInUse, and nothing is stopped, if a container of others may write to
// them, a Swarm service cannot be scaled, or the engine does not allow both to stop and to start.
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
			return nil, fmt.Errorf("container %s uses a volume that is to be restored (%w), and is of the Swarm service %s, which only a manager can scale; type `docker service scale %s=0` on one, restore again, and scale it back", c.Name, ErrInUse, name, name)
		}
		return nil, fmt.Errorf("container %s, which is not of project %s, uses a volume that is to be restored (%w); stop it with `docker stop %s`, then restore again", c.Name, o.Project, ErrInUse, c.Name)
	}
	now, err := stack.users(o)
	if err != nil {
		return nil, err
	}
	if err := e.mayStopUsers(ctx, now); err != nil {
		return nil, err
	}
	u, err := e.users(o.StateDir, o.Project)
	if err != nil {
		return nil, err
	}
	for _, c := range now {
		if !slices.ContainsFunc(u.note.Stopped, func(s user) bool { return s.Container == c.Container && s.Swarm == c.Swarm }) {
			u.note.Stopped = append(u.note.Stopped, c)
		}
	}
	before := slices.Clone(u.note.Begun)
	for _, v := range o.Volumes {
		if !slices.Contains(u.note.Begun, v) {
			u.note.Begun = append(u.note.Begun, v)
		}
	}
	if len(u.note.Stopped) == 0 {
		return u, nil
	}
	if err := u.write(); err != nil {
		return nil, err
	}
	for _, c := range slices.Backward(now) {
		if err := e.stopUser(ctx, c); err != nil {
			u.note.Begun = before // nothing was restored
			_, serr := u.Start(context.WithoutCancel(ctx), nil)
			return nil, errors.Join(err, serr)
		}
	}
	return u, nil
}

// users are a stack's containers and services that run and mount one of the volumes.
func (s *Stack) users(o UsersOptions) ([]user, error) {
	var now []user
	for i := range s.Services {
		svc := &s.Services[i]
		if svc.owned(o.Own) {
			continue
		}
		if sw := svc.Swarm; sw != nil {
			switch {
			case !svc.uses(o.Volumes) || !sw.Fixed && sw.Replicas == 0:
			case sw.Fixed:
				return nil, fmt.Errorf("service %s uses a volume that is to be restored (%w), and is global or a job, which cannot be scaled to nothing; remove it with `docker service rm %s`, restore, and deploy the stack again", svc.Name, ErrInUse, sw.Name)
			default:
				now = append(now, user{Service: svc.Name, Name: sw.Name, Swarm: sw.ID, Replicas: sw.Replicas, Mounts: sw.Mounts})
			}
			continue
		}
		for _, c := range svc.Containers {
			if c.running() && c.uses(o.Volumes) && c.Labels[labelWorker] == "" {
				now = append(now, user{Service: svc.Name, Container: c.ID, Name: c.Name, Mounts: c.Mounts})
			}
		}
	}
	return now, nil
}

// mayStopUsers asks before anything is stopped whether it may be started again, too.
func (e *Engine) mayStopUsers(ctx context.Context, now []user) error {
	var ask []permission
	var running []string
	for _, c := range now {
		if !slices.Contains(running, c.Service) {
			running = append(running, c.Service)
		}
	}
	if slices.ContainsFunc(now, func(c user) bool { return c.Swarm == "" }) {
		ask = e.mayStop(ctx)
	}
	if slices.ContainsFunc(now, func(c user) bool { return c.Swarm != "" }) {
		ask = append(ask, e.mayScale(ctx))
	}
	for _, p := range ask {
		if p.refused() {
			return fmt.Errorf("services %s use a volume that is to be restored (%w), and the engine does not allow %s, which stopping and starting them takes; stop them yourself (`docker compose stop %s`), restore, and start them",
				strings.Join(running, ", "), ErrInUse, p.name, strings.Join(running, " "))
		}
	}
	return nil
}

// users reads the note of a project; one that is not there is empty.
func (e *Engine) users(state, project string) (*Users, error) {
	u := &Users{e: e, project: project}
	if state == "" {
		return u, nil
	}
	u.file = filepath.Join(state, "restore", project+".json")
	return u, u.read()
}

// UsersLeft are the services that restores of a project have left stopped which were
// killed, or did not end well.
func (e *Engine) UsersLeft(state, project string) (*Users, error) { return e.users(state, project) }

// Begun are the volumes whose restore has not ended as far as anybody knows.
func (u *Users) Begun() []string { return slices.Clone(u.note.Begun) }

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
	for _, c := range u.note.Stopped {
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
// end, but for what mounts a volume whose restore has not ended: whole are those
// that have, since. It returns the services that stay stopped. What does not start is an
// error that names it; the others are started.
func (u *Users) Start(ctx context.Context, whole []string) (stay []string, err error) {
	u.note.Begun = slices.DeleteFunc(u.note.Begun, func(v string) bool { return slices.Contains(whole, v) })
	var errs []error
	var left []user
	for _, c := range u.note.Stopped {
		if (&Container{Mounts: c.Mounts}).uses(u.note.Begun) {
			left = append(left, c)
			if !slices.Contains(stay, c.Service) {
				stay = append(stay, c.Service)
			}
			continue
		}
		if err := u.e.startUser(ctx, c); err != nil {
			errs = append(errs, err)
			left = append(left, c)
		}
	}
	u.note.Stopped = left
	return stay, errors.Join(append(errs, u.write())...)
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
		err = json.Unmarshal(data, &u.note)
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
	if len(u.note.Stopped) == 0 {
		if err := os.Remove(u.file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the note of what was stopped: %w", err)
		}
		return nil
	}
	data, err := json.Marshal(u.note)
	if err == nil {
		err = statefile.Replace(u.file, data)
	}
	if err != nil {
		return fmt.Errorf("note what is about to be stopped: %w", err)
	}
	return nil
}
