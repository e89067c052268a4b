package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/disko/backupd/internal/docker"
	"github.com/disko/backupd/internal/runs"
	"github.com/disko/backupd/internal/seed"
	"github.com/disko/backupd/internal/snapshot"
)

// Backup is what is to be backed up, and how.
type Backup struct {
	Policy  string // which policy asks; empty where a person does
	Trigger string // schedule, catch-up or manual
	// Volumes are what to read, where it is mounted here; in the modes other than
	// Mounted they are found out.
	Volumes     []snapshot.Source
	Exclude     []string
	Tags        []string
	CrossMounts bool
	Targets     []string // empty for the agent's
	// Quiesce says whether services are made to stand still and hooks and dumps are run; it takes an engine.
	Quiesce Quiesce
	// Pre and Post are commands that are run in services before the freeze and after the
	// thaw, beside those of the services' labels.
	Pre, Post []docker.ServiceHook
	Mode      Mode
	Limits    Limits
	// Only, where it is not empty, are the names of the volumes to take, in the modes other than Mounted.
	Only []string
	// HoldBytes is how much of what changed is held in memory while services stand
	// still, and dealt with when they go on; 0 for the engine's default.
	HoldBytes int64
	// FreezeLimit is how long services may stand still; then they go on, and the
	// backup fails. 0 for ever.
	FreezeLimit time.Duration
	// MaxShrink is the share of its parent's bytes that a snapshot may lose before
	// that is a warning; 0 for any.
	MaxShrink float64
}

// Quiesce says whether services stand still while their volumes are read.
type Quiesce string

// Auto: where there is an engine that allows it. Never: not at all.
const (
	QuiesceAuto  Quiesce = "auto"
	QuiesceNever Quiesce = "never"
)

// Mode says whose volumes an agent takes care of.
type Mode string

// Modes.
const (
	Mounted Mode = "mounted" // what is mounted below /volumes
	Project Mode = "project" // the named volumes of its project, by workers
	Host    Mode = "host"    // those of every project on the machine, by workers
)

// Show is how a run tells what it does while it does it. All of it may be nil.
type Show struct {
	Progress *snapshot.Progress
	Warn     func(volume string, w snapshot.Warning)
	Notice   func(text string)
}

// Taken is what a backup did.
type Taken struct {
	*snapshot.Summary
	Places []snapshot.PlaceResult `json:"targets"`
	// Notes are warnings that are of no file: a service that was not frozen, say.
	Notes []string `json:"notes,omitempty"`
}

// Warned says whether something is not as it should be.
func (t *Taken) Warned() bool {
	return t.Summary.Warned() || len(t.Notes) > 0 || slices.ContainsFunc(t.Places, func(p snapshot.PlaceResult) bool { return p.Error != "" })
}

// Backup takes a snapshot, and notes and tells it as a run. A *snapshot.ThawError
// comes with what was taken.
func (a *Agent) Backup(ctx context.Context, b Backup, show Show) (*Taken, error) {
	return a.backup(ctx, b, show, func(ctx context.Context) (*Taken, error) {
		if b.Mode == Mounted || b.Mode == "" {
			return a.takeHere(ctx, b, show)
		}
		vols, err := a.projectVolumes(ctx, b.Only)
		if err != nil {
			return nil, err
		}
		return a.takeByWorker(ctx, b, vols, show)
	})
}

func (a *Agent) backup(ctx context.Context, b Backup, show Show, take func(context.Context) (*Taken, error)) (taken *Taken, err error) {
	if err := a.needStack(); err != nil {
		return nil, err
	}
	release := func() {}
	if b.Policy == "" { // a person is told at once, and nothing is noted
		if release, err = a.alone(); err != nil {
			return nil, err
		}
	}
	defer func() { release() }()
	r := &runs.Run{Kind: runs.Backup, Policy: b.Policy, Trigger: cmp.Or(b.Trigger, "manual")}
	err = a.record(ctx, r, func(ctx context.Context, r *runs.Run) (err error) {
		if b.Policy != "" {
			if release, err = a.whenAlone(ctx); err != nil {
				release = func() {}
				return err
			}
		}
		taken, err = take(ctx)
		if taken != nil && taken.Summary != nil {
			if b.MaxShrink > 0 && !IsWorker() {
				a.watchSize(ctx, b, taken)
			}
			note(r, taken)
		}
		return err
	})
	return taken, err
}

