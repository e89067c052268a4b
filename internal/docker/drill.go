package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/pkg/stdcopy"
)

// DrillOf is what a drill is to check of a service, and the container whose
// image and settings its program is started with.
type DrillOf struct {
	Service   string
	Container Container
	Check     Check
}

// Drills lists the checks that the labels of a stack's services ask for.
func Drills(s *Stack, own []string) ([]DrillOf, error) {
	policies, err := Policies(s, own)
	if err != nil {
		return nil, err
	}
	var out []DrillOf
	for i := range s.Services {
		svc := &s.Services[i]
		if check := policies[svc.Name].Drill; check.Set() && !svc.owned(own) && len(svc.Containers) > 0 {
			out = append(out, DrillOf{svc.Name, svc.Containers[0], check})
		}
	}
	return out, nil
}

// ScratchOwner says for whom something is made that a drill leaves behind if it is killed.
type ScratchOwner struct {
	Container string // the id of the own one
	Stack     string
}

// scratchLabels are the labels of what is made for o. A container that was killed
// and started again is another maker: the times at which things were made would not
// tell, as engines give a volume's in seconds.
func (e *Engine) scratchLabels(ctx context.Context, o ScratchOwner) (map[string]string, error) {
	gone, since, err := e.owner(ctx, o.Container)
	if err == nil && gone {
		err = fmt.Errorf("container %.12s does not run", o.Container)
	}
	if err != nil {
		return nil, fmt.Errorf("look for the container that drills: %w", err)
	}
	return map[string]string{labelScratch: o.Container, labelScratchSince: since, labelScratchStack: o.Stack}, nil
}

// CreateScratch makes an empty volume for a drill. RemoveScratch removes it.
func (e *Engine) CreateScratch(ctx context.Context, o ScratchOwner, name string) error {
	labels, err := e.scratchLabels(ctx, o)
	if err != nil {
		return err
	}
	if _, err := e.api.VolumeCreate(ctx, volume.CreateOptions{Name: name, Labels: labels}); err != nil {
		return fmt.Errorf("create the scratch volume %s: %w", name, explainAccess(err))
	}
	return nil
}

// RemoveScratch removes a volume of a drill, whether or not ctx is cancelled; an
// absent one is no error. A container that is being removed is waited for.
func (e *Engine) RemoveScratch(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUp)
	defer cancel()
	for {
		err := e.api.VolumeRemove(ctx, name, false)
		switch {
		case err == nil, cerrdefs.IsNotFound(err):
			return nil
		case cerrdefs.IsConflict(err) && sleep(ctx, pollEvery) == nil:
		default:
			return fmt.Errorf("remove the scratch volume %s: %w", name, explainAccess(err))
		}
	}
}

