package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/disko/backupd/internal/agent"
	"github.com/disko/backupd/internal/bytesize"
	"github.com/disko/backupd/internal/snapshot"
)

func (a *app) drillCommand() *cobra.Command {
	var d agent.Drilling
	var vols []string
	var list bool
	var into string
	cmd := &cobra.Command{
		Use:   "drill [SNAPSHOT]",
		Short: "Prove that a snapshot restores",
		Long: `Restore a snapshot into scratch volumes, compare every byte of what was restored
with what the snapshot says, and remove it again. SNAPSHOT is as for restore: the
latest, or an id, the beginning of one, or a tag.

With a Docker engine at hand, each service of the project with the label
backupd.drill is then started on the scratch volumes: its image, command,
environment and user, without any network. The label says how it is checked:
postgres, mysql, mariadb or redis, or a command that is run in its container.
Without an engine, what was restored lies below the state directory for as long.

The result is noted on the target; --list shows what was. A drill that finds
that a snapshot is not good ends with 5, one that could not be done with 1.
` + exitHelp,
		Example: `  backupd drill
  backupd drill --random
  backupd drill --list`,
		Args: cobra.MaximumNArgs(1),
	}
	f := cmd.Flags()
	f.BoolVar(&d.Random, "random", false, "one of the older snapshots, chosen at random, instead of the latest")
	f.BoolVar(&list, "list", false, "list the drills that are noted on the target")
	f.StringArrayVar(&vols, "volume", nil, "NAME=PATH of a volume that is not below /volumes, so that it is known which service mounts it; may be repeated")
	f.StringVar(&into, "into", "", "restore to directories below `DIR` and compare, and nothing else")
	_ = f.MarkHidden("into")
	a.surroundings.flags(f)
	cmd.MarkFlagsMutuallyExclusive("random", "list")
	cmd.RunE = a.runs(func(ctx context.Context, args []string) error {
		a.interrupted = "interrupted; what the drill had made was removed, and nothing else was touched"
		if len(args) > 0 {
			d.Snapshot = args[0]
			if d.Random || list {
				return usagef("name a snapshot, or ask for a random one, or for the list")
			}
		}
		if len(a.targets) == 0 {
			return noTarget()
		}
		ag, err := a.agent(ctx)
		if err != nil {
			return err
		}
		defer ag.Close()
		a.stack = ag.Stack
		switch {
		case list:
			return a.listDrills(ctx)
		case into != "":
			return a.drillInto(ctx, ag, d.Snapshot, into)
		}
		return a.drill(ctx, ag, d, vols)
	})
	return cmd
}

func (a *app) drill(ctx context.Context, ag *agent.Agent, d agent.Drilling, vols []string) (err error) {
	if d.Mode, d.Limits, err = a.surroundings.parse(); err != nil {
		return err
	}
	if len(vols) > 0 {
		if d.Volumes, err = volumes(vols); err != nil {
			return err
		}
	}
	defer collect(collectReading)()
	show, stop := a.showing("drill", &snapshot.Progress{})
	var all []*agent.Drilled
	if d.Mode == agent.Host {
		all, err = ag.DrillHost(ctx, d, show)
	} else {
		var one *agent.Drilled
		if one, err = ag.Drill(ctx, d, show); one != nil {
			all = append(all, one)
		}
	}
	stop()
	for _, one := range all {
		if terr := a.tellDrilled(one); err == nil {
			err = terr
		}
	}
	return err
}

// tellDrilled prints what a drill did, whatever came of it.
func (a *app) tellDrilled(d *agent.Drilled) error {
	if a.json {
		return a.printJSON(d)
	}
	for _, v := range d.Volumes {
		a.notice("volume %s: %d entries and %s compared, %d differ", v.Name, v.Entries, bytesize.Text(v.Bytes), v.Differ)
		for _, diff := range d.Differences[v.Name] {
			fmt.Fprintf(a.stderr, "backupd: volume %s: %s\n", v.Name, diff)
		}
	}
	for _, c := range d.Checks {
		if c.Error == "" {
			a.notice("service %s: %s passed in %.1f s", c.Service, c.Check, c.Seconds)
		}
	}
	if !d.Passed {
		return nil // the error says it
	}
	a.notice("snapshot %.8s of stack %s, number %d, restores: shown in %s", d.Snapshot, d.Stack, d.Sequence, d.Took().Round(10*time.Millisecond))
	_, err := fmt.Fprintln(a.stdout, d.Snapshot)
	return err
}

// drillInto is a worker's part of a drill.
func (a *app) drillInto(ctx context.Context, ag *agent.Agent, name, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	repo, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	m, err := repo.Find(ctx, a.stack, name)
	if err != nil {
		return err
	}
	defer collect(collectReading)()
	show, stop := a.showing("drill", &snapshot.Progress{})
	out, err := ag.DrillInto(ctx, repo, m, dir, show)
	stop()
	if err != nil {
		return err
	}
	return a.printJSON(out)
}

func (a *app) listDrills(ctx context.Context) error {
	if a.stack == "" {
		return usagef("no stack named; say --stack NAME, or set BACKUPD_STACK")
	}
	repo, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer repo.Close()
	list, err := repo.Drills(ctx, a.stack)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(list)
	}
	if len(list) == 0 {
		a.notice("no drill of stack %s is noted in %s yet", a.stack, repo.Location())
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STARTED\tSNAPSHOT\tNUMBER\tTOOK\tVOLUMES\tCHECKED\tRESULT")
	for _, d := range list {
		var checks []string
		for _, c := range d.Checks {
			checks = append(checks, c.Service)
		}
		result := "passed"
		if !d.Passed {
			result = "failed"
		}
		fmt.Fprintf(w, "%s\t%.8s\t%d\t%s\t%d\t%s\t%s\n", d.Started.Local().Format("2006-01-02 15:04:05"), d.Snapshot, d.Sequence,
			d.Took().Round(100*time.Millisecond), len(d.Volumes), orDash(strings.Join(checks, ",")), result)
		if d.Error != "" {
			fmt.Fprintf(w, "\t  %s\n", strings.ReplaceAll(d.Error, "\n", "\n\t  "))
		}
	}
	return w.Flush()
}
