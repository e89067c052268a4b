package agent

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/disko/backupd/internal/docker"
	"github.com/disko/backupd/internal/runs"
	"github.com/disko/backupd/internal/seed"
	"github.com/disko/backupd/internal/seed/snapshots"
	"github.com/disko/backupd/internal/snapshot"
)

// SeedOptions say how fresh volumes are to be filled.
type SeedOptions struct {
	Mode    seed.Mode
	From    string            // latest, an id, a tag or origin:NAME; empty for latest
	Volumes []snapshot.Source // as mounted here
	Named   []string          // volumes that the user asked for by name
	NoOwner bool
	DryRun  bool
	// Window is when the agent's container was made and started; nil for this one.
	Window *seed.Window
	Source Mode // where the volumes are found
	Limits Limits
}

// Seed fills fresh volumes, and notes it as a run if there was something to
// fill. The result says of every volume what was decided, also with an error.
func (a *Agent) Seed(ctx context.Context, s SeedOptions, show Show) (*seed.Result, error) {
	if err := a.needStack(); err != nil {
		return nil, err
	}
	var result *seed.Result
	var err error
	r := &runs.Run{Kind: runs.Seed, Trigger: "start", Stack: a.Stack, ID: newID(), Started: a.Now().UTC()}
	if s.Source == Mounted || s.Source == "" {
		result, err = a.seedHere(ctx, s, show)
	} else {
		result, err = a.seedByWorker(ctx, s, show)
	}
	if result != nil && (result.Count(seed.Filled) > 0 || err != nil) && !s.DryRun && !IsWorker() {
		r.Finished, r.Outcome, r.Snapshot = a.Now().UTC(), runs.Done, result.Snapshot
		if err != nil {
			r.Outcome, r.Error = runs.Failed, err.Error()
			if ctx.Err() != nil {
				r.Outcome = runs.Interrupted
			}
		}
		for _, v := range result.Volumes {
			if v.Outcome == seed.Filled {
				r.Volumes = append(r.Volumes, runs.Volume{Name: v.Name})
			}
		}
		if herr := a.History.Add(*r); herr != nil {
			a.Log.Warn("the run is not in the history", "error", herr)
		}
		if a.Teller != nil && r.Outcome == runs.Failed {
			a.Teller.Ended(r, nil)
		}
	}
	return result, err
}

func (a *Agent) seedHere(ctx context.Context, s SeedOptions, show Show) (*seed.Result, error) {
	o := seed.Options{Stack: a.Stack, StateDir: a.StateDir, Named: s.Named, Mode: s.Mode, DryRun: s.DryRun, Command: a.command(), Tell: show.Notice, Now: a.Now}
	for _, v := range s.Volumes {
		o.Volumes = append(o.Volumes, seed.Volume{Name: v.Name, Path: v.Path})
	}
	if s.Window != nil {
		o.Window = *s.Window
	} else {
		o.Window = seed.OwnWindow()
	}
	if a.Engine != nil && a.Self != nil {
		o.Veto = veto{a}
	}
	end := func() {}
	defer func() { end() }()
	src := &snapshots.Source{
		Open: func(ctx context.Context) (repo *snapshot.Repository, err error) {
			repo, closing, err := a.Repository(ctx, a.Targets)
			if err == nil {
				end = closing
			}
			return repo, err
		},
		Stack: a.Stack, From: s.From, NoOwner: s.NoOwner, Progress: show.Progress, Warn: show.Warn,
	}
	o.Source = src
	return seed.Run(ctx, o)
}

// veto asks the engine about a volume that is mounted here.
type veto struct{ a *Agent }

// EverStarted implements seed.Veto.
func (v veto) EverStarted(ctx context.Context, vol seed.Volume) ([]string, error) {
	name := v.a.mounted(vol.Path)
	if name == "" {
		return nil, fmt.Errorf("%s is not a mount of this container, so the engine does not know it; mount volumes one by one below %s", vol.Path, VolumesDir)
	}
	return docker.Witness{Engine: v.a.Engine, Self: v.a.Self}.EverStarted(ctx, name)
}

