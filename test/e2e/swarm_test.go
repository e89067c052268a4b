package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/disko/backupd/internal/testservers"
	"github.com/disko/backupd/internal/teststack"
)

// swarmExtra is what the example needs here: an S3 server, and the socket of the
// test's own engine, which is not the machine's.
const swarmExtra = `
services:
  store:
    image: BASE
    command: [/servers/versitygw, --access, an-id, --secret, a-key, posix, /data]
    volumes: ['SERVERS:/servers:ro', 'BUCKETS:/data']
    networks: [default]
  backup:
    environment:
      BACKUPD_S3_ENDPOINT: http://tasks.store:7070
      BACKUPD_S3_PATH_STYLE: 'true'
      BACKUPD_VOLUMES: MODE
    volumes: ['SOCKET:/var/run/docker.sock:ro']
    networks: [default]
networks:
  default: {attachable: true}
`

// swarmStack is the example, deployed as the stack shop on a swarm of one node.
type swarmStack struct {
	t     *testing.T
	dir   string
	extra *strings.Replacer
}

func newSwarmStack(t *testing.T) *swarmStack {
	t.Helper()
	base, postgres, image := teststack.Images(t, "base")[0], teststack.Images(t, "postgres")[0], teststack.BackupdImage(t)
	server := testservers.Binary(t, "versitygw")
	socket := ownEngine(t, base, postgres, image)
	teststack.Docker(t, "tag", postgres, "postgres:17")
	teststack.Docker(t, "tag", image, "backupd:latest")
	s := &swarmStack{t: t, dir: t.TempDir()}
	buckets := filepath.Join(s.dir, "buckets")
	if err := os.MkdirAll(filepath.Join(buckets, "example-bucket"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.extra = strings.NewReplacer("BASE", base, "SERVERS", filepath.Dir(server), "BUCKETS", buckets, "SOCKET", socket)
	teststack.Docker(t, "swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:2377")
	teststack.Docker(t, "node", "update", "--label-add", "shop=true", teststack.Docker(t, "node", "ls", "-q"))
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, service := range []string{"backup", "db", "store"} {
			// The test's context has ended.
			tasks, _ := exec.Command("docker", "service", "ps", "--no-trunc", "shop_"+service).CombinedOutput()
			log, _ := exec.Command("docker", "service", "logs", "--tail", "20", "shop_"+service).CombinedOutput()
			t.Logf("service %s: %s\n%s", service, tasks, log)
		}
	})
	for name, text := range map[string]string{
		"db-password": "of the database", "passphrase": "of the repository",
		"s3-credentials": "[default]\naws_access_key_id=an-id\naws_secret_access_key=a-key\n",
	} {
		teststack.Docker(t, "secret", "create", name, s.write(name, text))
	}
	return s
}

