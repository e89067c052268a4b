package docker

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// Act is what makes the containers of a service stand still.
type Act string

// Each act has one that undoes it: start, unpause, and scaling back.
const (
	ActStop  Act = "stop"
	ActPause Act = "pause"
	ActScale Act = "scale" // a Swarm service to no replicas
)

// Step makes a service stand still, or some of its containers.
type Step struct {
	Service string
	Act     Act
	// Wave orders the steps: those of one wave are done at once, and the next
	// wave when they are done. Undoing goes backwards.
	Wave       int
	Containers []Container   // that run; of ActScale those on this machine
	Timeout    time.Duration // of ActStop and ActScale; zero: the container's own
	Asked      bool          // a label asks for it; else it is the default
	Swarm      *SwarmService // of ActScale
}

// HookStep runs a hook in a container.
type HookStep struct {
	Service   string
	Container Container
	Hook      Hook
}

// Plan says what is done around a backup, and in which order. It is made before
// anything is done, and can be printed.
type Plan struct {
	Project  string
	Policies map[string]Policy
	Pre      []HookStep
	Steps    []Step
	Post     []HookStep
	// Writers are the services that write to a volume that is backed up.
	Writers  []string
	Warnings []string
}

// PlanInput is what a plan is made from.
type PlanInput struct {
	Stack *Stack
	// Volumes that are backed up: the engine's names, and absolute paths on the
	// engine's machine for bind mounts.
	Volumes []string
	// Own are the ids of backupd's own containers. Their services are left alone.
	Own []string
	// Others are containers of other projects and of none that run.
	Others []Container
	// Pre and Post are hooks beside those of the labels: they come first, and last.
	Pre, Post []ServiceHook
	// NoPause: the engine cannot pause. What would be paused is stopped.
	NoPause bool
}

// ServiceHook is a hook that no label asks for, but a configuration.
type ServiceHook struct {
	Service string `json:"service"`
	Command string `json:"command"`
	// User is the container's own where empty, Timeout 5 minutes where zero.
	User    string        `json:"user,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"` // nanoseconds
}

// NewPlan decides. The error is that of labels that cannot be read or obeyed, or
// of a hook for a service that is not there.
//
// By default a service that writes to a volume that is backed up is stopped if
// it has a healthcheck, because a paused container is unhealthy until its next
// probe and a concurrent `up` fails on that; else it is paused, which is faster.
// One that only reads needs nothing. A label decides otherwise, also for
// services that mount nothing.
func NewPlan(in PlanInput) (*Plan, error) {
	policies, err := Policies(in.Stack, in.Own)
	if err != nil {
		return nil, err
	}
	p := &Plan{Project: in.Stack.Project, Policies: policies}
	heights := heights(in.Stack.Services)
	byHeight := map[int][]Step{}
	var tallest int
	var refused []error
	for i := range in.Stack.Services {
		svc := &in.Stack.Services[i]
		if svc.owned(in.Own) {
			continue
		}
		policy := policies[svc.Name]
		if svc.writes(in.Volumes) {
			p.Writers = append(p.Writers, svc.Name)
		}
		if in.NoPause && policy.Quiesce == QuiescePause {
			refused = append(refused, fmt.Errorf("service %s is labelled %s=pause, and this engine has no control groups, without which nothing can be paused; label it stop or none, or run the rootless engine by systemd with cgroup version 2", svc.Name, labelQuiesce))
		}
		h := heights[svc.Name]
		tallest = max(tallest, h)
		byHeight[h] = append(byHeight[h], p.steps(svc, policy, in)...)
		p.hooks(svc, policy)
	}
	if len(refused) > 0 {
		return nil, errors.Join(refused...)
	}
	// Services stand in the order of their dependencies: what needs another one
	// is told first, and is told last that it is over.
	slices.Reverse(p.Pre)
	pre, err1 := p.asked(in, in.Pre)
	post, err2 := p.asked(in, in.Post)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	p.Pre, p.Post = append(pre, p.Pre...), append(p.Post, post...)
	for h := tallest; h >= 0; h-- {
		p.addWaves(byHeight[h])
	}
	p.warnOfOthers(in)
	return p, nil
}

