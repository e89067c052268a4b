package agent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/disko/backupd/internal/docker"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/worker"
)

// What an agent tells its workers by their environment, beside their request.
const (
	envAgent   = "BACKUPD_WORKER_OF"      // the agent's container
	envProject = "BACKUPD_WORKER_PROJECT" // whose volumes it has
	envLoose   = "BACKUPD_WORKER_LOOSE"   // set where they are of no project
)

// agentID is the container of the agent whose worker this process is; else empty.
func agentID() string { return os.Getenv(envAgent) }

// IsWorker says whether this process is an agent's worker.
func IsWorker() bool { return agentID() != "" }

// Limits are what a worker may use; zero is no limit.
type Limits struct {
	Memory int64 // bytes
	CPUs   float64
}

// Program is backupd in its own image.
const Program = "/backupd"

// Job is a command that a worker does on volumes.
type Job struct {
	Args    []string // a command of backupd and its arguments
	Env     []string // KEY=VALUE, beside what every worker gets
	Volumes []docker.Volume
	At      string // where the volumes are mounted; VolumesDir where empty
	Write   bool
	Limits  Limits
}

// work has a worker do a job, and decodes its result into out.
func (a *Agent) work(ctx context.Context, j Job, show Show, out any) error {
	if a.Engine == nil || a.Self == nil {
		return fmt.Errorf("%w: volumes that are not mounted here are read by workers, which takes a Docker engine and a container of our own; mount /var/run/docker.sock, or mount the volumes below %s", ErrSettings, VolumesDir)
	}
	o := docker.WorkerOptions{
		Self: a.Self, Command: []string{Program, "worker"}, Memory: j.Limits.Memory, CPUs: j.Limits.CPUs,
		Stderr: &tail{max: 4096},
	}
	for _, v := range j.Volumes {
		o.Mounts = append(o.Mounts, docker.WorkerMount{Volume: v.Name, At: path.Join(cmp.Or(j.At, VolumesDir), v.Key), ReadOnly: !j.Write})
	}
	if a.Engine.NoCgroups && j.Limits != (Limits{}) && show.Notice != nil {
		show.Notice("this engine has no control groups: worker-memory and worker-cpus limit nothing")
	}
	w, err := a.Engine.RunWorker(ctx, o)
	if err != nil {
		return err
	}
	defer w.Close()
	settings, files, err := a.workerSettings()
	if err != nil {
		return err
	}
	env := append(ownEnvironment(), settings...)
	env = append(env, j.Env...)
	if a.loose {
		env = append(env, envLoose+"=1")
	}
	env = append(env, "BACKUPD_STATE_DIR="+a.StateDir, envAgent+"="+a.Self.ID, envProject+"="+a.Project, "BACKUPD_STACK="+a.Stack, "BACKUPD_ORIGIN="+a.Origin, "BACKUPD_VOLUMES="+string(Mounted))
	result, err := worker.Call(ctx, w, worker.Request{Args: j.Args, Env: env, Files: files}, events(show))
	var remote *worker.Error
	if err != nil && ctx.Err() != nil && errors.As(err, &remote) {
		// It says in its own words that it was told to end; who asks must know as well.
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	if err != nil {
		if errors.Is(err, worker.ErrGone) || errors.Is(err, worker.ErrProtocol) {
			if text := o.Stderr.(*tail).String(); text != "" {
				err = fmt.Errorf("%w; its last words: %s", err, text)
			}
			// A worker that was killed may have left services standing still.
			if _, rerr := a.Engine.Recover(context.WithoutCancel(ctx), a.StateDir); rerr != nil {
				err = errors.Join(err, rerr)
			}
		}
		return err
	}
	if err := json.Unmarshal(result, out); err != nil {
		return fmt.Errorf("read the worker's result: %w", err)
	}
	return nil
}

func (a *Agent) workerSettings() ([]string, []worker.File, error) {
	if a.WorkerSettings == nil {
		return nil, nil, nil
	}
	env, files, err := a.WorkerSettings()
	if err != nil {
		return nil, nil, fmt.Errorf("gather what a worker needs to know: %w", err)
	}
	return env, files, nil
}

// SDKFiles are the variables by which the AWS SDK is told of files, which a worker
// may not have either: a swarm's secrets are in the agent's container alone.
var SDKFiles = []string{
	"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE",
	"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
}

// ownEnvironment is what a worker gets of the agent's environment: what is not
// backupd's. Its settings the worker gets as they count, and none that is an
// agent's: a worker keeps no schedule and tells nobody. All of it is sent, and not
// part of the container, where anybody who may inspect it would read it.
func ownEnvironment() []string {
	drop := append([]string{
		"HOSTNAME", "PATH", "HOME",
		// Files that a worker may not have: WorkerSettings sends what is in them.
		"AWS_ACCESS_KEY_ID_FILE", "AWS_SECRET_ACCESS_KEY_FILE", "AWS_SESSION_TOKEN_FILE",
	}, SDKFiles...)
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(drop, name) || strings.HasPrefix(name, "BACKUPD_")
	})
}

