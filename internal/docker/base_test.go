package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/pkg/stdcopy"
)

// lab is a real engine, with an image of the probe, where a test makes
// things that are removed after it.
type lab struct {
	*Engine
	t      *testing.T
	prefix string
}

const probeImage = "backupd:test-dockerbase"

var probe struct { // built once for all tests
	sync.Once
	id  string
	err error
}

// machine is the machine's engine.
func machine(t *testing.T) *Engine {
	t.Helper()
	e, err := Connect(t.Context(), func(text string) { t.Log(text) })
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("needs a Docker engine: %v", err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func newLab(t *testing.T) *lab {
	t.Helper()
	e := machine(t)
	probe.Do(func() { probe.id, probe.err = importProbe(e) })
	if probe.err != nil {
		t.Fatal(probe.err)
	}
	return &lab{e, t, "dockerbase-" + strings.ToLower(rand.Text()[:8])}
}

// importProbe makes an image of nothing but the probe.
func importProbe(e *Engine) (string, error) {
	dir, err := os.MkdirTemp("", "probe-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "probe")
	cmd := exec.Command("go", "build", "-o", bin, "./testdata/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the probe: %w: %s", err, out)
	}
	program, err := os.ReadFile(bin)
	if err != nil {
		return "", err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, h := range []tar.Header{{Name: "probe", Mode: 0o755, Size: int64(len(program))}, {Name: "tmp/", Mode: 0o777, Typeflag: tar.TypeDir}} {
		if err := w.WriteHeader(&h); err != nil {
			return "", err
		}
		if h.Size > 0 {
			if _, err := w.Write(program); err != nil {
				return "", err
			}
		}
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := importImage(ctx, e, probeImage, &layer, `ENTRYPOINT ["/probe"]`, `CMD ["sleep"]`, `LABEL of-the-image=yes`); err != nil {
		return "", err
	}
	info, err := e.api.ImageInspect(ctx, probeImage)
	return info.ID, err
}

// importImage makes an image of one layer; changes are lines of a Dockerfile.
func importImage(ctx context.Context, e *Engine, name string, layer io.Reader, changes ...string) error {
	r, err := e.api.ImageImport(ctx, image.ImportSource{Source: layer, SourceName: "-"}, name, image.ImportOptions{Changes: changes})
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

// lasting is a ctx for clean-up, when the test's own has ended.
func lasting(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// create makes a container of the probe; change may alter what it is like.
func (l *lab) create(name string, cmd []string, change func(*container.Config, *container.HostConfig)) string {
	l.t.Helper()
	c := &container.Config{Image: probeImage, Cmd: cmd, Labels: map[string]string{}}
	h := &container.HostConfig{NetworkMode: "none"}
	if change != nil {
		change(c, h)
	}
	made, err := l.api.ContainerCreate(l.t.Context(), c, h, nil, nil, l.prefix+"-"+name)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = l.api.ContainerRemove(lasting(l.t), made.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
	})
	return made.ID
}

func (l *lab) start(id string) {
	l.t.Helper()
	if err := l.api.ContainerStart(l.t.Context(), id, container.StartOptions{}); err != nil {
		l.t.Fatal(err)
	}
}

// run makes a container, runs it to its end and returns stdout, stderr and exit code.
func (l *lab) run(name string, cmd []string, change func(*container.Config, *container.HostConfig)) (stdout, stderr string, code int) {
	l.t.Helper()
	id := l.create(name, cmd, change)
	wait, failed := l.api.ContainerWait(l.t.Context(), id, container.WaitConditionNextExit)
	l.start(id)
	select {
	case r := <-wait:
		code = int(r.StatusCode)
	case err := <-failed:
		l.t.Fatal(err)
	}
	r, err := l.api.ContainerLogs(l.t.Context(), id, container.LogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		l.t.Fatal(err)
	}
	defer r.Close()
	var out, errs bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &errs, r); err != nil {
		l.t.Fatal(err)
	}
	return out.String(), errs.String(), code
}

func (l *lab) volume(key string, o volume.CreateOptions) string {
	l.t.Helper()
	o.Name = l.prefix + "_" + key
	if _, err := l.api.VolumeCreate(l.t.Context(), o); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = l.api.VolumeRemove(lasting(l.t), o.Name, true) })
	return o.Name
}

func (l *lab) network(name string) string {
	l.t.Helper()
	name = l.prefix + "_" + name
	made, err := l.api.NetworkCreate(l.t.Context(), name, network.CreateOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = l.api.NetworkRemove(lasting(l.t), made.ID) })
	return name
}

// inspected describes a container as if this process ran in it.
func (l *lab) inspected(id string) *Self {
	l.t.Helper()
	c, err := l.api.ContainerInspect(l.t.Context(), id)
	if err != nil {
		l.t.Fatal(err)
	}
	return describeSelf(c)
}

// compose labels a container as Compose does.
func compose(project, service string, more ...string) func(*container.Config, *container.HostConfig) {
	return func(c *container.Config, _ *container.HostConfig) {
		c.Labels[labelProject], c.Labels[labelService], c.Labels[labelNumber] = project, service, "1"
		c.Labels[labelOneOff] = "False"
		for _, m := range more {
			k, v, _ := strings.Cut(m, "=")
			c.Labels[k] = v
		}
	}
}

// all applies several changes.
func all(changes ...func(*container.Config, *container.HostConfig)) func(*container.Config, *container.HostConfig) {
	return func(c *container.Config, h *container.HostConfig) {
		for _, f := range changes {
			f(c, h)
		}
	}
}

func binds(list ...string) func(*container.Config, *container.HostConfig) {
	return func(_ *container.Config, h *container.HostConfig) { h.Binds = append(h.Binds, list...) }
}

func onNetwork(mode string) func(*container.Config, *container.HostConfig) {
	return func(_ *container.Config, h *container.HostConfig) { h.NetworkMode = container.NetworkMode(mode) }
}
