package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/pkg/stdcopy"
)

const (
	// stopGrace is how long a worker has between SIGTERM and SIGKILL.
	stopGrace = 10 * time.Second
	// cleanUp is how long what must outlive a cancel may take.
	cleanUp = stopGrace + 20*time.Second
)

// WorkerOptions say what a worker is to run and to see.
type WorkerOptions struct {
	Self    *Self    // whose image, mounts, network and rights it shares
	Command []string // the program, as in "/backupd", and its arguments
	Mounts  []WorkerMount
	Memory  int64     // bytes at most; 0 for no limit; none on an engine with NoCgroups
	CPUs    float64   // 0 for no limit
	Stderr  io.Writer // nil discards it
}

// WorkerMount is a volume for a worker. One that Self mounts at the same place is
// replaced.
type WorkerMount struct {
	Volume   string // the engine's name of a volume of any driver,
	Path     string // or a path on the engine's machine
	At       string // as in /volumes/db
	ReadOnly bool
}

// Worker is a running container of backupd's own image. Read and Write are its
// stdout and stdin. Whoever has one reads to the end, calls Wait, and calls Close
// whatever happened.
type Worker struct {
	ID string

	e      *Engine
	conn   types.HijackedResponse
	stdout *io.PipeReader
	done   chan struct{} // closed when its output has been read
	exited <-chan container.WaitResponse
	failed <-chan error
	stop   func() bool
	remove func() error // waits until the container is gone
	close  sync.Once
	closed error
}

// RunWorker starts a container of the own image beside the own one: with its
// mounts, network, user and rights, and with more volumes. It is removed when it
// ends. When ctx ends it gets a SIGTERM, and after ten seconds a SIGKILL; when this
// process ends, its stdin does, which a worker must take for the same.
func (e *Engine) RunWorker(ctx context.Context, o WorkerOptions) (*Worker, error) {
	config, host, err := workerConfig(o)
	if err != nil {
		return nil, err
	}
	if e.NoCgroups { // it would refuse the one, and not keep to the other
		host.NanoCPUs, host.Memory = 0, 0
	}
	created, err := e.api.ContainerCreate(ctx, config, host, nil, nil, "")
	if err != nil {
		return nil, fmt.Errorf("create a worker of image %s: %w", o.Self.Image, explainAccess(err))
	}
	w := &Worker{ID: created.ID, e: e, done: make(chan struct{})}
	// Whatever ends, the container must go.
	w.remove = func() error { return e.removeContainer(context.WithoutCancel(ctx), created.ID) }
	if err := w.start(ctx, o); err != nil {
		return nil, errors.Join(fmt.Errorf("start worker %.12s: %w", w.ID, explainAccess(err)), w.remove())
	}
	return w, nil
}

func workerConfig(o WorkerOptions) (*container.Config, *container.HostConfig, error) {
	if o.Self == nil || o.Self.host == nil || len(o.Command) == 0 {
		return nil, nil, errors.New("run a worker: the own container and a command must be known")
	}
	own := o.Self.host
	config := &container.Config{
		Image: o.Self.ImageID, User: o.Self.User, Entrypoint: o.Command, Cmd: []string{},
		Labels:    map[string]string{labelWorker: o.Self.ID},
		OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true, AttachStderr: true,
		// The image's asks whether an agent keeps its schedule.
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}
	host := &container.HostConfig{
		VolumesFrom: []string{o.Self.ID},
		NetworkMode: own.NetworkMode,
		// Its stdout is the protocol: nobody reads it later.
		LogConfig:  container.LogConfig{Type: "none"},
		AutoRemove: true,
		CapAdd:     own.CapAdd, CapDrop: own.CapDrop, GroupAdd: own.GroupAdd, Privileged: own.Privileged,
		SecurityOpt: own.SecurityOpt, ReadonlyRootfs: own.ReadonlyRootfs, UsernsMode: own.UsernsMode,
		Tmpfs: own.Tmpfs, Runtime: own.Runtime, Init: own.Init, OomScoreAdj: own.OomScoreAdj,
		Resources: container.Resources{
			Memory: o.Memory, NanoCPUs: int64(o.CPUs * 1e9),
			Devices: own.Devices, Ulimits: own.Ulimits, CgroupParent: own.CgroupParent,
		},
	}
	// A network of its own is shared with the worker; one that is shared already,
	// the host's or none, is named again.
	if m := own.NetworkMode; !m.IsHost() && !m.IsNone() && !m.IsContainer() {
		host.NetworkMode = container.NetworkMode("container:" + o.Self.ID)
	}
	for _, m := range o.Mounts {
		at := path.Clean(m.At)
		if !path.IsAbs(at) || (m.Volume == "") == (m.Path == "") {
			return nil, nil, fmt.Errorf("run a worker: %q: a mount needs a volume or a path, and a place", m.At)
		}
		own := mount.Mount{
			Type: mount.TypeVolume, Source: m.Volume, Target: at, ReadOnly: m.ReadOnly,
			// An empty volume stays empty whatever the image has there.
			VolumeOptions: &mount.VolumeOptions{NoCopy: true},
		}
		if m.Path != "" {
			own.Type, own.Source, own.VolumeOptions = mount.TypeBind, m.Path, nil
		}
		host.Mounts = append(host.Mounts, own)
	}
	return config, host, nil
}

