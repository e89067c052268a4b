package docker

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
)

// Agent is a container of backupd that may keep a schedule.
type Agent struct {
	Container string // its name; of a swarm's, that of the service
	Project   string // Compose's, or the Swarm stack
	Service   string
	Stack     string // the name its snapshots bear
	Volumes   string // BACKUPD_VOLUMES: mounted, project or host
	Schedule  string // BACKUPD_SCHEDULE; empty where none is set in its environment
	Config    bool   // it reads a configuration file, whose schedules are not seen from here
	Running   bool
	Mounts    []Mount
}

// Holding is something that holds data: a volume of the engine, or a directory
// that a service of a project has bound.
type Holding struct {
	Volume
	Bind     bool     // a directory: Name is its path
	Stack    string   // the project that made it, or else one whose services mount it
	Services []string // that mount it, as project/service, or a container's name
	// Agents are indices into Coverage.Agents: those that take it. Each has it in its
	// snapshots under the name at the same place of Names.
	Agents []int
	Names  []string
	// Own says that it belongs to backupd: an agent's state or its target.
	Own bool
	// Excluded by its label.
	Excluded bool
}

// Coverage is who takes care of what on a machine.
type Coverage struct {
	Agents   []Agent
	Holdings []Holding // by stack and name
}

// volumesDir is where agents have the volumes that they take care of.
const volumesDir = "/volumes"

// Coverage looks at every volume of the engine, and with binds at every directory
// that a service has bound and may write to.
func (e *Engine) Coverage(ctx context.Context, binds bool) (*Coverage, error) {
	list, err := e.containers(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the engine's containers: %w", explainAccess(err))
	}
	all, err := e.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	c := &Coverage{}
	isAgent := map[string]bool{}
	for _, own := range list {
		if own.Labels[labelWorker] != "" || own.OneOff {
			isAgent[own.ID] = own.Labels[labelWorker] != "" || own.Labels[labelTitle] == "backupd"
			continue
		}
		agent, ok, err := e.agentOf(ctx, own)
		if err != nil {
			return nil, err
		}
		if ok {
			isAgent[own.ID] = true
			c.Agents = append(c.Agents, agent)
		}
	}
	for _, v := range all {
		h := Holding{Volume: v, Stack: v.Project}
		// A label that is wrong excludes nothing; whoever backs the volume up says so.
		h.Excluded, _ = Excluded(v)
		c.Holdings = append(c.Holdings, h)
	}
	if binds {
		c.Holdings = append(c.Holdings, boundBy(list, isAgent)...)
	}
	for i := range c.Holdings {
		h := &c.Holdings[i]
		for _, own := range list {
			if isAgent[own.ID] || !slices.ContainsFunc(own.Mounts, h.is) {
				continue
			}
			name := own.Name
			if service := serviceOf(own.Labels); service != "" {
				name = projectOf(own.Labels) + "/" + service
				h.Stack = cmp.Or(h.Stack, projectOf(own.Labels))
			}
			if !slices.Contains(h.Services, name) {
				h.Services = append(h.Services, name)
			}
		}
		slices.Sort(h.Services)
		for k, a := range c.Agents {
			name, own := a.takes(h)
			if name != "" && !h.Excluded {
				h.Agents, h.Names = append(h.Agents, k), append(h.Names, name)
			}
			h.Own = h.Own || own && len(h.Services) == 0
		}
	}
	slices.SortFunc(c.Holdings, func(a, b Holding) int { return cmp.Or(cmp.Compare(a.Stack, b.Stack), cmp.Compare(a.Name, b.Name)) })
	return c, nil
}

// is says whether a mount is of the holding.
func (h *Holding) is(m Mount) bool {
	if h.Bind {
		return m.Name == "" && path.Clean(m.Source) == h.Name
	}
	return m.Name == h.Name
}

// boundBy returns the directories that services have bound and may write to,
// each once. Sockets and the machine's own directories hold no data of a stack.
func boundBy(list []Container, isAgent map[string]bool) []Holding {
	var out []Holding
	seen := map[string]bool{}
	for _, own := range list {
		if isAgent[own.ID] || serviceOf(own.Labels) == "" {
			continue
		}
		for _, m := range own.Mounts {
			source := path.Clean(m.Source)
			if m.Type != "bind" || !m.RW || seen[source] || strings.HasSuffix(source, ".sock") ||
				slices.ContainsFunc([]string{"/proc", "/sys", "/dev", "/run", "/var/run", "/etc"}, func(dir string) bool { return below(source, dir) }) || source == "/" {
				continue
			}
			seen[source] = true
			out = append(out, Holding{Bind: true, Stack: projectOf(own.Labels), Volume: Volume{Name: source, Key: path.Base(source), Driver: "bind"}})
		}
	}
	return out
}

// agentOf describes a container if it is an agent: one of the image of backupd,
// or one that is told a target.
func (e *Engine) agentOf(ctx context.Context, own Container) (Agent, bool, error) {
	info, err := e.api.ContainerInspect(ctx, own.ID)
	if cerrdefs.IsNotFound(err) {
		return Agent{}, false, nil
	}
	if err != nil {
		return Agent{}, false, fmt.Errorf("inspect container %s: %w", own.Name, explainAccess(err))
	}
	if info.Config == nil {
		return Agent{}, false, nil
	}
	env := map[string]string{}
	for _, kv := range info.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	_, told := env["BACKUPD_TARGET"]
	if own.Labels[labelSwarmService] != "" && !own.running() {
		return Agent{}, false, nil // what a swarm has replaced
	}
	if !told && own.Labels[labelTitle] != "backupd" && !strings.EqualFold(own.Labels[labelAgent], "true") {
		return Agent{}, false, nil
	}
	a := Agent{
		Container: own.Name, Project: projectOf(own.Labels), Service: serviceOf(own.Labels),
		Volumes: cmp.Or(env["BACKUPD_VOLUMES"], "mounted"), Schedule: env["BACKUPD_SCHEDULE"],
		Config: env["BACKUPD_CONFIG"] != "", Running: own.running(), Mounts: own.Mounts,
	}
	// Of a task, nobody remembers the name.
	a.Container = cmp.Or(own.Labels[labelSwarmName], a.Container)
	a.Stack = cmp.Or(env["BACKUPD_STACK"], a.Project)
	return a, true, nil
}

// labelAgent says that a service is a backup service.
const labelAgent = labelPrefix + "agent"

// takes returns the name that the agent's snapshots have for the holding, or
// nothing; own says that the agent has it mounted for itself.
func (a *Agent) takes(h *Holding) (name string, own bool) {
	for _, m := range a.Mounts {
		if !h.is(m) {
			continue
		}
		at := path.Clean(m.Destination)
		if path.Dir(at) != volumesDir {
			own = true
		} else if a.Volumes == "mounted" {
			return path.Base(at), false
		}
	}
	if own || h.Bind || h.Project == "" {
		return "", own
	}
	if a.Volumes == "host" || a.Volumes == "project" && h.Project == a.Project {
		return h.Key, false
	}
	return "", false
}
