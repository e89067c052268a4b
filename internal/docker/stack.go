package docker

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/volume"
)

// Labels that Compose gives to what it makes.
const (
	labelProject   = "com.docker.compose.project"
	labelService   = "com.docker.compose.service"
	labelNumber    = "com.docker.compose.container-number"
	labelDependsOn = "com.docker.compose.depends_on"
	labelOneOff    = "com.docker.compose.oneoff"
	labelVolume    = "com.docker.compose.volume"
	labelVersion   = "com.docker.compose.version"
	labelDir       = "com.docker.compose.project.working_dir"
)

// Stack is a project as the engine knows it: one of Compose, or a stack of a swarm.
type Stack struct {
	Project  string
	Dir      string // where its Compose file lay, on the machine that created it
	Services []Service
	Volumes  []Volume // that belong to it, or that its containers mount
}

// Service is a service of a stack: the containers that Compose made for it.
type Service struct {
	Name   string
	Swarm  *SwarmService     // of a service of a Swarm stack; nil for one of Compose
	Labels map[string]string // of its first container
	Image  string            // as the Compose file names it
	// ImageID is the image's id, "sha256:...".
	ImageID string
	// Healthcheck says whether its containers have one that is not disabled.
	Healthcheck bool
	DependsOn   []string // names of services
	// Waits are the conditions of DependsOn, as Compose writes them: service_started,
	// service_healthy, service_completed_successfully. Empty from a Compose too
	// old to tell.
	Waits      map[string]string
	Containers []Container
}

// Container is one container.
type Container struct {
	ID, Name string
	Number   int  // of the replicas of its service, from 1
	OneOff   bool // made by `compose run`
	// State is created, running, paused, restarting, exited, removing or dead.
	State string
	// Labels are its own and its image's.
	Labels map[string]string
	Mounts []Mount
}

// Mount is something mounted in a container.
type Mount struct {
	Type        string // volume, bind, tmpfs, npipe, cluster
	Name        string // of a volume
	Source      string // path on the engine's machine
	Destination string
	Driver      string // of a volume
	RW          bool
}

// Volume is a volume of the engine.
type Volume struct {
	Name       string // the engine's
	Key        string // the name in the Compose file; Name where no project made it
	Project    string // Compose's, or the Swarm stack; empty where none made it
	Driver     string
	Options    map[string]string
	Labels     map[string]string
	Created    time.Time // zero where the engine does not say
	Mountpoint string    // on the engine's machine
}

// Stack describes a project: its services, the most needed first, and its volumes.
func (e *Engine) Stack(ctx context.Context, project string) (*Stack, error) {
	list, err := e.containers(ctx, filters.Arg("label", labelProject+"="+project))
	if err != nil {
		return nil, fmt.Errorf("list the containers of project %s: %w", project, explainAccess(err))
	}
	s := &Stack{Project: project}
	byName := map[string]*Service{}
	for _, c := range list {
		name := c.Labels[labelService]
		if name == "" {
			continue
		}
		s.Dir = cmp.Or(s.Dir, c.Labels[labelDir])
		svc := byName[name]
		if svc == nil {
			svc = &Service{Name: name}
			byName[name] = svc
		}
		svc.Containers = append(svc.Containers, c)
	}
	for _, svc := range byName {
		slices.SortFunc(svc.Containers, func(a, b Container) int {
			return cmp.Or(boolOrder(a.OneOff, b.OneOff), cmp.Compare(a.Number, b.Number), cmp.Compare(a.ID, b.ID))
		})
		gone, err := e.describe(ctx, svc)
		if err != nil {
			return nil, err
		}
		if gone {
			continue
		}
		s.Services = append(s.Services, *svc)
	}
	s.Services = inOrder(s.Services)
	swarm, err := e.swarmServices(ctx, project)
	if err != nil {
		return nil, err
	}
	s.Services = append(s.Services, swarm...)
	if s.Volumes, err = e.volumesOf(ctx, project, s.Services, list); err != nil {
		return nil, err
	}
	return s, nil
}

// serviceOf is the service of whatever bears labels, as the Compose file names it.
func serviceOf(labels map[string]string) string {
	return cmp.Or(labels[labelService], strings.TrimPrefix(labels[labelSwarmName], labels[labelStack]+"_"))
}

// has says whether a container is one of the stack's services'.
func (s *Stack) has(id string) bool {
	return slices.ContainsFunc(s.Services, func(svc Service) bool {
		return slices.ContainsFunc(svc.Containers, func(c Container) bool { return c.ID == id })
	})
}

// projectOf is the project of whatever bears labels: Compose's, or else the Swarm stack.
func projectOf(labels map[string]string) string {
	return cmp.Or(labels[labelProject], labels[labelStack])
}

// Service returns the service of that name, or nil.
func (s *Stack) Service(name string) *Service {
	for i := range s.Services {
		if s.Services[i].Name == name {
			return &s.Services[i]
		}
	}
	return nil
}

