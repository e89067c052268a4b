package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/disko/backupd/internal/bytesize"
	"github.com/disko/backupd/internal/snapshot"
)

func (a *app) pruneCommand() *cobra.Command {
	var dryRun bool
	var wait string
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Delete what forgotten snapshots and broken runs left",
		Long: `Delete what forgotten snapshots and broken runs left, in all stacks or that of
--stack. It takes two prunes: the first condemns what is garbage, and one that
comes after the waiting time deletes it. Backups, restores and other prunes may
go on meanwhile. Run it now and then, daily or weekly; it needs credentials that
may delete, which backups do not.

Where something cannot be explained, a snapshot that vanished or an object that
does not belong there, it deletes nothing and says what to look at.
` + exitHelp,
		Example: `  backupd prune --target s3://bucket/shop --dry-run
  backupd prune --target /backups --wait 48h`,
		Args: cobra.NoArgs,
	}
	fl := cmd.Flags()
	fl.BoolVar(&dryRun, "dry-run", false, "only tell what would be condemned and deleted")
	fl.StringVar(&wait, "wait", "7d", "`TIME` from condemning to deleting, as in 7d or 36h; at least 24h")
	cmd.RunE = a.runs(func(ctx context.Context, _ []string) error {
		d, err := parseWait(wait)
		if err != nil {
			return err
		}
		return a.prune(ctx, snapshot.PruneOptions{Stack: a.stack, Wait: d, DryRun: dryRun})
	})
	return cmd
}

// parseWait reads a duration that may be in days.
func parseWait(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%w: --wait %q: write it as in 7d or 36h", snapshot.ErrUsage, text)
	}
	return d, nil
}

func (a *app) prune(ctx context.Context, po snapshot.PruneOptions) error {
	a.interrupted = "interrupted; what was deleted until then was garbage, and the next prune goes on from there"
	repo, st, err := a.openToChange(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	done, err := repo.Prune(ctx, st, po)
	if done == nil {
		return err
	}
	if a.json {
		if perr := a.printJSON(done); perr != nil {
			return perr
		}
		return err
	}
	for _, s := range done.Stacks {
		for _, line := range prunedLines(s, done.DryRun) {
			if _, perr := fmt.Fprintf(a.stdout, "%s: %s\n", s.Stack, line); perr != nil {
				return perr
			}
		}
	}
	return err
}

// prunedLines tells a person what became of a stack.
func prunedLines(s snapshot.PrunedStack, dryRun bool) []string {
	amount := func(a snapshot.Amount) string {
		return fmt.Sprintf("%s in %d objects", bytesize.Text(a.Bytes), a.Objects)
	}
	when := func(t time.Time) string { return t.Local().Format("2006-01-02 15:04") }
	freed, condemned := "freed", "condemned"
	if dryRun {
		freed, condemned = "would free", "would condemn"
	}
	var lines []string
	if s.Freed.Objects > 0 {
		lines = append(lines, fmt.Sprintf("%s %s", freed, amount(s.Freed)))
	}
	if s.Condemned.Objects > 0 {
		lines = append(lines, fmt.Sprintf("%s %s, of %d forgotten snapshots and %d broken runs; a prune after %s deletes it", condemned, amount(s.Condemned), len(s.Snapshots), len(s.Runs), when(s.Due)))
	}
	for _, w := range s.Waiting {
		due := ""
		if !w.Due.IsZero() {
			due = ", until " + when(w.Due)
		}
		lines = append(lines, fmt.Sprintf("%s wait%s: %s", amount(w.Amount), due, w.Why))
	}
	if s.Spared > 0 {
		lines = append(lines, fmt.Sprintf("%d condemned objects are needed by a newer snapshot, and stay", s.Spared))
	}
	if s.Locked.Objects > 0 {
		until := "; these credentials may not delete, or an object lock forbids it"
		if !s.LockedUntil.IsZero() {
			until = " until " + when(s.LockedUntil)
		}
		lines = append(lines, fmt.Sprintf("%s cannot be deleted yet%s; they stay condemned", amount(s.Locked), until))
	}
	if len(lines) == 0 {
		lines = append(lines, "nothing to do")
	}
	return lines
}
