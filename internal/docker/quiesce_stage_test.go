package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/volume"
)

// stage is a real engine on which a test plays a Compose project, which is gone after it.
type stage struct {
	*Engine
	t       *testing.T
	project string
	image   string
	state   string
}

// shell is an image of this machine's sh and a few programs, so that hooks can be
// run without a registry. It is imported once for all tests.
var shell struct {
	sync.Once
	image string
	err   error
}

func newStage(t *testing.T) *stage {
	t.Helper()
	e := machine(t)
	shell.Do(func() { shell.image, shell.err = importShell(t.Context(), e) })
	if shell.err != nil {
		t.Fatalf("make an image of this machine's shell: %v", shell.err)
	}
	return &stage{Engine: e, t: t, project: "quiesce-" + strings.ToLower(rand.Text()[:8]), image: shell.image, state: t.TempDir()}
}

// importShell returns the image's name, which has a hash of what is in it: the same
// one is imported once and stays.
func importShell(ctx context.Context, e *Engine) (string, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	done := map[string]bool{}
	var parents func(name string) error
	parents = func(name string) error {
		dir := filepath.Dir(name)
		if dir == "." || done[dir] {
			return nil
		}
		done[dir] = true
		if err := parents(dir); err != nil {
			return err
		}
		return w.WriteHeader(&tar.Header{Name: dir + "/", Mode: 0o755, Typeflag: tar.TypeDir})
	}
	for _, program := range []string{"sh", "cat", "grep", "id", "mkdir", "rm", "sed", "sleep", "touch"} {
		path, err := exec.LookPath(program)
		if err != nil {
			return "", err
		}
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return "", err
		}
		out, err := exec.Command("ldd", path).Output()
		if err != nil {
			return "", fmt.Errorf("ldd %s: %w", path, err)
		}
		files := []string{path}
		for _, word := range strings.Fields(string(out)) {
			if strings.HasPrefix(word, "/") {
				files = append(files, word)
			}
		}
		for i, name := range files {
			in := name
			if i == 0 {
				in = "/bin/" + program
			}
			if done[in] {
				continue
			}
			done[in] = true
			// Directories without an entry of their own are root's alone on a rootless engine.
			if err := parents(strings.TrimPrefix(in, "/")); err != nil {
				return "", err
			}
			data, err := os.ReadFile(name)
			if err != nil {
				return "", err
			}
			if err := w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(in, "/"), Mode: 0o755, Size: int64(len(data))}); err != nil {
				return "", err
			}
			if _, err := w.Write(data); err != nil {
				return "", err
			}
		}
	}
	for _, dir := range []string{"tmp", "data", "etc"} {
		if err := w.WriteHeader(&tar.Header{Name: dir + "/", Mode: 0o777, Typeflag: tar.TypeDir}); err != nil {
			return "", err
		}
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	name := fmt.Sprintf("backupd:test-quiesce-%.6x", sha256.Sum256(layer.Bytes()))
	if _, err := e.api.ImageInspect(ctx, name); err == nil {
		return name, nil
	}
	return name, importImage(ctx, e, name, &layer)
}

// idle runs until it is told to end.
const idle = `trap 'exit 0' TERM; while :; do sleep 1000 & wait; done`

// part is a container of a service.
type part struct {
	project string // empty: the stage's
	service string
	number  int // 0: 1
	script  string
	user    string
	env     []string
	labels  map[string]string
	mounts  []string // "volume:/path[:ro]"
	needs   string   // "db:service_started:false"
	health  bool
	oneOff  bool
	config  func(*container.Config, *container.HostConfig)
	stopped bool // created, not started
}

