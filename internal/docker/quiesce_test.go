package docker

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
)

// acts watches what the engine does with the containers of a project: "stop db", in order.
func (s *stage) acts(do func()) []string {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	since := time.Now()
	messages, errs := s.api.Events(ctx, events.ListOptions{
		Since:   since.Format(time.RFC3339Nano),
		Filters: filters.NewArgs(filters.Arg("type", "container"), filters.Arg("label", labelProject+"="+s.project)),
	})
	do()
	// An event of its own says that all before have come.
	end := s.add(part{service: "end-of-events", stopped: true})
	var out []string
	for {
		select {
		case m := <-messages:
			if m.Actor.ID == end {
				return out
			}
			switch m.Action {
			case "stop", "start", "pause", "unpause":
				out = append(out, string(m.Action)+" "+m.Actor.Attributes[labelService])
			}
		case err := <-errs:
			s.t.Fatalf("events: %v", err)
		}
	}
}

func (s *stage) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func TestServicesStandStillInTheOrderOfTheirDependencies(t *testing.T) {
	s := newStage(t)
	s.pauses()
	data, other := s.volume("data"), s.volume("other")
	mounts := []string{data + ":/data"}
	db := s.add(part{service: "db", health: true, mounts: mounts})
	app := s.add(part{service: "app", needs: "db:service_healthy:false", mounts: mounts})
	app2 := s.add(part{service: "app", number: 2, needs: "db:service_healthy:false", mounts: mounts})
	web := s.add(part{service: "web", needs: "app:service_started:false", labels: map[string]string{"backupd.quiesce": "stop"}})
	reader := s.add(part{service: "reader", mounts: []string{data + ":/data:ro"}})
	elsewhere := s.add(part{service: "elsewhere", mounts: []string{other + ":/data"}})
	left := s.add(part{service: "left", mounts: mounts, labels: map[string]string{"backupd.quiesce": "none"}})
	oneOff := s.add(part{service: "db", oneOff: true, health: true, mounts: mounts})
	exited := s.add(part{service: "db", number: 2, health: true, mounts: mounts, stopped: true})
	paused := s.add(part{service: "app", number: 3, mounts: mounts})
	s.must(s.api.ContainerPause(t.Context(), paused))
	all := []string{db, app, app2, web, reader, elsewhere, left, oneOff, exited, paused}
	before := s.states(all...)

	q := s.quiescer(data)
	acts := s.acts(func() {
		s.must(q.Freeze(t.Context()))
		s.wantStates("frozen", all, "exited", "paused", "paused", "exited", "running", "running", "running", "paused", "created", "paused")
		if n := len(s.journals()); n != 1 {
			t.Errorf("%d journals while frozen", n)
		}
		s.must(q.Thaw(t.Context()))
	})
	s.wantStates("thawed", all, before...)
	if n := len(s.journals()); n != 0 {
		t.Errorf("%d journals are left", n)
	}
	want := []string{"stop web", "pause app", "pause app", "stop db", "pause db", "unpause db", "start db", "unpause app", "unpause app", "start web"}
	if !slices.Equal(acts, want) {
		t.Errorf("the order was\n%q, want\n%q", acts, want)
	}
	if q.Frozen() <= 0 {
		t.Errorf("frozen for %s", q.Frozen())
	}
	s.must(q.Thaw(t.Context())) // nothing more to do
}

func TestOwnServiceWorkersAndOtherProjectsAreNotTouched(t *testing.T) {
	s := newStage(t)
	s.pauses()
	data := s.volume("data")
	mounts := []string{data + ":/data"}
	own := s.add(part{service: "backup", mounts: mounts})
	replica := s.add(part{service: "backup", number: 2, mounts: mounts})
	oneOff := s.add(part{service: "backup", oneOff: true, mounts: mounts})
	worker := s.add(part{service: "restorer", mounts: mounts, labels: map[string]string{labelWorker: own}})
	foreign := s.add(part{project: s.project + "-other", service: "db", mounts: mounts})
	alone := s.add(part{service: "x", mounts: mounts, config: func(c *container.Config, _ *container.HostConfig) { c.Labels = nil }})
	app := s.add(part{service: "app", mounts: mounts})
	q := s.Quiescer(QuiesceOptions{Project: s.project, Volumes: []string{data}, Own: []string{own}, StateDir: s.state, Run: "r"})
	s.must(q.Freeze(t.Context()))
	s.wantStates("frozen", []string{own, replica, oneOff, worker, foreign, alone, app}, "running", "running", "running", "running", "running", "running", "paused")
	s.must(q.Thaw(t.Context()))
	warnings := strings.Join(q.Warnings(), "\n")
	for _, want := range []string{"-other-db-1 of project " + s.project + "-other writes to volume " + data, "of no project writes to volume " + data} {
		if !strings.Contains(warnings, want) {
			t.Errorf("no warning %q in %q", want, warnings)
		}
	}
	if len(q.Warnings()) != 2 {
		t.Errorf("warnings: %q", q.Warnings())
	}
}

