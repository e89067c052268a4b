package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/disko/backupd/internal/teststack"
)

// mongoFile is a stack with a replica set of one, whose first user stands in files
// as with the official image. The server is FerretDB.
const mongoFile = `
services:
  db: &db
    image: backupd-test/mongo
    network_mode: none
    command: [mongod, --replSet, rs0]
    environment:
      MONGO_INITDB_ROOT_USERNAME_FILE: /run/secrets/user
      MONGO_INITDB_ROOT_PASSWORD_FILE: /run/secrets/password
      MONGO_URI: mongodb://admin:correct%20horse@127.0.0.1/?authSource=admin&directConnection=true
    secrets: [user, password]
    volumes: [data:/data/db]
    labels: {backupd.quiesce: none}
    init: true

  fresh:
    <<: *db
    volumes: []
    labels: {}

  backup:
    image: ${BACKUPD_IMAGE}
    network_mode: none
    environment: {BACKUPD_TARGET: /backups, BACKUPD_STACK: shop, BACKUPD_SEED: "off"}
    volumes: ["data:/volumes/data", "${REPOSITORY}:/backups", "/var/run/docker.sock:/var/run/docker.sock", "backup-state:/var/lib/backupd"]

volumes: {data: {}, backup-state: {}}
secrets: {user: {file: user}, password: {file: password}}
`

// The load writes document n into one collection and then into the other: at no
// moment has the second what the first lacks, or does it lack more than one.
func TestMongoDBIsDumpedWhileItIsWrittenTo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the repository's directory belongs to root in the container")
	}
	t.Parallel()
	teststack.Images(t, "mongo")
	p := teststack.NewProject(t, "backupd-mongo", mongoFile)
	p.Write("user", "admin\n")
	p.Write("password", "correct horse\n")
	p.Write("dump.yaml", "services: {db: {labels: {backupd.dump: mongodb}}}\n")
	set(p, map[string]string{"BACKUPD_IMAGE": teststack.BackupdImage(t), "REPOSITORY": t.TempDir(), "COMPOSE_FILE": "compose.yaml"})
	p.Up()
	answersMongo(t, p, "db")
	p.Exec("db", "mongotest", "run", "local", `{"create": "oplog.rs", "capped": true, "size": 100000000}`)
	p.Exec("db", "mongotest", "fill", "shop.orders", "2000")

	code, said := backup(t, p)
	if code != 3 {
		t.Errorf("without a dump: exit code %d, want 3: %s", code, said)
	}
	mentions(t, said, "service db runs a database (mongodb) that keeps writing", "backupd.dump=mongodb")

	set(p, map[string]string{"COMPOSE_FILE": "compose.yaml:dump.yaml"})
	p.Up()
	answersMongo(t, p, "db")
	answersMongo(t, p, "fresh")
	p.Compose("exec", "-dT", "db", "mongotest", "load", "shop")
	teststack.Eventually(t, time.Minute, "it is written to", func() (bool, string) {
		sum := p.Exec("db", "mongotest", "sum")
		first, _ := counts(sum)
		return first > 20, sum
	})
	before, _ := counts(p.Exec("db", "mongotest", "sum"))
	// The server's files beside the dump are written while they are read, of which a
	// warning tells.
	if code, said = backup(t, p); code != 0 && code != 3 || strings.Contains(said, "runs a database") {
		t.Fatalf("with a dump: exit code %d: %s", code, said)
	}
	mentions(t, p.Exec("backup", "backupd", "ls", "latest", "db.dump"), "dump.archive")

	// As docs/quiesce.md says it, but for the users, whom FerretDB keeps in its own way.
	archive := dumped(t, p, "db.dump", "dump.archive")
	feed(t, p, "fresh", archive, "sh", "-c", `exec mongorestore --archive --drop --nsExclude='admin.*' --username="$(cat /run/secrets/user)" --password="$(cat /run/secrets/password)" --authenticationDatabase=admin`)
	feed(t, p, "fresh", archive, "mongotest", "replay")
	want, got := p.Exec("db", "mongotest", "sum"), p.Exec("fresh", "mongotest", "sum")
	orders := func(sum string) string {
		return sum[strings.Index(sum, "shop.orders 2000 "):strings.Index(sum, "shop.second")]
	}
	if !strings.Contains(got, "shop.orders 2000 ") || orders(got) != orders(want) {
		t.Errorf("restored:\n%s\nwant the orders of:\n%s", got, want)
	}
	if first, second := counts(got); first < before || first-second < 0 || first-second > 1 {
		t.Errorf("restored is what never was, or not the latest, as %d were there before:\n%s", before, got)
	}

	snapshots := p.Exec("backup", "backupd", "snapshots", "--json")
	p.Write("password", "changed since\n")
	code, said = backup(t, p)
	t.Log(said)
	if code != 1 {
		t.Errorf("with a wrong password: exit code %d, want 1", code)
	}
	mentions(t, said, "dump service db", "Authentication failed")
	p.Compose("stop", "db")
	code, said = backup(t, p)
	t.Log(said)
	if code != 1 {
		t.Errorf("of a server that is down: exit code %d, want 1", code)
	}
	mentions(t, said, "service db cannot be dumped: none of its containers runs")
	if after := p.Exec("backup", "backupd", "snapshots", "--json"); after != snapshots {
		t.Errorf("a snapshot without its dump was committed: %s\nbefore: %s", after, snapshots)
	}
}

func answersMongo(t *testing.T, p *teststack.Project, service string) {
	t.Helper()
	teststack.Eventually(t, time.Minute, service+" answers", func() (bool, string) {
		_, err := p.Try("exec", "-T", service, "mongotest", "run", "admin", `{"listDatabases": 1}`)
		return err == nil, fmt.Sprint(err)
	})
}

// counts says how many documents of the load are in each collection; -1 if any is missing between.
func counts(sum string) (first, second int) {
	for _, line := range strings.Split(sum, "\n") {
		var name, hash string
		var count, last int
		if _, err := fmt.Sscan(line, &name, &count, &last, &hash); err != nil {
			continue
		}
		if last != count-1 {
			count = -1
		}
		switch name {
		case "shop.first":
			first = count
		case "shop.second":
			second = count
		}
	}
	return first, second
}

// dumped is a file of a dump in the latest snapshot.
func dumped(t *testing.T, p *teststack.Project, volume, file string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `zstd -dc | tar -xO "$0"`, file)
	cmd.Stdin = strings.NewReader(p.Compose("exec", "-T", "backup", "backupd", "export", "latest", volume))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("unpack %s: %v", volume, err)
	}
	return out
}

// feed runs a command in a service with something on its stdin.
func feed(t *testing.T, p *teststack.Project, service string, in []byte, command ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "docker", append([]string{"exec", "-i", p.Container(service)}, command...)...)
	cmd.Stdin = bytes.NewReader(in)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
}