func (s *stage) add(p part) string {
	s.t.Helper()
	project := p.project
	if project == "" {
		project = s.project
	}
	number := max(p.number, 1)
	labels := map[string]string{
		labelProject: project, labelService: p.service, labelNumber: strconv.Itoa(number),
		labelOneOff: "False", labelDependsOn: p.needs,
	}
	name := fmt.Sprintf("%s-%s-%d", project, p.service, number)
	if p.oneOff {
		labels[labelOneOff] = "True"
		name = fmt.Sprintf("%s-%s-run-%d", project, p.service, number)
	}
	if p.script == "" {
		p.script = idle
	}
	for k, v := range p.labels {
		labels[k] = v
	}
	c := &container.Config{Image: s.image, Cmd: []string{"sh", "-c", p.script}, Labels: labels, User: p.user, Env: p.env}
	if p.health {
		c.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "true"}, Interval: time.Hour}
	}
	h := &container.HostConfig{NetworkMode: "none", Binds: p.mounts}
	if p.config != nil {
		p.config(c, h)
	}
	made, err := s.api.ContainerCreate(s.t.Context(), c, h, nil, nil, name)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		ctx, cancel := s.later()
		defer cancel()
		_ = s.api.ContainerUnpause(ctx, made.ID)
		_ = s.api.ContainerRemove(ctx, made.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
	})
	if !p.stopped {
		if err := s.api.ContainerStart(s.t.Context(), made.ID, container.StartOptions{}); err != nil {
			s.t.Fatal(err)
		}
	}
	return made.ID
}

// pauses leaves a test to engines that can pause: a rootless one that systemd
// does not run cannot (make rootless).
func (s *stage) pauses() {
	s.t.Helper()
	if s.NoCgroups {
		s.t.Skip("this engine has no control groups: it cannot pause")
	}
}

// later is a ctx for clean-up.
func (s *stage) later() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(s.t.Context()), time.Minute)
}

// volume makes a volume and returns the engine's name for it.
func (s *stage) volume(key string) string {
	s.t.Helper()
	v, err := s.api.VolumeCreate(s.t.Context(), volume.CreateOptions{
		Name: s.project + "_" + key, Labels: map[string]string{labelProject: s.project, labelVolume: key},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	// Registered before the containers', so that it runs after them.
	s.t.Cleanup(func() {
		ctx, cancel := s.later()
		defer cancel()
		_ = s.api.VolumeRemove(ctx, v.Name, true)
	})
	return v.Name
}

func (s *stage) quiescer(volumes ...string) *Quiescer {
	return s.Quiescer(QuiesceOptions{Project: s.project, Volumes: volumes, StateDir: s.state, Run: "run-" + strings.ToLower(rand.Text()[:6])})
}

// states are those of containers: running, paused, exited ...
func (s *stage) states(ids ...string) []string {
	s.t.Helper()
	ctx, cancel := s.later()
	defer cancel()
	var out []string
	for _, id := range ids {
		c, err := s.api.ContainerInspect(ctx, id)
		if err != nil {
			out = append(out, "gone")
			continue
		}
		out = append(out, c.State.Status)
	}
	return out
}

func (s *stage) wantStates(when string, ids []string, want ...string) {
	s.t.Helper()
	if got := s.states(ids...); !slices.Equal(got, want) {
		s.t.Errorf("%s: states are %v, want %v", when, got, want)
	}
}

// sh runs a script in a container and returns what it wrote.
func (s *stage) sh(id, script string) (string, error) {
	s.t.Helper()
	ctx, cancel := s.later()
	defer cancel()
	p, err := s.start(ctx, Container{ID: id, Name: id}, command{script: script})
	if err != nil {
		return "", err
	}
	defer p.conn.Close()
	out, err := io.ReadAll(p)
	if err != nil {
		return string(out), err
	}
	return string(out), p.status(ctx)
}

func (s *stage) mustSh(id, script string) string {
	s.t.Helper()
	out, err := s.sh(id, script)
	if err != nil {
		s.t.Fatalf("%s: %v", script, err)
	}
	return out
}

// journals are the names of those that are there.
func (s *stage) journals() []string {
	s.t.Helper()
	list, err := LeftOver(s.state)
	if err != nil {
		s.t.Fatal(err)
	}
	return list
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
