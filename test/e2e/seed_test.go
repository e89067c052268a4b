package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/disko/backupd/internal/teststack"
)

// What people do to a stack in a day: their data stay theirs, and when they are
// gone, the snapshot is back.
func TestACloneHasTheServersDataAndKeepsItsOwn(t *testing.T) {
	withAndWithoutSocket(t, func(t *testing.T, override string) {
		p := checkout(t, snapshotted(t), override)
		p.Up()
		isTheServers(t, p)
		own := func(after string) {
			t.Helper()
			if got := rows(p); got != "of the clone\n" {
				t.Fatalf("after %s the rows are %q\n%s", after, got, p.Logs("backup"))
			}
			if got := p.Exec("application", "ls", "-A", "/etc/skel"); got != "note\n" {
				t.Fatalf("after %s the image's files are back: %q", after, got)
			}
		}
		p.Exec("application", "sh", "-c", "echo of the clone >/srv/data/rows")
		p.Compose("stop")
		p.Compose("start")
		own("stop and start")
		p.Compose("down")
		p.Up()
		own("down and up")
		p.Compose("up", "-d", "-V", "--force-recreate")
		own("up -V --force-recreate")
		p.Compose("down", "-v")
		p.Up()
		isTheServers(t, p)
	})
}

func TestTwoReplicasOfTheAgentSeedOnce(t *testing.T) {
	t.Parallel()
	p := checkout(t, snapshotted(t), socket)
	p.Compose("up", "-d", "--scale", "backup=2")
	isTheServers(t, p)
	if n := strings.Count(p.Logs("backup"), "it was seeded from snapshot"); n != 2 {
		t.Errorf("two volumes were seeded %d times\n%s", n, p.Logs("backup"))
	}
}

func TestTwoUpsAtOnceSeedOnce(t *testing.T) {
	t.Parallel()
	p := checkout(t, snapshotted(t), socket)
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i := range errs {
		wg.Go(func() { _, errs[i] = p.Try("up", "-d") })
	}
	wg.Wait()
	// Compose itself may find a name taken in one of the two.
	if errs[0] != nil && errs[1] != nil {
		p.Up()
	}
	isTheServers(t, p)
	if n := strings.Count(p.Logs("backup"), "it was seeded from snapshot"); n != 2 {
		t.Errorf("two volumes were seeded %d times: %v\n%s", n, errs, p.Logs("backup"))
	}
}

func TestWhatComposeRunLeftOver(t *testing.T) {
	t.Run("of the agent, it does not keep a stack from its data", func(t *testing.T) {
		t.Parallel()
		p := checkout(t, snapshotted(t), socket)
		p.Compose("run", "-T", "backup", "snapshots")
		p.Up()
		isTheServers(t, p)
	})
	t.Run("of a service, it may have written", func(t *testing.T) {
		t.Parallel()
		p := checkout(t, snapshotted(t), socket)
		p.Compose("run", "-T", "--no-deps", "application", "true")
		p.Up()
		if got := p.Exec("application", "ls", "-A", "/srv/data"); got != "" {
			t.Errorf("it was seeded: %s", got)
		}
		mentions(t, p.Logs("backup"), "left alone", "docker compose run --rm backup restore")
	})
}

func TestAServiceThatDoesNotWaitIsNamed(t *testing.T) {
	t.Parallel()
	p := checkout(t, snapshotted(t), socket, `
services:
  worker:
    image: backupd-test/base
    network_mode: none
    init: true
    command: [sleep, infinity]
    volumes: ["data:/srv/data"]
`)
	p.Up("application")
	p.Compose("down", "-v")
	p.Compose("up", "-d", "backup", "worker")
	p.WaitHealthy("backup")
	mentions(t, p.Logs("backup"), "service worker mounts", "depends_on: {backup: {condition: service_healthy}}")
}

// A Compose file that forgets the state: then what lies in the volumes decides.
func TestAnAnonymousStateVolumeThatIsLost(t *testing.T) {
	withAndWithoutSocket(t, func(t *testing.T, override string) {
		p := checkout(t, snapshotted(t), override)
		set(p, map[string]string{"STATE": "/var/lib/backupd"})
		p.Up()
		isTheServers(t, p)
		p.Exec("application", "sh", "-c", "echo of the clone >/srv/data/rows")
		p.Compose("up", "-d", "-V", "--force-recreate")
		if got := rows(p); got != "of the clone\n" {
			t.Errorf("the rows are %q\n%s", got, p.Logs("backup"))
		}
	})
}

func TestAnExternalVolumeFullOfDataIsLeftAlone(t *testing.T) {
	withAndWithoutSocket(t, func(t *testing.T, override string) {
		name := volume(t)
		p := checkout(t, snapshotted(t), override, "volumes: {data: {external: true, name: "+name+"}}\n")
		teststack.Docker(t, "run", "--rm", "--network", "none", "-v", name+":/srv", "backupd-test/base", "sh", "-c", "echo precious >/srv/rows")
		p.Up()
		p.Compose("down", "-v")
		p.Up()
		if got := rows(p); got != "precious\n" {
			t.Errorf("the rows are %q\n%s", got, p.Logs("backup"))
		}
		// Old rows beside new files are worse than none: the other one is not seeded either.
		if got := p.Exec("application", "ls", "-A", "/etc/skel"); strings.Contains(got, "note") {
			t.Errorf("the other volume was seeded: %s", got)
		}
		mentions(t, p.Logs("backup"), "rows", "did not write", "a stack is seeded as a whole")
	})
}

