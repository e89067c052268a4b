package e2e

import (
	"strings"
	"testing"

	"github.com/disko/backupd/internal/teststack"
)

// Volumes that are not mounted in the agent's container, a service that does not wait
// until they are seeded, and one that does.
const waitingFile = `
services:
  hasty:
    image: IMAGE_BASE
    command: [sleep, infinity]
    network_mode: none
    init: true
    volumes: [data:/data]
  patient:
    image: IMAGE_BASE
    command: [sleep, infinity]
    network_mode: none
    init: true
    volumes: [data:/data]
    depends_on: {backup: {condition: service_healthy}}
  backup:
    image: IMAGE_BACKUPD
    network_mode: none
    environment: {BACKUPD_TARGET: /backups, BACKUPD_VOLUMES: project, BACKUPD_SEED: "${SEED}"}
    volumes: ["${REPOSITORY}:/backups", state:/var/lib/backupd, /var/run/docker.sock:/var/run/docker.sock]
volumes: {data: {}, state: {}}
`

func waiting(t *testing.T, seed string) *teststack.Project {
	t.Helper()
	p := teststack.NewProject(t, "waiting", strings.NewReplacer("IMAGE_BASE", teststack.Images(t, "base")[0], "IMAGE_BACKUPD", teststack.BackupdImage(t)).Replace(waitingFile))
	p.Env["REPOSITORY"], p.Env["SEED"] = t.TempDir(), seed
	return p
}

func TestAnAgentOfAProjectNamesTheServicesThatDoNotWaitForIt(t *testing.T) {
	p := waiting(t, "auto")
	p.Up()
	logs := p.Logs("backup")
	if want := "service hasty mounts " + p.Volume("data") + " and does not wait for backup"; !strings.Contains(logs, want) || strings.Contains(logs, "service patient") {
		t.Errorf("it does not say %q alone:\n%s", want, logs)
	}
}

func TestAnAgentOfAProjectThatDoesNotSeedStopsAtHalfARestore(t *testing.T) {
	p := waiting(t, "off")
	p.Compose("up", "-d", "hasty")
	p.Exec("hasty", "sh", "-c", "echo '{}' >/data/.backupd-incomplete")
	p.Compose("up", "-d", "backup")
	if code := p.WaitExit("backup"); code == 0 {
		t.Error("it exited with 0")
	}
	if logs := p.Logs("backup"); !strings.Contains(logs, "holds half a restore") {
		t.Errorf("it says\n%s", logs)
	}
	p.Exec("hasty", "rm", "/data/.backupd-incomplete")
	p.Compose("up", "-d", "--wait", "backup")
}
