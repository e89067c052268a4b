package docker

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/disko/backupd/internal/teststack"
)

func TestDrillsPassOnGoodDataAndFailOnDamagedOnes(t *testing.T) {
	if testing.Short() {
		t.Skip("starts databases")
	}
	for _, d := range []struct {
		kind       Kind
		image      string
		label, env string
		command    string
		at         string // where the volume is mounted
		fill       []string
		damage     string // in the volume, at /v
	}{
		{
			kind: Postgres, image: "postgres", label: "postgres", env: "POSTGRES_PASSWORD_FILE: /run/secrets/password", command: "POSTGRES_PASSWORD=$$(cat /run/secrets/password) exec entrypoint postgres", at: "/var/lib/postgresql/data",
			fill:   []string{"psql", "-U", "postgres", "-qc", "DROP TABLE IF EXISTS t; CREATE TABLE t (a INT PRIMARY KEY, b TEXT); INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 2000) i; CHECKPOINT"},
			damage: `f=$(grep -l xxxxxxxxxxxxxxxxxxxxxxxx /v/base/5/* | head -1); printf '%0190d' 7 | tr 0 Z | dd of=$f bs=1 seek=8000 conv=notrunc`,
		},
		{
			kind: MariaDB, image: "mariadb", label: "mariadb", env: "MARIADB_ROOT_PASSWORD_FILE: /run/secrets/password", command: "MARIADB_ROOT_PASSWORD=$$(cat /run/secrets/password) exec entrypoint mariadbd", at: "/var/lib/mysql",
			fill:   []string{"sh", "-c", `MYSQL_PWD=$(cat /run/secrets/password) mariadb -e "CREATE DATABASE IF NOT EXISTS s; USE s; CREATE OR REPLACE TABLE t (a INT PRIMARY KEY, b TEXT) ENGINE=InnoDB; INSERT INTO t SELECT seq, REPEAT('x', 500) FROM seq_1_to_500"`},
			damage: `printf '%0900d' 7 | dd of=/v/s/t.ibd bs=1 seek=66000 conv=notrunc`,
		},
		{
			kind: Redis, image: "redis", label: "redis", env: "A: b", command: "exec entrypoint redis-server", at: "/data",
			fill:   []string{"sh", "-c", "redis-cli set a b && redis-cli save"},
			damage: `truncate -s -9 /v/dump.rdb`,
		},
		{
			kind: MongoDB, image: "mongo", label: "mongodb", command: "exec entrypoint mongod", at: "/data/db",
			env:    "MONGO_INITDB_ROOT_USERNAME: root, MONGO_INITDB_ROOT_PASSWORD_FILE: /run/secrets/password, MONGO_URI: 'mongodb://root:correct%20horse@127.0.0.1/?authSource=admin'",
			fill:   []string{"mongotest", "fill", "shop.orders", "1000"},
			damage: `dd if=/dev/urandom of=/v/shop.sqlite bs=4096 seek=20 count=20 conv=notrunc`,
		},
	} {
		t.Run(string(d.kind), func(t *testing.T) {
			t.Parallel()
			e := newLab(t).Engine
			image := teststack.Images(t, d.image)[0]
			p := teststack.NewProject(t, "drill-"+d.image, `
services:
  db:
    image: `+image+`
    entrypoint: [sh, -c]
    command: ["`+d.command+`"]
    environment: {`+d.env+`}
    secrets: [password]
    volumes: [data:`+d.at+`]
    labels: {backupd.drill: `+d.label+`, backupd.drill.timeout: 2m}
    ports: ["127.0.0.1::9"]
    networks: [own]
networks: {own: {}}
volumes: {data: {}}
secrets: {password: {file: password}}
`)
			p.Write("password", "correct horse\n")
			p.Up()
			teststack.Eventually(t, 2*time.Minute, "the database takes data", func() (bool, string) {
				_, err := p.Try(append([]string{"exec", "-T", "db"}, d.fill...)...)
				if err != nil {
					return false, err.Error()
				}
				return true, ""
			})
			p.Compose("stop")
			stack, err := e.Stack(t.Context(), p.Name)
			if err != nil {
				t.Fatal(err)
			}
			drills, err := Drills(stack, nil)
			if err != nil || len(drills) != 1 || drills[0].Check.Kind != d.kind {
				t.Fatalf("%+v, %v", drills, err)
			}
			owner := ScratchOwner{Container: livingMaker(t, p), Stack: p.Name}
			scratch := ScratchName("0123456789abcdef", p.Name)
			if err := e.CreateScratch(t.Context(), owner, scratch); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := e.RemoveScratch(t.Context(), scratch); err != nil {
					t.Error(err)
				}
			})
			inScratch := func(script string) {
				t.Helper()
				teststack.Docker(t, "run", "--rm", "--network", "none", "-v", p.Volume("data")+":/d:ro", "-v", scratch+":/v", "backupd-test/base", "sh", "-ec", script)
			}
			inScratch("cp -a /d/. /v/")
			run := DrillRun{DrillOf: drills[0], Owner: owner, Scratch: map[string]string{p.Volume("data"): scratch}}
			if err := e.Drill(t.Context(), run); err != nil {
				t.Fatalf("of good data: %v", err)
			}
			inScratch("rm -rf /v/* && cp -a /d/. /v/ && " + d.damage)
			err = e.Drill(t.Context(), run)
			if !errors.Is(err, ErrCheck) || strings.Contains(err.Error(), "longer than") {
				t.Errorf("of damaged data: %v", err)
			}
			t.Logf("of damaged data: %v", err)
			run.Check = Check{Hook: Hook{Command: "test -e /nothing || { echo a reason; exit 3; }", Timeout: time.Minute}}
			if err = e.Drill(t.Context(), run); !errors.Is(err, ErrCheck) || !strings.Contains(err.Error(), "a reason") && !strings.Contains(err.Error(), "exit code") {
				t.Errorf("by a command that fails: %v", err)
			}
			// The volume of the stack was never touched, nor is anything left but the scratch volume.
			if out := teststack.Docker(t, "ps", "-aq", "--filter", "label="+labelScratchStack+"="+p.Name); out != "" {
				t.Errorf("containers are left: %s", out)
			}
		})
	}
}

