package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/disko/backupd/internal/agent"
	"github.com/disko/backupd/internal/seed"
	"github.com/disko/backupd/internal/snapshot"
)

// seedFlags say how fresh volumes are filled; `seed` and `serve` have them.
type seedFlags struct {
	mode, from string
	noOwner    bool
	dryRun     bool
	window     string
}

func (s *seedFlags) flags(f *pflag.FlagSet) {
	f.StringVar(&s.mode, "seed", "auto", "fill fresh volumes: auto (if there is a snapshot), require (no snapshot is an error), off")
	f.StringVar(&s.from, "seed-from", "", "the snapshot to fill them from: latest, an id, a tag or origin:NAME")
	f.BoolVar(&s.noOwner, "no-owner", false, "let all files belong to the user who seeds")
}

func (s *seedFlags) options(vols []snapshot.Source, named []string) (o agent.SeedOptions, err error) {
	o = agent.SeedOptions{Mode: seed.Mode(s.mode), From: s.from, NoOwner: s.noOwner, DryRun: s.dryRun, Volumes: vols, Named: named}
	if o.Mode != seed.Auto && o.Mode != seed.Require && o.Mode != seed.Off {
		return o, usagef("--seed %q: write auto, require or off", s.mode)
	}
	if s.window != "" {
		created, started, _ := strings.Cut(s.window, "/")
		w := &seed.Window{}
		if w.Created, err = time.Parse(time.RFC3339Nano, created); err == nil {
			w.Started, err = time.Parse(time.RFC3339Nano, started)
		}
		if err != nil {
			return o, usagef("--window %q: %w", s.window, err)
		}
		o.Window = w
	}
	return o, nil
}

func (a *app) seedCommand() *cobra.Command {
	var s seedFlags
	var vols []string
	takeOver := false
	cmd := &cobra.Command{
		Use:   "seed [VOLUME...]",
		Short: "Fill a stack's fresh volumes from the latest snapshot",
		Long: `Fill a stack's fresh volumes from the latest snapshot, and leave alone all
that hold data which backupd did not write. "backupd serve" does this at its
start; alone it is for one-shot services.

VOLUME names volumes that are to be filled though they were left alone before;
not even then is anything overwritten: one that holds data takes
"backupd restore --force".

--take-over: this installation was seeded, and leads from now on: what it
backs up is what others are seeded from. That is for a server rebuilt from its
backups.
` + exitHelp,
		Example: `  backupd seed --dry-run
  backupd seed uploads
  backupd seed --take-over`,
	}
	f := cmd.Flags()
	f.StringArrayVar(&vols, "volume", nil, "NAME, or NAME=PATH where it is not below /volumes: only these, as if VOLUME named them; may be repeated (default: every directory below /volumes)")
	s.flags(f)
	f.BoolVar(&s.dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVar(&takeOver, "take-over", false, "lead the line of snapshots that this installation was seeded from")
	f.StringVar(&s.window, "window", "", "when the agent's container was made and started, TIME/TIME")
	_ = f.MarkHidden("window")
	a.surroundings.flags(f)
	cmd.RunE = a.runs(func(ctx context.Context, named []string) error {
		if takeOver {
			return a.takeOver(ctx)
		}
		if s.window == "" { // a worker gets all volumes as flags
			for _, v := range vols {
				name, _, _ := strings.Cut(v, "=")
				named = append(named, name)
			}
		}
		return a.seed(ctx, s, vols, named)
	})
	return cmd
}

func (a *app) takeOver(ctx context.Context) error {
	ag, err := a.agent(ctx)
	if err != nil {
		return err
	}
	defer ag.Close()
	from, err := ag.TakeOver(ctx)
	if err != nil {
		return err
	}
	if from == "" {
		a.notice("stack %s leads already: it was not seeded here", ag.Stack)
		return nil
	}
	a.notice("stack %s leads from now on; it came from snapshot %.8s", ag.Stack, from)
	return nil
}

func (a *app) seed(ctx context.Context, s seedFlags, vols, named []string) error {
	a.interrupted = "interrupted; a volume that bears the file .backupd-incomplete is not complete: seed again, and it goes on where it ended"
	ag, err := a.agent(ctx)
	if err != nil {
		return err
	}
	defer ag.Close()
	mode, limits, err := a.surroundings.parse()
	if err != nil {
		return err
	}
	var sources []snapshot.Source
	if mode == agent.Mounted {
		if sources, err = volumes(vols); err != nil {
			return err
		}
	}
	o, err := s.options(sources, named)
	if err != nil {
		return err
	}
	o.Source, o.Limits = mode, limits
	defer collect(collectReading)()
	progress := &snapshot.Progress{}
	show, stop := a.showing("seed", progress)
	result, err := ag.Seed(ctx, o, show)
	stop()
	if errors.Is(err, seed.ErrOptions) {
		err = fmt.Errorf("%w: %w", snapshot.ErrUsage, err)
	}
	if result != nil {
		if a.json {
			if jerr := a.printJSON(result); jerr != nil {
				return jerr
			}
		} else {
			for _, v := range result.Volumes {
				fmt.Fprintln(a.stdout, v)
			}
			if err == nil {
				fmt.Fprintln(a.stdout, result.Summary)
			}
		}
	}
	if err == nil {
		for _, text := range ag.Impatient(ctx, o) {
			a.notice("%s", text)
		}
	}
	return err
}
