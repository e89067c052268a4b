package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/disko/backupd/internal/docker"
	"github.com/disko/backupd/internal/runs"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/worker"
)

// Drilling says which snapshot is to be proven, and how.
type Drilling struct {
	Policy   string // which policy asks; empty where a person does
	Trigger  string // schedule, catch-up or manual
	Snapshot string // as for a restore; empty for the latest
	// Random takes one of the older ones instead.
	Random  bool
	Targets []string // empty for the agent's; the first that answers is drilled
	// Volumes are those that are mounted here: by them a snapshot's volume is known
	// to be a service's. They are not read.
	Volumes []snapshot.Source
	Mode    Mode
	Limits  Limits
}

// Drilled tells what a drill did and found.
type Drilled struct {
	Stack  string `json:"stack"`
	Target string `json:"target"`
	snapshot.DrillRecord
	// Differences are, by volume, the first of the paths that were not as the snapshot has them.
	Differences map[string][]snapshot.Difference `json:"differences,omitempty"`
	// Recorded says whether the target has the result.
	Recorded bool     `json:"recorded"`
	Notes    []string `json:"notes,omitempty"`
}

// DrilledVolume is a volume that was restored into a scratch directory.
type DrilledVolume struct {
	*snapshot.Compared
	Warnings []snapshot.Warning `json:"warnings,omitempty"`
	// Databases are those whose files it has.
	Databases []docker.Kind `json:"databases,omitempty"`
}

// drillDir is where the scratch volumes of a drill are mounted in a worker: a place
// where the agent mounts nothing.
const drillDir = "/drill"

// damagedError is one that says that a snapshot is not what was taken.
type damagedError struct{ error }

func (e damagedError) Unwrap() error        { return e.error }
func (e damagedError) Is(target error) bool { return target == snapshot.ErrDamaged }

// codeDamage is the exit code by which a worker says that it found damage.
const codeDamage = 5

// Drill restores a snapshot into scratch volumes, compares every byte with what the
// snapshot says, and has the services that ask for it start on them. It removes what
// it made, whatever happens, and notes and tells the result as a run. The error is a
// snapshot.ErrDamaged where the snapshot is not good, and comes with what was found.
func (a *Agent) Drill(ctx context.Context, d Drilling, show Show) (*Drilled, error) {
	if err := a.needStack(); err != nil {
		return nil, err
	}
	take := a.alone
	if d.Policy != "" {
		take = func() (func(), error) { return a.whenAlone(ctx) }
	}
	release, err := take()
	if err != nil {
		return nil, err
	}
	defer release()
	if d.Trigger == "" {
		d.Trigger = "manual"
	}
	var out *Drilled
	r := &runs.Run{Kind: runs.Drill, Policy: d.Policy, Trigger: d.Trigger}
	err = a.record(ctx, r, func(ctx context.Context, r *runs.Run) (err error) {
		out, err = a.drill(ctx, d, show, r)
		return err
	})
	return out, err
}

// DrillHost drills a snapshot of every stack of the machine. One that fails does
// not stop the others.
func (a *Agent) DrillHost(ctx context.Context, d Drilling, show Show) ([]*Drilled, error) {
	var all []*Drilled
	r := &runs.Run{Kind: runs.Drill, Policy: d.Policy, Trigger: cmp.Or(d.Trigger, "manual")}
	err := a.pass(ctx, r, func(s *stackAgent) error {
		out, err := s.Drill(ctx, d, show)
		if out != nil {
			all = append(all, out)
		}
		if errors.Is(err, snapshot.ErrNoSnapshot) {
			return nil
		}
		return err
	})
	return all, err
}