// CleanDrills removes the containers and volumes of drills that were killed: whose
// maker is gone, does not run, or was started after them; and all of o, of which
// no other drill may be under way. An empty Container leaves the latter out.
// It returns how many.
func (e *Engine) CleanDrills(ctx context.Context, o ScratchOwner) (int, error) {
	list, err := e.containersLabelled(ctx, labelScratch)
	if err != nil {
		return 0, fmt.Errorf("look for what drills have left: %w", explainAccess(err))
	}
	removed := 0
	var errs []error
	for _, c := range list {
		left, err := e.scratchLeft(ctx, c.Labels, o)
		if err == nil && left {
			err = e.removeContainer(ctx, c.ID)
			removed++
		}
		errs = append(errs, err)
	}
	all, err := e.api.VolumeList(ctx, volume.ListOptions{Filters: filters.NewArgs(filters.Arg("label", labelScratch))})
	if err != nil {
		return removed, errors.Join(append(errs, fmt.Errorf("look for volumes that drills have left: %w", explainAccess(err)))...)
	}
	for _, v := range all.Volumes {
		left, err := e.scratchLeft(ctx, v.Labels, o)
		if err == nil && left {
			err = e.RemoveScratch(ctx, v.Name)
			removed++
		}
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

func (e *Engine) scratchLeft(ctx context.Context, labels map[string]string, o ScratchOwner) (bool, error) {
	if o.Container != "" && labels[labelScratch] == o.Container && labels[labelScratchStack] == o.Stack {
		return true, nil
	}
	gone, since, err := e.owner(ctx, labels[labelScratch])
	if err != nil {
		return false, fmt.Errorf("look for what drills have left: %w", err)
	}
	return gone || labels[labelScratchSince] != since, nil
}

// DrillRun says how a service's program is started on scratch volumes.
type DrillRun struct {
	DrillOf
	Owner ScratchOwner
	// Scratch are the volumes to mount in place of the service's own, by the engine's
	// name of these, or by the path on the engine's machine for bind mounts.
	Scratch map[string]string
}

// ErrCheck: the program ran, or was to run, on what was restored, and it is not good.
var ErrCheck = errors.New("the check failed")

// Drill starts a service's program on scratch volumes and checks it: the same
// image, command, environment and user; but no network, no port, no other mount, and
// none of the rights over the machine that the service may have. Files below
// /run/secrets are copied. The container is removed, whatever happens. An
// ErrCheck where what was restored is not good; else the engine could not do it.
func (e *Engine) Drill(ctx context.Context, d DrillRun) (err error) {
	doing := fmt.Sprintf("drill service %s", d.Service)
	c, err := e.api.ContainerInspect(ctx, d.Container.ID)
	if err != nil {
		return fmt.Errorf("%s: inspect container %s: %w", doing, d.Container.Name, explainAccess(err))
	}
	config, host, err := drillConfig(d, c)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if config.Labels, err = e.scratchLabels(ctx, d.Owner); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	secrets, err := e.secretsOf(ctx, d.Container.ID)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if secrets != nil {
		host.ReadonlyRootfs = false // the engine copies into no other
	}
	created, err := e.api.ContainerCreate(ctx, config, host, nil, nil, "")
	if err != nil {
		return fmt.Errorf("%s: create a container of image %s: %w", doing, d.Container.Name, explainAccess(err))
	}
	defer func() { err = errors.Join(err, e.removeContainer(context.WithoutCancel(ctx), created.ID)) }()
	if secrets != nil {
		if err := e.api.CopyToContainer(ctx, created.ID, "/run", bytes.NewReader(secrets), container.CopyToContainerOptions{}); err != nil {
			return fmt.Errorf("%s: copy its secrets: %w", doing, explainAccess(err))
		}
	}
	limited, cancel := context.WithTimeoutCause(ctx, d.Check.Timeout, fmt.Errorf("it took longer than %s (label %s.timeout says how long it may)", d.Check.Timeout, labelDrill))
	defer cancel()
	if err := e.api.ContainerStart(limited, created.ID, container.StartOptions{}); err != nil {
		return fmt.Errorf("%s: start its program: %w", doing, explainAccess(err))
	}
	err = e.check(limited, d.Check, Container{ID: created.ID, Name: created.ID[:12]}, config.Healthcheck)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", doing, ctx.Err())
	}
	return fmt.Errorf("%s by %s: %w: %w%s", doing, d.Check, ErrCheck, err, e.lastWords(ctx, created.ID))
}

// healthEvery is how often a container's health check is run in a drill.
const healthEvery = time.Second

func drillConfig(d DrillRun, c container.InspectResponse) (*container.Config, *container.HostConfig, error) {
	if c.Config == nil || c.HostConfig == nil {
		return nil, nil, errors.New("the engine does not tell how its container was made")
	}
	health := &container.HealthConfig{Test: []string{"NONE"}}
	if h := c.Config.Healthcheck; d.Check.Kind == "" && h != nil && len(h.Test) > 0 && h.Test[0] != "NONE" {
		health = &container.HealthConfig{Test: h.Test, Interval: healthEvery, Timeout: h.Timeout, Retries: h.Retries}
	}
	config := &container.Config{
		Image: c.Image, Hostname: c.Config.Hostname, Domainname: c.Config.Domainname, User: c.Config.User, Tty: c.Config.Tty,
		Env: c.Config.Env, Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, WorkingDir: c.Config.WorkingDir,
		StopSignal: c.Config.StopSignal, Healthcheck: health,
	}
	own := c.HostConfig
	host := &container.HostConfig{
		NetworkMode: "none", RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
		LogConfig: container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "1m"}},
		CapAdd:    own.CapAdd, CapDrop: own.CapDrop, GroupAdd: own.GroupAdd, SecurityOpt: own.SecurityOpt,
		ReadonlyRootfs: own.ReadonlyRootfs, UsernsMode: own.UsernsMode, Runtime: own.Runtime, Init: own.Init,
		ShmSize: own.ShmSize, Tmpfs: own.Tmpfs,
		Resources: container.Resources{
			Memory: own.Memory, MemorySwap: own.MemorySwap, NanoCPUs: own.NanoCPUs, CPUQuota: own.CPUQuota, CPUPeriod: own.CPUPeriod,
			PidsLimit: own.PidsLimit, Ulimits: own.Ulimits, CgroupParent: own.CgroupParent,
		},
	}
	subpaths := map[string]string{}
	for _, m := range own.Mounts {
		if m.Type == mount.TypeTmpfs {
			host.Mounts = append(host.Mounts, m)
		}
		if m.VolumeOptions != nil {
			subpaths[m.Target] = m.VolumeOptions.Subpath
		}
	}
	mounted := false
	for _, m := range mounts(c.Mounts) {
		scratch := d.Scratch[m.Name]
		if m.Name == "" {
			scratch = d.Scratch[m.Source]
		}
		if scratch == "" {
			continue
		}
		mounted = true
		host.Mounts = append(host.Mounts, mount.Mount{
			Type: mount.TypeVolume, Source: scratch, Target: m.Destination, ReadOnly: !m.RW,
			VolumeOptions: &mount.VolumeOptions{NoCopy: true, Subpath: subpaths[m.Destination]},
		})
	}
	if !mounted {
		return nil, nil, errors.New("it mounts none of the volumes of the snapshot")
	}
	return config, host, nil
}