func TestAContainerThatDoesNotStartAgainIsNamedAndOthersAreStarted(t *testing.T) {
	s := newStage(t)
	data := s.volume("data")
	dir := t.TempDir() + "/config"
	s.must(os.WriteFile(dir, nil, 0o600))
	mounts := []string{data + ":/data"}
	stop := map[string]string{"backupd.quiesce": "stop"}
	db := s.add(part{service: "db", labels: stop, mounts: append(mounts, dir+":/etc/config")})
	app := s.add(part{service: "app", labels: stop, needs: "db:service_started:false", mounts: mounts})
	q := s.quiescer(data)
	s.must(q.Freeze(t.Context()))
	s.must(os.Remove(dir)) // a file that is mounted is gone: the engine refuses to start it
	s.must(os.Mkdir(dir, 0o700))
	err := q.Thaw(t.Context())
	name := s.project + "-db-1"
	if err == nil || !strings.Contains(err.Error(), "run: docker start "+name) {
		t.Fatalf("thaw: %v", err)
	}
	s.wantStates("thawed", []string{db, app}, "exited", "running")
	if n := len(s.journals()); n != 1 {
		t.Fatalf("%d journals are left for the next start", n)
	}
	// Mended: the next start resumes it.
	s.must(os.Remove(dir))
	s.must(os.WriteFile(dir, nil, 0o600))
	r, err := s.Recover(t.Context(), s.state)
	s.must(err)
	s.wantStates("recovered", []string{db, app}, "running", "running")
	if !slices.Equal(r.Resumed, []string{name}) || len(s.journals()) != 0 {
		t.Errorf("recovered %+v, journals %v", r, s.journals())
	}
}

func TestCancelledFreezeLetsEverythingGoOn(t *testing.T) {
	s := newStage(t)
	data := s.volume("data")
	mounts := []string{data + ":/data"}
	stop := map[string]string{"backupd.quiesce": "stop", "backupd.quiesce.timeout": "20s"}
	db := s.add(part{service: "db", mounts: mounts})
	slow := s.add(part{service: "app", needs: "db:service_started:false", labels: stop, mounts: mounts, script: `trap 'sleep 1; exit 0' TERM; while :; do sleep 1000 & wait; done`})
	for _, at := range []string{"before stop", "after stop", "intended"} {
		ctx, cancel := context.WithCancel(t.Context())
		q := s.quiescer(data)
		q.hands.fault = func(point string) {
			if strings.HasPrefix(point, at) {
				cancel()
			}
		}
		if err := q.Freeze(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: freeze: %v", at, err)
		}
		s.wantStates("cancelled "+at, []string{db, slow}, "running", "running")
		if len(s.journals()) != 0 {
			t.Errorf("%s: journals %v", at, s.journals())
		}
		s.must(q.Thaw(ctx))
		cancel()
	}
}

func TestWhatUpAndDownDidMeanwhileStands(t *testing.T) {
	s := newStage(t)
	s.pauses()
	data := s.volume("data")
	mounts := []string{data + ":/data"}
	stop := map[string]string{"backupd.quiesce": "stop"}
	removed := s.add(part{service: "a", labels: stop, mounts: mounts})
	started := s.add(part{service: "b", labels: stop, mounts: mounts})
	unpaused := s.add(part{service: "c", mounts: mounts})
	remade := s.add(part{service: "d", labels: stop, mounts: mounts})
	q := s.quiescer(data)
	s.must(q.Freeze(t.Context()))
	s.must(s.api.ContainerRemove(t.Context(), removed, container.RemoveOptions{}))
	s.must(s.api.ContainerStart(t.Context(), started, container.StartOptions{}))
	s.must(s.api.ContainerUnpause(t.Context(), unpaused))
	s.must(s.api.ContainerRemove(t.Context(), remade, container.RemoveOptions{}))
	again := s.add(part{service: "d", labels: stop, mounts: mounts, stopped: true})
	s.must(q.Thaw(t.Context()))
	s.wantStates("thawed", []string{removed, started, unpaused, again}, "gone", "running", "running", "created")
	if len(s.journals()) != 0 {
		t.Errorf("journals %v", s.journals())
	}
}

func TestRemoveOnStopIsPausedInstead(t *testing.T) {
	s := newStage(t)
	s.pauses()
	data := s.volume("data")
	c := s.add(part{
		service: "a", labels: map[string]string{"backupd.quiesce": "stop"}, mounts: []string{data + ":/data"},
		config: func(_ *container.Config, h *container.HostConfig) { h.AutoRemove = true },
	})
	q := s.quiescer(data)
	s.must(q.Freeze(t.Context()))
	s.wantStates("frozen", []string{c}, "paused")
	s.must(q.Thaw(t.Context()))
	s.wantStates("thawed", []string{c}, "running")
	if len(q.Warnings()) != 1 {
		t.Errorf("warnings: %q", q.Warnings())
	}
}

func TestRestartPoliciesDoNotWakeWhatIsStopped(t *testing.T) {
	s := newStage(t)
	data := s.volume("data")
	mounts := []string{data + ":/data"}
	stop := map[string]string{"backupd.quiesce": "stop"}
	var ids []string
	for _, policy := range []container.RestartPolicyMode{"always", "unless-stopped", "on-failure"} {
		ids = append(ids, s.add(part{service: string(policy), labels: stop, mounts: mounts, script: `trap 'exit 3' TERM; while :; do sleep 1000 & wait; done`, config: func(_ *container.Config, h *container.HostConfig) {
			h.RestartPolicy = container.RestartPolicy{Name: policy}
		}}))
	}
	// One that restarts again and again is stopped too, and goes on doing so.
	crashes := s.add(part{service: "crashes", mounts: mounts, script: "exit 1", config: func(_ *container.Config, h *container.HostConfig) {
		h.RestartPolicy = container.RestartPolicy{Name: "always"}
	}})
	eventually(t, "the crashing container restarts", func() bool { return s.states(crashes)[0] == "restarting" })
	q := s.quiescer(data)
	s.must(q.Freeze(t.Context()))
	s.wantStates("frozen", append(ids, crashes), "exited", "exited", "exited", "exited")
	s.must(q.Thaw(t.Context()))
	s.wantStates("thawed", ids, "running", "running", "running")
	eventually(t, "the crashing container restarts again", func() bool { return s.states(crashes)[0] == "restarting" })
}