func (e *Engine) containers(ctx context.Context, f ...filters.KeyValuePair) ([]Container, error) {
	list, err := e.api.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(f...)})
	if err != nil {
		return nil, err
	}
	out := make([]Container, 0, len(list))
	for _, c := range list {
		own := Container{ID: c.ID, State: c.State, Labels: c.Labels, OneOff: strings.EqualFold(c.Labels[labelOneOff], "true")}
		own.Number, _ = strconv.Atoi(c.Labels[labelNumber])
		if len(c.Names) > 0 {
			own.Name = strings.TrimPrefix(c.Names[0], "/")
		}
		own.Mounts = mounts(c.Mounts)
		out = append(out, own)
	}
	return out, nil
}

func mounts(points []container.MountPoint) []Mount {
	var out []Mount
	for _, m := range points {
		out = append(out, Mount{Type: string(cmp.Or(m.Type, mount.TypeBind)), Name: m.Name, Source: m.Source, Destination: m.Destination, Driver: m.Driver, RW: m.RW})
	}
	return out
}

// describe reads what a listing of containers does not have, from the first of
// them that is still there.
func (e *Engine) describe(ctx context.Context, svc *Service) (gone bool, err error) {
	for len(svc.Containers) > 0 {
		first := svc.Containers[0]
		c, err := e.api.ContainerInspect(ctx, first.ID)
		if cerrdefs.IsNotFound(err) { // removed since it was listed
			svc.Containers = svc.Containers[1:]
			continue
		}
		if err != nil {
			return false, fmt.Errorf("inspect container %s of service %s: %w", first.Name, svc.Name, explainAccess(err))
		}
		svc.Labels = first.Labels
		svc.ImageID = c.Image
		if c.Config != nil {
			svc.Image = c.Config.Image
			if h := c.Config.Healthcheck; h != nil && len(h.Test) > 0 && h.Test[0] != "NONE" {
				svc.Healthcheck = true
			}
		}
		svc.DependsOn, svc.Waits = dependencies(first.Labels[labelDependsOn])
		return false, nil
	}
	return true, nil
}

// dependencies reads Compose's label: "db:service_healthy:false,cache:service_started:false".
func dependencies(label string) (names []string, waits map[string]string) {
	waits = map[string]string{}
	for part := range strings.SplitSeq(label, ",") {
		name, rest, _ := strings.Cut(strings.TrimSpace(part), ":")
		if name == "" || slices.Contains(names, name) {
			continue
		}
		names = append(names, name)
		if condition, _, _ := strings.Cut(rest, ":"); condition != "" {
			waits[name] = condition
		}
	}
	return names, waits
}

// inOrder sorts services so that each comes after those that it depends on;
// among equals by name. A circle, which Compose refuses, is broken by name.
func inOrder(services []Service) []Service {
	slices.SortFunc(services, func(a, b Service) int { return cmp.Compare(a.Name, b.Name) })
	byName := map[string]int{}
	for i := range services {
		byName[services[i].Name] = i
	}
	var out []Service
	seen := map[string]bool{}
	var visit func(i int)
	visit = func(i int) {
		if seen[services[i].Name] {
			return
		}
		seen[services[i].Name] = true
		for _, d := range services[i].DependsOn {
			if k, ok := byName[d]; ok {
				visit(k)
			}
		}
		out = append(out, services[i])
	}
	for i := range services {
		visit(i)
	}
	return out
}

// volumesOf lists the volumes that bear a project's label, and those that its
// services mount.
func (e *Engine) volumesOf(ctx context.Context, project string, services []Service, list []Container) ([]Volume, error) {
	all, err := e.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	mounted := map[string]bool{}
	for _, c := range list {
		for _, m := range c.Mounts {
			if m.Type == string(mount.TypeVolume) {
				mounted[m.Name] = true
			}
		}
	}
	for i := range services {
		if s := services[i].Swarm; s != nil {
			for _, m := range s.Mounts {
				mounted[m.Name] = true
			}
		}
	}
	return slices.DeleteFunc(all, func(v Volume) bool { return v.Project != project && !mounted[v.Name] }), nil
}

// Volumes lists all volumes of the engine, by name.
func (e *Engine) Volumes(ctx context.Context) ([]Volume, error) {
	list, err := e.api.VolumeList(ctx, volume.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the engine's volumes: %w", explainAccess(err))
	}
	var out []Volume
	for _, v := range list.Volumes {
		if v == nil {
			continue
		}
		own := Volume{
			Name: v.Name, Key: cmp.Or(v.Labels[labelVolume], v.Name), Project: projectOf(v.Labels),
			Driver: v.Driver, Options: v.Options, Labels: v.Labels, Mountpoint: v.Mountpoint,
		}
		if stack := v.Labels[labelStack]; stack != "" && own.Project == stack {
			own.Key = cmp.Or(strings.TrimPrefix(own.Key, stack+"_"), own.Key)
		}
		own.Created, _ = time.Parse(time.RFC3339, v.CreatedAt)
		out = append(out, own)
	}
	slices.SortFunc(out, func(a, b Volume) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

func boolOrder(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}
