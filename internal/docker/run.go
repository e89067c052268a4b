package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/pkg/stdcopy"
)

// VolumeSpec is a volume as a Compose file defines it.
type VolumeSpec struct {
	Key, Name, Driver string
	Options, Labels   map[string]string
	External          bool // made by somebody else
}

// EnsureVolumes makes the volumes of a project that are missing, as Compose
// would: with its labels, so that it takes them for its own. It never sets the hash of their
// configuration: on a mismatch Compose offers to delete the volume, and with --yes
// does so unasked. version is what the label of the maker's version says. It returns the
// engine's names of those it made.
func (e *Engine) EnsureVolumes(ctx context.Context, project, version string, volumes []VolumeSpec) ([]string, error) {
	var made []string
	for _, v := range volumes {
		_, err := e.api.VolumeInspect(ctx, v.Name)
		if err == nil {
			continue
		}
		if !cerrdefs.IsNotFound(err) {
			return made, fmt.Errorf("inspect volume %s: %w", v.Name, explainAccess(err))
		}
		if v.External {
			return made, fmt.Errorf("volume %s is external and does not exist: make it first, with `docker volume create %s`", v.Name, v.Name)
		}
		labels := map[string]string{}
		for k, l := range v.Labels {
			labels[k] = l
		}
		labels[labelProject], labels[labelVolume], labels[labelVersion] = project, v.Key, version
		if _, err := e.api.VolumeCreate(ctx, volume.CreateOptions{Name: v.Name, Driver: v.Driver, DriverOpts: v.Options, Labels: labels}); err != nil {
			return made, fmt.Errorf("create volume %s: %w", v.Name, explainAccess(err))
		}
		made = append(made, v.Name)
	}
	return made, nil
}

// EnsureImage pulls an image that the engine lacks, and tells of it line by line.
func (e *Engine) EnsureImage(ctx context.Context, name string, tell func(string)) error {
	_, err := e.api.ImageInspect(ctx, name)
	if err == nil {
		return nil
	}
	if !cerrdefs.IsNotFound(err) {
		return fmt.Errorf("look for image %s: %w", name, explainAccess(err))
	}
	tell("pulling image " + name)
	fail := func(err error) error {
		return fmt.Errorf("pull image %s: %w; pull it by hand (`docker pull %s` knows your registry's credentials), or build it, then run this again", name, err, name)
	}
	r, err := e.api.ImagePull(ctx, name, image.PullOptions{})
	if err != nil {
		return fail(explainAccess(err))
	}
	defer r.Close()
	for d := json.NewDecoder(r); ; {
		var m struct {
			Error string `json:"error"`
		}
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fail(err)
		}
		if m.Error != "" {
			return fail(errors.New(m.Error))
		}
	}
}

// RunOptions describe a one-off container of a service, as `docker compose run`
// makes one.
type RunOptions struct {
	Project, Service, Dir string // for its labels
	Image                 string
	Entrypoint            []string // nil: the image's
	Command               []string
	Env                   []string
	User, WorkingDir      string
	CapAdd, CapDrop       []string
	SecurityOpt, GroupAdd []string
	ExtraHosts, DNS       []string
	Runtime               string
	ReadOnly, Privileged  bool
	Init                  *bool
	Memory                int64   // bytes; 0 for no limit
	CPUs                  float64 // 0 for no limit
	Labels                map[string]string
	Mounts                []RunMount
	Files                 []RunFile
	// NetworkMode is Compose's, or empty for Networks. Of these, those that exist
	// are joined; if none does, as on a machine where the project never ran, the
	// engine's default network serves.
	NetworkMode string
	Networks    []string

	Stdin          io.Reader // nil: none
	Stdout, Stderr io.Writer
	// TTY gives it a terminal: Stdout then gets all, and Resize the sizes of the window.
	TTY    bool
	Resize <-chan Window
}

// Window is the size of a terminal.
type Window struct{ Width, Height uint }

// RunMount is a mount of a one-off container.
type RunMount struct {
	Type       string // volume, bind, tmpfs
	Source     string // the engine's name of a volume, or a path
	Target     string
	ReadOnly   bool
	CreatePath bool // make a directory that is to be bound and is not there
	NoCopy     bool
	Subpath    string
	Size       int64
}

// RunFile is a file for a container: one of this machine, or a content.
type RunFile struct {
	Target   string
	Source   string // path on this machine
	Content  []byte // where Source is empty
	Mode     fs.FileMode
	UID, GID int
}