// heights is, for each service, the length of the longest way down through what
// it depends on. A service that depends on another one is always higher; those
// of one height can be stopped at once. Counted from below, everything stands
// still as late as its order allows. Services must be sorted by their dependencies.
func heights(services []Service) map[string]int {
	out := map[string]int{}
	for i := range services {
		h := 0
		for _, d := range services[i].DependsOn {
			if below, ok := out[d]; ok {
				h = max(h, below+1)
			}
		}
		out[services[i].Name] = h
	}
	return out
}

// owned says whether a service runs backupd: by the ids that are known, which
// stand for its other replicas and for what is left over from `compose run`, too,
// or by its image or label. An agent that is not this one may seed or back up right now.
func (s *Service) owned(own []string) bool {
	return slices.ContainsFunc(s.Containers, func(c Container) bool {
		return slices.Contains(own, c.ID) || c.Labels[labelTitle] == "backupd" || strings.EqualFold(c.Labels[labelAgent], "true")
	})
}

// writes says whether a service can write to any of the volumes.
func (s *Service) writes(volumes []string) bool {
	if s.Swarm != nil && slices.ContainsFunc(s.Swarm.Mounts, func(m Mount) bool { return m.writes(volumes) }) {
		return true
	}
	return slices.ContainsFunc(s.Containers, func(c Container) bool { return c.writes(volumes) })
}

func (c *Container) writes(volumes []string) bool {
	return slices.ContainsFunc(c.Mounts, func(m Mount) bool { return m.writes(volumes) })
}

func (m Mount) writes(volumes []string) bool {
	return m.RW && slices.ContainsFunc(volumes, func(v string) bool {
		if strings.HasPrefix(v, "/") {
			return m.Source != "" && (atOrBelow(m.Source, v) || atOrBelow(v, m.Source))
		}
		return m.Name == v
	})
}

// atOrBelow says whether a path is a directory or lies below it.
func atOrBelow(name, dir string) bool {
	name, dir = path.Clean(name), path.Clean(dir)
	return name == dir || dir == "/" || strings.HasPrefix(name, dir+"/")
}

// steps are what a service needs; they are given their waves later.
func (p *Plan) steps(svc *Service, policy Policy, in PlanInput) []Step {
	volumes := in.Volumes
	asked := policy.Quiesce != QuiesceDefault
	if policy.Quiesce == QuiesceNone || !asked && !svc.writes(volumes) {
		return nil
	}
	if svc.Swarm != nil {
		return p.swarmSteps(svc, policy, asked)
	}
	act := ActPause
	if in.NoPause || policy.Quiesce == QuiesceStop || !asked && svc.Healthcheck {
		act = ActStop
	}
	stop := Step{Service: svc.Name, Act: ActStop, Timeout: policy.StopTimeout, Asked: asked}
	pause := Step{Service: svc.Name, Act: ActPause, Asked: asked}
	for _, c := range svc.Containers {
		if _, worker := c.Labels[labelWorker]; worker {
			continue
		}
		switch {
		// Where one container of a service writes, its replicas do. What `compose
		// run` made may have nothing to do with it.
		case c.OneOff && !c.writes(volumes):
		case c.State == "restarting" && !c.OneOff:
			// It cannot be paused, and would come up in the middle.
			stop.Containers = append(stop.Containers, c)
		case c.State != "running":
		case act == ActStop && !c.OneOff:
			stop.Containers = append(stop.Containers, c)
		case in.NoPause:
			p.warn("container %s of `docker compose run` would be gone if it were stopped, and this engine cannot pause: it keeps running, and files may change while they are read", c.Name)
		default:
			// A container of `compose run --rm` would be gone if it were stopped.
			pause.Containers = append(pause.Containers, c)
		}
	}
	var out []Step
	for _, s := range []Step{stop, pause} {
		if len(s.Containers) > 0 {
			out = append(out, s)
		}
	}
	return out
}

// addWaves appends the steps of services that do not depend on each other: stops
// first, because they take seconds, and what is paused should be so for milliseconds.
func (p *Plan) addWaves(steps []Step) {
	next := 0
	if n := len(p.Steps); n > 0 {
		next = p.Steps[n-1].Wave + 1
	}
	for _, pauses := range []bool{false, true} {
		before := len(p.Steps)
		for _, s := range steps {
			if (s.Act == ActPause) == pauses {
				s.Wave = next
				p.Steps = append(p.Steps, s)
			}
		}
		if len(p.Steps) > before {
			next++
		}
	}
}

