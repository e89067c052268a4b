package agent

import (
	"context"
	"slices"
	"time"

	"github.com/disko/backupd/internal/runs"
)

// stockTime is how long it may take to count what is on the targets.
const stockTime = 2 * time.Minute

// stock has the metrics say what is on a policy's targets. It is asked after each
// run, and nothing depends on it: what cannot be counted stays as it was.
func (srv *server) stock(ctx context.Context, p Policy) {
	a := srv.a
	if srv.s.Listen == "" || ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stockTime)
	defer cancel()
	stacks := []string{a.Stack}
	if srv.s.Seed.Source == Host {
		stacks = nil
		all, _ := a.History.All()
		for i := range all {
			if r := &all[i]; r.Kind == runs.Backup && r.Stack != a.Stack && !slices.Contains(stacks, r.Stack) {
				stacks = append(stacks, r.Stack)
			}
		}
	}
	for _, target := range orTargets(p.Backup.Targets, a.Targets) {
		if err := srv.stockOf(ctx, target, stacks); err != nil {
			a.Log.Debug("what is on a target cannot be counted", "target", target, "error", err)
		}
	}
}

func (srv *server) stockOf(ctx context.Context, target string, stacks []string) error {
	repo, end, err := srv.a.Repository(ctx, []string{target})
	if err != nil {
		return err
	}
	defer end()
	for _, stack := range stacks {
		list, err := repo.List(ctx, stack)
		if err != nil {
			return err
		}
		n, newest := 0, time.Time{}
		for _, l := range list {
			if l.Err == nil {
				n, newest = n+1, latest(newest, l.Manifest.Finished)
			}
		}
		bytes := int64(0)
		used, err := repo.Usage(ctx, stack)
		if err != nil {
			return err
		}
		for _, u := range used.Stacks {
			bytes += u.Bytes
		}
		srv.metrics.Repository(stack, repo.Location(), n, bytes, newest)
	}
	return nil
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
