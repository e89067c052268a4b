package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/disko/backupd/internal/docker"
	"github.com/disko/backupd/internal/snapshot"
)

// What coverage says of a volume.
const (
	coverOK          = "covered"
	coverNone        = "uncovered"   // no agent takes it
	coverUnscheduled = "unscheduled" // an agent does, when it is asked
	coverStopped     = "stopped"     // an agent with a schedule does, and does not run
	coverNever       = "never"       // one is to, and there is no snapshot yet
	coverOld         = "old"         // there is, and it is older than it may be
	coverExcluded    = "excluded"
	coverOwn         = "own"     // backupd's state or target
	coverUnknown     = "unknown" // an agent's configuration file may say that it takes it
)

// covered is a volume in the output of coverage --json.
type covered struct {
	Volume   string     `json:"volume"` // the engine's name, or a path
	Key      string     `json:"key,omitempty"`
	Driver   string     `json:"driver"`
	Stack    string     `json:"stack,omitempty"`
	Services []string   `json:"services,omitempty"`
	State    string     `json:"state"`
	Agents   []string   `json:"agents,omitempty"` // names of containers
	Schedule []string   `json:"schedules,omitempty"`
	Snapshot string     `json:"snapshot,omitempty"`
	Taken    *time.Time `json:"taken,omitempty"`
	Age      int64      `json:"age_seconds,omitempty"`
}

type coverageFlags struct {
	binds  bool
	maxAge time.Duration
}

func (a *app) coverageCommand() *cobra.Command {
	var f coverageFlags
	cmd := &cobra.Command{
		Use: "coverage", Short: "List every volume of the machine, with its last snapshot, and those that have none", Args: cobra.NoArgs,
		Long: `List every volume of the engine, whatever its driver, with its stack, the agent
that takes it and its last snapshot. With --binds also the directories that
services have bound and may write to. With --stack on the command line, only those
of one Compose project or Swarm stack.

STATE is covered; uncovered, if no agent takes it; unscheduled, if one does but
has no schedule (a clone); stopped, if one has, and does not run; never, if there
is no snapshot yet; old, if the last one is older than --max-age; excluded, by the
label backupd.exclude; own, if it is an agent's state or target; unknown, if only an agent's configuration file may
say that it takes it, which is not read, and no new snapshot shows it. Without
--target no snapshots are looked for.

Exit code 3 if there is one that is uncovered, unscheduled, stopped, never, old or
unknown.
` + exitHelp,
		Example: `  backupd coverage --target s3://bucket/backups
  backupd coverage --json | jq -r '.[] | select(.state == "uncovered") | .volume'`,
	}
	cmd.Flags().BoolVar(&f.binds, "binds", false, "list also directories that are bound")
	cmd.Flags().DurationVar(&f.maxAge, "max-age", 48*time.Hour, "age from which a snapshot is old; 0 for never")
	cmd.RunE = a.runs(func(ctx context.Context, _ []string) error { return a.coverage(ctx, f) })
	return cmd
}

func (a *app) coverage(ctx context.Context, f coverageFlags) error {
	a.interrupted = "interrupted; nothing was changed"
	connect := docker.ConnectHost
	if docker.Contained() {
		connect = func(ctx context.Context) (*docker.Engine, error) {
			return docker.Connect(ctx, func(text string) { a.notice("%s", text) })
		}
	}
	engine, err := connect(ctx)
	if err != nil {
		return fmt.Errorf("coverage looks at the engine's volumes: %w", err)
	}
	defer engine.Close()
	c, err := engine.Coverage(ctx, f.binds)
	if err != nil {
		return err
	}
	var list []snapshot.Listed
	if len(a.targets) > 0 {
		repo, err := a.open(ctx)
		if err != nil {
			return err
		}
		defer repo.Close()
		if list, err = repo.List(ctx, ""); err != nil {
			return err
		}
	} else {
		a.notice("no target named: snapshots are not looked for; say --target TARGET")
	}
	rows := judge(c, newest(list), len(a.targets) > 0, f.maxAge, time.Now())
	// An agent's own setting does not narrow it: whoever looks here asks for what
	// the agent does not see.
	if len(a.config.given["stack"]) > 0 {
		rows = slices.DeleteFunc(rows, func(r covered) bool { return r.Stack != a.stack })
	}
	if a.json {
		err = a.printJSON(rows)
	} else {
		err = a.printCoverage(rows)
	}
	if err != nil {
		return err
	}
	lacking := 0
	for _, r := range rows {
		switch r.State {
		case coverNone, coverUnscheduled, coverStopped, coverNever, coverOld, coverUnknown:
			lacking++
		}
	}
	if slices.ContainsFunc(rows, func(r covered) bool { return r.State == coverUnknown }) {
		a.notice("which volumes an agent takes can stand in its configuration file, which is not read from here; BACKUPD_VOLUMES and BACKUPD_VOLUME in its environment are")
	}
	if lacking > 0 {
		return &statusError{exitWarnings, fmt.Sprintf("%d of %d volumes have no backup that can be relied on", lacking, len(rows))}
	}
	return nil
}

