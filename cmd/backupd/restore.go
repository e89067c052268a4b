package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/disko/backupd/internal/snapshot"
)

// restoreFlags are restore's own flags.
type restoreFlags struct {
	volumes   []string
	include   []string
	force     bool
	undo      bool
	noUndo    bool
	noOwner   bool
	undoLimit int64 // MiB
	project   projectFlags
}

func (a *app) restoreCommand() *cobra.Command {
	var f restoreFlags
	cmd := &cobra.Command{
		Use:   "restore [SNAPSHOT]",
		Short: "Bring volumes back from a snapshot",
		Long: `Bring volumes back from a snapshot: the latest, or the one that SNAPSHOT
names by its id, the beginning of one, or a tag.

A volume that holds data is left alone unless --force is given. Then what
differs from the snapshot is changed, what the snapshot does not have is
removed, and all that goes is kept first in the state directory:
"backupd restore --undo --volume NAME=PATH" brings it back.

On a host, in the directory of a Compose project, and without --volume, it runs
in the project's backup service: missing volumes are made as Compose would make
them, and filled.
` + exitHelp,
		Example: `  backupd restore --target /backups --stack shop --volume db=/volumes/db
  backupd restore 4f2a --target /backups --volume uploads=/volumes/uploads --force --include 'images/**'
  backupd restore --undo --volume db=/volumes/db`,
		Args: cobra.MaximumNArgs(1),
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&f.volumes, "volume", nil, "NAME=PATH of a volume; may be repeated (default: every directory below /volumes)")
	fl.StringArrayVar(&f.include, "include", nil, "PATTERN of what to restore, as for backup --exclude; may be repeated (default: everything)")
	fl.BoolVar(&f.force, "force", false, "restore over a volume that holds data")
	fl.BoolVar(&f.undo, "undo", false, "bring back what was there before the last restore")
	fl.BoolVar(&f.noUndo, "no-undo", false, "do not keep what is there")
	fl.BoolVar(&f.noOwner, "no-owner", false, "let all files belong to the user who restores")
	fl.Int64Var(&f.undoLimit, "undo-limit", 10240, "most that may be kept for an undo, in MiB")
	f.project.flags(fl)
	cmd.MarkFlagsMutuallyExclusive("undo", "no-undo")
	cmd.RunE = a.runs(func(ctx context.Context, args []string) error {
		a.interrupted = "interrupted; a volume that bears the file .backupd-incomplete is not complete: run the restore again, or with --undo"
		through, err := f.project.throughCompose(ctx, cmd, f.volumes)
		if err != nil {
			return err
		}
		if through {
			return a.runThroughCompose(ctx, &f.project)
		}
		name := ""
		if len(args) > 0 {
			name = args[0]
		}
		if f.undo {
			return a.restoreUndo(ctx, name, f)
		}
		return a.restore(ctx, name, f)
	})
	return cmd
}

func (a *app) restore(ctx context.Context, name string, f restoreFlags) error {
	sources, err := volumes(f.volumes)
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
	if len(f.volumes) == 0 { // of those mounted, the ones that the snapshot has
		sources = slices.DeleteFunc(sources, func(s snapshot.Source) bool { return m.Volume(s.Name) == nil })
	}
	return a.restoreAll(ctx, sources, f, func(s snapshot.Source, o snapshot.RestoreOptions) (*snapshot.RestoreStats, error) {
		if !f.noUndo {
			o.Undo = a.keeper(s, f).keep
		}
		return repo.Restore(ctx, m, o)
	})
}

// restoreAll restores volume after volume and prints what was done.
func (a *app) restoreAll(ctx context.Context, sources []snapshot.Source, f restoreFlags, one func(snapshot.Source, snapshot.RestoreOptions) (*snapshot.RestoreStats, error)) error {
	if len(sources) == 0 {
		return fmt.Errorf("%w: the snapshot has none of the volumes below %s; say --volume NAME=PATH", snapshot.ErrNoVolume, volumesDir)
	}
	defer collect(collectReading)()
	progress := &snapshot.Progress{}
	shown := a.show("restore", progress)
	defer shown.stop()
	warned := false
	all := []*snapshot.RestoreStats{}
	for _, s := range sources {
		stats, err := one(s, snapshot.RestoreOptions{
			Volume: s.Name, Path: s.Path, Force: f.force, Include: f.include, NoOwner: f.noOwner, Progress: progress,
			Warn: func(w snapshot.Warning) { shown.println("backupd: warning: volume %s: %s", s.Name, w) },
		})
		if err != nil {
			return err
		}
		warned = warned || len(stats.Warnings) > 0
		all = append(all, stats)
	}
	shown.stop()
	if a.json {
		if err := a.printJSON(map[string]any{"volumes": all}); err != nil {
			return err
		}
	} else if _, err := fmt.Fprintln(a.stdout, all[0].Snapshot); err != nil {
		return err
	}
	for _, s := range all {
		a.notice("volume %s: wrote %d entries, %s, and removed %d in %s", s.Volume, s.Files, size(s.Bytes), s.Removed, s.Path)
	}
	if warned {
		return &statusError{exitWarnings, "restored, but not every attribute could be set; see the warnings above"}
	}
	return nil
}
