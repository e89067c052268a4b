package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/disko/backupd/internal/snapshot"
)

// forgetFlags are forget's own flags.
type forgetFlags struct {
	keep   string
	last   int
	within string
	dryRun bool
}

func (a *app) forgetCommand() *cobra.Command {
	var f forgetFlags
	cmd := &cobra.Command{
		Use:   "forget [SNAPSHOT...]",
		Short: "Mark snapshots as not wanted any more, by policy or by name",
		Long: `Mark snapshots of one stack as not wanted any more: all that a policy does not
keep, or those that are named. They are not listed any more and are no latest;
"backupd prune" deletes what only they needed. --dry-run tells for each snapshot
which rule keeps it.

A policy never reaches across stacks. Whatever it says, the last good snapshot
stays, and so does what has a tag, cannot be read, is incomplete, or lost more
than half of its parent's bytes; those last three do not count as good.
` + exitHelp,
		Example: `  backupd forget --stack shop --keep "7 daily, 4 weekly, 6 monthly, 2 yearly" --dry-run
  backupd forget --stack shop --keep-within 30d
  backupd forget --stack shop 4f1c2a9e`,
	}
	fl := cmd.Flags()
	fl.StringVar(&f.keep, "keep", "", "`POLICY`, as in \"7 daily, 4 weekly, 6 monthly, 2 yearly\"; also hourly, \"3 last\", \"within 30d\"")
	fl.IntVar(&f.last, "keep-last", 0, "keep the last `N` as well")
	fl.StringVar(&f.within, "keep-within", "", "keep also what is at most `SPAN` older than the newest good one, as in 30d, 48h or 1y6m")
	fl.BoolVar(&f.dryRun, "dry-run", false, "only tell what would be forgotten, and what keeps the others")
	cmd.RunE = a.runs(func(ctx context.Context, args []string) error { return a.forget(ctx, args, f) })
	return cmd
}

// policy puts the flags together.
func (f forgetFlags) policy() (snapshot.Policy, error) {
	var items []string
	if f.keep != "" {
		items = append(items, f.keep)
	}
	if f.last != 0 {
		items = append(items, fmt.Sprintf("%d last", f.last))
	}
	if f.within != "" {
		items = append(items, "within "+f.within)
	}
	if len(items) == 0 {
		return snapshot.Policy{}, nil
	}
	return snapshot.ParsePolicy(strings.Join(items, ", "))
}

func (a *app) forget(ctx context.Context, names []string, f forgetFlags) error {
	a.interrupted = "interrupted; what was forgotten until then stays so, nothing was deleted"
	policy, err := f.policy()
	if err != nil {
		return err
	}
	if len(names) > 0 && !policy.IsZero() {
		return fmt.Errorf("%w: name snapshots to forget, or a policy of what to keep; not both", snapshot.ErrUsage)
	}
	repo, st, err := a.openToChange(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	done, err := repo.Forget(ctx, st, snapshot.ForgetOptions{Stack: a.stack, Policy: policy, Snapshots: names, Zone: time.Local, DryRun: f.dryRun})
	if err != nil {
		return err
	}
	if err := a.printForgot(done); err != nil {
		return err
	}
	verb := "forgot"
	if f.dryRun {
		verb = "would forget"
	}
	a.notice("%s %d of %d snapshots of stack %s; `backupd prune` deletes what only forgotten ones need", verb, len(done.Forgotten), len(done.Decisions), done.Stack)
	for _, d := range done.Decisions {
		if d.Snapshot.Err == nil && !d.Good {
			a.notice("warning: snapshot %.8s does not count as good: %s", d.Snapshot.ID, strings.Join(d.Reasons, "; "))
		}
	}
	return nil
}

// decided is a decision in JSON.
type decided struct {
	ID    string    `json:"id"`
	Taken time.Time `json:"taken,omitzero"`
	snapshot.Decision
}

func (a *app) printForgot(done *snapshot.Forgot) error {
	all := []decided{}
	for _, d := range done.Decisions {
		if done.Policy == "" && d.Keep {
			continue // all that was not named
		}
		e := decided{ID: d.Snapshot.ID, Decision: d}
		if m := d.Snapshot.Manifest; m != nil {
			e.Taken = m.Started
		}
		all = append(all, e)
	}
	if a.json {
		return a.printJSON(struct {
			*snapshot.Forgot
			Snapshots []decided `json:"snapshots"`
		}{done, all})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tTAKEN\t\tWHY")
	for _, e := range all {
		what := "forget"
		if e.Keep {
			what = "keep"
		}
		taken := "-"
		if !e.Taken.IsZero() {
			taken = e.Taken.Local().Format("2006-01-02 15:04:05")
		}
		fmt.Fprintf(w, "%.8s\t%s\t%s\t%s\n", e.ID, taken, what, strings.Join(e.Reasons, "; "))
	}
	return w.Flush()
}