func (a *Agent) drill(ctx context.Context, d Drilling, show Show, r *runs.Run) (*Drilled, error) {
	target, repo, end, err := a.firstToAnswer(ctx, orTargets(d.Targets, a.Targets), show)
	if err != nil {
		return nil, err
	}
	defer end()
	var m *snapshot.Manifest
	if d.Random {
		m, err = repo.Older(ctx, a.Stack)
	} else {
		m, err = repo.Find(ctx, a.Stack, d.Snapshot)
	}
	if err != nil {
		return nil, err
	}
	out := &Drilled{Stack: m.Stack, Target: repo.Location(), Differences: map[string][]snapshot.Difference{}}
	out.DrillRecord = snapshot.DrillRecord{
		Snapshot: m.ID(), Sequence: m.Sequence, Started: a.Now().UTC(), Volumes: []snapshot.DrillVolume{},
		Trigger: triggerOf(d.Trigger), Origin: a.Origin, Version: a.Version,
	}
	r.Snapshot = m.ID()
	show.say("drilling snapshot %.8s, number %d of stack %s, in %s", m.ID(), m.Sequence, m.Stack, repo.Location())
	err = a.prove(ctx, d, target, repo, m, show, out)
	out.Finished = a.Now().UTC()
	for _, v := range out.Volumes {
		r.Volumes = append(r.Volumes, runs.Volume{Name: v.Name, Files: uint64(v.Entries), Bytes: uint64(v.Bytes)})
	}
	switch {
	case err == nil:
		out.Passed = true
	case errors.Is(err, snapshot.ErrDamaged), errors.Is(err, sealed.ErrForged):
		out.Error = err.Error()
	default: // nothing is proven, in neither way
		return out, err
	}
	rt := runs.Target{Target: repo.Location(), Snapshot: m.ID()}
	if nerr := a.noteDrill(ctx, target, out); nerr != nil {
		text := fmt.Sprintf("the result is not on the target: %v", nerr)
		out.Notes = append(out.Notes, text)
		if !errors.Is(nerr, store.ErrAccess) {
			rt.Error = text
		}
		show.say("%s", text)
	} else {
		out.Recorded = true
	}
	r.Targets = append(r.Targets, rt)
	for _, n := range out.Notes {
		a.Log.Info("drill: " + n)
	}
	return out, err
}

// firstToAnswer opens the first repository that answers.
func (a *Agent) firstToAnswer(ctx context.Context, targets []string, show Show) (string, *snapshot.Repository, func(), error) {
	var errs []error
	for i, t := range targets {
		repo, end, err := a.Repository(ctx, []string{t})
		if err == nil {
			return t, repo, end, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil || errors.Is(err, snapshot.ErrUsage) || errors.Is(err, snapshot.ErrKey) {
			break
		}
		if i+1 < len(targets) {
			show.say("%v; trying the next target", err)
		}
	}
	if len(errs) == 0 {
		return "", nil, nil, fmt.Errorf("%w: no target named; say --target TARGET, or set BACKUPD_TARGET", ErrSettings)
	}
	return "", nil, nil, errors.Join(errs...)
}

// noteDrill writes the result to the target that was drilled.
func (a *Agent) noteDrill(ctx context.Context, target string, out *Drilled) error {
	places, err := a.Places(ctx, []string{target})
	if err != nil {
		return err
	}
	defer places.Close()
	if len(places.Up) == 0 {
		return places.Down[0].Err
	}
	p := places.Up[0]
	return p.Repo.PutDrill(ctx, p.Store, out.Stack, out.DrillRecord)
}

// prove restores, compares and checks.
func (a *Agent) prove(ctx context.Context, d Drilling, target string, repo *snapshot.Repository, m *snapshot.Manifest, show Show, out *Drilled) error {
	if a.Engine == nil || a.Self == nil {
		note := "there is no engine at hand: what was restored is compared, and no service is started on it"
		out.Notes = append(out.Notes, note)
		show.say("%s", note)
		return a.proveHere(ctx, repo, m, show, out)
	}
	s := &scratch{a: a, owner: docker.ScratchOwner{Container: a.Self.ID, Stack: a.Stack}, run: newID(), volumes: map[string]string{}}
	err := s.make(ctx, m)
	if docker.Forbidden(err) {
		note := fmt.Sprintf("what was restored is compared, and no service is started on it: %v", err)
		out.Notes = append(out.Notes, note)
		show.say("%s", note)
		return errors.Join(s.remove(ctx), a.proveHere(ctx, repo, m, show, out))
	}
	if err == nil {
		err = a.proveThere(ctx, d, target, m, s, show, out)
	}
	return errors.Join(err, s.remove(ctx))
}

// scratch are the volumes of a drill that the engine made.
type scratch struct {
	a       *Agent
	owner   docker.ScratchOwner
	run     string
	volumes map[string]string // the snapshot's names to the engine's
}

// make makes the volumes, when what earlier drills of the stack left is gone: under
// the stack's lock there is no other.
func (s *scratch) make(ctx context.Context, m *snapshot.Manifest) error {
	if n, err := s.a.Engine.CleanDrills(ctx, s.owner); err != nil {
		return err
	} else if n > 0 {
		s.a.Log.Info("what a drill that was killed had left was removed", "things", n)
	}
	for i := range m.Volumes {
		name := m.Volumes[i].Name
		s.volumes[name] = docker.ScratchName(s.run, name)
		if err := s.a.Engine.CreateScratch(ctx, s.owner, s.volumes[name]); err != nil {
			return err
		}
	}
	return nil
}

func (s *scratch) remove(ctx context.Context) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(s.volumes)) {
		errs = append(errs, s.a.Engine.RemoveScratch(ctx, s.volumes[name]))
	}
	return errors.Join(errs...)
}