func (w *Worker) start(ctx context.Context, o WorkerOptions) error {
	// Not ctx: whoever cancels still wants to read what the worker says of it.
	lasting := context.WithoutCancel(ctx)
	var err error
	w.conn, err = w.e.api.ContainerAttach(lasting, w.ID, container.AttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	// Asked for before it starts, so that one that ends at once is not missed.
	w.exited, w.failed = w.e.api.ContainerWait(lasting, w.ID, container.WaitConditionNextExit)
	if err := w.e.api.ContainerStart(ctx, w.ID, container.StartOptions{}); err != nil {
		w.conn.Close()
		return err
	}
	stderr := o.Stderr
	if stderr == nil {
		stderr = io.Discard
	}
	read, write := io.Pipe()
	w.stdout = read
	go func() { // ends when the container does, or when Close closes the connection
		defer close(w.done)
		_, err := stdcopy.StdCopy(write, stderr, w.conn.Reader)
		write.CloseWithError(err)
	}()
	w.stop = context.AfterFunc(ctx, func() { _ = w.terminate(lasting) }) // Close removes it all the same
	return nil
}

// terminate sends a SIGTERM, and a SIGKILL where that does not end it.
func (w *Worker) terminate(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cleanUp)
	defer cancel()
	seconds := int(stopGrace / time.Second)
	err := w.e.api.ContainerStop(ctx, w.ID, container.StopOptions{Timeout: &seconds})
	if err == nil || cerrdefs.IsNotFound(err) || cerrdefs.IsNotModified(err) {
		return nil
	}
	return fmt.Errorf("stop worker %.12s: %w", w.ID, explainAccess(err))
}

// Read reads what the worker writes to its stdout; io.EOF when it has ended.
func (w *Worker) Read(p []byte) (int, error) { return w.stdout.Read(p) }

// Write writes to the worker's stdin.
func (w *Worker) Write(p []byte) (int, error) { return w.conn.Conn.Write(p) }

// CloseWrite ends the worker's stdin.
func (w *Worker) CloseWrite() error { return w.conn.CloseWrite() }

// Wait waits until the worker has ended and returns its exit code. Its stdout
// must have been read to the end, or be read meanwhile.
func (w *Worker) Wait(ctx context.Context) (int, error) {
	select {
	case r := <-w.exited:
		if r.Error != nil && r.Error.Message != "" {
			return 0, fmt.Errorf("wait for worker %.12s: %s", w.ID, r.Error.Message)
		}
		return int(r.StatusCode), ctx.Err()
	case err := <-w.failed:
		return 0, fmt.Errorf("wait for worker %.12s: %w", w.ID, explainAccess(err))
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// Close ends the worker, if it still runs, and waits until it is gone.
func (w *Worker) Close() error {
	w.close.Do(func() {
		w.stop()
		w.conn.Close()
		_ = w.stdout.Close() // a pipe's reader: it never fails
		<-w.done
		w.closed = w.remove()
	})
	return w.closed
}

// removeContainer kills and removes a container, and waits until it is gone.
func (e *Engine) removeContainer(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, cleanUp)
	defer cancel()
	removed, failed := e.api.ContainerWait(ctx, id, container.WaitConditionRemoved)
	err := e.api.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
	if cerrdefs.IsNotFound(err) {
		return nil
	}
	// A conflict: the engine is removing it already.
	if err != nil && !cerrdefs.IsConflict(err) {
		return fmt.Errorf("remove container %.12s: %w", id, explainAccess(err))
	}
	select {
	case <-removed:
		return nil
	case err := <-failed:
		if err == nil || cerrdefs.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("remove container %.12s: %w", id, explainAccess(err))
	}
}

// CleanWorkers removes the workers that outlived whoever started them: whose
// container is gone, does not run, or was started after them. It returns how
// many. Workers of containers that run are left alone: a command beside the agent may
// have started them.
func (e *Engine) CleanWorkers(ctx context.Context) (int, error) {
	list, err := e.containersLabelled(ctx, labelWorker)
	if err != nil {
		return 0, fmt.Errorf("look for left-over workers: %w", explainAccess(err))
	}
	removed := 0
	for _, c := range list {
		left, err := e.leftOver(ctx, c)
		if err != nil {
			return removed, err
		}
		if !left {
			continue
		}
		if err := e.removeContainer(ctx, c.ID); err != nil {
			return removed, fmt.Errorf("remove a left-over worker: %w", err)
		}
		removed++
	}
	return removed, nil
}

func (e *Engine) leftOver(ctx context.Context, worker Container) (bool, error) {
	gone, since, err := e.owner(ctx, worker.Labels[labelWorker])
	if err != nil {
		return false, fmt.Errorf("look for left-over workers: %w", err)
	}
	if gone {
		return true, nil
	}
	own, err := e.api.ContainerInspect(ctx, worker.ID)
	if cerrdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for left-over workers: inspect container %s: %w", worker.Name, explainAccess(err))
	}
	// Where the engine does not tell, a worker is nobody's leavings.
	made, err1 := time.Parse(time.RFC3339Nano, own.Created)
	began, err2 := time.Parse(time.RFC3339Nano, since)
	return err1 == nil && err2 == nil && made.Before(began), nil
}

// owner says whether a container is gone or does not run; else since when it does,
// in the engine's words.
func (e *Engine) owner(ctx context.Context, id string) (gone bool, since string, err error) {
	c, err := e.api.ContainerInspect(ctx, id)
	if cerrdefs.IsNotFound(err) {
		return true, "", nil
	}
	if err != nil {
		return false, "", fmt.Errorf("inspect container %.12s: %w", id, explainAccess(err))
	}
	if c.State == nil || !c.State.Running {
		return true, "", nil
	}
	return false, c.State.StartedAt, nil
}
