package docker

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// HostStacks are the names of the stacks of a machine, for each volume by its name:
// that of the project that made it; else its own, because nothing else stays the same
// when its users change. Where a project has that name, the volume's stack is
// NAME.volume: the line of the project is not mixed with that of the volume.
func HostStacks(all []Volume) map[string]string {
	taken := map[string]bool{}
	for _, v := range all {
		if v.Project != "" {
			taken[v.Project] = true
		}
	}
	out := map[string]string{}
	var loose []string
	for _, v := range all {
		switch {
		case v.Project != "":
			out[v.Name] = v.Project
		case taken[v.Name]:
			loose = append(loose, v.Name)
		default:
			out[v.Name] = v.Name
		}
	}
	for _, v := range all { // a volume of that very name comes first
		if v.Project == "" {
			taken[v.Name] = true
		}
	}
	for _, name := range loose {
		stack := name + ".volume"
		for taken[stack] {
			stack += ".volume"
		}
		taken[stack], out[name] = true, stack
	}
	return out
}

// Anonymous says whether a volume has the name that engines give to those that
// have none.
func Anonymous(name string) bool {
	return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == ""
}

// UsersOf finds the project whose services alone mount one of the volumes, running
// or not: it is the one whose services may stand still for them. Where there is none,
// because those of several projects do or only containers of none, the warnings name
// the containers that write to the volumes. own are the ids of backupd's containers.
func (e *Engine) UsersOf(ctx context.Context, volumes, own []string) (project string, warnings []string, err error) {
	list, err := e.containers(ctx)
	if err != nil {
		return "", nil, fmt.Errorf("find out who uses volume %s: list containers: %w", strings.Join(volumes, ", "), explainAccess(err))
	}
	project, warnings = usersOf(list, volumes, own)
	return project, warnings, nil
}

func usersOf(list []Container, volumes, own []string) (project string, warnings []string) {
	var projects []string
	for _, c := range list {
		if slices.Contains(own, c.ID) || c.isBackupd() || !c.uses(volumes) {
			continue
		}
		if p := projectOf(c.Labels); p != "" && !slices.Contains(projects, p) {
			projects = append(projects, p)
		}
		for _, v := range volumes {
			if c.State == "running" && c.writes([]string{v}) {
				warnings = append(warnings, keepsRunning(c, "", v))
			}
		}
	}
	if len(projects) == 1 {
		return projects[0], nil
	}
	slices.Sort(warnings)
	return "", warnings
}

// isBackupd says whether a container is a worker or an agent.
func (c *Container) isBackupd() bool {
	return c.Labels[labelWorker] != "" || c.Labels[labelTitle] == "backupd" || strings.EqualFold(c.Labels[labelAgent], "true")
}

// keepsRunning is the warning of a container that writes while a volume is read.
// project is the one whose services stand still; empty for none.
func keepsRunning(c Container, project, volume string) string {
	whose := "no project"
	switch of := projectOf(c.Labels); {
	case of != "" && of == project:
		whose = "Swarm stack " + of + ", whose services an agent on a manager can scale,"
	case of != "":
		whose = "project " + of
	}
	return fmt.Sprintf("container %s of %s writes to volume %s and keeps running: files may change while they are read", c.Name, whose, volume)
}

// Using is the stack with only those of its services that mount one of the volumes.
func (s *Stack) Using(volumes []string) *Stack {
	out := *s
	out.Services = nil
	for i := range s.Services {
		if s.Services[i].uses(volumes) {
			out.Services = append(out.Services, s.Services[i])
		}
	}
	return &out
}
