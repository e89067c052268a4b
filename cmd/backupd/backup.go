package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/targets"
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
	if a.target == "" {
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
	st, err := targets.Create(a.target)
	if err != nil {
		return usage(err)
	}
	repo, err := snapshot.Ensure(ctx, st, a.options())
	if err != nil {
		return err
	}
	defer repo.Close()
	o.Progress = &snapshot.Progress{}
	shown := a.show("backup", o.Progress)
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
	sum, err := repo.Backup(ctx, st, o)
	shown.stop()
	if err != nil {
		return err
	}
	if a.json {
		err = a.printJSON(sum)
	} else {
		_, err = fmt.Fprintln(a.stdout, sum.ID)
	}
	if err != nil {
		return err
	}
	for _, v := range sum.Volumes {
		a.notice("volume %s: %d files, %s; read %s, stored %s in %d new frames", v.Name, v.Files, size(v.Bytes), size(v.BytesRead), size(v.BytesStored), v.FramesNew)
	}
	a.notice("snapshot %.8s of stack %s, number %d, in %s", sum.ID, sum.Stack, sum.Sequence, sum.Finished.Sub(sum.Started).Round(1e7))
	if sum.Warned() {
		return &statusError{exitWarnings, "the snapshot was taken, but not everything could be read; see the warnings above"}
	}
	return nil
}