// seedByWorker seeds the project's volumes in a worker. One that is not to seed looks
// for half a restore all the same, and then writes nothing.
func (a *Agent) seedByWorker(ctx context.Context, s SeedOptions, show Show) (*seed.Result, error) {
	vols, err := a.projectVolumes(ctx, nil)
	if errors.Is(err, snapshot.ErrNoVolume) {
		return &seed.Result{Stack: a.Stack, Mode: s.Mode, Volumes: []seed.VolumeResult{}, Summary: fmt.Sprintf("stack %s: there is no volume to seed", a.Stack)}, nil
	}
	if err != nil {
		return nil, err
	}
	w := seed.OwnWindow()
	args := []string{"seed", "--seed", string(s.Mode), "--window", w.Created.Format(time.RFC3339Nano) + "/" + w.Started.Format(time.RFC3339Nano)}
	if s.From != "" {
		args = append(args, "--seed-from", s.From)
	}
	if s.NoOwner {
		args = append(args, "--no-owner")
	}
	if s.DryRun {
		args = append(args, "--dry-run")
	}
	for _, t := range a.Targets {
		args = append(args, "--target", t)
	}
	for _, v := range vols {
		args = append(args, "--volume", v.Key+"="+path.Join(VolumesDir, v.Key))
	}
	args = append(args, "--")
	args = append(args, s.Named...)
	var out struct {
		Result *seed.Result
		Err    string
	}
	if err := a.work(ctx, Job{Args: args, Volumes: vols, Write: s.Mode != seed.Off, Limits: s.Limits}, show, &out); err != nil {
		return nil, err
	}
	if out.Err != "" {
		return out.Result, errors.New(out.Err)
	}
	return out.Result, nil
}

// NoteFresh notes in the ledger which volumes are fresh now, without filling
// them: for an agent that cannot serve, but may be started again when it can.
func (a *Agent) NoteFresh(ctx context.Context, vols []snapshot.Source) error {
	if err := a.needStack(); err != nil {
		return err
	}
	o := seed.Options{Stack: a.Stack, StateDir: a.StateDir, Window: seed.OwnWindow(), Command: a.command(), Now: a.Now}
	for _, v := range vols {
		o.Volumes = append(o.Volumes, seed.Volume{Name: v.Name, Path: v.Path})
	}
	if a.Engine != nil && a.Self != nil {
		o.Veto = veto{a}
	}
	_, err := seed.Note(ctx, o)
	return err
}

// command is how a person calls backupd here, for advice.
func (a *Agent) command() string {
	switch {
	case a.Self != nil && a.Self.Service != "":
		return "docker compose run --rm " + a.Self.Service
	case a.Self != nil && a.Self.Swarm:
		return "docker exec " + a.Self.Name + " backupd"
	case a.inContainer():
		return "docker compose run --rm backup"
	}
	return "backupd"
}

// Impatient names the services that mount a seeded volume and do not wait for
// the agent, each in a sentence. Without an engine nobody can see them.
func (a *Agent) Impatient(ctx context.Context, s SeedOptions) []string {
	if a.Engine == nil || a.Self == nil || a.Project == "" || a.Self.Service == "" { // Swarm's services wait for nothing
		return nil
	}
	stack, err := a.Engine.Stack(ctx, a.Project)
	if err != nil {
		a.Log.Warn("services that do not wait for the seed cannot be found", "error", err)
		return nil
	}
	names := a.mountedNames(s.Volumes)
	if s.Source == Project { // none of them is mounted here
		vols, err := a.projectVolumes(ctx, nil)
		if err != nil && !errors.Is(err, snapshot.ErrNoVolume) {
			a.Log.Warn("services that do not wait for the seed cannot be found", "error", err)
		}
		for _, v := range vols {
			names = append(names, v.Name)
		}
	}
	var out []string
	for _, u := range stack.Undependent(a.Self.Service, names) {
		text := fmt.Sprintf("service %s mounts %s and does not wait for %s: it may start with an empty volume", u.Service, strings.Join(u.Volumes, ", "), a.Self.Service)
		if u.Waits != "" {
			text = fmt.Sprintf("service %s mounts %s and waits for %s by %s only, which is before it is seeded", u.Service, strings.Join(u.Volumes, ", "), a.Self.Service, u.Waits)
		}
		out = append(out, text+fmt.Sprintf("; give it depends_on: {%s: {condition: service_healthy}}", a.Self.Service))
	}
	return out
}

// TakeOver makes this installation lead the line that it was seeded from.
func (a *Agent) TakeOver(ctx context.Context) (string, error) {
	if err := a.needStack(); err != nil {
		return "", err
	}
	from, err := seed.TakeOver(ctx, a.StateDir, a.Stack)
	if err != nil {
		return "", err
	}
	return from, nil
}
