package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/disko/backupd/internal/docker"
	"github.com/disko/backupd/internal/runs"
	"github.com/disko/backupd/internal/snapshot"
)

// stackAgent is the agent of one of the machine's stacks: it has its own line of
// snapshots, its own lock, and stops no services but its own.
type stackAgent struct {
	*Agent
	volumes []docker.Volume
}

// stacks are all stacks of the machine that have volumes to back up: Compose
// projects, and volumes that none made, each of which is a stack of its name, or
// NAME.volume where a project has that. What a label excludes is left out, so are
// anonymous volumes and backupd's own: states and targets, also of other agents.
func (a *Agent) stacks(ctx context.Context) ([]stackAgent, error) {
	if a.Engine == nil || a.Self == nil {
		return nil, fmt.Errorf("%w: an agent for every stack of the machine takes a Docker engine and a container of its own; mount /var/run/docker.sock", ErrSettings)
	}
	all, err := a.Engine.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	cover, err := a.Engine.Coverage(ctx, false)
	if err != nil {
		return nil, fmt.Errorf("find out which volumes are backupd's own: %w", err)
	}
	names := docker.HostStacks(all)
	by := map[string]*stackAgent{}
	var errs []error
	for _, v := range all {
		if a.isOwn(v.Name) || cover.Own(v.Name) || v.Project == "" && docker.Anonymous(v.Name) {
			continue
		}
		excluded, err := docker.Excluded(v)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if excluded {
			continue
		}
		name := names[v.Name]
		s := by[name]
		if s == nil {
			of := *a
			of.Stack, of.Project, of.loose, of.one = name, v.Project, v.Project == "", true
			s = &stackAgent{Agent: &of}
			by[name] = s
		}
		if v.Project == "" {
			v.Key = v.Name
		}
		s.volumes = append(s.volumes, v)
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("%w: %w", ErrSettings, errors.Join(errs...))
	}
	var out []stackAgent
	for _, s := range by {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(x, y stackAgent) int { return cmp.Compare(x.Stack, y.Stack) })
	return out, nil
}

// whoStandsStill is the project whose services stand still for a backup; empty for
// none. That is the agent's own. A volume of none is that of the one project whose
// services use it: of no other one anything is stopped. Where several projects use it,
// or containers of none, what writes to it meanwhile is warned of.
func (a *Agent) whoStandsStill(ctx context.Context, b Backup, o *snapshot.BackupOptions, s *stillness) (string, error) {
	if !a.loose || a.Engine == nil {
		return a.Project, nil
	}
	project, warnings, err := a.Engine.UsersOf(ctx, a.mountedNames(o.Volumes), a.own())
	if err != nil || project != "" {
		return project, err
	}
	if b.Quiesce != QuiesceNever {
		s.said = append(s.said, warnings...)
	}
	all, err := a.Engine.Volumes(ctx)
	if err != nil {
		return "", err
	}
	a.describe(&docker.Stack{Volumes: all}, o)
	return "", nil
}

// BackupHost backs up every stack of the machine, one after the other. One that
// fails does not stop the others. The pass is a run of its own, which failed if any
// stack did.
func (a *Agent) BackupHost(ctx context.Context, b Backup, show Show) ([]*Taken, error) {
	var all []*Taken
	r := &runs.Run{Kind: runs.Backup, Policy: b.Policy, Trigger: cmp.Or(b.Trigger, "manual")}
	err := a.pass(ctx, r, func(s *stackAgent) error {
		taken, err := s.backup(ctx, b, show, func(ctx context.Context) (*Taken, error) { return s.takeByWorker(ctx, b, s.volumes, show) })
		if taken != nil {
			all = append(all, taken)
		}
		return err
	})
	return all, err
}

// thinHost does retention for every stack of the machine.
func (a *Agent) thinHost(ctx context.Context, t Retention) error {
	r := &runs.Run{Kind: runs.Prune, Policy: t.Name, Trigger: "schedule"}
	return a.pass(ctx, r, func(s *stackAgent) error { return s.Thin(ctx, t) })
}

// pass does something with every stack of the machine, as one run. The runs of the
// stacks are told by themselves, but for the ping.
func (a *Agent) pass(ctx context.Context, r *runs.Run, work func(s *stackAgent) error) error {
	return a.record(ctx, r, func(ctx context.Context, r *runs.Run) error {
		list, err := a.stacks(ctx)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return fmt.Errorf("%w: no stack of this machine has a volume that is backed up", snapshot.ErrNoVolume)
		}
		r.Parts = true
		var errs []error
		for i := range list {
			s := &list[i]
			if err := work(s); err != nil {
				errs = append(errs, fmt.Errorf("stack %s: %w", s.Stack, err))
			}
			if ctx.Err() != nil {
				break
			}
		}
		return errors.Join(errs...)
	})
}