// proveThere has a worker restore into scratch volumes, and services start on them.
func (a *Agent) proveThere(ctx context.Context, d Drilling, target string, m *snapshot.Manifest, s *scratch, show Show, out *Drilled) error {
	var vols []docker.Volume
	for i := range m.Volumes {
		name := m.Volumes[i].Name
		vols = append(vols, docker.Volume{Name: s.volumes[name], Key: name})
	}
	var restored []DrilledVolume
	err := a.work(ctx, Job{
		Args: []string{"drill", m.ID(), "--into", drillDir, "--target", target}, Volumes: vols, At: drillDir, Write: true, Limits: d.Limits,
	}, show, &restored)
	var remote *worker.Error
	if errors.As(err, &remote) && remote.Code == codeDamage {
		return damagedError{err}
	}
	if err != nil {
		return err
	}
	if err := out.judge(restored); err != nil {
		return err
	}
	if a.Project == "" {
		return nil
	}
	stack, err := a.Engine.Stack(ctx, a.Project)
	if err != nil {
		return err
	}
	drills, err := docker.Drills(stack, a.own())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSettings, err)
	}
	standsFor := a.standsFor(d, stack, s)
	var errs []error
	for _, of := range drills {
		if err := ctx.Err(); err != nil {
			return err
		}
		show.say("starting service %s on what was restored, to check it by: %s", of.Service, of.Check)
		began := a.Now()
		err := fitting(of, restored)
		if err == nil {
			err = a.Engine.Drill(ctx, docker.DrillRun{DrillOf: of, Owner: s.owner, Scratch: standsFor})
		}
		checked := snapshot.DrillChecked{Service: of.Service, Check: of.Check.String(), Seconds: a.Now().Sub(began).Round(time.Millisecond).Seconds()}
		if err != nil {
			checked.Error = err.Error()
			if errors.Is(err, docker.ErrCheck) {
				err = damagedError{fmt.Errorf("snapshot %.8s: what it restores to is not good: %w", m.ID(), err)}
			}
			errs = append(errs, err)
		}
		out.Checks = append(out.Checks, checked)
	}
	return errors.Join(errs...)
}

// fitting makes sure that the snapshot has the database that is to be checked: a
// server that finds none makes a new one, which is always good.
func fitting(of docker.DrillOf, restored []DrilledVolume) error {
	want := of.Check.Kind
	if want == docker.MariaDB {
		want = docker.MySQL
	}
	if want == "" || slices.ContainsFunc(restored, func(v DrilledVolume) bool { return slices.Contains(v.Databases, want) }) {
		return nil
	}
	return fmt.Errorf("drill service %s by %s: %w: no volume of the snapshot has the files of such a database", of.Service, of.Check, docker.ErrCheck)
}

// standsFor maps what services mount, by the engine's name or the path on its
// machine, to scratch volumes.
func (a *Agent) standsFor(d Drilling, stack *docker.Stack, s *scratch) map[string]string {
	out := map[string]string{}
	for name, volume := range s.volumes {
		at := path.Join(VolumesDir, name)
		for _, v := range d.Volumes {
			if v.Name == name {
				at = v.Path
			}
		}
		mounted := a.mounted(at)
		if mounted == "" {
			for _, v := range stack.Volumes {
				if v.Project == a.Project && v.Key == name {
					mounted = v.Name
				}
			}
		}
		if mounted != "" {
			out[mounted] = volume
		}
	}
	return out
}

// proveHere restores into a directory below the state directory, and compares.
func (a *Agent) proveHere(ctx context.Context, repo *snapshot.Repository, m *snapshot.Manifest, show Show, out *Drilled) (err error) {
	dir, err := a.scratchDir()
	if err != nil {
		return err
	}
	if err := removeTree(dir); err != nil { // of a drill that was killed
		return fmt.Errorf("remove what an earlier drill has left: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make a scratch directory: %w; give --state-dir a directory that can be written", err)
	}
	defer func() {
		if rerr := removeTree(dir); rerr != nil {
			err = errors.Join(err, fmt.Errorf("remove what the drill has restored: %w", rerr))
		}
	}()
	restored, err := a.DrillInto(ctx, repo, m, dir, show)
	if err != nil {
		return err
	}
	return out.judge(restored)
}