func (s *swarmStack) write(name, text string) (path string) {
	s.t.Helper()
	path = filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// deploy is `docker stack deploy` of the example, whose agent reads volumes as
// BACKUPD_VOLUMES says. It returns when all runs.
func (s *swarmStack) deploy(volumes string) {
	s.t.Helper()
	root, err := teststack.Root()
	if err != nil {
		s.t.Fatal(err)
	}
	extra := s.write("extra.yaml", strings.ReplaceAll(s.extra.Replace(swarmExtra), "MODE", volumes))
	teststack.Docker(s.t, "stack", "deploy", "--resolve-image", "never", "-c", filepath.Join(root, "configs/stack.swarm.yaml"), "-c", extra, "shop")
	teststack.Eventually(s.t, time.Minute, "the agent reads volumes as "+volumes, func() (bool, string) {
		settings, err := teststack.Try(s.t, "", "exec", s.task("backup"), "/backupd", "config", "--json")
		return err == nil && strings.Contains(settings, `"`+volumes+`"`), fmt.Sprint(settings, err)
	})
	s.answers()
}

// task is the container of a service that runs; "-" is none.
func (s *swarmStack) task(service string) string {
	id, _, _ := strings.Cut(teststack.Docker(s.t, "ps", "-q", "--filter", "label=com.docker.swarm.service.name=shop_"+service), "\n")
	if id == "" {
		return "-"
	}
	return id
}

// answers waits until the database takes queries, and no longer than it must.
func (s *swarmStack) answers() {
	s.t.Helper()
	teststack.Eventually(s.t, 3*time.Minute, "the database answers", func() (bool, string) {
		out, err := teststack.Try(s.t, "", "exec", s.task("db"), "pg_isready", "-h", "localhost", "-U", "postgres")
		return err == nil, fmt.Sprint(out, err)
	})
}

func (s *swarmStack) psql(statement string) string {
	s.t.Helper()
	s.answers()
	return teststack.Docker(s.t, "exec", s.task("db"), "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-c", statement)
}

// backupd runs a command in the agent's container, as the example's comment says.
func (s *swarmStack) backupd(args ...string) string {
	s.t.Helper()
	return teststack.Docker(s.t, append([]string{"exec", s.task("backup"), "/backupd"}, args...)...)
}

func (s *swarmStack) replicas(service string) string {
	s.t.Helper()
	return teststack.Docker(s.t, "service", "inspect", "-f", "{{.Spec.Mode.Replicated.Replicas}}", "shop_"+service)
}

// The example for a swarm, deployed as it stands: its database is scaled to nothing
// for a snapshot and for a restore, comes back, and has its rows.
func TestTheSwarmExampleIsBackedUpAndRestored(t *testing.T) {
	s := newSwarmStack(t)
	s.deploy("mounted")
	s.psql("CREATE TABLE article AS SELECT generate_series(1, 1000) AS id")
	first := s.task("db")
	id := s.backupd("backup")
	s.answers()
	if s.task("db") == first || s.replicas("db") != "1" {
		t.Errorf("the database ran on while it was read, or is not there again: %s, %s replicas", first, s.replicas("db"))
	}

	s.psql("DROP TABLE article")
	second := s.task("db")
	if _, err := teststack.Try(t, "", "exec", s.task("backup"), "/backupd", "restore"); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("it restored over data unasked: %v", err)
	}
	if s.task("db") != second {
		t.Error("the database was stopped for a restore that was refused")
	}
	s.backupd("restore", "--force")
	if n := s.psql("SELECT count(*) FROM article"); n != "1000" {
		t.Errorf("there are %s articles", n)
	}

	var covered []struct{ Volume, Stack, State, Snapshot string }
	out, _ := teststack.Try(t, "", "exec", s.task("backup"), "/backupd", "coverage", "--json")
	if err := json.Unmarshal([]byte(out), &covered); err != nil || len(covered) != 2 {
		t.Fatalf("%v: %s", err, out)
	}
	if c := covered[1]; c.Volume != "shop_db" || c.Stack != "shop" || c.State != "covered" || c.Snapshot != id {
		t.Errorf("coverage: %+v, want snapshot %s", c, id)
	}

	// Workers have the swarm's secrets, and its network.
	s.deploy("project")
	s.psql("INSERT INTO article VALUES (1001)")
	third := s.task("db")
	id = s.backupd("backup")
	s.answers()
	if s.task("db") == third {
		t.Error("the database ran on while a worker read it")
	}

	// A new node: the volume is filled before the stack is deployed (docs/docker.md).
	teststack.Docker(t, "service", "scale", "shop_db=0", "shop_backup=0")
	teststack.Eventually(t, time.Minute, "the volume can be removed", func() (bool, string) {
		teststack.Docker(t, "container", "prune", "-f")
		_, err := teststack.Try(t, "", "volume", "rm", "shop_db")
		return err == nil, fmt.Sprint(err)
	})
	restored := teststack.Docker(t, "run", "--rm", "--network", "shop_default", "-v", "shop_db:/volumes/db", "-v", s.dir+":/run/secrets:ro",
		"-e", "BACKUPD_TARGET=s3://example-bucket/backups", "-e", "BACKUPD_STACK=shop", "-e", "BACKUPD_PASSPHRASE_FILE=/run/secrets/passphrase",
		"-e", "AWS_SHARED_CREDENTIALS_FILE=/run/secrets/s3-credentials", "-e", "AWS_REGION=us-east-1",
		"-e", "BACKUPD_S3_ENDPOINT=http://tasks.store:7070", "-e", "BACKUPD_S3_PATH_STYLE=true", "backupd:latest", "restore")
	if restored != id {
		t.Errorf("restored is %s, want %s", restored, id)
	}
	teststack.Docker(t, "service", "scale", "shop_db=1", "shop_backup=1")
	if n := s.psql("SELECT count(*) FROM article"); n != "1001" {
		t.Errorf("there are %s articles on a new node", n)
	}
}