// askLock is how often it is tried whether another run has ended.
const askLock = time.Second

// whenAlone is alone for a run that nobody attends to: what a person does at the
// time it is due is waited for.
func (a *Agent) whenAlone(ctx context.Context) (release func(), err error) {
	for waited := false; ; waited = true {
		release, err := a.alone()
		if !errors.Is(err, ErrBusy) {
			return release, err
		}
		if !waited {
			a.Log.Info("the run waits: another of the stack is under way", "stack", a.Stack)
		}
		select {
		case <-time.After(askLock):
		case <-ctx.Done():
			return nil, fmt.Errorf("stack %s: wait for another run: %w", a.Stack, ctx.Err())
		}
	}
}

// watchSize warns of a snapshot that lost much of what its parent had: what was
// deleted by mistake is missed while the parent is still there.
func (a *Agent) watchSize(ctx context.Context, b Backup, t *Taken) {
	text, err := a.shrunk(ctx, b, t)
	if err != nil {
		text = fmt.Sprintf("it cannot be told whether the snapshot shrank: %v", err)
	}
	if text != "" {
		t.Notes = append(t.Notes, text)
	}
}

func (a *Agent) shrunk(ctx context.Context, b Backup, t *Taken) (string, error) {
	repo, end, err := a.Repository(ctx, b.targets(a))
	if err != nil {
		return "", err
	}
	defer end()
	list, err := repo.List(ctx, a.Stack)
	if err != nil {
		return "", err
	}
	byID := map[string]*snapshot.Manifest{}
	for _, l := range list {
		if l.Err == nil {
			byID[l.ID] = l.Manifest
		}
	}
	m := byID[t.ID]
	if m == nil || byID[m.Parent] == nil {
		return "", nil // the first, or it lies in another of several targets
	}
	text := snapshot.Shrunk(m, byID[m.Parent], b.MaxShrink)
	if text != "" {
		text = "the snapshot " + text + "; if nothing was deleted by mistake, all is well: it is kept, and is not counted as a good one"
	}
	return text, nil
}

// note fills in what a backup did.
func note(r *runs.Run, t *Taken) {
	r.Snapshot, r.Frozen = t.ID, t.FrozenSeconds
	for _, v := range t.Volumes {
		r.Volumes = append(r.Volumes, runs.Volume{Name: v.Name, Files: v.Files, Bytes: v.Bytes, Read: v.BytesRead, Stored: v.BytesStored, Warnings: v.WarningCount})
		for _, w := range v.Warnings {
			if !w.Notice {
				r.Warn(fmt.Sprintf("volume %s: %s", v.Name, w))
			}
		}
	}
	for _, p := range t.Places {
		r.Targets = append(r.Targets, runs.Target{Target: p.Target, Snapshot: p.ID, Error: p.Error})
		if p.Error != "" {
			r.Warn(fmt.Sprintf("target %s: %s", p.Target, p.Error))
		}
	}
	for _, n := range t.Notes {
		r.Warn(n)
	}
}

// takeHere takes a snapshot of volumes that are mounted in this process' sight.
func (a *Agent) takeHere(ctx context.Context, b Backup, show Show) (*Taken, error) {
	o := snapshot.BackupOptions{
		Stack: a.Stack, Volumes: slices.Clone(b.Volumes), Exclude: b.Exclude, Tags: b.Tags, CrossMounts: b.CrossMounts,
		Origin: a.Origin, Trigger: triggerOf(b.Trigger), Version: a.Version,
		Progress: show.Progress, Warn: show.Warn, Notice: show.Notice,
		HoldBytes: b.HoldBytes, FreezeLimit: b.FreezeLimit,
	}
	var err error
	if o.Seeded, err = a.seeded(); err != nil {
		return nil, err
	}
	if err := o.Check(); err != nil {
		return nil, err // before a repository is made for nothing
	}
	if half := incomplete(b.Volumes); len(half) > 0 {
		return nil, fmt.Errorf("back up volume %s: it holds an unfinished restore, which must not pass for a snapshot; finish that with `backupd restore --force`, or bring back what was there with `backupd restore --undo`", strings.Join(half, ", "))
	}
	still, err := a.stillness(ctx, b, &o)
	if err != nil {
		return nil, err
	}
	places, err := a.Places(ctx, b.targets(a))
	if err != nil {
		return nil, err
	}
	defer places.Close()
	taken := &Taken{}
	err = still.around(ctx, func(ctx context.Context) (err error) {
		taken.Summary, taken.Places, err = snapshot.BackupAll(ctx, places.Up, o)
		return err
	})
	for _, p := range append(taken.Places, places.Down...) {
		if p.Err != nil {
			p.Error = p.Err.Error()
		}
		if p.Error != "" || p.ID != "" {
			taken.Places = replacePlace(taken.Places, p)
		}
	}
	taken.Notes = still.notes()
	if taken.Summary == nil {
		return nil, err
	}
	return taken, err
}