func events(show Show) worker.Events {
	ev := worker.Events{}
	if show.Progress != nil {
		ev.Progress = func(p worker.Progress) {
			show.Progress.Files.Store(p.Files)
			show.Progress.Bytes.Store(p.Bytes)
			show.Progress.TotalFiles.Store(p.TotalFiles)
			show.Progress.TotalBytes.Store(p.TotalBytes)
			show.Progress.Stored.Store(p.Stored)
		}
	}
	if show.Warn != nil {
		ev.Warning = func(w worker.Warning) {
			show.Warn(w.Volume, snapshot.Warning{Path: w.Path, What: w.What, Notice: w.Notice})
		}
	}
	ev.Notice = show.Notice
	return ev
}

// tail keeps the end of what is written to it.
type tail struct {
	max int
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > t.max {
		t.buf = slices.Clone(t.buf[len(t.buf)-t.max:])
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.buf))
}

// takeByWorker takes a snapshot of volumes of the project in a worker.
func (a *Agent) takeByWorker(ctx context.Context, b Backup, vols []docker.Volume, show Show) (*Taken, error) {
	args := []string{"backup"}
	for _, v := range vols {
		args = append(args, "--volume", v.Key+"="+path.Join(VolumesDir, v.Key))
	}
	for flag, values := range map[string][]string{"--exclude": b.Exclude, "--tag": b.Tags, "--target": b.targets(a)} {
		for _, v := range values {
			args = append(args, flag, v)
		}
	}
	if b.CrossMounts {
		args = append(args, "--cross-mounts")
	}
	args = append(args, "--freeze-limit", b.FreezeLimit.String())
	if b.HoldBytes > 0 {
		args = append(args, "--freeze-memory", strconv.FormatInt(b.HoldBytes, 10)+"b")
	}
	if b.Quiesce != "" {
		args = append(args, "--quiesce", string(b.Quiesce))
	}
	hooks, err := json.Marshal(workerHooks{b.Pre, b.Post})
	if err != nil {
		return nil, err
	}
	taken := &Taken{}
	if err := a.work(ctx, Job{Args: args, Env: []string{envTrigger + "=" + b.Trigger, envHooks + "=" + string(hooks)}, Volumes: vols, Limits: b.Limits}, show, taken); err != nil {
		return nil, err
	}
	return taken, nil
}

// envTrigger tells a worker why its snapshot is taken, envHooks what is to be run
// in services around that.
const (
	envTrigger = "BACKUPD_WORKER_TRIGGER"
	envHooks   = "BACKUPD_WORKER_HOOKS"
)

type workerHooks struct{ Pre, Post []docker.ServiceHook }

// WorkerHooks are the hooks that a worker's agent asks for; none in another process.
func WorkerHooks() (pre, post []docker.ServiceHook, err error) {
	text := os.Getenv(envHooks)
	if text == "" || !IsWorker() {
		return nil, nil, nil
	}
	var h workerHooks
	if err := json.Unmarshal([]byte(text), &h); err != nil {
		return nil, nil, fmt.Errorf("read what the agent asks for: %w", err)
	}
	return h.Pre, h.Post, nil
}

// WorkerTrigger is why a worker's snapshot is taken; empty where a person asked.
func WorkerTrigger() string { return os.Getenv(envTrigger) }

// projectVolumes are the named volumes of the project that are to be taken: not
// those that are excluded by label, nor the agent's own.
func (a *Agent) projectVolumes(ctx context.Context, only []string) ([]docker.Volume, error) {
	if a.Engine == nil || a.Project == "" {
		return nil, fmt.Errorf("%w: to find the project's volumes takes a Docker engine, and a container that Compose made; mount /var/run/docker.sock, or mount the volumes below %s", ErrSettings, VolumesDir)
	}
	all, err := a.Engine.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	var out []docker.Volume
	for _, v := range all {
		if v.Project != a.Project || a.isOwn(v.Name) {
			continue
		}
		excluded, err := docker.Excluded(v)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSettings, err)
		}
		if excluded || len(only) > 0 && !slices.Contains(only, v.Key) {
			continue
		}
		out = append(out, v)
	}
	for _, name := range only {
		if !slices.ContainsFunc(out, func(v docker.Volume) bool { return v.Key == name }) {
			return nil, fmt.Errorf("%w: project %s has no volume %s that is backed up", snapshot.ErrNoVolume, a.Project, name)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: project %s has no named volume but backupd's own", snapshot.ErrNoVolume, a.Project)
	}
	return out, nil
}

// isOwn says whether a volume is mounted in the agent's container for its own
// sake: its state, a target.
func (a *Agent) isOwn(volume string) bool {
	return a.Self != nil && slices.ContainsFunc(a.Self.Mounts, func(m docker.Mount) bool {
		return m.Name == volume && path.Dir(path.Clean(m.Destination)) != VolumesDir
	})
}
