package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/teststack"
)

// shopFile is the smallest stack that has all the traps of seeding: a volume that is
// empty at first, and one that Docker fills from the image. Its application only
// lives, so that stacks come and go in seconds.
const shopFile = `
services:
  application:
    image: backupd-test/base
    network_mode: none
    init: true
    command: [sleep, infinity]
    volumes:
      - data:/srv/data
      - home:/etc/skel
    depends_on:
      backup:
        condition: service_healthy

  backup:
    image: ${BACKUPD_IMAGE}
    network_mode: none
    environment:
      BACKUPD_TARGET: ${BACKUPD_TARGET:-/backups}
      BACKUPD_STACK: shop
      BACKUPD_SEED: ${BACKUPD_SEED:-}
      BACKUPD_SEED_FROM: ${BACKUPD_SEED_FROM:-}
      BACKUPD_SCHEDULE: ${BACKUPD_SCHEDULE:-}
      BACKUPD_OUTAGE: 1s
      BACKUPD_LOG_FORMAT: text
    read_only: true
    cap_drop: [ALL]
    cap_add: [CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD, SETFCAP]
    security_opt: ["no-new-privileges:true"]
    volumes:
      - data:/volumes/data
      - home:/volumes/home
      - ${REPOSITORY}
      - ${STATE:-backup-state:/var/lib/backupd}

volumes:
  data:
  home:
  backup-state:
`

// socket is the override of a stack whose agent may ask the engine.
const socket = `
services:
  backup:
    volumes:
      - /var/run/docker.sock:/var/run/docker.sock:ro
`

// checkout is a clone of the shop: a directory and a project name of its own. Its
// snapshots lie in a directory of the host.
func checkout(t *testing.T, repository string, overrides ...string) *teststack.Project {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the repository's directory belongs to root in the container")
	}
	teststack.Images(t, "base")
	p := teststack.NewProject(t, "backupd-e2e", shopFile)
	files := []string{"compose.yaml"}
	for i, o := range overrides {
		name := "compose." + string(rune('a'+i)) + ".yaml"
		p.Write(name, o)
		files = append(files, name)
	}
	set(p, map[string]string{
		"BACKUPD_IMAGE": teststack.BackupdImage(t), "REPOSITORY": repository + ":/backups",
		"COMPOSE_FILE": strings.Join(files, ":"),
	})
	return p
}

// set changes variables of a project.
func set(p *teststack.Project, env map[string]string) {
	for k, v := range env {
		p.Env[k] = v
	}
}

// withAndWithoutSocket runs a test twice: where the agent may ask the engine, and
// where it may not.
func withAndWithoutSocket(t *testing.T, test func(t *testing.T, override string)) {
	t.Helper()
	for name, override := range map[string]string{"with the socket": socket, "without the socket": "services: {}\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, override)
		})
	}
}

// Of the server's snapshot.
const (
	serverRows = "of the server\n"
	serverHome = "home of the server\n"
)

// snapshotted returns a repository with one snapshot, as the server's agent makes it.
func snapshotted(t *testing.T) (repository string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the repository's directory belongs to root in the container")
	}
	volumes := t.TempDir()
	write(t, filepath.Join(volumes, "data/rows"), serverRows)
	write(t, filepath.Join(volumes, "data/images/1.jpg"), strings.Repeat("picture", 1000))
	write(t, filepath.Join(volumes, "home/note"), serverHome)
	repository = t.TempDir()
	backUp(t, volumes, repository)
	return repository
}

// backUp takes a snapshot of a directory's directories, as the server would.
func backUp(t *testing.T, volumes, repository string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "docker", "run", "--rm", "--network", "none", "-v", volumes+":/volumes:ro", "-v", repository+":/backups",
		"-e", "BACKUPD_TARGET=/backups", "-e", "BACKUPD_STACK=shop", "-e", "BACKUPD_ORIGIN=server", teststack.BackupdImage(t), "backup").CombinedOutput()
	if err != nil {
		t.Fatalf("the server's snapshot: %v\n%s", err, out)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// rows are what the application sees.
func rows(p *teststack.Project) string {
	return p.Exec("application", "cat", "/srv/data/rows")
}

// isTheServers: the application has the snapshot's data, and nothing else.
func isTheServers(t *testing.T, p *teststack.Project) {
	t.Helper()
	if got := rows(p); got != serverRows {
		t.Errorf("the rows are %q\n%s", got, p.Logs("backup"))
	}
	if got := p.Exec("application", "sh", "-c", "cat /etc/skel/note; ls -A /etc/skel"); got != serverHome+"note\n" {
		t.Errorf("the volume that the image filled holds %q\n%s", got, p.Logs("backup"))
	}
}

// lastLine is what somebody reads who looks for why a service is not up.
func lastLine(p *teststack.Project, service string) string {
	lines := strings.Split(strings.TrimSpace(p.Logs(service)), "\n")
	return lines[len(lines)-1]
}

// mentions: a text holds all of the words.
func mentions(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in:\n%s", w, text)
		}
	}
}
