package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

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
// projects, and volumes that none made, each of which is a stack of its name. What a
// label excludes is left out, so are anonymous volumes and backupd's own.
func (a *Agent) stacks(ctx context.Context) ([]stackAgent, error) {
	if a.Engine == nil || a.Self == nil {
		return nil, fmt.Errorf("%w: an agent for every stack of the machine takes a Docker engine and a container of its own; mount /var/run/docker.sock", ErrSettings)
	}
	all, err := a.Engine.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	by := map[string]*stackAgent{}
	var errs []error
	for _, v := range all {
		if a.isOwn(v.Name) || v.Project == "" && anonymous(v.Name) {
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
		name := cmp.Or(v.Project, v.Name)
		s := by[name]
		if s == nil {
			of := *a
			of.Stack, of.Project, of.one = name, v.Project, true
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

// anonymous says whether a volume has the name that engines give to those
// that have none.
func anonymous(name string) bool {
	return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == ""
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
