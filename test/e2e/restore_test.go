package e2e

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/teststack"
)

// started is when a service's container was last started.
func started(t *testing.T, p *teststack.Project, service string) string {
	t.Helper()
	return teststack.Docker(t, "inspect", "-f", "{{.State.StartedAt}}", p.Container(service))
}

// try runs a one-off command of the agent, and returns its exit code and all that
// it said.
func try(t *testing.T, p *teststack.Project, args ...string) (code int, said string) {
	t.Helper()
	out, err := p.Try(append([]string{"run", "--rm", "-T", "backup"}, args...)...)
	if err == nil {
		return 0, out
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return exit.ExitCode(), out + err.Error()
}

// Somebody has broken the data of a stack that runs.
func TestRestoreOverDataInUse(t *testing.T) {
	t.Parallel()
	p := checkout(t, snapshotted(t), socket)
	p.Up()
	// Data of the image's copy, of the snapshot, and of the application: all is compared.
	damage := func() {
		t.Helper()
		p.Exec("application", "sh", "-c", "echo broken >/srv/data/rows; rm -r /srv/data/images; mkdir /srv/data/drafts; echo mine >/srv/data/drafts/1; echo mine >/etc/skel/note")
	}
	isDamaged := func() {
		t.Helper()
		if got := p.Exec("application", "sh", "-c", "cat /srv/data/rows /srv/data/drafts/1 /etc/skel/note; ls /srv/data"); got != "broken\nmine\nmine\ndrafts\nrows\n" {
			t.Errorf("after the undo there is %q", got)
		}
	}
	damage()

	before := started(t, p, "application")
	code, said := try(t, p, "restore")
	if code == 0 {
		t.Fatalf("it restored over data unasked: %s", said)
	}
	mentions(t, said, "--force")
	isDamaged()
	if started(t, p, "application") != before {
		t.Error("the application was stopped for a restore that was refused")
	}

	out := p.Output("run", "--rm", "-T", "backup", "restore", "--force")
	mentions(t, out, "application", "volume data: wrote")
	isTheServers(t, p)
	if got := p.Exec("application", "ls", "/srv/data"); got != "images\nrows\n" {
		t.Errorf("there is %q", got)
	}
	if started(t, p, "application") == before {
		t.Error("the application ran on while its files were changed")
	}

	before = started(t, p, "application")
	p.Compose("run", "--rm", "-T", "backup", "restore", "--undo")
	isDamaged()
	if started(t, p, "application") == before {
		t.Error("the application ran on while its files were changed back")
	}

	if code, said := try(t, p, "restore", "--undo", "--volume", "elsewhere=/tmp"); code != 4 || !strings.Contains(said, "nothing is kept") {
		t.Errorf("an undo of what was never restored: %d %s", code, said)
	}

	// One volume; then one directory of one.
	p.Compose("run", "--rm", "-T", "backup", "restore", "--force", "--volume", "home")
	if got := p.Exec("application", "cat", "/etc/skel/note", "/srv/data/rows"); got != serverHome+"broken\n" {
		t.Errorf("one volume was restored, and there is %q", got)
	}
	p.Compose("run", "--rm", "-T", "backup", "restore", "--force", "--volume", "data", "--include", "images/**")
	if got := p.Exec("application", "sh", "-c", "cat /srv/data/rows; cd /srv/data; ls; wc -c <images/1.jpg"); got != "broken\ndrafts\nimages\nrows\n7000\n" {
		t.Errorf("one directory was restored, and there is %q", got)
	}
}

// What is half restored is nothing to start with.
func TestARestoreThatEndsHalfWayLeavesTheServiceStopped(t *testing.T) {
	t.Parallel()
	volumes, repository := t.TempDir(), t.TempDir()
	film := make([]byte, 8<<20)
	rand.Read(film)
	write(t, filepath.Join(volumes, "data/rows"), serverRows)
	write(t, filepath.Join(volumes, "data/film"), string(film))
	write(t, filepath.Join(volumes, "home/note"), serverHome)
	backUp(t, volumes, repository)
	p := checkout(t, repository, socket)
	p.Up()
	isTheServers(t, p)
	p.Exec("application", "sh", "-c", "echo broken >/srv/data/rows; rm /srv/data/film")
	// A bad block in the film, which nobody sees before it is written.
	pack := largest(t, repository)
	content, err := os.ReadFile(pack)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/2] ^= 0x55
	if err := os.Chmod(pack, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pack, content, 0o600); err != nil {
		t.Fatal(err)
	}
	code, said := try(t, p, "restore", "--force")
	t.Log(said)
	if code == 0 {
		t.Fatal("it restored from nothing")
	}
	if s := p.State("application"); s.Status != "exited" {
		t.Errorf("the application is %+v", s)
	}
	mentions(t, said, "application", "stay stopped", "undo")

	// Another volume that is restored, and an agent that starts anew, change nothing in that.
	if code, said = try(t, p, "restore", "--force", "--volume", "home"); code != 0 {
		t.Errorf("the other volume: %d %s", code, said)
	}
	p.Compose("restart", "backup")
	if code := p.WaitExit("backup"); code == 0 {
		t.Error("it serves beside half a restore")
	}
	if s := p.State("application"); s.Status != "exited" {
		t.Errorf("beside half a restore, the application is %+v", s)
	}
	mentions(t, p.Logs("backup"), "services stay stopped, because a restore of their volumes has not ended")

	p.Compose("run", "--rm", "-T", "backup", "restore", "--undo")
	if got := rows(p); got != "broken\n" {
		t.Errorf("after the undo the rows are %q", got)
	}
}

