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

const looseStack = `
services:
  app:
    image: IMAGE
    command: [sh, -c, "while :; do date >>/data/log; sleep 0.1; done"]
    network_mode: none
    init: true
    volumes: [VOLUME:/data]
volumes:
  VOLUME: {external: true}
`

const otherAgent = `
services:
  backup:
    image: IMAGE
    network_mode: none
    environment: {BACKUPD_TARGET: /backups}
    volumes: [state:/var/lib/backupd, target:/backups, empty:/volumes/empty]
volumes: {state: {}, target: {}, empty: {labels: {backupd.exclude: "true"}}}
`

// TestAnAgentOfAMachineFreezesTheOneProjectThatUsesAVolumeOfNone has volumes that were
// made by hand: one that one project uses and that is named like another project, and
// one that two containers of none and of a project write to.
func TestAnAgentOfAMachineFreezesTheOneProjectThatUsesAVolumeOfNone(t *testing.T) {
	base, image := teststack.Images(t, "base")[0], teststack.BackupdImage(t)
	socket := ownEngine(t, base, image)
	shop := teststack.NewProject(t, "drill-shop", strings.ReplaceAll(hostStack, "IMAGE", base))
	loose, shared := shop.Name, teststack.Unique("shared")
	for _, v := range []string{loose, shared} {
		teststack.Docker(t, "volume", "create", "--label", "of="+v, v)
	}
	user := teststack.NewProject(t, "drill-user", strings.NewReplacer("IMAGE", base, "VOLUME", loose).Replace(looseStack))
	sharer := teststack.NewProject(t, "drill-sharer", strings.NewReplacer("IMAGE", base, "VOLUME", shared).Replace(looseStack))
	other := teststack.NewProject(t, "drill-other", strings.ReplaceAll(otherAgent, "IMAGE", image))
	agent := teststack.NewProject(t, "drill-host", strings.ReplaceAll(hostAgent, "IMAGE", image))
	agent.Env["REPOSITORY"], agent.Env["SOCKET"] = t.TempDir(), socket
	shop.Up()
	user.Up()
	sharer.Up()
	second := teststack.NewProject(t, "drill-second", strings.NewReplacer("IMAGE", base, "VOLUME", shared).Replace(looseStack))
	second.Up()
	other.Compose("up", "-d")
	agent.Compose("up", "-d", "--wait")

	since := teststack.Docker(t, "info", "-f", "{{.SystemTime}}")
	out, code := backupd(t, agent, "backup", "--json")
	if code != 3 || len(strings.Split(strings.TrimSpace(out), "\n")) != 3 {
		t.Fatalf("%d: %s\n%s", code, out, agent.Logs())
	}
	until := teststack.Docker(t, "info", "-f", "{{.SystemTime}}")
	frozen := map[string]bool{}
	for line := range strings.Lines(teststack.Docker(t, "events", "--since", since, "--until", until, "--filter", "event=pause", "--filter", "event=stop", "--format", "{{.Actor.Attributes.name}}")) {
		frozen[strings.TrimSpace(line)] = true
	}
	if len(frozen) != 2 || !frozen[shop.Name+"-app-1"] || !frozen[user.Name+"-app-1"] {
		t.Errorf("what stood still: %v, want the services of %s and %s", frozen, shop.Name, user.Name)
	}
	for _, p := range []*teststack.Project{sharer, second} {
		if text := "container " + p.Name + "-app-1 of project " + p.Name + " writes to volume " + shared + " and keeps running: files may change"; !strings.Contains(out, text) {
			t.Errorf("it does not say %q:\n%s", text, out)
		}
	}
	for stack, volume := range map[string]string{shop.Name: "data", loose + ".volume": loose, shared: shared} {
		out, _ := backupd(t, agent, "snapshots", "--stack", stack, "--json")
		if strings.Count(out, `"finished"`) != 1 || !strings.Contains(out, `"`+volume+`"`) {
			t.Errorf("stack %s has %s", stack, out)
		}
		if out, _ = backupd(t, agent, "show", "--stack", stack, "--json", "latest"); !strings.Contains(out, `"driver":"local"`) {
			t.Errorf("the manifest of stack %s does not tell its driver: %s", stack, out)
		}
	}
	if out, _ := backupd(t, agent, "snapshots", "--json"); strings.Contains(out, other.Name) {
		t.Errorf("what another agent has for itself was backed up: %s", out)
	}
}
