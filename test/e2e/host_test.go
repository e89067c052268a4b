package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/teststack"
)

// ownEngine is a Docker engine for one test, with images of the machine's, which docker
// commands of the test speak to: an agent for every stack of a machine must not see
// what other tests have there.
func ownEngine(t *testing.T, images ...string) (socket string) {
	t.Helper()
	socket = teststack.OwnEngine(t)
	saved := filepath.Join(t.TempDir(), "images.tar")
	teststack.Docker(t, append([]string{"save", "-o", saved}, images...)...)
	t.Setenv("DOCKER_HOST", "unix://"+socket)
	teststack.Docker(t, "load", "-q", "-i", saved)
	if err := os.Remove(saved); err != nil {
		t.Fatal(err)
	}
	return socket
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