func replacePlace(list []snapshot.PlaceResult, p snapshot.PlaceResult) []snapshot.PlaceResult {
	for i := range list {
		if list[i].Target == p.Target {
			list[i] = p
			return list
		}
	}
	return append(list, p)
}

func (b *Backup) targets(a *Agent) []string {
	if len(b.Targets) > 0 {
		return b.Targets
	}
	return a.Targets
}

// triggerOf is what a snapshot says of why it was taken.
func triggerOf(trigger string) string {
	if trigger == "catch-up" {
		return "schedule"
	}
	return cmp.Or(trigger, "manual")
}

// seeded is the snapshot that this installation came from, if it is a clone that
// does not lead its stack.
func (a *Agent) seeded() (string, error) {
	if a.StateDir == "" {
		return "", nil
	}
	id, err := seed.Seeded(a.StateDir, a.Stack)
	if err != nil {
		return "", fmt.Errorf("find out whether stack %s was seeded here: %w", a.Stack, err)
	}
	return id, nil
}

// stillness is what is done around a backup so that files stand still.
type stillness struct {
	a    *Agent
	q    *docker.Quiescer // nil: nothing
	said []string
}

// postTime is how long the hooks after a backup may take that was interrupted.
const postTime = time.Minute

// stillness plans what is done around a backup, and completes its options by
// what the engine knows: the freeze, the dumps, and what the stack is.
func (a *Agent) stillness(ctx context.Context, b Backup, o *snapshot.BackupOptions) (*stillness, error) {
	s := &stillness{a: a}
	project, err := a.whoStandsStill(ctx, b, o, s)
	if err != nil {
		return nil, err
	}
	if a.Engine == nil || project == "" {
		if len(b.Pre)+len(b.Post) > 0 && b.Quiesce != QuiesceNever {
			return nil, fmt.Errorf("%w: hooks are to be run in services, which takes a Docker engine and a Compose project; mount /var/run/docker.sock, or take the hooks out of the configuration", ErrSettings)
		}
		if a.Engine == nil && b.Quiesce == QuiesceAuto && o.Notice != nil && a.inContainer() {
			o.Notice("no engine is at hand: services are not frozen while their files are read, and dumps are not made; mount /var/run/docker.sock or set DOCKER_HOST for that")
			for _, v := range o.Volumes {
				if kinds, err := docker.DatabaseIn(os.DirFS(v.Path)); err == nil && len(kinds) > 0 {
					o.Notice(fmt.Sprintf("volume %s holds a database (%s): if it runs meanwhile, what is restored may not start", v.Name, kinds[0]))
				}
			}
		}
		return s, nil
	}
	stack, err := a.Engine.Stack(ctx, project)
	if err != nil {
		return nil, err
	}
	volumes := a.mountedNames(o.Volumes)
	if a.loose {
		stack = stack.Using(volumes)
	}
	a.describe(stack, o)
	if b.Quiesce == QuiesceNever {
		return s, nil
	}
	own := a.own()
	q := a.Engine.Quiescer(docker.QuiesceOptions{Project: project, Volumes: volumes, UsersOnly: a.loose, Own: own, Pre: b.Pre, Post: b.Post, StateDir: a.StateDir, Run: newID(), Now: a.Now})
	plan, err := q.Plan(ctx)
	if err != nil {
		return nil, fmt.Errorf("plan how services stand still: %w", err)
	}
	err = q.AwaitStart(ctx, plan, func(services []string) {
		if o.Notice != nil {
			o.Notice("waiting until " + strings.Join(services, ", ") + " has started")
		}
	})
	if err != nil {
		return nil, err
	}
	s.said = append(s.said, plan.Warnings...)
	switch err := q.Check(ctx, plan); {
	case errors.Is(err, docker.ErrMayNot) && !docker.Demanded(err):
		s.said = append(s.said, fmt.Sprintf("services are not frozen while their files are read: %v", err))
		s.q = q // which may still run hooks
		plan.Steps = nil
	case err != nil:
		return nil, err
	default:
		s.q = q
		if len(plan.Steps) > 0 {
			o.Freeze = q
		}
	}
	if found, err := a.Engine.Databases(ctx, stack); err != nil {
		s.said = append(s.said, fmt.Sprintf("what runs in the services cannot be seen, so that databases are not recognised: %v", err))
	} else {
		s.said = append(s.said, docker.Unprotected(plan, found)...)
	}
	return s, s.dumps(stack, own, o)
}

