package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/disko/backupd/internal/teststack"
)

// ownEngine starts a Docker engine for one test, with images of the machine's: an
// agent for every stack of a machine must not see what other tests have there.
func ownEngine(t *testing.T, images ...string) (socket string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to start a Docker engine")
	}
	for _, program := range []string{"dockerd", "unshare", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skipf("needs %s", program)
		}
	}
	dir, err := os.MkdirTemp("", "engine-") // short: a socket's path is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(in("config"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	saved := in("images.tar")
	teststack.Docker(t, append([]string{"save", "-o", saved}, images...)...)
	log, err := os.Create(in("log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	cmd := exec.Command("unshare", "-n", "-m", "sh", "-c", `ip link set lo up && exec dockerd "$@"`, "sh",
		"--config-file", in("config"), "--data-root", in("data"), "--exec-root", in("exec"), "--pidfile", in("pid"),
		"--host", "unix://"+in("sock"), "--iptables=false", "--ip-masq=false", "--storage-driver", "vfs")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	t.Setenv("DOCKER_HOST", "unix://"+in("sock"))
	teststack.Eventually(t, 2*time.Minute, "the engine is up", func() (bool, string) {
		if _, err := teststack.Try(t, "", "version"); err != nil {
			text, _ := os.ReadFile(in("log"))
			return false, string(text[max(0, len(text)-1000):])
		}
		return true, ""
	})
	teststack.Docker(t, "load", "-q", "-i", saved)
	if err := os.Remove(saved); err != nil {
		t.Fatal(err)
	}
	return in("sock")
}

const hostStack = `
services:
  app:
    image: IMAGE
    command: [sh, -c, "while :; do date >>/data/log; sleep 0.1; done"]
    network_mode: none
    init: true
    volumes: [data:/data, scrap:/scrap]
    labels: {backupd.drill: "test -s /data/log"}
volumes:
  data: {}
  scrap: {labels: {backupd.exclude: "true"}}
`

const hostAgent = `
services:
  backup:
    image: IMAGE
    network_mode: none
    environment: {BACKUPD_TARGET: /backups, BACKUPD_VOLUMES: host, BACKUPD_ORIGIN: machine}
    volumes: [state:/var/lib/backupd, "${REPOSITORY}:/backups", "${SOCKET}:/var/run/docker.sock"]
volumes: {state: {}}
`

func TestAnAgentOfAMachineTakesEachStackAloneAndStopsNoOther(t *testing.T) {
	base, image := teststack.Images(t, "base")[0], teststack.BackupdImage(t)
	socket := ownEngine(t, base, image)
	one := teststack.NewProject(t, "drill-one", strings.ReplaceAll(hostStack, "IMAGE", base))
	two := teststack.NewProject(t, "drill-two", strings.ReplaceAll(hostStack, "IMAGE", base))
	agent := teststack.NewProject(t, "drill-host", strings.ReplaceAll(hostAgent, "IMAGE", image))
	agent.Env["REPOSITORY"], agent.Env["SOCKET"] = t.TempDir(), socket
	one.Up()
	two.Up()
	agent.Compose("up", "-d", "--wait")

	since := teststack.Docker(t, "info", "-f", "{{.SystemTime}}")
	if out, code := backupd(t, agent, "backup"); code != 0 || len(strings.Fields(out)) != 2 {
		t.Fatalf("%d: %s\n%s", code, out, agent.Logs())
	}
	until := teststack.Docker(t, "info", "-f", "{{.SystemTime}}")
	var frozen []string // what was paused when, and what went on
	for line := range strings.Lines(teststack.Docker(t, "events", "--since", since, "--until", until, "--filter", "event=pause", "--filter", "event=unpause", "--filter", "event=stop", "--format", "{{.Action}} {{.Actor.Attributes.name}}")) {
		frozen = append(frozen, strings.TrimSpace(line))
	}
	a, b := one.Name+"-app-1", two.Name+"-app-1"
	acts := []string{"pause " + a, "unpause " + a, "pause " + b, "unpause " + b}
	if !teststack.Pauses(t) {
		acts = []string{"stop " + a, "stop " + b}
	}
	if want := strings.Join(acts, ", "); strings.Join(frozen, ", ") != want {
		t.Errorf("what stood still: %s, want %s", strings.Join(frozen, ", "), want)
	}
	for _, p := range []*teststack.Project{one, two} {
		out, code := backupd(t, agent, "snapshots", "--stack", p.Name, "--json")
		if code != 0 || strings.Count(out, `"scrap"`) != 0 || strings.Count(out, `"data"`) == 0 {
			t.Errorf("stack %s has %s", p.Name, out)
		}
	}

	out, code := backupd(t, agent, "drill", "--json")
	if code != 0 {
		t.Fatalf("drill: %d: %s", code, out)
	}
	var seen []string
	for line := range strings.Lines(out) {
		var d struct {
			Stack  string
			Passed bool
			Checks []struct{ Service, Error string }
		}
		if err := json.Unmarshal([]byte(line), &d); err != nil || !d.Passed || len(d.Checks) != 1 || d.Checks[0].Error != "" {
			t.Errorf("%v: %s", err, line)
		}
		seen = append(seen, d.Stack)
		nothingLeft(t, d.Stack)
	}
	if strings.Join(seen, " ") != one.Name+" "+two.Name {
		t.Errorf("stacks %v were drilled", seen)
	}
}
