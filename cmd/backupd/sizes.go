package main

import (
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/disko/backupd/internal/bytesize"
	"github.com/disko/backupd/internal/snapshot"
)

// withSizes gives the command that lists snapshots its --size.
func (a *app) withSizes(cmd *cobra.Command) *cobra.Command {
	var sizes bool
	cmd.Flags().BoolVar(&sizes, "size", false, "tell what stacks, volumes and snapshots take on the target: own and shared bytes")
	list := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if sizes {
			return a.runs(func(ctx context.Context, _ []string) error { return a.printUsage(ctx) })(cmd, args)
		}
		return list(cmd, args)
	}
	return cmd
}

func (a *app) printUsage(ctx context.Context) error {
	repo, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	u, err := repo.Usage(ctx, a.stack)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(u)
	}
	return a.printStacks(u)
}

func (a *app) printStacks(u *snapshot.Usage) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for i, s := range u.Stacks {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "stack %s\t%s\t\n", s.Stack, bytesize.Text(s.Bytes))
		if s.Forgotten > 0 {
			fmt.Fprintf(w, "  forgotten\t%s\tprune frees it\n", bytesize.Text(s.Forgotten))
		}
		for _, v := range s.Volumes {
			fmt.Fprintf(w, "  volume %s\t%s\t\n", v.Volume, bytesize.Text(v.Bytes))
		}
		fmt.Fprintln(w, "  SNAPSHOT\tOWN\tSHARED")
		for _, e := range s.Snapshots {
			fmt.Fprintf(w, "  %.8s\t%s\t%s\n", e.ID, bytesize.Text(e.Own), bytesize.Text(e.Shared))
		}
	}
	return w.Flush()
}