// volume makes one that belongs to no project.
func volume(t *testing.T, args ...string) string {
	t.Helper()
	name := teststack.Unique("backupd-e2e-volume")
	teststack.Docker(t, append(append([]string{"volume", "create"}, args...), name)...)
	t.Cleanup(func() { _ = exec.Command("docker", "volume", "rm", "-f", name).Run() })
	return name
}

func TestAVolumeOfTwoProjectsIsSeededByTheFirst(t *testing.T) {
	withAndWithoutSocket(t, func(t *testing.T, override string) {
		repository, shared := snapshotted(t), volume(t)
		both := "volumes: {data: {external: true, name: " + shared + "}}\n"
		// The volume goes after the projects that use it: they are made later.
		first := checkout(t, repository, override, both)
		first.Up()
		isTheServers(t, first)
		first.Exec("application", "sh", "-c", "echo of the first >/srv/data/rows")
		second := checkout(t, repository, override, both)
		second.Up()
		if got := rows(second); got != "of the first\n" {
			t.Errorf("the rows are %q\n%s", got, second.Logs("backup"))
		}
	})
}

// A stack whose data cannot be had must not start without: it says why, and the
// next up brings them.
func TestATargetThatDoesNotAnswerStopsTheStackUntilItDoes(t *testing.T) {
	withAndWithoutSocket(t, func(t *testing.T, override string) {
		p := checkout(t, snapshotted(t), override, `
services:
  backup:
    environment:
      BACKUPD_S3_ENDPOINT: http://127.0.0.1:9
      AWS_ACCESS_KEY_ID: key
      AWS_SECRET_ACCESS_KEY: secret
      AWS_REGION: us-east-1
`)
		set(p, map[string]string{"BACKUPD_TARGET": "s3://bucket/shop"})
		if out, err := p.Try("up", "-d"); err == nil {
			t.Fatalf("the stack came up without its data: %s\n%s", out, p.Logs())
		}
		if s := p.State("application"); s.Status == "running" {
			t.Errorf("the application is %+v", s)
		}
		t.Log(lastLine(p, "backup"))
		mentions(t, lastLine(p, "backup"), "127.0.0.1:9", "nothing was touched")
		delete(p.Env, "BACKUPD_TARGET")
		p.Up()
		isTheServers(t, p)
	})
}

// The agent's container is another one when the Compose file is mended: what the
// engine had copied into a volume by then is known all the same.
func TestAnEngineThatDoesNotAnswerStopsTheStackUntilItDoes(t *testing.T) {
	t.Parallel()
	p := checkout(t, snapshotted(t), "services: {backup: {environment: {DOCKER_HOST: 'unix:///run/absent.sock'}}}\n")
	if out, err := p.Try("up", "-d"); err == nil {
		t.Fatalf("the stack came up without its data: %s\n%s", out, p.Logs())
	}
	mentions(t, lastLine(p, "backup"), "/run/absent.sock")
	p.Write("compose.a.yaml", socket)
	p.Up()
	isTheServers(t, p)
}

func TestWithoutASnapshot(t *testing.T) {
	t.Run("it is required", func(t *testing.T) {
		t.Parallel()
		p := checkout(t, t.TempDir(), socket)
		set(p, map[string]string{"BACKUPD_SEED": "require"})
		if out, err := p.Try("up", "-d"); err == nil {
			t.Fatalf("the stack came up without its data: %s", out)
		}
		t.Log(lastLine(p, "backup"))
		mentions(t, lastLine(p, "backup"), "BACKUPD_SEED=require")
	})
	t.Run("the first one has none, and begins", func(t *testing.T) {
		t.Parallel()
		repository := t.TempDir()
		p := checkout(t, repository, socket)
		p.Up()
		p.Exec("application", "sh", "-c", "printf 'of the server\n' >/srv/data/rows; rm -rf /etc/skel/* /etc/skel/.[a-z]*; printf 'home of the server\n' >/etc/skel/note")
		p.Exec("backup", "backupd", "backup")
		clone := checkout(t, repository, socket)
		set(clone, map[string]string{"BACKUPD_SEED": "require"})
		clone.Up()
		isTheServers(t, clone)
	})
}

