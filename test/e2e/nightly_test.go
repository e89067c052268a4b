package e2e

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/disko/backupd/internal/teststack"
)

// orders is a stack with a database that never rests: every order is paid in the
// transaction that makes it, so a snapshot that holds one without the other is torn.
const orders = `
services:
  application:
    image: backupd-test/postgres
    entrypoint: [bash, -c]
    init: true
    command:
      - |
        export PGPASSWORD=secret
        until psql -h db -U postgres -c 'CREATE TABLE IF NOT EXISTS orders (id bigserial PRIMARY KEY, note text); CREATE TABLE IF NOT EXISTS payments (id bigint PRIMARY KEY REFERENCES orders)'; do sleep 0.2; done
        printf '%s\n' 'BEGIN;' "INSERT INTO orders (note) VALUES (repeat('x', 500)) RETURNING id \gset" 'SELECT pg_sleep(0.002);' 'INSERT INTO payments VALUES (:id);' 'COMMIT;' >/tmp/order.sql
        while :; do pgbench -n -h db -U postgres -c 2 -T 3600 -f /tmp/order.sql postgres; sleep 0.1; done
    depends_on:
      db:
        condition: service_healthy

  db:
    image: backupd-test/postgres
    environment:
      POSTGRES_PASSWORD: secret
    healthcheck:
      test: [CMD, pg_isready, -h, localhost, -U, postgres]
      interval: 1s
      timeout: 20s
      start_period: 5m
    labels:
      backupd.quiesce: ${QUIESCE}
    volumes:
      - db:/var/lib/postgresql/data
    depends_on:
      backup:
        condition: service_healthy

  backup:
    image: ${BACKUPD_IMAGE}
    network_mode: none
    environment:
      BACKUPD_TARGET: /backups
      BACKUPD_STACK: orders
      BACKUPD_SCHEDULE: ${BACKUPD_SCHEDULE:-}
      BACKUPD_LOG_FORMAT: text
    read_only: true
    cap_drop: [ALL]
    cap_add: [CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD, SETFCAP]
    security_opt: ["no-new-privileges:true"]
    volumes:
      - db:/volumes/db
      - ${REPOSITORY}:/backups
      - backup-state:/var/lib/backupd
      - /var/run/docker.sock:/var/run/docker.sock:ro

volumes:
  db:
  backup-state:
`

// The nights of a server, seconds apart, under a database that writes: what a
// clone gets starts, is sound, and is one moment.
func TestNightlySnapshotsOfABusyDatabaseStartInAClone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the repository's directory belongs to root in the container")
	}
	teststack.Images(t, "postgres")
	for _, quiesce := range []string{"default", "pause"} {
		if quiesce == "pause" && !teststack.Pauses(t) {
			continue // refused there
		}
		t.Run("quiesce "+quiesce, func(t *testing.T) {
			t.Parallel()
			repository := t.TempDir()
			stack := func(schedule string) *teststack.Project {
				p := teststack.NewProject(t, "backupd-e2e-nightly", orders)
				set(p, map[string]string{
					"BACKUPD_IMAGE": teststack.BackupdImage(t), "REPOSITORY": repository,
					"QUIESCE": quiesce, "BACKUPD_SCHEDULE": schedule,
				})
				return p
			}
			server := stack("*/5 * * * * *")
			server.Up()
			snapshots := func() (n int, said string) {
				out, err := server.Try("exec", "-T", "backup", "backupd", "runs", "--json")
				if err != nil {
					return 0, err.Error()
				}
				var runs []struct{ Kind, Trigger, Outcome string }
				if err := json.Unmarshal([]byte(out), &runs); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				for _, r := range runs {
					if r.Kind == "backup" && r.Trigger == "schedule" && r.Outcome == "done" {
						n++
					}
				}
				return n, out
			}
			// The first of all may have met an empty database.
			var begun int
			teststack.Eventually(t, 3*time.Minute, "there are orders", func() (bool, string) {
				n, out := count(server, "orders")
				begun, _ = snapshots()
				return n > 100, out
			})
			teststack.Eventually(t, 3*time.Minute, "two nights have passed", func() (bool, string) {
				n, out := snapshots()
				return n >= begun+2, out + server.Logs("backup")
			})
			server.Compose("stop", "backup")
			server.WaitHealthy("db") // it may just have been let go on
			atTheEnd, _ := count(server, "orders")
			if s := server.State("db"); s.Status != "running" {
				t.Errorf("the database is %+v after the nights", s)
			}
			server.Remove()

			clone := stack("")
			clone.Up("db")
			clone.WaitHealthy("db")
			made, said := count(clone, "orders")
			paid, _ := count(clone, "payments")
			if made == 0 || made != paid || made > atTheEnd {
				t.Errorf("%d orders and %d payments; the server had %d: %s", made, paid, atTheEnd, said)
			}
			t.Logf("%d of %d orders", made, atTheEnd)
			clone.Exec("db", "pg_amcheck", "-U", "postgres", "--install-missing", "--all", "--heapallindexed")
		})
	}
}

// count counts a table's rows; what went wrong is in said.
func count(p *teststack.Project, table string) (n int, said string) {
	out, err := p.Try("exec", "-T", "db", "psql", "-U", "postgres", "-Atc", "SELECT count(*) FROM "+table)
	if err != nil {
		return 0, err.Error()
	}
	n, err = strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		return 0, err.Error()
	}
	return n, out
}
