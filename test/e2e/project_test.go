package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/disko/backupd/internal/teststack"
)

// A stack whose volumes no Compose file mounts for backupd: it finds them, and
// has workers read and write them. Its passphrase is a secret that Compose copies into
// the agent's container alone, and its settings stand in a file.
const projectFile = `
services:
  db:
    image: IMAGE_POSTGRES
    environment: {POSTGRES_PASSWORD: secret, POSTGRES_DB: shop}
    volumes: [db:/var/lib/postgresql/data, notes:/notes]
    healthcheck: {test: [CMD, pg_isready, -q, -h, 127.0.0.1, -d, shop], interval: 1s, start_period: 2m}
    labels: {backupd.drill: postgres}
    depends_on: {backup: {condition: service_healthy}}
  backup:
    image: IMAGE_BACKUPD
    environment:
      BACKUPD_CONFIG: /etc/backupd.yaml
      BACKUPD_ORIGIN: ${ORIGIN}
    secrets: [passphrase]
    cap_drop: [ALL]
    cap_add: [CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD, SETFCAP]
    volumes:
      - ${REPOSITORY}:/backups
      - state:/var/lib/backupd
      - /var/run/docker.sock:/var/run/docker.sock
      - ./backupd.yaml:/etc/backupd.yaml:ro
volumes: {db: {}, notes: {}, state: {}}
secrets: {passphrase: {environment: PASSPHRASE}}
`

const projectSettings = `
target: /backups
stack: STACK
volumes: project
passphrase-file: /run/secrets/passphrase
worker-memory: 512m
policies:
  nightly:
    schedule: "SCHEDULE"
    max-shrink: 100%
    pre:
      - {service: db, command: "echo before >>/notes/hooks; chmod 666 /notes/hooks"}
    post:
      - {service: db, command: "echo after >>/notes/hooks", user: postgres}
    drill-schedule: "@never"
`

func postgresShop(t *testing.T, repository, stack, origin string) *teststack.Project {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the repository's directory belongs to root in the container")
	}
	file := strings.ReplaceAll(projectFile, "IMAGE_POSTGRES", teststack.Images(t, "postgres")[0])
	p := teststack.NewProject(t, "drill-shop", strings.ReplaceAll(file, "IMAGE_BACKUPD", teststack.BackupdImage(t)))
	p.Env["PASSPHRASE"], p.Env["REPOSITORY"], p.Env["ORIGIN"] = "a secret of Compose", repository, origin
	configure(p, stack, "@never")
	return p
}

func configure(p *teststack.Project, stack, schedule string) {
	p.Write("backupd.yaml", strings.NewReplacer("STACK", stack, "SCHEDULE", schedule).Replace(projectSettings))
}

// leftOvers are the containers and volumes of drills of a stack.
func leftOvers(t *testing.T, stack string) (containers, volumes string) {
	t.Helper()
	label := "label=backupd.scratch.stack=" + stack
	return teststack.Docker(t, "ps", "-aq", "--filter", label), teststack.Docker(t, "volume", "ls", "-q", "--filter", label)
}

func nothingLeft(t *testing.T, stack string) {
	t.Helper()
	if containers, volumes := leftOvers(t, stack); containers+volumes != "" {
		t.Errorf("a drill has left %s %s", containers, volumes)
	}
}

func psql(t *testing.T, p *teststack.Project, statement string) string {
	t.Helper()
	return strings.TrimSpace(p.Exec("db", "psql", "-U", "postgres", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "shop", "-c", statement))
}

// drilled is what `backupd drill --json` prints.
type drilled struct {
	Snapshot string
	Passed   bool
	Recorded bool
	Error    string
	Volumes  []struct {
		Name   string
		Bytes  int64
		Differ int
	}
	Checks []struct{ Service, Check, Error string }
	Notes  []string
}