// livingMaker is a container that runs: what it makes, agents in other tests leave alone.
func livingMaker(t *testing.T, p *teststack.Project) string {
	t.Helper()
	id := teststack.Docker(t, "run", "-d", "--network", "none", "--label", "com.docker.compose.project="+p.Name, teststack.Images(t, "base")[0], "sleep", "infinity")
	t.Cleanup(func() { _ = exec.Command("docker", "rm", "-f", id).Run() })
	return id
}

func TestAServiceInADrillIsAlone(t *testing.T) {
	l := newLab(t)
	e := l.Engine
	image := teststack.Images(t, "base")[0]
	p := teststack.NewProject(t, "drill-alone", `
services:
  app:
    image: `+image+`
    command: [sleep, infinity]
    environment: {WORD: "a b"}
    user: "1000:1000"
    privileged: true
    restart: always
    volumes: [data:/data, other:/other, ./here:/here]
    networks: [own]
    labels:
      backupd.drill: >-
        test "$$WORD" = "a b" && test "$$(id -u)" = 1000 && test "$$(cat /data/file)" = restored &&
        test ! -e /other/file && test ! -e /here/file && test "$$(ls /sys/class/net)" = lo && test ! -e /dev/mem
  healthy:
    image: `+image+`
    command: [sh, -c, "sleep 2; touch /tmp/up; sleep infinity"]
    healthcheck: {test: ["CMD", "test", "-e", "/tmp/up"], interval: 1h, start_period: 1h}
    volumes: [data:/data]
    labels: {backupd.drill: "test -e /tmp/up"}
  hangs:
    image: `+image+`
    command: [sleep, infinity]
    volumes: [data:/data]
    labels: {backupd.drill: "sleep 600", backupd.drill.timeout: 1s}
networks: {own: {}}
volumes: {data: {}, other: {}}
`)
	p.Write("here/file", "of the stack")
	p.Compose("create")
	fill := func(volume, text string) {
		t.Helper()
		teststack.Docker(t, "run", "--rm", "--network", "none", "-v", volume+":/v", image, "sh", "-c", "echo "+text+" >/v/file")
	}
	fill(p.Volume("data"), "live")
	fill(p.Volume("other"), "live")
	stack, err := e.Stack(t.Context(), p.Name)
	if err != nil {
		t.Fatal(err)
	}
	drills, err := Drills(stack, nil)
	if err != nil || len(drills) != 3 {
		t.Fatalf("%+v, %v", drills, err)
	}
	maker := livingMaker(t, p)
	owner := ScratchOwner{Container: maker, Stack: p.Name}
	scratch := ScratchName("0123456789abcdef", p.Name)
	if err := e.CreateScratch(t.Context(), owner, scratch); err != nil {
		t.Fatal(err)
	}
	fill(scratch, "restored")
	for _, d := range drills {
		err := e.Drill(t.Context(), DrillRun{DrillOf: d, Owner: owner, Scratch: map[string]string{p.Volume("data"): scratch}})
		if d.Service == "hangs" {
			if !errors.Is(err, ErrCheck) || !strings.Contains(err.Error(), "longer than 1s") {
				t.Errorf("%s: %v", d.Service, err)
			}
		} else if err != nil {
			t.Errorf("%s: %v", d.Service, err)
		}
	}
	// What a drill that was killed has left is removed: its maker was started again
	// since, within the same second, or is not there.
	leftAlone := ScratchName("fedcba9876543210", p.Name)
	if err := e.CreateScratch(t.Context(), owner, leftAlone); err != nil {
		t.Fatal(err)
	}
	if _, err := e.CleanDrills(t.Context(), ScratchOwner{}); err != nil {
		t.Error(err)
	}
	teststack.Docker(t, "volume", "inspect", leftAlone)
	teststack.Docker(t, "restart", "-t", "0", maker)
	if n, err := e.CleanDrills(t.Context(), ScratchOwner{}); err != nil || n < 2 {
		t.Errorf("%d were removed, %v", n, err)
	}
	for _, name := range []string{scratch, leftAlone} {
		if out := teststack.Docker(t, "volume", "ls", "-q", "--filter", "name="+name); out != "" {
			t.Errorf("%s is left after its maker was started again", out)
		}
	}
	if err := e.CreateScratch(t.Context(), owner, scratch); err != nil {
		t.Fatal(err)
	}
	teststack.Docker(t, "run", "-d", "--network", "none", "--label", labelScratch+"="+owner.Container, "--label", labelScratchStack+"="+p.Name, "-v", scratch+":/v", image, "sleep", "infinity")
	teststack.Docker(t, "rm", "-f", maker)
	if n, err := e.CleanDrills(t.Context(), ScratchOwner{}); err != nil || n < 2 {
		t.Errorf("%d were removed, %v", n, err)
	}
	for _, kind := range [][]string{{"ps", "-aq"}, {"volume", "ls", "-q"}} {
		if out := teststack.Docker(t, append(kind, "--filter", "label="+labelScratchStack+"="+p.Name)...); out != "" {
			t.Errorf("docker %v: %s is left", kind, out)
		}
	}
}