func (a *Agent) scratchDir() (string, error) {
	if a.StateDir == "" {
		return "", fmt.Errorf("%w: a drill restores into the state directory where there is no engine; give one with --state-dir", ErrSettings)
	}
	return filepath.Join(a.StateDir, "drill", a.Stack), nil
}

// cleanScratch removes what a drill has left in the state directory, unless one is under way.
func (a *Agent) cleanScratch() error {
	dir, err := a.scratchDir()
	if err != nil {
		return nil
	}
	if _, err := os.Lstat(dir); err != nil || a.Stack == "" {
		return nil
	}
	release, err := a.alone()
	if err != nil {
		return nil // a drill may be under way, and cleans up itself
	}
	defer release()
	return removeTree(dir)
}

// removeTree removes a directory in which some may not be writable, as they were in a volume.
func removeTree(dir string) error {
	if os.RemoveAll(dir) == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			_ = os.Chmod(p, 0o700) // what that does not help with, RemoveAll names
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// DrillInto restores all volumes of a snapshot to directories below dir, each named
// after its volume, and compares them with what the snapshot says. Owners are left
// out where this user may not set them.
func (a *Agent) DrillInto(ctx context.Context, repo *snapshot.Repository, m *snapshot.Manifest, dir string, show Show) ([]DrilledVolume, error) {
	var need int64
	for i := range m.Volumes {
		need += int64(m.Volumes[i].Counts.Bytes)
	}
	at := dir
	if len(m.Volumes) > 0 {
		if p := filepath.Join(dir, m.Volumes[0].Name); exists(p) {
			at = p // a scratch volume
		}
	}
	if a.Free != nil {
		if free, known := a.Free(at); known && free < need {
			return nil, fmt.Errorf("drill snapshot %.8s: restored, it has %d bytes, and there are %d left where scratch volumes lie (%s); free space, or drill on another machine", m.ID(), need, free, at)
		}
	}
	out := []DrilledVolume{}
	noOwner := os.Geteuid() != 0
	for i := range m.Volumes {
		name := m.Volumes[i].Name
		p := filepath.Join(dir, name)
		stats, err := repo.Restore(ctx, m, snapshot.RestoreOptions{
			Volume: name, Path: p, NoOwner: noOwner, Progress: show.Progress,
			Warn: func(w snapshot.Warning) {
				if show.Warn != nil {
					show.Warn(name, w)
				}
			},
		})
		if err != nil {
			return nil, err
		}
		compared, err := repo.Compare(ctx, m, snapshot.CompareOptions{Volume: name, Path: p, NoOwner: noOwner, Except: stats.Warnings})
		if err != nil {
			return nil, err
		}
		kinds, err := docker.DatabaseIn(os.DirFS(p))
		if err != nil {
			return nil, fmt.Errorf("look for databases in volume %s: %w", name, err)
		}
		out = append(out, DrilledVolume{Compared: compared, Warnings: stats.Warnings, Databases: kinds})
	}
	return out, nil
}

func exists(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

// judge takes over what was restored; the error says what differs.
func (d *Drilled) judge(restored []DrilledVolume) error {
	var bad []string
	for _, v := range restored {
		d.Volumes = append(d.Volumes, snapshot.DrillVolume{Name: v.Volume, Entries: v.Entries, Bytes: v.Bytes, Differ: v.Differ})
		for _, w := range v.Warnings {
			d.Notes = append(d.Notes, fmt.Sprintf("volume %s: %s", v.Volume, w))
		}
		if v.Differ == 0 {
			continue
		}
		d.Differences[v.Volume] = v.Differences
		text := fmt.Sprintf("volume %s: %d paths differ", v.Volume, v.Differ)
		if len(v.Differences) > 0 {
			text += ", first " + v.Differences[0].String()
		}
		bad = append(bad, text)
	}
	if len(bad) == 0 {
		return nil
	}
	return damagedError{fmt.Errorf("snapshot %.8s does not restore to what was taken: %s; `backupd verify --deep` says whether the target is damaged", d.Snapshot, strings.Join(bad, "; "))}
}

// say tells something that is no warning.
func (s Show) say(format string, args ...any) {
	if s.Notice != nil {
		s.Notice(fmt.Sprintf(format, args...))
	}
}