// largest is a repository's largest object.
func largest(t *testing.T, repository string) (name string) {
	t.Helper()
	var size int64
	err := filepath.WalkDir(repository, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		i, err := d.Info()
		if err == nil && i.Size() > size {
			name, size = path, i.Size()
		}
		return err
	})
	if err != nil || name == "" {
		t.Fatalf("no object in %s: %v", repository, err)
	}
	return name
}

// An agent that `docker run` started is of no project: the services of the one that
// uses its volumes stand still all the same, and those of no other.
func TestAnAgentOfNoProjectStopsTheOneThatUsesItsVolumes(t *testing.T) {
	t.Parallel()
	repository := snapshotted(t)
	p, other := checkout(t, repository), checkout(t, repository)
	p.Up()
	other.Up()
	p.Exec("application", "sh", "-c", "echo broken >/srv/data/rows")
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("docker", append([]string{
			"run", "--rm", "--network", "none", "-v", p.Volume("data") + ":/volumes/data", "-v", repository + ":/backups", "-v", "/var/run/docker.sock:/var/run/docker.sock:ro",
			"-e", "BACKUPD_TARGET=/backups", "-e", "BACKUPD_STACK=loose", teststack.BackupdImage(t),
		}, args...)...).CombinedOutput()
		if err != nil {
			t.Errorf("backupd %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	mentions(t, run("backup"), "services stood still")
	p.Exec("application", "sh", "-c", "echo more >>/srv/data/rows")
	before, others := started(t, p, "application"), started(t, other, "application")
	mentions(t, run("restore", "--force"), "stopped while their volumes are restored: application")
	if got := rows(p); got != "broken\n" {
		t.Errorf("the rows are %q", got)
	}
	if started(t, p, "application") == before || started(t, other, "application") != others {
		t.Error("the application ran on while its files were changed, or another project's did not")
	}
}

// Production's data in a staging stack, whose own snapshots stay its own.
func TestProductionIsRestoredIntoStaging(t *testing.T) {
	t.Parallel()
	p := checkout(t, snapshotted(t), socket, "services: {backup: {environment: {BACKUPD_STACK: staging}}}\n")
	p.Up()
	p.Exec("application", "sh", "-c", "echo of staging >/srv/data/rows")
	p.Exec("backup", "backupd", "backup")
	before := started(t, p, "application")
	if code, said := try(t, p, "restore", "--stack", "shop", "--force"); code != 0 {
		t.Fatalf("%d: %s", code, said)
	}
	isTheServers(t, p)
	if started(t, p, "application") == before {
		t.Error("the application ran on while its files were changed")
	}
	p.Exec("backup", "backupd", "backup")
	for stack, want := range map[string]int{"staging": 2, "shop": 1} {
		if out := p.Exec("backup", "backupd", "snapshots", "--stack", stack, "--json"); strings.Count(out, `"sequence"`) != want {
			t.Errorf("stack %s has %s, want %d snapshots", stack, out, want)
		}
	}
	p.Compose("run", "--rm", "-T", "backup", "restore", "--undo")
	if got := rows(p); got != "of staging\n" {
		t.Errorf("after the undo the rows are %q", got)
	}
}