// maxSecrets bounds what is copied from /run/secrets.
const maxSecrets = 8 << 20

// secretsOf is an archive of a container's /run/secrets; nil where there is none.
func (e *Engine) secretsOf(ctx context.Context, id string) ([]byte, error) {
	r, _, err := e.api.CopyFromContainer(ctx, id, "/run/secrets")
	if cerrdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read its secrets: %w", explainAccess(err))
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxSecrets+1))
	if err == nil && len(data) > maxSecrets {
		err = fmt.Errorf("/run/secrets has more than %d bytes", maxSecrets)
	}
	if err != nil {
		return nil, fmt.Errorf("read its secrets: %w", err)
	}
	return data, nil
}

// check waits until the program can be asked, and asks it.
func (e *Engine) check(ctx context.Context, check Check, c Container, health *container.HealthConfig) error {
	if health.Test[0] != "NONE" {
		if err := e.healthy(ctx, c); err != nil {
			return err
		}
	}
	cmd := command{script: check.Command, user: check.User}
	switch kind := check.Kind; kind {
	case "":
	case MariaDB:
		cmd.script = checkScripts[MySQL]
	default:
		cmd.script = checkScripts[kind]
	}
	if check.Kind == Redis {
		password, err := e.requirePass(ctx, c)
		if err != nil {
			return err
		}
		if password != "" {
			cmd.env = append(cmd.env, "BACKUPD_REQUIREPASS="+password)
		}
	}
	return e.run(ctx, c, cmd, 0)
}

// healthy waits until a container's own health check is content.
func (e *Engine) healthy(ctx context.Context, c Container) error {
	for {
		i, err := e.api.ContainerInspect(ctx, c.ID)
		switch {
		case err != nil:
			return errors.Join(context.Cause(ctx), err)
		case i.State == nil || !i.State.Running:
			return errors.New("its program ended before it was healthy")
		case i.State.Health != nil && i.State.Health.Status == container.Healthy:
			return nil
		}
		if sleep(ctx, pollEvery) != nil {
			return fmt.Errorf("its program did not become healthy: %w", context.Cause(ctx))
		}
	}
}

// lastWords says how a container ended, if it did, and what it wrote last.
func (e *Engine) lastWords(ctx context.Context, id string) string {
	var out tail
	if r, err := e.api.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true, ShowStderr: true, Tail: "10"}); err == nil {
		defer r.Close()
		// A terminal's output has no frames; then there is nothing to say.
		_, _ = stdcopy.StdCopy(&out, &out, r)
	}
	said := strings.Replace(out.said(), "; it said last: ", "; its log ends in: ", 1)
	i, err := e.api.ContainerInspect(ctx, id)
	if err != nil || i.State == nil || i.State.Running {
		return said
	}
	return fmt.Sprintf("; its program ended with exit code %d%s", i.State.ExitCode, said)
}

// ScratchName is a name for a scratch volume of a run, after the volume that it stands for.
func ScratchName(run, volume string) string {
	name := []byte("backupd-drill-" + run + "-" + volume)
	return string(slices.DeleteFunc(name, func(b byte) bool { return b == '/' }))
}
