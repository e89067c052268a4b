package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/disko/backupd/internal/runs"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/store"
)

// Retention says what is kept of a stack's snapshots.
type Retention struct {
	Name    string // of the policy
	Policy  snapshot.Policy
	Targets []string
	Zone    *time.Location
	Wait    time.Duration // of prune; 0 for its default
}

// Thin forgets what a policy does not keep, on all of its targets, and prunes
// what is due there. It takes credentials that may delete; where they may not,
// that is a warning of the run: retention may be somebody else's job.
func (a *Agent) Thin(ctx context.Context, t Retention) error {
	r := &runs.Run{Kind: runs.Prune, Policy: t.Name, Trigger: "schedule"}
	return a.record(ctx, r, func(ctx context.Context, r *runs.Run) error {
		places, err := a.Places(ctx, orTargets(t.Targets, a.Targets))
		if err != nil {
			return err
		}
		defer places.Close()
		for _, d := range places.Down {
			r.Targets = append(r.Targets, runs.Target{Target: d.Target, Error: d.Err.Error()})
			r.Warn(fmt.Sprintf("target %s: %v", d.Target, d.Err))
		}
		var errs []error
		for _, p := range places.Up {
			out := runs.Target{Target: p.Repo.Location()}
			err := a.thinOne(ctx, p, t, r)
			switch {
			case err == nil:
			case mayNotDelete(err):
				out.Error = err.Error()
				r.Warn(fmt.Sprintf("target %s: old snapshots stay there, for these credentials may not delete: %v; run \"backupd forget\" and \"backupd prune\" with others, elsewhere, or take `keep` out of the policy", out.Target, err))
			default:
				out.Error = err.Error()
				errs = append(errs, err)
			}
			r.Targets = append(r.Targets, out)
		}
		return errors.Join(errs...)
	})
}

// mayNotDelete says whether credentials are not enough for retention: the
// target refuses them, or it is an agent's key, which can write only.
func mayNotDelete(err error) bool {
	return errors.Is(err, store.ErrAccess) || errors.Is(err, snapshot.ErrKey)
}

func (a *Agent) thinOne(ctx context.Context, p snapshot.Place, t Retention, r *runs.Run) error {
	forgot, err := p.Repo.Forget(ctx, p.Store, snapshot.ForgetOptions{Stack: a.Stack, Policy: t.Policy, Zone: t.Zone})
	if errors.Is(err, snapshot.ErrNoSnapshot) {
		return nil
	}
	if err != nil {
		return err
	}
	r.Removed += len(forgot.Forgotten)
	pruned, err := p.Repo.Prune(ctx, p.Store, snapshot.PruneOptions{Stack: a.Stack, Wait: t.Wait})
	if pruned != nil {
		for _, s := range pruned.Stacks {
			r.Freed += s.Freed.Bytes
			if s.Locked.Objects > 0 && s.LockedUntil.IsZero() {
				r.Warn(fmt.Sprintf("target %s: %d objects that nothing needs stay there, for these credentials may not delete them; run \"backupd prune\" with others", p.Repo.Location(), s.Locked.Objects))
			}
		}
	}
	return err
}

func orTargets(own, all []string) []string {
	if len(own) > 0 {
		return own
	}
	return all
}