// hooks adds the hooks of a service, in its first container that runs.
func (p *Plan) hooks(svc *Service, policy Policy) {
	if !policy.Pre.Set() && !policy.Post.Set() {
		return
	}
	c := svc.running()
	if c == nil {
		p.warn("service %s does not run: its hooks are left out", svc.Name)
		return
	}
	if policy.Pre.Set() {
		p.Pre = append(p.Pre, HookStep{svc.Name, *c, policy.Pre})
	}
	if policy.Post.Set() {
		p.Post = append(p.Post, HookStep{svc.Name, *c, policy.Post})
	}
}

// asked are hooks of a configuration, in the first containers of their services.
func (p *Plan) asked(in PlanInput, hooks []ServiceHook) ([]HookStep, error) {
	var out []HookStep
	var errs []error
	for _, h := range hooks {
		svc := in.Stack.Service(h.Service)
		if svc == nil {
			errs = append(errs, fmt.Errorf("hook %q: project %s has no container of a service %s; write the service's name as in the Compose file, or start it", h.Command, p.Project, h.Service))
			continue
		}
		c := svc.running()
		if c == nil {
			p.warn("service %s does not run: its hooks are left out", svc.Name)
			continue
		}
		out = append(out, HookStep{svc.Name, *c, Hook{h.Command, h.User, cmp.Or(h.Timeout, defaultHookTimeout)}})
	}
	return out, errors.Join(errs...)
}

// running is the first container of a service that runs, or nil; not one of `compose run`.
func (s *Service) running() *Container {
	for i := range s.Containers {
		if c := &s.Containers[i]; c.State == "running" && !c.OneOff {
			return c
		}
	}
	return nil
}

// warnOfOthers tells of containers that write to the project's volumes and are of
// none of its services. They are another's, and are not stopped.
func (p *Plan) warnOfOthers(in PlanInput) {
	for _, c := range in.Others {
		_, worker := c.Labels[labelWorker]
		if worker || slices.Contains(in.Own, c.ID) || c.State != "running" || c.Labels[labelProject] == p.Project || in.Stack.has(c.ID) {
			continue
		}
		for _, v := range in.Volumes {
			if !c.writes([]string{v}) {
				continue
			}
			p.warn("%s", keepsRunning(c, p.Project, v))
		}
	}
}

func (p *Plan) warn(format string, args ...any) {
	p.Warnings = append(p.Warnings, fmt.Sprintf(format, args...))
}

// Quiesced says whether a service stands still while the plan's steps are done.
func (p *Plan) Quiesced(service string) bool {
	return slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Service == service })
}

// String tells the plan, a line a step.
func (p *Plan) String() string {
	var b strings.Builder
	for _, h := range p.Pre {
		fmt.Fprintf(&b, "run in %s%s, for at most %s: %s\n", h.Container.Name, as(h.Hook.User), h.Hook.Timeout, h.Hook.Command)
	}
	for _, s := range p.Steps {
		fmt.Fprintln(&b, s)
	}
	if len(p.Steps) == 0 {
		b.WriteString("no service has to stand still\n")
	} else {
		b.WriteString("read what changed meanwhile, then undo this from below\n")
	}
	for _, h := range p.Post {
		fmt.Fprintf(&b, "run in %s%s, for at most %s: %s\n", h.Container.Name, as(h.Hook.User), h.Hook.Timeout, h.Hook.Command)
	}
	for _, w := range p.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", w)
	}
	return b.String()
}

// String is one line.
func (s Step) String() string {
	if s.Swarm != nil {
		return fmt.Sprintf("scale service %s from %d replicas to none", s.Swarm.Name, s.Swarm.Replicas)
	}
	names := make([]string, 0, len(s.Containers))
	for _, c := range s.Containers {
		names = append(names, c.Name)
	}
	return fmt.Sprintf("%s %s: %s", s.Act, s.Service, strings.Join(names, ", "))
}

func as(user string) string {
	if user == "" {
		return ""
	}
	return " as " + user
}

// services are the names in steps, in their order, each once.
func services(steps []Step, which func(Step) bool) []string {
	var out []string
	for _, s := range steps {
		if which(s) && !slices.Contains(out, s.Service) {
			out = append(out, s.Service)
		}
	}
	return out
}
