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
	if a.Engine == nil || a.Project == "" && !a.loose {
		return work(ctx)
	}
	places := map[string]snapshot.Source{} // by the engine's name
	var names []string
	for _, v := range vols {
		if n := a.mounted(v.Path); n != "" {
			places[n] = v
			names = append(names, n)
		}
	}
	users, err := a.stopUsers(ctx, names)
	if docker.Forbidden(err) { // to see them: that they may not be stopped is ErrInUse
		if show.Notice != nil {
			show.Notice(fmt.Sprintf("whether services use the volumes cannot be seen: %v", err))
		}
		return work(ctx)
	}
	if err != nil {
		return err
	}
	if users == nil {
		return work(ctx)
	}
	if stopped := users.Names(); len(stopped) > 0 && show.Notice != nil {
		show.Notice("stopped while their volumes are restored: " + strings.Join(stopped, ", "))
	}
	err = work(ctx)
	var whole, half []string
	for n, v := range places {
		if halfRestored(v.Path) {
			half = append(half, v.Name)
		} else {
			whole = append(whole, n)
		}
	}
	stay, serr := users.Start(context.WithoutCancel(ctx), whole)
	switch {
	case len(stay) == 0:
	case len(half) > 0:
		slices.Sort(half)
		err = errors.Join(err, fmt.Errorf("services %s stay stopped, because %s is not complete: restore again, or undo it, and they are started", strings.Join(stay, ", "), strings.Join(half, ", ")))
	case show.Notice != nil:
		show.Notice(fmt.Sprintf("services %s stay stopped: an earlier restore of %s has not ended; restore that again, or undo it, and they are started", strings.Join(stay, ", "), strings.Join(users.Begun(), ", ")))
	}
	return errors.Join(err, serr)
}

// stopUsers stops what uses volumes: of the own project, or where there is none of
// the one project whose services do. Nil without an error: nobody uses them.
func (a *Agent) stopUsers(ctx context.Context, volumes []string) (*docker.Users, error) {
	project := a.Project
	if a.loose {
		of, writers, err := a.Engine.UsersOf(ctx, volumes, a.own())
		if err != nil {
			return nil, err
		}
		if of == "" && len(writers) > 0 {
			return nil, fmt.Errorf("a volume that is to be restored: %w, and not by one project alone, whose services could be stopped; stop what uses it (`docker ps --filter volume=%s` lists that), then restore again", docker.ErrInUse, volumes[0])
		}
		project = of
	}
	if project == "" {
		return nil, nil
	}
	return a.Engine.StopUsers(ctx, docker.UsersOptions{Project: project, Volumes: volumes, Own: a.own(), StateDir: a.StateDir})
}

// halfRestored says whether a directory holds half a restore.
func halfRestored(path string) bool {
	_, err := os.Lstat(filepath.Join(path, tree.IncompleteMark))
	return err == nil
}

// incomplete names the volumes that hold half a restore.
func incomplete(vols []snapshot.Source) []string {
	var out []string
	for _, v := range vols {
		if halfRestored(v.Path) {
			out = append(out, v.Name)
		}
	}
	return out
}

// resumeUsers has services go on that a restore had stopped which was killed before
// it changed anything, or when it was done.
func (a *Agent) resumeUsers(ctx context.Context) error {
	if a.Project == "" || a.Stack == "" || a.Self == nil {
		return nil
	}
	users, err := a.Engine.UsersLeft(a.StateDir, a.Project)
	if err != nil || len(users.Names()) == 0 {
		return err
	}
	release, err := a.alone()
	if errors.Is(err, ErrBusy) {
		return nil // it lives
	}
	if err != nil {
		return err
	}
	defer release()
	before := users.Names()
	var whole []string
	for _, v := range users.Begun() {
		for _, m := range a.Self.Mounts {
			if (m.Name == v || m.Name == "" && filepath.Clean(m.Source) == v) && !halfRestored(m.Destination) {
				whole = append(whole, v)
			}
		}
	}
	stay, err := users.Start(ctx, whole)
	if started := slices.DeleteFunc(before, func(s string) bool { return slices.Contains(stay, s) }); len(started) > 0 && err == nil {
		a.Log.Warn("a restore was killed; what it had stopped was started again", "services", started)
	}
	if len(stay) > 0 {
		a.Log.Error("services stay stopped, because a restore of their volumes has not ended: restore again, or undo it, and they are started", "services", stay, "volumes", users.Begun())
	}
	return err
}

// RestoreByWorker has a worker run `backupd restore` with arguments on the
// project's volumes, and decodes what it prints.
func (a *Agent) RestoreByWorker(ctx context.Context, args, only []string, l Limits, show Show, out any) error {
	vols, err := a.projectVolumes(ctx, only)
	if err != nil {
		return err
	}
	if a.Stack != "" {
		release, err := a.alone()
		if err != nil {
			return err
		}
		defer release()
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
