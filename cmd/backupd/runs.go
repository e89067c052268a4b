package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/disko/backupd/internal/runs"
	"github.com/disko/backupd/internal/snapshot"
)

func usagef(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{snapshot.ErrUsage}, args...)...)
}

func (a *app) runsCommand() *cobra.Command {
	var last int
	cmd := &cobra.Command{
		Use:   "runs",
		Short: "List what ran here, and how it ended",
		Long: `List the backups, drills and clean-ups that ran on this installation, the
newest last. The list is kept in the state directory and outlives restarts.
` + exitHelp,
		Args: cobra.NoArgs,
	}
	cmd.Flags().IntVar(&last, "last", 20, "how many; 0 for all")
	cmd.RunE = a.runs(func(context.Context, []string) error {
		list, err := a.history().All()
		if err != nil {
			return err
		}
		if last > 0 && len(list) > last {
			list = list[len(list)-last:]
		}
		if a.json {
			if list == nil {
				list = []runs.Run{}
			}
			return a.printJSON(list)
		}
		return a.printRuns(list)
	})
	return cmd
}

// history is that of this installation.
func (a *app) history() *runs.History {
	if a.stateDir == "" {
		return runs.Open("")
	}
	return runs.Open(filepath.Join(a.stateDir, "runs"))
}

func (a *app) printRuns(list []runs.Run) error {
	if len(list) == 0 {
		a.notice("nothing ran here yet, as far as %s knows", a.stateDir)
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STARTED\tWHAT\tPOLICY\tSTACK\tTOOK\tENDED\tSNAPSHOT")
	for _, r := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%.8s\n", r.Started.Local().Format("2006-01-02 15:04:05"), r.Kind, orDash(r.Policy), orDash(r.Stack),
			r.Took().Round(100*time.Millisecond), r.Outcome, orDash(r.Snapshot))
		if r.Error != "" {
			fmt.Fprintf(w, "\t  %s\n", strings.ReplaceAll(r.Error, "\n", "\n\t  "))
		}
	}
	return w.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