// Power goes while a volume is being filled: half of it is no data, and nobody
// starts with it.
func TestAKillInTheMiddleOfSeedingIsMendedByTheNextUp(t *testing.T) {
	withAndWithoutSocket(t, func(t *testing.T, override string) {
		volumes, repository := t.TempDir(), t.TempDir()
		write(t, filepath.Join(volumes, "data/rows"), serverRows)
		write(t, filepath.Join(volumes, "home/note"), serverHome)
		for i := range 3000 {
			write(t, filepath.Join(volumes, "data/files", strings.Repeat("x", i%50+1), string(rune('a'+i%26))+strings.Repeat("y", i/50+1)), "content")
		}
		backUp(t, volumes, repository)
		p := checkout(t, repository, override, "services: {backup: {cpus: '${CPUS:-0}'}}\n")
		set(p, map[string]string{"CPUS": "0.05"}) // so slow that it is met in the middle
		var wg sync.WaitGroup
		var upErr error
		wg.Go(func() { _, upErr = p.Try("up", "-d") })
		teststack.Eventually(t, time.Minute, "the volume is half full", func() (bool, string) {
			out, err := exec.Command("docker", "volume", "inspect", "-f", "{{.Mountpoint}}", p.Volume("data")).Output()
			if err != nil {
				return false, err.Error()
			}
			dir := strings.TrimSpace(string(out))
			_, err = os.Lstat(filepath.Join(dir, ".backupd-incomplete"))
			_, ferr := os.Lstat(filepath.Join(dir, "files"))
			return err == nil && ferr == nil, dir
		})
		teststack.Docker(t, "kill", "-s", "KILL", p.Container("backup"))
		wg.Wait()
		if upErr == nil {
			t.Fatalf("up went on: %s", p.Logs("backup"))
		}
		if s := p.State("application"); s.Status == "running" {
			t.Fatalf("the application runs on half of its data: %+v", s)
		}
		set(p, map[string]string{"CPUS": "0"})
		p.Up()
		isTheServers(t, p)
		if got := p.Exec("application", "sh", "-c", "find /srv/data/files -type f | wc -l; ls -A /srv/data"); got != "3000\nfiles\nrows\n" {
			t.Errorf("it has %s", got)
		}
		mentions(t, p.Logs("backup"), "was being seeded from snapshot")
	})
}

// Volumes that backupd has made from the host are Compose's own to Compose.
func TestComposeTakesVolumesThatTheHostMadeForItsOwn(t *testing.T) {
	t.Parallel()
	root, err := teststack.Root()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "backupd")
	if err := teststack.Build(root, binary); err != nil {
		t.Fatal(err)
	}
	p := checkout(t, snapshotted(t), socket)
	var env strings.Builder
	for k, v := range p.Env {
		env.WriteString(k + "=" + v + "\n")
	}
	p.Write(".env", env.String())
	cmd := exec.CommandContext(t.Context(), binary, "restore", "-p", p.Name)
	cmd.Dir = p.Dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("backupd restore on the host: %v\n%s", err, out)
	}
	t.Logf("%s", out)
	// --yes would delete what it takes for another volume.
	said := strings.ToLower(p.Output("up", "-d"))
	for _, word := range []string{"warn", "already exists", "not created by", "recreate"} {
		if strings.Contains(said, word) {
			t.Errorf("Compose says:\n%s", said)
		}
	}
	isTheServers(t, p)
	p.Compose("down", "-v")
	if left := teststack.Docker(t, "volume", "ls", "-q", "--filter", "label=com.docker.compose.project="+p.Name); left != "" {
		t.Errorf("down -v left %s", left)
	}
}

// A clone may break what it likes: the next clone has the server's data.
func TestACloneDoesNotLead(t *testing.T) {
	withAndWithoutSocket(t, func(t *testing.T, override string) {
		repository := snapshotted(t)
		first := checkout(t, repository, override)
		first.Up()
		first.Exec("application", "sh", "-c", "echo broken >/srv/data/rows")
		first.Exec("backup", "backupd", "backup")
		second := checkout(t, repository, override)
		second.Up()
		isTheServers(t, second)

		// Unless somebody says that it does.
		first.Exec("backup", "backupd", "seed", "--take-over")
		first.Exec("backup", "backupd", "backup")
		third := checkout(t, repository, override)
		third.Up()
		if got := rows(third); got != "broken\n" {
			t.Errorf("the rows are %q", got)
		}
	})
}

// What a clone can do, it can do with a key that only reads.
func TestACloneNeedsToReadTheRepositoryOnly(t *testing.T) {
	withAndWithoutSocket(t, func(t *testing.T, override string) {
		repository := snapshotted(t)
		p := checkout(t, repository, override)
		set(p, map[string]string{"REPOSITORY": repository + ":/backups:ro"})
		p.Up()
		isTheServers(t, p)
		p.Exec("application", "sh", "-c", "echo of the clone >/srv/data/rows")
		for _, command := range []string{"snapshots", "show latest", "ls latest data", "verify --deep", "seed --dry-run"} {
			p.Exec("backup", append([]string{"backupd"}, strings.Fields(command)...)...)
		}
		p.Compose("run", "--rm", "-T", "backup", "restore", "--force")
		isTheServers(t, p)
		p.Compose("run", "--rm", "-T", "backup", "restore", "--undo")
		if got := rows(p); got != "of the clone\n" {
			t.Errorf("the rows are %q", got)
		}
		_, err := p.Try("exec", "-T", "backup", "backupd", "backup")
		var exit *exec.ExitError
		if !errors.As(err, &exit) || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("a backup into it: %v", err)
		}
	})
}
