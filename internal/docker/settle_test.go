package docker

import (
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
)

// A PostgreSQL that is about to be stopped writes its checkpoint while its clients
// still work. One that is paused does not, and what is none is not asked.
func TestPostgresWritesItsCheckpointBeforeItIsStopped(t *testing.T) {
	if testing.Short() {
		t.Skip("starts databases")
	}
	s := newDatabase(t, "postgres")
	const ask = `psql -U shop -XAtq -v ON_ERROR_STOP=1 -c `
	add := func(service, act string) (id, volume string) {
		volume = s.volume(service)
		return s.add(part{
			service: service, script: "exec entrypoint postgres", env: []string{"POSTGRES_USER=shop", "POSTGRES_PASSWORD=s3cret"},
			labels: map[string]string{labelQuiesce: act}, mounts: []string{volume + ":/var/lib/postgresql/data"},
		}), volume
	}
	stopped, one := add("db", "stop")
	paused, two := add("other", "pause")
	other := s.volume("files")
	s.add(part{service: "app", script: idle, labels: map[string]string{labelQuiesce: "stop"}, mounts: []string{other + ":/files"}})
	checkpoint := func(id string) string {
		return strings.TrimSpace(s.mustSh(id, ask+`"SELECT checkpoint_lsn FROM pg_control_checkpoint()"`))
	}
	for _, id := range []string{stopped, paused} {
		eventually(t, "PostgreSQL is up", func() bool {
			_, err := s.sh(id, `grep -qx postgres /proc/1/comm && `+ask+`"CREATE TABLE IF NOT EXISTS t AS SELECT 1"`)
			return err == nil
		})
	}
	was := []string{checkpoint(stopped), checkpoint(paused)}
	if !s.quiescer(one, two, other).Settle(t.Context()) {
		t.Error("nothing is said to have settled")
	}
	if checkpoint(stopped) == was[0] {
		t.Error("the one that is to be stopped has written no checkpoint")
	}
	if checkpoint(paused) != was[1] {
		t.Error("the one that is to be paused was asked for a checkpoint")
	}
	s.must(s.api.ContainerRemove(t.Context(), stopped, container.RemoveOptions{Force: true}))
	if s.quiescer(two, other).Settle(t.Context()) {
		t.Error("without it, something is said to have settled")
	}
}