// Run runs a one-off container attached to Stdin, Stdout and Stderr, removes it,
// and returns its exit code. When ctx ends it gets a SIGTERM and is waited for.
//
// A file of this machine is mounted where the engine is local; for another machine's
// engine, and where there is only a content, it is copied into the container, which
// then has a writable root: the engine copies into no other.
func (e *Engine) Run(ctx context.Context, o RunOptions) (int, error) {
	config, host, copies, err := runConfig(o, e.Local)
	if err != nil {
		return 0, err
	}
	others, err := e.chooseNetworks(ctx, o, host)
	if err != nil {
		return 0, err
	}
	fail := func(err error) (int, error) {
		return 0, fmt.Errorf("run service %s: %w", o.Service, explainAccess(err))
	}
	created, err := e.api.ContainerCreate(ctx, config, host, nil, nil, "")
	if err != nil {
		return fail(err)
	}
	code, err := e.attached(ctx, created.ID, o, others, copies)
	if rerr := e.removeContainer(context.WithoutCancel(ctx), created.ID); rerr != nil && err == nil {
		err = rerr
	}
	if err != nil {
		return fail(err)
	}
	return code, nil
}

func runConfig(o RunOptions, local bool) (*container.Config, *container.HostConfig, []RunFile, error) {
	labels := map[string]string{}
	for k, v := range o.Labels {
		labels[k] = v
	}
	labels[labelProject], labels[labelService], labels[labelOneOff], labels[labelNumber] = o.Project, o.Service, "True", "1"
	if o.Dir != "" {
		labels[labelDir] = o.Dir
	}
	config := &container.Config{
		Image: o.Image, Entrypoint: o.Entrypoint, Cmd: o.Command, Env: o.Env, User: o.User, WorkingDir: o.WorkingDir, Labels: labels,
		Tty: o.TTY, OpenStdin: o.Stdin != nil, StdinOnce: o.Stdin != nil, AttachStdin: o.Stdin != nil, AttachStdout: true, AttachStderr: true,
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}
	host := &container.HostConfig{
		CapAdd: o.CapAdd, CapDrop: o.CapDrop, SecurityOpt: o.SecurityOpt, GroupAdd: o.GroupAdd, ExtraHosts: o.ExtraHosts, DNS: o.DNS,
		Runtime: o.Runtime, ReadonlyRootfs: o.ReadOnly, Privileged: o.Privileged, Init: o.Init,
		Resources: container.Resources{Memory: o.Memory, NanoCPUs: int64(o.CPUs * 1e9)},
	}
	for _, m := range o.Mounts {
		own := mount.Mount{Type: mount.Type(m.Type), Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly}
		switch own.Type {
		case mount.TypeVolume:
			own.VolumeOptions = &mount.VolumeOptions{NoCopy: m.NoCopy, Subpath: m.Subpath}
		case mount.TypeBind:
			if m.CreatePath { // the older form of a bind makes the directory, on every engine
				mode := "rw"
				if m.ReadOnly {
					mode = "ro"
				}
				host.Binds = append(host.Binds, m.Source+":"+m.Target+":"+mode)
				continue
			}
		case mount.TypeTmpfs:
			own.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: m.Size}
		default:
			return nil, nil, nil, fmt.Errorf("run service %s: a mount of type %s at %s is not supported; run it with `docker compose run`", o.Service, m.Type, m.Target)
		}
		host.Mounts = append(host.Mounts, own)
	}
	var copies []RunFile
	for _, f := range o.Files {
		if local && f.Source != "" {
			host.Mounts = append(host.Mounts, mount.Mount{Type: mount.TypeBind, Source: f.Source, Target: f.Target, ReadOnly: true})
			continue
		}
		copies = append(copies, f)
		host.ReadonlyRootfs = false
	}
	return config, host, copies, nil
}

// States are those of a project's services that have containers: "running" if one
// of the containers is, else that of one of them.
func (e *Engine) States(ctx context.Context, project string) (map[string]string, error) {
	list, err := e.containersLabelled(ctx, labelProject+"="+project)
	if err != nil {
		return nil, fmt.Errorf("list the containers of project %s: %w", project, explainAccess(err))
	}
	states := map[string]string{}
	for _, c := range list {
		if name := c.Labels[labelService]; !c.OneOff && states[name] != "running" {
			states[name] = c.State
		}
	}
	return states, nil
}

