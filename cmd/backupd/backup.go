package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/disko/backupd/internal/agent"
	"github.com/disko/backupd/internal/bytesize"
	"github.com/disko/backupd/internal/snapshot"
)

func (a *app) backupCommand() *cobra.Command {
	var vols []string
	var b agent.Backup
	var quiesce, freezeMemory string
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Take a snapshot of volumes",
		Long: `Take a snapshot of volumes. The first backup creates the repository; later
ones store what changed since the last. The snapshot's id is printed when it
is complete and durable; before that, and after any failure, there is none.

With a Docker engine at hand, services that write to the volumes stand still
while what changed meanwhile is read again: for seconds. Labels say how
("backupd.quiesce=stop|pause|none"), and which dumps and hooks to run.

PATTERN: * ? [a-z] match within a name, ** any number of directories. One with
a slash begins at the volume's root ("cache/**"), any other matches a name at any
depth ("*.log"); a slash at the end means directories only; VOLUME:PATTERN
is for that volume.
` + exitHelp,
		Example: `  backupd backup --target /backups --stack shop --volume db=/volumes/db --volume uploads=/volumes/uploads
  backupd backup --target /backups --stack shop --exclude '*.log' --tag before-upgrade`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringArrayVar(&vols, "volume", nil, "NAME=PATH of a volume; may be repeated (default: every directory below /volumes)")
	f.StringArrayVar(&b.Exclude, "exclude", nil, "PATTERN of what to leave out; may be repeated")
	f.StringArrayVar(&b.Tags, "tag", nil, "name for the snapshot; may be repeated")
	f.BoolVar(&b.CrossMounts, "cross-mounts", false, "take also what is mounted inside a volume")
	f.StringVar(&quiesce, "quiesce", "auto", "auto: services stand still as their labels say; never: nothing is stopped, paused or run in them")
	f.StringVar(&freezeMemory, "freeze-memory", "", "memory for what changed, while services stand still, as in 1g (default 48m): more of it, and they stand still for less long")
	f.DurationVar(&b.FreezeLimit, "freeze-limit", 5*time.Minute, "most that services may stand still; then they go on, and the backup fails; 0 for ever")
	a.surroundings.flags(f)
	cmd.RunE = a.runs(func(ctx context.Context, _ []string) error {
		b.Quiesce = agent.Quiesce(quiesce)
		if b.Quiesce != agent.QuiesceAuto && b.Quiesce != agent.QuiesceNever {
			return usagef("--quiesce %q: write auto or never", quiesce)
		}
		if freezeMemory != "" {
			var err error
			if b.HoldBytes, err = bytesize.Parse(freezeMemory); err != nil {
				return usagef("--freeze-memory: %w", err)
			}
		}
		return a.backup(ctx, vols, b)
	})
	return cmd
}

func (a *app) backup(ctx context.Context, vols []string, b agent.Backup) error {
	a.interrupted = "interrupted; no snapshot was taken, and the earlier ones are as they were"
	if len(a.targets) == 0 {
		return noTarget()
	}
	ag, err := a.agent(ctx)
	if err != nil {
		return err
	}
	defer ag.Close()
	if err := a.surroundings.complete(&b, vols); err != nil {
		return err
	}
	if ag.Stack == "" && b.Mode != agent.Host {
		return usagef("no stack named; say --stack NAME, or set BACKUPD_STACK")
	}
	b.Trigger = agent.WorkerTrigger()
	if b.Pre, b.Post, err = agent.WorkerHooks(); err != nil {
		return err
	}
	progress := &snapshot.Progress{}
	show, stop := a.showing("backup", progress)
	if b.Mode == agent.Host {
		all, err := ag.BackupHost(ctx, b, show)
		stop()
		for _, taken := range all {
			if terr := a.tell(taken); err == nil {
				err = terr
			}
		}
		return err
	}
	taken, err := ag.Backup(ctx, b, show)
	stop()
	var thaw *snapshot.ThawError
	if err != nil && !(errors.As(err, &thaw) && taken != nil) {
		return err
	}
	if terr := a.tell(taken); terr != nil && thaw == nil {
		return terr
	}
	return err
}

