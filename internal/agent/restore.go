package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/disko/backupd/internal/docker"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/snapshot/tree"
)

// Restoring does work that changes volumes, with nobody using them: the services
// that do are stopped first, and go on if the volumes are whole afterwards. Where
// one is not, they stay stopped, because half a restore must not pass for data.
func (a *Agent) Restoring(ctx context.Context, vols []snapshot.Source, show Show, work func(context.Context) error) error {
	release := func() {}
	if a.Stack != "" {
		var err error
		if release, err = a.alone(); err != nil {
			return err
		}
	}
	defer release()
	if a.Engine == nil || a.Project == "" {
		return work(ctx)
	}
	var names []string
	for _, v := range vols {
		if n := a.mounted(v.Path); n != "" {
			names = append(names, n)
		}
	}
	users, err := a.Engine.StopUsers(ctx, docker.UsersOptions{Project: a.Project, Volumes: names, Own: a.own(), StateDir: a.StateDir})
	if docker.Forbidden(err) {
		if show.Notice != nil {
			show.Notice(fmt.Sprintf("services that use the volumes cannot be stopped: %v", err))
		}
		return work(ctx)
	}
	if err != nil {
		return err
	}
	if stopped := users.Names(); len(stopped) > 0 && show.Notice != nil {
		show.Notice("stopped while their volumes are restored: " + strings.Join(stopped, ", "))
	}
	err = work(ctx)
	if half := incomplete(vols); len(half) > 0 && len(users.Names()) > 0 {
		return fmt.Errorf("%w; services %s stay stopped, because %s is not complete: restore again, or undo it, and they are started", err, strings.Join(users.Names(), ", "), strings.Join(half, ", "))
	}
	return errors.Join(err, users.Start(context.WithoutCancel(ctx)))
}

// incomplete names the volumes that hold half a restore.
func incomplete(vols []snapshot.Source) []string {
	var out []string
	for _, v := range vols {
		if _, err := os.Lstat(filepath.Join(v.Path, tree.IncompleteMark)); err == nil {
			out = append(out, v.Name)
		}
	}
	return out
}

// RestoreByWorker has a worker run `backupd restore` with arguments on the
// project's volumes, and decodes what it prints.
func (a *Agent) RestoreByWorker(ctx context.Context, args, only []string, l Limits, show Show, out any) error {
	vols, err := a.projectVolumes(ctx, only)
	if err != nil {
		return err
	}
	args = append([]string{"restore"}, args...)
	for _, v := range vols {
		args = append(args, "--volume", v.Key+"="+path.Join(VolumesDir, v.Key))
	}
	for _, t := range a.Targets {
		args = append(args, "--target", t)
	}
	return a.work(ctx, Job{Args: slices.Clip(args), Volumes: vols, Write: true, Limits: l}, show, out)
}
