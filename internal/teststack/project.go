package teststack

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// startLimit bounds what a service of a test needs to become healthy on a busy machine.
const startLimit = 3 * time.Minute

// Project is one checkout of a Compose project: a directory with its Compose
// file, under a project name. Two of them with the same Compose file are a
// server and a clone.
type Project struct {
	Name string // as in docker compose -p
	Dir  string
	Env  map[string]string // of docker compose, beside the process's own
	t    testing.TB
}

// NewProject writes a Compose file into a directory of its own, under a project
// name that begins with prefix and is nobody else's. Containers, volumes and
// networks of the project are removed when the test ends, also those that the
// Compose file does not name.
func NewProject(t testing.TB, prefix, composeFile string) *Project {
	t.Helper()
	Engine(t)
	script(t, "test/compose")
	p := &Project{Name: Unique(prefix), Dir: t.TempDir(), Env: map[string]string{}, t: t}
	p.Write("compose.yaml", composeFile)
	t.Cleanup(p.Remove)
	return p
}

// Unique returns prefix with a random end, as a name for Docker's things.
func Unique(prefix string) string { return prefix + "-" + strings.ToLower(rand.Text()[:10]) }

// Write puts a file into the project's directory.
func (p *Project) Write(name, content string) {
	p.t.Helper()
	path := filepath.Join(p.Dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// Try runs docker compose; its error holds what went to stderr.
func (p *Project) Try(args ...string) (stdout string, err error) {
	stdout, _, err = p.try(p.t.Context(), args...)
	return stdout, err
}

func (p *Project) try(ctx context.Context, args ...string) (stdout, stderr string, err error) {
	var env []string
	for _, name := range slices.Sorted(maps.Keys(p.Env)) {
		env = append(env, name+"="+p.Env[name])
	}
	return try(ctx, p.Dir, env, append([]string{"compose", "--progress", "plain", "-p", p.Name}, args...))
}

// Output runs docker compose, which must succeed, and returns all that a person
// would have read: warnings too.
func (p *Project) Output(args ...string) string {
	p.t.Helper()
	stdout, stderr, err := p.try(p.t.Context(), args...)
	if err != nil {
		p.t.Fatalf("docker compose %s: %v\n%s\n--- logs\n%s", strings.Join(args, " "), err, stdout, p.Logs())
	}
	return stdout + stderr
}

// Compose runs docker compose, which must succeed, and returns what it printed.
// When it fails, the services' logs are shown.
func (p *Project) Compose(args ...string) string {
	p.t.Helper()
	out, err := p.Try(args...)
	if err != nil {
		p.t.Fatalf("docker compose %s: %v\n%s\n--- logs\n%s", strings.Join(args, " "), err, out, p.Logs())
	}
	return out
}

// Up starts services, all without arguments, and returns when docker compose up
// -d does: dependents have been waited for, and the services themselves not.
func (p *Project) Up(services ...string) {
	p.t.Helper()
	p.Compose(append([]string{"up", "-d"}, services...)...)
}

// Exec runs a command in a running service, which must succeed.
func (p *Project) Exec(service string, args ...string) string {
	p.t.Helper()
	return p.Compose(append([]string{"exec", "-T", service}, args...)...)
}

// Logs are those of some services, or of all, with their names before each line.
func (p *Project) Logs(services ...string) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.t.Context()), time.Minute)
	defer cancel()
	out, _, err := p.try(ctx, append([]string{"logs", "--no-color"}, services...)...)
	if err != nil {
		return fmt.Sprintf("docker compose logs: %v", err)
	}
	return out
}

// Container is the id of a service's only container, also a stopped one; "" is none.
func (p *Project) Container(service string) string {
	p.t.Helper()
	return strings.TrimSpace(p.Compose("ps", "-aq", service))
}

// State of a service's container.
type State struct {
	Status   string // created, running, paused, exited, ...
	ExitCode int
	Health   string // starting, healthy, unhealthy; "" without a health check
}

// State asks the engine for a service's only container; the zero State is none.
func (p *Project) State(service string) (s State) {
	p.t.Helper()
	id := p.Container(service)
	if id == "" {
		return s
	}
	var c struct {
		Status   string
		ExitCode int
		Health   *struct{ Status string }
	}
	if err := json.Unmarshal([]byte(Docker(p.t, "inspect", "-f", "{{json .State}}", id)), &c); err != nil {
		p.t.Fatalf("state of service %s: %v", service, err)
	}
	s = State{Status: c.Status, ExitCode: c.ExitCode}
	if c.Health != nil {
		s.Health = c.Health.Status
	}
	return s
}

// WaitHealthy returns when a service is healthy, and fails as soon as it has ended.
func (p *Project) WaitHealthy(service string) {
	p.t.Helper()
	Eventually(p.t, startLimit, "service "+service+" is healthy", func() (bool, string) {
		s := p.State(service)
		if s.Status == "exited" || s.Status == "dead" {
			p.t.Fatalf("service %s exited (%d) before it was healthy\n--- logs\n%s", service, s.ExitCode, p.Logs(service))
		}
		return s.Health == "healthy", fmt.Sprintf("%+v", s)
	})
}

// WaitExit returns a service's exit code when it has ended.
func (p *Project) WaitExit(service string) (code int) {
	p.t.Helper()
	Eventually(p.t, startLimit, "service "+service+" ends", func() (bool, string) {
		s := p.State(service)
		code = s.ExitCode
		return s.Status == "exited" || s.Status == "dead", fmt.Sprintf("%+v", s)
	})
	return code
}

// Volume is the engine's name of the project's volume with that key.
func (p *Project) Volume(key string) string { return p.Name + "_" + key }

// Remove takes away whatever of the project is on the engine, volumes included.
// It does not read the Compose file, which a test may have broken.
func (p *Project) Remove() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.t.Context()), 2*time.Minute)
	defer cancel()
	label := "label=com.docker.compose.project=" + p.Name
	var errs []error
	for _, kind := range []struct{ list, remove []string }{
		{[]string{"ps", "-aq"}, []string{"rm", "-fv"}},
		{[]string{"volume", "ls", "-q"}, []string{"volume", "rm", "-f"}},
		{[]string{"network", "ls", "-q"}, []string{"network", "rm"}},
	} {
		out, err := exec.CommandContext(ctx, "docker", append(kind.list, "--filter", label)...).Output()
		if ids := strings.Fields(string(out)); err == nil && len(ids) > 0 {
			var text []byte
			text, err = exec.CommandContext(ctx, "docker", append(kind.remove, ids...)...).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("docker %s: %w: %s", strings.Join(kind.remove, " "), err, text)
			}
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		p.t.Errorf("remove project %s: %v", p.Name, err)
	}
}
