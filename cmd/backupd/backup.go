package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/spf13/cobra"

	"github.com/disko/backupd/internal/snapshot"
)

func (a *app) backupCommand() *cobra.Command {
	var vols []string
	var o snapshot.BackupOptions
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Take a snapshot of volumes",
		Long: `Take a snapshot of volumes. The first backup creates the repository; later
ones store what changed since the last. The snapshot's id is printed when it
is complete and durable; before that, and after any failure, there is none.

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
	f.StringArrayVar(&o.Exclude, "exclude", nil, "PATTERN of what to leave out; may be repeated")
	f.StringArrayVar(&o.Tags, "tag", nil, "name for the snapshot; may be repeated")
	f.BoolVar(&o.CrossMounts, "cross-mounts", false, "take also what is mounted inside a volume")
	f.StringVar(&o.Origin, "origin", "", "name of this installation; a change of it has everything read once")
	cmd.RunE = a.runs(func(ctx context.Context, _ []string) error { return a.backup(ctx, vols, o) })
	return cmd
}

func (a *app) backup(ctx context.Context, vols []string, o snapshot.BackupOptions) error {
	a.interrupted = "interrupted; no snapshot was taken, and the earlier ones are as they were"
	if len(a.targets) == 0 {
		return noTarget()
	}
	if a.stack == "" {
		return fmt.Errorf("%w: no stack named; say --stack NAME, or set BACKUPD_STACK", snapshot.ErrUsage)
	}
	sources, err := volumes(vols)
	if err != nil {
		return err
	}
	o.Stack, o.Volumes, o.Version = a.stack, sources, version
	if err := o.Check(); err != nil {
		return err // before a repository is made for nothing
	}
	places, down, err := a.places(ctx)
	defer func() {
		for _, p := range places {
			p.Repo.Close()
		}
	}()
	if err != nil {
		return err
	}
	o.Progress = &snapshot.Progress{}
	shown := a.show("backup", o.Progress)
	o.Notice = func(text string) { shown.println("backupd: notice: %s", text) }
	o.Warn = func(volume string, w snapshot.Warning) {
		kind := "warning"
		if w.Notice {
			kind = "notice"
			if a.quiet {
				return
			}
		}
		shown.println("backupd: %s: volume %s: %s", kind, volume, w)
	}
	sum, results, err := snapshot.BackupAll(ctx, places, o)
	shown.stop()
	if err != nil {
		return err
	}
	return a.tell(sum, append(results, down...))
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
func (a *app) tell(sum *snapshot.Summary, results []snapshot.PlaceResult) error {
	failed := 0
	for i := range results {
		if r := &results[i]; r.Err != nil {
			failed++
			r.Error = r.Err.Error()
		}
	}
	var err error
	switch {
	case a.json && len(a.targets) > 1:
		err = a.printJSON(struct {
			*snapshot.Summary
			Targets []snapshot.PlaceResult `json:"targets"`
		}{sum, results})
	case a.json:
		err = a.printJSON(sum)
	default:
		_, err = fmt.Fprintln(a.stdout, sum.ID)
	}
	if err != nil {
		return err
	}
	for _, v := range sum.Volumes {
		a.notice("volume %s: %d files, %s; read %s, stored %s in %d new frames", v.Name, v.Files, size(v.Bytes), size(v.BytesRead), size(v.BytesStored), v.FramesNew)
	}
	a.notice("snapshot %.8s of stack %s, number %d, in %s", sum.ID, sum.Stack, sum.Sequence, sum.Finished.Sub(sum.Started).Round(1e7))
	for _, r := range results {
		switch {
		case r.Err != nil:
			fmt.Fprintf(a.stderr, "backupd: warning: target %s did not get the snapshot: %v; the next backup brings it up to date\n", r.Target, r.Err)
		case len(a.targets) > 1 && r.CaughtUp > 0:
			a.notice("target %s has it as %.8s, and %d earlier snapshots that it had missed", r.Target, r.ID, r.CaughtUp)
		case len(a.targets) > 1:
			a.notice("target %s has it as %.8s", r.Target, r.ID)
		}
	}
	switch {
	case failed > 0:
		return &statusError{exitWarnings, fmt.Sprintf("the snapshot was taken, but %d of %d targets did not get it; see the warnings above", failed, len(a.targets))}
	case sum.Warned():
		return &statusError{exitWarnings, "the snapshot was taken, but not everything could be read; see the warnings above"}
	}
	return nil
}