// dumps adds the dumps that services' labels ask for.
func (s *stillness) dumps(stack *docker.Stack, own []string, o *snapshot.BackupOptions) error {
	list, err := docker.Dumps(stack, own)
	if err != nil {
		return err
	}
	for _, d := range list {
		o.Dumps = append(o.Dumps, snapshot.Dump{
			Volume: d.Service + ".dump", Path: d.Dump.File,
			Open: func(ctx context.Context) (io.ReadCloser, error) { return s.a.Engine.OpenDump(ctx, d) },
		})
	}
	return nil
}

// around does work between the hooks.
func (s *stillness) around(ctx context.Context, work func(context.Context) error) (err error) {
	if s.q == nil {
		return work(ctx)
	}
	defer func() {
		post, cancel := ctx, context.CancelFunc(func() {})
		if ctx.Err() != nil {
			post, cancel = context.WithTimeout(context.WithoutCancel(ctx), postTime)
		}
		defer cancel()
		if perr := s.q.Post(post); perr != nil {
			s.said = append(s.said, perr.Error())
		}
	}()
	if err := s.q.Pre(ctx); err != nil {
		return err
	}
	return work(ctx)
}

func (s *stillness) notes() []string {
	out := slices.Clone(s.said)
	if s.q != nil {
		for _, w := range s.q.Warnings() {
			if !slices.Contains(out, w) {
				out = append(out, w)
			}
		}
	}
	return out
}

// own are the ids of backupd's own containers: this one, and the agent's whose worker it is.
func (a *Agent) own() []string {
	var ids []string
	if a.Self != nil {
		ids = append(ids, a.Self.ID)
	}
	if id := agentID(); id != "" {
		ids = append(ids, id)
	}
	return ids
}

func (a *Agent) inContainer() bool {
	_, ok := seed.OwnContainerID()
	return ok
}

// describe completes what is to be taken by what the engine knows of it.
func (a *Agent) describe(stack *docker.Stack, o *snapshot.BackupOptions) {
	if stack.Project != "" {
		o.About = &snapshot.About{Project: stack.Project}
		for _, s := range stack.Services {
			o.About.Services = append(o.About.Services, snapshot.Service{Name: s.Name, Image: s.Image, ImageID: s.ImageID})
		}
	}
	for i := range o.Volumes {
		v := &o.Volumes[i]
		name := a.mounted(v.Path)
		for k := range stack.Volumes {
			if known := &stack.Volumes[k]; known.Name == name {
				v.Driver, v.Options, v.Labels = known.Driver, withoutSecrets(known.Options), known.Labels
			}
		}
	}
}

// withoutSecrets are a volume's options as a manifest may have them: mount options
// of network file systems hold passwords.
func withoutSecrets(options map[string]string) map[string]string {
	out := maps.Clone(options)
	for key, value := range out {
		parts := strings.Split(value, ",")
		for i, p := range parts {
			if name, _, ok := strings.Cut(p, "="); ok && secretOption(name) {
				parts[i] = name + "=***"
			}
		}
		out[key] = strings.Join(parts, ",")
		if secretOption(key) {
			out[key] = "***"
		}
	}
	return out
}

func secretOption(name string) bool {
	name = strings.ToLower(name)
	for _, word := range []string{"pass", "secret", "token", "key", "cred"} {
		if strings.Contains(name, word) {
			return true
		}
	}
	return false
}