// backupd runs a command of backupd in the agent's container, and returns its exit code.
func backupd(t *testing.T, p *teststack.Project, args ...string) (stdout string, code int) {
	t.Helper()
	out, err := p.Try(append([]string{"exec", "-T", "backup", "backupd"}, args...)...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Logf("backupd %s: %v", strings.Join(args, " "), err)
		return out, exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out, 0
}

func TestAProjectIsBackedUpDrilledRestoredAndSeededByWorkers(t *testing.T) {
	repository, stack := t.TempDir(), teststack.Unique("shop")
	server := postgresShop(t, repository, stack, "server")
	server.Up()
	server.WaitHealthy("db")
	psql(t, server, "CREATE TABLE articles (id INT PRIMARY KEY, title TEXT); INSERT INTO articles SELECT i, 'article ' || i FROM generate_series(1, 500) i")
	server.Exec("db", "sh", "-c", "echo one >/notes/first && chown -R 1234:4321 /notes/first && chmod 777 /notes")
	first, code := backupd(t, server, "backup", "--json")
	if code != 0 {
		t.Fatalf("backup: %d\n%s\n%s", code, first, server.Logs("backup"))
	}
	var summary struct {
		ID            string
		FrozenSeconds float64 `json:"frozen_seconds"`
		Volumes       []struct{ Name string }
	}
	if err := json.Unmarshal([]byte(first), &summary); err != nil || summary.FrozenSeconds <= 0 || len(summary.Volumes) != 2 {
		t.Errorf("the snapshot is %+v, %v", summary, err)
	}
	server.WaitHealthy("db")
	var ran []struct{ Kind, Outcome string }
	list, _ := backupd(t, server, "runs", "--json")
	if err := json.Unmarshal([]byte(list), &ran); err != nil || len(ran) != 1 || ran[0].Kind != "backup" || ran[0].Outcome != "done" {
		t.Errorf("the history has %+v, %v", ran, err)
	}

	t.Run("drill", func(t *testing.T) {
		out, code := backupd(t, server, "drill", "--json")
		var d drilled
		if err := json.Unmarshal([]byte(out), &d); err != nil || code != 0 {
			t.Fatalf("%d, %v: %s", code, err, out)
		}
		if !d.Passed || !d.Recorded || d.Snapshot != summary.ID || len(d.Volumes) != 2 || d.Volumes[0].Bytes < 1<<20 || len(d.Checks) != 1 || d.Checks[0].Service != "db" || d.Checks[0].Error != "" {
			t.Errorf("%+v", d)
		}
		noted, _ := backupd(t, server, "drill", "--list")
		if !strings.Contains(noted, "passed") || !strings.Contains(noted, summary.ID[:8]) {
			t.Errorf("noted is %s", noted)
		}
		if s := server.State("db"); s.Health != "healthy" {
			t.Errorf("the live database is %+v", s)
		}
		nothingLeft(t, stack)
	})

	t.Run("restore", func(t *testing.T) {
		psql(t, server, "DELETE FROM articles")
		server.Exec("db", "sh", "-c", "echo two >/notes/second; rm /notes/first")
		// A volume that the project got after the snapshot is none of the restore's.
		teststack.Docker(t, "volume", "create", "--label", "com.docker.compose.project="+server.Name, "--label", "com.docker.compose.volume=later", server.Volume("later"))
		if out, code := backupd(t, server, "restore", "--force", "--volume", "later"); code != 4 {
			t.Errorf("a volume that the snapshot does not have, by its name: %d: %s", code, out)
		}
		if out, code := backupd(t, server, "restore", "--force"); code != 0 {
			t.Fatalf("%d: %s", code, out)
		}
		server.WaitHealthy("db")
		if n := psql(t, server, "SELECT count(*) FROM articles"); n != "500" {
			t.Errorf("%s articles came back", n)
		}
		teststack.Docker(t, "volume", "rm", server.Volume("later"))
		if got := server.Exec("db", "sh", "-c", "stat -c %u:%g /notes/first; ls /notes"); got != "1234:4321\nfirst\n" {
			t.Errorf("the notes are %q", got)
		}
	})

	t.Run("seed", func(t *testing.T) {
		clone := postgresShop(t, repository, stack, "clone")
		clone.Up()
		clone.WaitHealthy("db")
		if n := psql(t, clone, "SELECT count(*) FROM articles"); n != "500" {
			t.Errorf("the clone came up with %s articles\n%s", n, clone.Logs("backup"))
		}
	})

	t.Run("policy", func(t *testing.T) {
		configure(server, stack, "@every 10s")
		server.Compose("restart", "backup")
		teststack.Eventually(t, 2*time.Minute, "a scheduled backup has run its hooks", func() (bool, string) {
			out, err := server.Try("exec", "-T", "db", "cat", "/notes/hooks")
			if err != nil {
				return false, err.Error()
			}
			return strings.HasPrefix(out, "before\nafter\n"), out + server.Logs("backup")
		})
		configure(server, stack, "@never")
		server.Compose("restart", "backup")
		server.WaitHealthy("backup")
	})

	t.Run("damage", func(t *testing.T) {
		flipped := 0
		err := filepath.WalkDir(repository, func(path string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.Contains(path, "/packs/") {
				return err
			}
			flipped++
			return flipBit(path)
		})
		if err != nil || flipped == 0 {
			t.Fatalf("%d packs were damaged, %v", flipped, err)
		}
		out, code := backupd(t, server, "drill", summary.ID, "--json")
		var d drilled
		if err := json.Unmarshal([]byte(out), &d); err != nil || code != 5 || d.Passed || d.Error == "" || !d.Recorded {
			t.Errorf("%d, %v: %s", code, err, out)
		}
		noted, _ := backupd(t, server, "drill", "--list")
		if !strings.Contains(noted, "failed") {
			t.Errorf("noted is %s", noted)
		}
		nothingLeft(t, stack)
	})
}

func flipBit(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	var b [1]byte
	at := st.Size() / 2
	if _, err := f.ReadAt(b[:], at); err != nil {
		return err
	}
	b[0] ^= 1
	_, err = f.WriteAt(b[:], at)
	return err
}

func TestWhatAKilledDrillLeavesIsRemovedAtTheNextStart(t *testing.T) {
	stack := teststack.Unique("shop")
	server := postgresShop(t, t.TempDir(), stack, "server")
	server.Up()
	server.WaitHealthy("db")
	backupd(t, server, "backup")
	// It hangs where its service runs on scratch volumes.
	server.Write("compose.override.yaml", "services: {db: {labels: {backupd.drill: sleep 300}}}")
	server.Compose("up", "-d", "--wait", "db")
	drill := exec.Command("docker", "exec", server.Container("backup"), "backupd", "drill")
	if err := drill.Start(); err != nil {
		t.Fatal(err)
	}
	teststack.Eventually(t, 2*time.Minute, "a service runs on scratch volumes", func() (bool, string) {
		containers, volumes := leftOvers(t, stack)
		return containers != "", volumes
	})
	server.Compose("kill", "backup")
	_ = drill.Wait() // it was killed
	if containers, volumes := leftOvers(t, stack); containers == "" || volumes == "" {
		t.Fatal("the kill left nothing: there is nothing to see")
	}
	server.Compose("up", "-d", "--wait", "backup")
	nothingLeft(t, stack)
}
