package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/disko/backupd/internal/agent"
	"github.com/disko/backupd/internal/bytesize"
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
	ifThere   bool  // of a worker, which gets all volumes as flags: those that are not there are nobody's wish
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

With a Docker engine at hand, the project's services that use the volumes are
stopped first and started again afterwards, unless a volume is left incomplete.

On a host, in the directory of a Compose project, and without --volume NAME=PATH, it runs
in the project's backup service: missing volumes are made as Compose would make
them, and filled.
` + exitHelp,
		Example: `  backupd restore --target /backups --stack shop --volume db=/volumes/db
  backupd restore 4f2a --target /backups --volume uploads=/volumes/uploads --force --include 'images/**'
  backupd restore --undo --volume db=/volumes/db`,
		Args: cobra.MaximumNArgs(1),
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&f.volumes, "volume", nil, "NAME, or NAME=PATH where it is not below /volumes; may be repeated (default: all that are mounted and in the snapshot)")
	fl.StringArrayVar(&f.include, "include", nil, "PATTERN of what to restore, as for backup --exclude; may be repeated (default: everything)")
	fl.BoolVar(&f.force, "force", false, "restore over a volume that holds data")
	fl.BoolVar(&f.undo, "undo", false, "bring back what was there before the last restore")
	fl.BoolVar(&f.noUndo, "no-undo", false, "do not keep what is there")
	fl.BoolVar(&f.noOwner, "no-owner", false, "let all files belong to the user who restores")
	fl.Int64Var(&f.undoLimit, "undo-limit", 10240, "most that may be kept for an undo, in MiB")
	fl.BoolVar(&f.ifThere, "if-there", false, "leave out volumes that the snapshot does not have, or of which nothing is kept")
	_ = fl.MarkHidden("if-there")
	f.project.flags(fl)
	a.surroundings.flags(fl)
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
	ag, err := a.agent(ctx)
	if err != nil {
		return err
	}
	defer ag.Close()
	a.stack = ag.Stack
	if done, err := a.restoreByWorker(ctx, ag, name, f); done || err != nil {
		return err
	}
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
	if len(f.volumes) == 0 || f.ifThere { // of those mounted, the ones that the snapshot has
		sources = slices.DeleteFunc(sources, func(s snapshot.Source) bool { return m.Volume(s.Name) == nil })
	}
	for _, s := range sources { // before anything is stopped for it
		if m.Volume(s.Name) == nil {
			var names []string
			for _, v := range m.Volumes {
				names = append(names, v.Name)
			}
			return fmt.Errorf("%w: snapshot %.8s has no volume %q; it has %s", snapshot.ErrNoVolume, m.ID(), s.Name, strings.Join(names, ", "))
		}
	}
	return a.restoreAll(ctx, ag, sources, f, func(s snapshot.Source, o snapshot.RestoreOptions) (*snapshot.RestoreStats, error) {
		if !f.noUndo {
			o.Undo = a.keeper(s, f).keep
		}
		return repo.Restore(ctx, m, o)
	})
}

// restoreByWorker restores volumes that are not mounted here, where --volumes asks for that.
func (a *app) restoreByWorker(ctx context.Context, ag *agent.Agent, name string, f restoreFlags) (done bool, err error) {
	mode, limits, err := a.surroundings.parse()
	if err != nil || mode == agent.Mounted {
		return false, err
	}
	if mode == agent.Host {
		return true, usagef("an agent for every stack of the machine does not say which one to restore: use the agent or the Compose file of that stack")
	}
	var args []string
	if name != "" {
		args = append(args, name)
	}
	for flag, set := range map[string]bool{"--force": f.force, "--undo": f.undo, "--no-undo": f.noUndo, "--no-owner": f.noOwner} {
		if set {
			args = append(args, flag)
		}
	}
	for _, p := range f.include {
		args = append(args, "--include", p)
	}
	if len(f.volumes) == 0 { // all of the project's: those that the snapshot has
		args = append(args, "--if-there")
	}
	args = append(args, "--undo-limit", strconv.FormatInt(f.undoLimit, 10))
	progress := &snapshot.Progress{}
	show, stop := a.showing("restore", progress)
	var out restored
	err = ag.RestoreByWorker(ctx, args, f.volumes, limits, show, &out)
	stop()
	if err != nil {
		return true, err
	}
	return true, a.tellRestored(out.Volumes)
}

// restored is the result of a restore in JSON.
type restored struct {
	Volumes []*snapshot.RestoreStats `json:"volumes"`
}

// restoreAll restores volume after volume, while nobody uses them, and prints what was done.
func (a *app) restoreAll(ctx context.Context, ag *agent.Agent, sources []snapshot.Source, f restoreFlags, one func(snapshot.Source, snapshot.RestoreOptions) (*snapshot.RestoreStats, error)) error {
	if len(sources) == 0 {
		return fmt.Errorf("%w: the snapshot has none of the volumes below %s; say --volume NAME=PATH", snapshot.ErrNoVolume, volumesDir)
	}
	defer collect(collectReading)()
	for _, s := range sources { // before anything is stopped for it
		if err := (snapshot.RestoreOptions{Volume: s.Name, Path: s.Path, Force: f.force, NoOwner: f.noOwner}).Refused(); err != nil {
			return err
		}
	}
	progress := &snapshot.Progress{}
	show, stop := a.showing("restore", progress)
	all := []*snapshot.RestoreStats{}
	err := ag.Restoring(ctx, sources, show, func(ctx context.Context) error {
		for _, s := range sources {
			stats, err := one(s, snapshot.RestoreOptions{
				Volume: s.Name, Path: s.Path, Force: f.force, Include: f.include, NoOwner: f.noOwner, Progress: progress,
				Warn: func(w snapshot.Warning) { show.Warn(s.Name, w) },
			})
			if err != nil {
				return err
			}
			all = append(all, stats)
		}
		return nil
	})
	stop()
	if err != nil {
		return err
	}
	return a.tellRestored(all)
}

// tellRestored prints what a restore did.
func (a *app) tellRestored(all []*snapshot.RestoreStats) error {
	if len(all) == 0 {
		return nil
	}
	warned := false
	for _, s := range all {
		warned = warned || len(s.Warnings) > 0
	}
	if a.json {
		if err := a.printJSON(restored{all}); err != nil {
			return err
		}
	} else if _, err := fmt.Fprintln(a.stdout, all[0].Snapshot); err != nil {
		return err
	}
	for _, s := range all {
		a.notice("volume %s: wrote %d entries, %s, and removed %d in %s", s.Volume, s.Files, bytesize.Text(s.Bytes), s.Removed, s.Path)
	}
	if warned {
		return &statusError{exitWarnings, "restored, but not everything could be set; see the warnings above"}
	}
	return nil
}