// newest returns the last snapshot that has a volume, by stack and volume.
func newest(list []snapshot.Listed) map[[2]string]*snapshot.Manifest {
	out := map[[2]string]*snapshot.Manifest{}
	for _, l := range list { // by sequence
		if l.Err != nil {
			continue
		}
		for _, v := range l.Manifest.Volumes {
			out[[2]string{l.Stack, v.Name}] = l.Manifest
		}
	}
	return out
}

// judge decides what to say of each volume.
func judge(c *docker.Coverage, last map[[2]string]*snapshot.Manifest, looked bool, maxAge time.Duration, now time.Time) []covered {
	rows := []covered{}
	for _, h := range c.Holdings {
		r := covered{Volume: h.Name, Key: h.Key, Driver: h.Driver, Stack: h.Stack, Services: h.Services}
		places := [][2]string{}
		kept := false // its schedule, by someone
		unknown := len(h.Agents) == 0 && len(h.Maybe) > 0 && !h.Own && !h.Excluded
		by := h.Agents
		if unknown {
			by = h.Maybe
		}
		for i, k := range by {
			ag := c.Agents[k]
			switch {
			case unknown:
				if h.Stack == ag.Project { // not of another stack's volume of that name
					places = append(places, [2]string{ag.Stack, h.Key})
				}
				places = append(places, [2]string{h.Line, h.Key})
			case ag.Volumes == "host":
				places = append(places, [2]string{h.Line, h.Names[i]})
			default:
				places = append(places, [2]string{ag.Stack, h.Names[i]})
			}
			r.Agents = append(r.Agents, ag.Container)
			switch {
			case ag.Schedule != "":
				r.Schedule = append(r.Schedule, ag.Schedule)
			case ag.Config:
				r.Schedule = append(r.Schedule, "configuration file")
			default:
				continue
			}
			kept = kept || ag.Running
		}
		if len(places) == 0 && h.Stack != "" { // a snapshot may be there all the same
			places = append(places, [2]string{h.Stack, h.Key})
		}
		for _, p := range places {
			if m := last[p]; m != nil && (r.Taken == nil || m.Finished.After(*r.Taken)) {
				r.Snapshot, r.Taken, r.Age = m.ID(), &m.Finished, int64(now.Sub(m.Finished)/time.Second)
			}
		}
		switch {
		case h.Own:
			r.State = coverOwn
		case h.Excluded:
			r.State = coverExcluded
		case len(r.Agents) == 0:
			r.State = coverNone
		case unknown && r.Taken == nil:
			r.State = coverUnknown
		case len(r.Schedule) == 0:
			r.State = coverUnscheduled
		case !kept:
			r.State = coverStopped
		case looked && r.Taken == nil:
			r.State = coverNever
		case looked && maxAge > 0 && now.Sub(*r.Taken) > maxAge:
			r.State = coverOld
		default:
			r.State = coverOK
		}
		rows = append(rows, r)
	}
	return rows
}

func (a *app) printCoverage(rows []covered) error {
	if len(rows) == 0 {
		a.notice("there are no volumes")
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STATE\tSTACK\tVOLUME\tDRIVER\tLAST SNAPSHOT\tAGE\tAGENT\tSERVICES")
	for _, r := range rows {
		id, age := "-", "-"
		if r.Taken != nil {
			id, age = r.Snapshot[:min(8, len(r.Snapshot))], ago(time.Duration(r.Age)*time.Second)
		}
		name := r.Volume
		if docker.Anonymous(name) {
			name = name[:12] + " (anonymous)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.State, cmp.Or(r.Stack, "-"), name, r.Driver, id, age,
			cmp.Or(strings.Join(r.Agents, " "), "-"), cmp.Or(strings.Join(r.Services, " "), "-"))
	}
	return w.Flush()
}

// ago prints an age for a person.
func ago(d time.Duration) string {
	switch {
	case d < time.Minute:
		return "now"
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}
