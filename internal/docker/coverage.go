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
	Volumes   string // mounted, project or host
	// Named are the volumes that BACKUPD_VOLUME names, as NAME or NAME=PATH: of what is
	// mounted only these are taken. Empty for all below /volumes.
	Named    []string
	Schedule string // empty where none is seen from here
	// Config: it reads a configuration file, which is not seen from here. It may have
	// schedules and, unless Said, whose volumes are meant.
	Config  bool
	Said    bool
	Running bool
	Mounts  []Mount
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
	// Maybe are those whose configuration file may say that they take it.
	Maybe []int
	// Line is the stack that it is in for an agent of the whole machine.
	Line string
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

// Own says whether a volume is an agent's state or its target.
func (c *Coverage) Own(volume string) bool {
	return slices.ContainsFunc(c.Holdings, func(h Holding) bool { return !h.Bind && h.Name == volume && h.Own })
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
	lines := HostStacks(all)
	for _, v := range all {
		h := Holding{Volume: v, Stack: v.Project, Line: lines[v.Name]}
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
			if name == "" && a.mayTake(h) {
				h.Maybe = append(h.Maybe, k)
			}
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

// agentOf describes a container if it is an agent: one of the image of backupd, or
// one with the label of a backup service. A target in its environment makes none:
// an env_file is often that of all services, and a database that passed for an agent
// would have its volume pass for the agent's own.
func (e *Engine) agentOf(ctx context.Context, own Container) (Agent, bool, error) {
	if !own.isBackupd() {
		return Agent{}, false, nil
	}
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
	if own.Labels[labelSwarmService] != "" && !own.running() {
		return Agent{}, false, nil // what a swarm has replaced
	}
	return newAgent(own, settingsOf(own, slices.Concat(info.Config.Entrypoint, info.Config.Cmd), info.Config.Env)), true, nil
}

func newAgent(own Container, s settings) Agent {
	a := Agent{
		Container: own.Name, Project: projectOf(own.Labels), Service: serviceOf(own.Labels),
		Volumes: cmp.Or(s.text("volumes"), "mounted"), Named: s.list("volume"), Schedule: s.schedules(),
		Config: s.text("config") != "", Running: own.running(), Mounts: own.Mounts,
	}
	a.Said = s.text("volumes") != ""
	// Of a task, nobody remembers the name.
	a.Container = cmp.Or(own.Labels[labelSwarmName], a.Container)
	a.Stack = cmp.Or(s.text("stack"), a.Project)
	return a
}

// settings are what can be seen from outside of what an agent is told: by its command
// line, its environment and, if it can ask the engine for them, its labels; in this
// order, the first counts.
type settings struct {
	args   []string
	env    map[string]string
	labels map[string]string
}

func settingsOf(own Container, args, environ []string) settings {
	s := settings{args: args, env: map[string]string{}}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		s.env[k] = v
	}
	socket := slices.ContainsFunc(own.Mounts, func(m Mount) bool {
		return slices.ContainsFunc([]string{"/var/run/docker.sock", "/run/docker.sock"}, func(p string) bool { return atOrBelow(p, m.Destination) })
	})
	if socket || s.env["DOCKER_HOST"] != "" {
		s.labels = own.Labels
	}
	return s
}

// list are the values of a setting; none where it is not set.
func (s settings) list(name string) []string {
	var out []string
	for i, arg := range s.args {
		if value, ok := strings.CutPrefix(arg, "--"+name+"="); ok {
			out = append(out, value)
		} else if arg == "--"+name && i+1 < len(s.args) {
			out = append(out, s.args[i+1])
		}
	}
	if len(out) > 0 {
		return out
	}
	text := cmp.Or(s.env["BACKUPD_"+strings.ToUpper(name)], s.labels[labelPrefix+name])
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

// text is the value of a setting that has one.
func (s settings) text(name string) string {
	return strings.Join(s.list(name), ",")
}

// schedules are when the agent backs up, also by policies that labels make.
func (s settings) schedules() string {
	out := []string{s.text("schedule")}
	for label, value := range s.labels {
		if strings.HasPrefix(label, labelPrefix+"policy.") && strings.HasSuffix(label, ".schedule") {
			out = append(out, value)
		}
	}
	slices.Sort(out)
	return strings.Join(slices.DeleteFunc(out, func(text string) bool { return text == "" || text == "@never" }), ", ")
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
		if name := a.named(at); name != "" && a.Volumes == "mounted" {
			return name, false
		}
		if path.Dir(at) != volumesDir {
			own = true
		} else if a.Volumes == "mounted" && len(a.Named) == 0 {
			return path.Base(at), false
		}
	}
	switch {
	case own || h.Bind:
		return "", own
	case a.Volumes == "host" && h.Project == "" && !Anonymous(h.Name):
		return h.Name, false
	case a.Volumes == "host" && h.Project != "", a.Volumes == "project" && h.Project != "" && h.Project == a.Project:
		return h.Key, false
	}
	return "", false
}

// named is the name that BACKUPD_VOLUME gives to what is mounted at a path.
func (a *Agent) named(at string) string {
	for _, v := range a.Named {
		name, dir, ok := strings.Cut(v, "=")
		if !ok {
			dir = path.Join(volumesDir, name)
		}
		if atOrBelow(dir, at) {
			return name
		}
	}
	return ""
}

// mayTake says whether the agent's configuration file, which is not seen from here,
// may say that it takes a holding: one of a project or of the machine, or one that
// the agent has mounted.
func (a *Agent) mayTake(h *Holding) bool {
	if !a.Config {
		return false
	}
	mounted := a.Volumes == "mounted" && len(a.Named) == 0 && slices.ContainsFunc(a.Mounts, h.is)
	return mounted || !a.Said && !h.Bind && !Anonymous(h.Name)
}
