//go:build !image

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/disko/backupd/internal/testtree"
)

// engine is the docker command, for tests that need a real engine and the image.
type engine struct{ t *testing.T }

func (e engine) docker(args ...string) string {
	e.t.Helper()
	out, err := exec.Command("docker", args...).CombinedOutput()
	if err != nil {
		e.t.Fatalf("docker %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

const hostTestImage = "backupd:test-dockerbase-host"

var hostImage struct {
	sync.Once
	err error
}

// newEngine makes an image of the program as it is.
func newEngine(t *testing.T) engine {
	t.Helper()
	if err := exec.Command("docker", "version").Run(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("needs a Docker engine; .ci/run starts one")
		}
		t.Skip("needs a Docker engine")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to look into volumes")
	}
	if testing.Short() {
		t.Skip("builds an image")
	}
	hostImage.Do(func() { hostImage.err = importProgram() })
	if hostImage.err != nil {
		t.Fatal(hostImage.err)
	}
	return engine{t}
}

func importProgram() error {
	dir, err := os.MkdirTemp("", "backupd-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "backupd")
	build := exec.Command("go", "build", "-tags", "image", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build backupd: %w: %s", err, out)
	}
	program, err := os.ReadFile(bin)
	if err != nil {
		return err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "backupd", Mode: 0o755, Size: int64(len(program))}); err != nil {
		return err
	}
	if _, err := w.Write(program); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	cmd := exec.Command("docker", "import", "-c", `ENTRYPOINT ["/backupd"]`, "-c", `CMD ["serve"]`, "-c", "LABEL org.opencontainers.image.title=backupd", "-", hostTestImage)
	cmd.Stdin = &layer
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import the image: %w: %s", err, out)
	}
	return nil
}

// TestRestoreOnAHostFillsTheVolumesOfAFreshClone is what a person does who has
// cloned a project and has the program: nothing but `backupd restore`.
func TestRestoreOnAHostFillsTheVolumesOfAFreshClone(t *testing.T) {
	e := newEngine(t)
	dir := t.TempDir()
	project := "dockerbase-host-" + strings.ToLower(rand.Text()[:6])
	data, target, clone := filepath.Join(dir, "data"), filepath.Join(dir, "target"), filepath.Join(dir, "clone")
	for _, d := range []string{data, filepath.Join(data, "sub"), clone} {
		if err := os.MkdirAll(d, 0o750); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"row": "of a table", "sub/upload": "picture"} {
		if err := os.WriteFile(filepath.Join(data, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(filepath.Join(data, "row"), 70, 70); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BACKUPD_STATE_DIR", filepath.Join(dir, "state"))
	var out, errs strings.Builder
	if code := run([]string{"backup", "--target", target, "--stack", "shop", "--volume", "data=" + data}, &out, &errs); code != exitDone {
		t.Fatalf("backup exited with %d: %s", code, errs.String())
	}
	id := strings.TrimSpace(out.String())

	compose := fmt.Sprintf(`name: %s
services:
  server:
    image: nothing/here
    volumes: [data:/srv/data]
    depends_on: {backup: {condition: service_healthy}}
  backup:
    image: %s
    network_mode: none
    environment:
      BACKUPD_TARGET: ${WHERE:?}
      BACKUPD_STACK: shop
    volumes:
      - data:/volumes/data
      - state:/var/lib/backupd
      - ${WHERE}:${WHERE}:ro
    depends_on: [engine]
  engine:
    image: nothing/here
volumes:
  data: {labels: {kept: "yes"}}
  state:
`, project, hostTestImage)
	for name, text := range map[string]string{"compose.yaml": compose, ".env": "WHERE=" + target + "\n"} {
		if err := os.WriteFile(filepath.Join(clone, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, v := range []string{"data", "state"} {
			_ = exec.Command("docker", "volume", "rm", "-f", project+"_"+v).Run()
		}
	})
	t.Chdir(clone)
	t.Setenv("BACKUPD_STATE_DIR", "") // of this side; the container's is its own
	restore := func(want int, args ...string) string {
		t.Helper()
		out.Reset()
		errs.Reset()
		if code := run(append([]string{"restore"}, args...), &out, &errs); code != want {
			t.Fatalf("restore %v exited with %d instead of %d: %s%s", args, code, want, out.String(), errs.String())
		}
		return out.String() + errs.String()
	}
	const idle = "depends on engine, which is not running"
	if said := restore(exitDone); !strings.Contains(said, id) || !strings.Contains(said, "made volumes "+project+"_data") || !strings.Contains(said, idle) {
		t.Errorf("it said %s", said)
	}
	var volume []struct {
		Mountpoint string
		Labels     map[string]string
	}
	if err := json.Unmarshal([]byte(e.docker("volume", "inspect", project+"_data")), &volume); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{"com.docker.compose.project": project, "com.docker.compose.volume": "data", "kept": "yes", "com.docker.compose.config-hash": ""} {
		if got := volume[0].Labels[k]; got != want {
			t.Errorf("label %s is %q, want %q", k, got, want)
		}
	}
	testtree.Compare(t, data, volume[0].Mountpoint, testtree.Options{})

	// A worker that waits for its request is a service that does nothing.
	e.docker("run", "-di", "--name", project+"-engine", "--network", "none", "--label", "com.docker.compose.project="+project, "--label", "com.docker.compose.service=engine", "--label", "com.docker.compose.oneoff=False", hostTestImage, "worker")
	t.Cleanup(func() { _ = exec.Command("docker", "rm", "-f", project+"-engine").Run() })
	if said := restore(exitDone, "--force"); strings.Contains(said, idle) {
		t.Errorf("with the service running it said %s", said)
	}
	e.docker("rm", "-f", project+"-engine")

	// What the command in the container says and how it exits passes through.
	if said := restore(exitFailed); !strings.Contains(said, "--force") {
		t.Errorf("over data it said %s", said)
	}
	restore(exitNotFound, "no-such-snapshot")
	if said := restore(exitDone, id[:8], "--force", "-f", "compose.yaml"); !strings.Contains(said, id) {
		t.Errorf("it said %s", said)
	}
	restore(exitUsage, "--volume", "data="+data, "-f", "compose.yaml")

	// A volume's name is the service's, and a directory this machine's.
	for _, args := range [][]string{{"--volume", "data"}, {"--volume", "data", "-f", "compose.yaml"}} {
		if said := restore(exitDone, append(args, "--force")...); !strings.Contains(said, "volume data: ") {
			t.Errorf("%v: it said %s", args, said)
		}
	}
	here := filepath.Join(dir, "here")
	restore(exitDone, "--target", target, "--stack", "shop", "--volume", "data="+here)
	testtree.Compare(t, data, here, testtree.Options{})
	t.Setenv("BACKUPD_VOLUME", "other")
	for _, args := range [][]string{{"--force"}, {"--force", "--", "latest"}} {
		if said := restore(exitUsage, args...); !strings.Contains(said, "/volumes/other") {
			t.Errorf("%v with a volume in the environment: it said %s", args, said)
		}
	}
	if left := e.docker("ps", "-aq", "--filter", "label=com.docker.compose.project="+project); left != "" {
		t.Errorf("containers are left over: %s", left)
	}
}

func TestInitShowsTheChangeAndWritesItWhenToldTo(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("BACKUPD_STATE_DIR", dir)
	var out, errs strings.Builder
	code := run([]string{"init"}, &out, &errs)
	if code != exitUsage || !strings.Contains(errs.String(), "compose.yaml") || !strings.Contains(errs.String(), "--target") {
		t.Errorf("without a file it exited with %d: %s", code, errs.String())
	}
	text := "# mine\nservices:\n  db:\n    image: postgres:17 # pinned\n    volumes: [\"data:/var/lib/postgresql/data\"]\nvolumes:\n  data:\n"
	if err := os.WriteFile("compose.yaml", []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	errs.Reset()
	// The tests' stdin is no terminal.
	if code := run([]string{"init"}, &out, &errs); code != exitFailed || !strings.Contains(errs.String(), "--yes") {
		t.Errorf("unasked it exited with %d: %s", code, errs.String())
	}
	if now, _ := os.ReadFile("compose.yaml"); string(now) != text {
		t.Errorf("unasked it wrote\n%s", now)
	}
	if !strings.Contains(out.String(), "\n+      - data:/volumes/data\n") || !strings.Contains(out.String(), "\n     image: postgres:17 # pinned\n") {
		t.Errorf("it showed\n%s", out.String())
	}
	if code := run([]string{"init", "--yes", "--image", "registry.example/backupd:1"}, &out, &errs); code != exitDone {
		t.Fatalf("it exited with %d: %s", code, errs.String())
	}
	now, _ := os.ReadFile("compose.yaml")
	if !strings.HasPrefix(string(now), "# mine\n") || !strings.Contains(string(now), "image: registry.example/backupd:1\n") || !strings.Contains(string(now), "condition: service_healthy") {
		t.Errorf("it wrote\n%s", now)
	}
	if info, err := os.Stat("compose.yaml"); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	errs.Reset()
	t.Setenv("BACKUPD_TARGET", "")
	t.Setenv("COMPOSE_FILE", "")
	if code := run([]string{"init"}, &out, &errs); code != exitFailed && code != exitDone {
		t.Errorf("again it exited with %d: %s", code, errs.String())
	}
}

// TestAProxyThatForbidsPostStillAllowsPlainBackups runs a backup in a container
// whose only way to the engine refuses all that changes something, beside a
// service that writes to the volume.
func TestAProxyThatForbidsPostStillAllowsPlainBackups(t *testing.T) {
	e := newEngine(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "engine"})
	p.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", "/var/run/docker.sock")
	}}
	var refused atomic.Int32
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			refused.Add(1)
			http.Error(w, "Forbidden", http.StatusForbidden)
			return
		}
		p.ServeHTTP(w, r)
	})}
	go s.Serve(ln)
	t.Cleanup(func() { s.Close() })
	name := "dockerbase-proxy-" + strings.ToLower(rand.Text()[:6])
	volume, service := name+"_data", name+"-app-1"
	e.docker("volume", "create", "--label", "com.docker.compose.project="+name, "--label", "com.docker.compose.volume=data", volume)
	t.Cleanup(func() {
		_ = exec.Command("docker", "rm", "-f", service).Run()
		_ = exec.Command("docker", "volume", "rm", "-f", volume).Run()
	})
	label := func(service string) []string {
		return []string{"--label", "com.docker.compose.project=" + name, "--label", "com.docker.compose.service=" + service, "--label", "com.docker.compose.container-number=1", "--label", "com.docker.compose.oneoff=False"}
	}
	// A worker that waits for its request is a service that does nothing.
	e.docker(append(append([]string{"run", "-di", "--name", service, "--network", "none", "-v", volume + ":/data"}, label("app")...), hostTestImage, "worker")...)
	target := t.TempDir()
	args := append([]string{"run", "--rm", "--network", "host", "-e", "DOCKER_HOST=tcp://" + ln.Addr().String(), "-e", "BACKUPD_TARGET=/backups", "-v", volume + ":/volumes/data:ro", "-v", target + ":/backups"}, label("backup")...)
	cmd := exec.Command("docker", append(args, hostTestImage, "backup")...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); err != nil && code != exitWarnings {
		t.Fatalf("backup exited with %d: %s", code, errs.String())
	}
	if id := strings.TrimSpace(out.String()); len(id) != 32 {
		t.Errorf("it printed %q: %s", id, errs.String())
	}
	// Its stack's name comes from the engine.
	if _, err := os.Stat(filepath.Join(target, "stacks", name)); err != nil {
		t.Errorf("the stack: %v; %s", err, errs.String())
	}
	if refused.Load() > 0 && !strings.Contains(errs.String(), "forbid") && !strings.Contains(errs.String(), "allow") {
		t.Errorf("%d requests were refused, and it did not say so: %s", refused.Load(), errs.String())
	}
	if state := e.docker("inspect", "-f", "{{.State.Running}} {{.State.Paused}}", service); state != "true false" {
		t.Errorf("the service is %s", state)
	}
	t.Log(errs.String())
}