// chooseNetworks sets the first network of the container and returns the others:
// engines before 25 take one only when it is created.
func (e *Engine) chooseNetworks(ctx context.Context, o RunOptions, host *container.HostConfig) (others []string, err error) {
	if other, ok := strings.CutPrefix(o.NetworkMode, "service:"); ok {
		list, err := e.containersLabelled(ctx, labelProject+"="+o.Project)
		if err != nil {
			return nil, fmt.Errorf("run service %s: look for service %s, whose network it shares: %w", o.Service, other, explainAccess(err))
		}
		for _, c := range list {
			if c.Labels[labelService] == other && c.State == "running" && !c.OneOff {
				host.NetworkMode = container.NetworkMode("container:" + c.ID)
			}
		}
		return nil, nil
	}
	if o.NetworkMode != "" {
		host.NetworkMode = container.NetworkMode(o.NetworkMode)
		return nil, nil
	}
	for _, name := range o.Networks {
		_, err := e.api.NetworkInspect(ctx, name, network.InspectOptions{})
		switch {
		case cerrdefs.IsNotFound(err):
		case err != nil:
			return nil, fmt.Errorf("run service %s: look for network %s: %w", o.Service, name, explainAccess(err))
		case host.NetworkMode == "":
			host.NetworkMode = container.NetworkMode(name)
		default:
			others = append(others, name)
		}
	}
	return others, nil
}

// attached starts a container, serves its streams and waits for its end.
func (e *Engine) attached(ctx context.Context, id string, o RunOptions, networks []string, files []RunFile) (int, error) {
	for _, n := range networks {
		if err := e.api.NetworkConnect(ctx, n, id, nil); err != nil {
			return 0, fmt.Errorf("join network %s: %w", n, err)
		}
	}
	if len(files) > 0 {
		archive, err := packFiles(files)
		if err != nil {
			return 0, err
		}
		if err := e.api.CopyToContainer(ctx, id, "/", archive, container.CopyToContainerOptions{}); err != nil {
			return 0, fmt.Errorf("copy secrets and configs: %w", err)
		}
	}
	lasting := context.WithoutCancel(ctx)
	conn, err := e.api.ContainerAttach(lasting, id, container.AttachOptions{Stream: true, Stdin: o.Stdin != nil, Stdout: true, Stderr: true})
	if err != nil {
		return 0, fmt.Errorf("attach: %w", err)
	}
	defer conn.Close()
	exited, failed := e.api.ContainerWait(lasting, id, container.WaitConditionNextExit)
	if err := e.api.ContainerStart(ctx, id, container.StartOptions{}); err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() {
		seconds := int(runGrace.Seconds())
		// What it has to say of it comes with its end.
		_ = e.api.ContainerStop(lasting, id, container.StopOptions{Timeout: &seconds})
	})
	defer stop()
	if o.Stdin != nil {
		go func() { // may wait for a key that nobody presses: it ends with the program
			_, _ = io.Copy(conn.Conn, o.Stdin)
			_ = conn.CloseWrite()
		}()
	}
	ended := make(chan struct{})
	defer close(ended)
	if o.TTY && o.Resize != nil {
		go func() {
			for {
				select {
				case w := <-o.Resize:
					_ = e.api.ContainerResize(lasting, id, container.ResizeOptions{Width: w.Width, Height: w.Height}) // of no consequence
				case <-ended:
					return
				}
			}
		}()
	}
	var cerr error
	if o.TTY {
		_, cerr = io.Copy(o.Stdout, conn.Reader)
	} else {
		_, cerr = stdcopy.StdCopy(o.Stdout, o.Stderr, conn.Reader)
	}
	select {
	case r := <-exited:
		if r.Error != nil && r.Error.Message != "" {
			return 0, errors.New(r.Error.Message)
		}
		if cerr != nil {
			return 0, fmt.Errorf("read its output: %w", cerr)
		}
		return int(r.StatusCode), nil
	case err := <-failed:
		return 0, fmt.Errorf("wait for its end: %w", err)
	}
}

// packFiles makes an archive of files. The engine makes directories that are
// missing, and leaves those that are there as they are.
func packFiles(files []RunFile) (io.Reader, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		content := f.Content
		if f.Source != "" {
			var err error
			if content, err = os.ReadFile(f.Source); err != nil {
				return nil, err
			}
		}
		h := tar.Header{Name: strings.TrimPrefix(path.Clean(f.Target), "/"), Mode: int64(f.Mode.Perm()), Size: int64(len(content)), Uid: f.UID, Gid: f.GID}
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	return &b, w.Close()
}