// showing is how a backup or a seed tells a person, or an agent, what it does.
func (a *app) showing(act string, progress *snapshot.Progress) (show agent.Show, stop func()) {
	if a.worker != nil {
		return toAgent(a.worker, progress)
	}
	shown := a.show(act, progress)
	return agent.Show{
		Progress: progress,
		Notice: func(text string) {
			if !a.quiet {
				fmt.Fprintf(a.stderr, "backupd: notice: %s\n", text)
			}
		},
		Warn: func(volume string, w snapshot.Warning) {
			kind := "warning"
			if w.Notice {
				kind = "notice"
				if a.quiet {
					return
				}
			}
			fmt.Fprintf(a.stderr, "backupd: %s: volume %s: %s\n", kind, volume, w)
		},
	}, shown.stop
}

// places opens the repositories of all targets, and makes those that are
// empty. One that does not answer does not stop the others.
func (a *app) places(ctx context.Context) (up []snapshot.Place, down []snapshot.PlaceResult, err error) {
	settings, err := a.options()
	if err != nil {
		return nil, nil, err
	}
	type opened struct {
		place snapshot.Place
		err   error
	}
	all := make([]opened, len(a.targets))
	var wg sync.WaitGroup
	for i, name := range a.targets {
		wg.Go(func() {
			st, err := a.createTarget(ctx, name)
			if err == nil {
				all[i].place.Store = st
				all[i].place.Repo, err = snapshot.Ensure(ctx, st, settings)
			}
			all[i].err = err
		})
	}
	wg.Wait()
	var errs []error
	for i, o := range all {
		if o.err == nil {
			up = append(up, o.place)
			continue
		}
		errs = append(errs, o.err)
		down = append(down, snapshot.PlaceResult{Target: a.targets[i], Err: o.err})
		if errors.Is(o.err, snapshot.ErrUsage) || errors.Is(o.err, snapshot.ErrKey) {
			err = o.err // a slip in the settings is not for the next run to mend
		}
	}
	if err == nil && len(up) == 0 {
		err = errors.Join(errs...)
	}
	return up, down, err
}

// tell prints what a backup did.
func (a *app) tell(t *agent.Taken) error {
	failed := 0
	for _, p := range t.Places {
		if p.Error != "" {
			failed++
		}
	}
	var err error
	switch {
	case a.json && len(a.targets) > 1:
		err = a.printJSON(t)
	case a.json:
		err = a.printJSON(struct {
			*snapshot.Summary
			Notes []string `json:"notes,omitempty"`
		}{t.Summary, t.Notes})
	default:
		_, err = fmt.Fprintln(a.stdout, t.ID)
	}
	if err != nil {
		return err
	}
	for _, v := range t.Volumes {
		a.notice("volume %s: %d files, %s; read %s, stored %s in %d new frames", v.Name, v.Files, bytesize.Text(v.Bytes), bytesize.Text(v.BytesRead), bytesize.Text(v.BytesStored), v.FramesNew)
	}
	if t.FrozenSeconds > 0 {
		a.notice("services stood still for %.2f s", t.FrozenSeconds)
	}
	for _, n := range t.Notes {
		fmt.Fprintf(a.stderr, "backupd: warning: %s\n", n)
	}
	a.notice("snapshot %.8s of stack %s, number %d, in %s", t.ID, t.Stack, t.Sequence, t.Finished.Sub(t.Started).Round(1e7))
	for _, r := range t.Places {
		switch {
		case r.Error != "":
			fmt.Fprintf(a.stderr, "backupd: warning: target %s did not get the snapshot: %s; the next backup brings it up to date\n", r.Target, r.Error)
		case len(a.targets) > 1 && r.CaughtUp > 0:
			a.notice("target %s has it as %.8s, and %d earlier snapshots that it had missed", r.Target, r.ID, r.CaughtUp)
		case len(a.targets) > 1:
			a.notice("target %s has it as %.8s", r.Target, r.ID)
		}
	}
	switch {
	case failed > 0:
		return &statusError{exitWarnings, fmt.Sprintf("the snapshot was taken, but %d of %d targets did not get it; see the warnings above", failed, len(a.targets))}
	case t.Summary.Warned():
		return &statusError{exitWarnings, "the snapshot was taken, but not everything could be read; see the warnings above"}
	case len(t.Notes) > 0:
		return &statusError{exitWarnings, "the snapshot was taken; see the warnings above"}
	}
	return nil
}
