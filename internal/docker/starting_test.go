package docker

import (
	"slices"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
)

func TestADatabaseThatStartsIsLeftToStart(t *testing.T) {
	s := newStage(t)
	data := s.volume("data")
	db := s.add(part{service: "db", mounts: []string{data + ":/data"}, config: func(c *container.Config, _ *container.HostConfig) {
		c.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "cat", "/tmp/up"}, Interval: 200 * time.Millisecond, Timeout: time.Minute, StartPeriod: 10 * time.Minute}
	}})
	s.add(part{service: "plain", mounts: []string{data + ":/data"}})
	q := s.quiescer(data)
	p, err := q.Plan(t.Context())
	s.must(err)
	var asked []string
	s.must(q.AwaitStart(t.Context(), p, func(services []string) {
		asked = append(asked, services...)
		s.mustSh(db, "touch /tmp/up")
	}))
	if !slices.Equal(asked, []string{"db"}) {
		t.Errorf("it waited for %v", asked)
	}
	if c, err := s.api.ContainerInspect(t.Context(), db); err != nil || c.State.Health.Status != container.Healthy {
		t.Errorf("it went on while the database was %v %v", c.State.Health, err)
	}
	// What has started is not waited for.
	s.must(q.AwaitStart(t.Context(), p, func(services []string) { t.Errorf("it waited again, for %v", services) }))
}
