package docker

import (
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"

	"github.com/disko/backupd/internal/teststack"
)

// newSwarm is an engine of the test's own that is a swarm.
func newSwarm(t *testing.T) *stage {
	t.Helper()
	host := "unix://" + teststack.OwnEngine(t)
	e, err := connect(t.Context(), host, client.WithHost(host))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	image, err := importShell(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.api.SwarmInit(t.Context(), swarm.InitRequest{ListenAddr: "127.0.0.1:2377", AdvertiseAddr: "127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	if e, err = connect(t.Context(), host, client.WithHost(host)); err != nil || !e.Swarm { // it is a manager since
		t.Fatalf("an engine that is a manager: %v", err)
	}
	t.Cleanup(func() { e.Close() })
	return &stage{Engine: e, t: t, project: "shop", image: image, state: t.TempDir()}
}

// deploy makes a service as `docker stack deploy` does.
func (s *stage) deploy(name string, mode swarm.ServiceMode, labels map[string]string, volume string, readOnly bool) string {
	s.t.Helper()
	all := map[string]string{labelStack: s.project}
	for k, v := range labels {
		all[k] = v
	}
	spec := swarm.ServiceSpec{
		Annotations: swarm.Annotations{Name: s.project + "_" + name, Labels: all},
		Mode:        mode,
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{
			Image: s.image, Command: []string{"sh", "-c", idle}, Labels: map[string]string{labelStack: s.project},
			Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: volume, Target: "/data", ReadOnly: readOnly}},
		}},
	}
	made, err := s.api.ServiceCreate(s.t.Context(), spec, swarm.ServiceCreateOptions{})
	s.must(err)
	return made.ID
}

// running is how many containers of a service run.
func (s *stage) running(id string) int {
	s.t.Helper()
	list, err := s.containers(s.t.Context(), filters.Arg("label", labelSwarmService+"="+id))
	s.must(err)
	return len(slices.DeleteFunc(list, func(c Container) bool { return c.State != "running" }))
}

func (s *stage) wantRunning(services []string, want ...int) {
	s.t.Helper()
	eventually(s.t, "replicas run", func() bool {
		for i, id := range services {
			if s.running(id) != want[i] {
				return false
			}
		}
		return true
	})
}

func TestSwarmServicesAreScaledToNothingAndBack(t *testing.T) {
	s := newSwarm(t)
	replicas := func(n uint64) swarm.ServiceMode {
		return swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &n}}
	}
	services := []string{
		s.deploy("db", replicas(1), nil, "shop_data", false),
		s.deploy("app", replicas(3), map[string]string{"backupd.quiesce": "stop", "backupd.post": "echo after >>/data/hooks"}, "shop_other", false),
		s.deploy("reader", replicas(1), nil, "shop_data", true),
		s.deploy("off", replicas(0), nil, "shop_data", false),
		s.deploy("everywhere", swarm.ServiceMode{Global: &swarm.GlobalService{}}, nil, "shop_data", false),
	}
	before := []int{1, 3, 1, 0, 1}
	s.wantRunning(services, before...)

	o := QuiesceOptions{Project: s.project, Volumes: []string{"shop_data"}, StateDir: s.state, Run: "r"}
	q := s.Quiescer(o)
	p, err := q.Plan(t.Context())
	s.must(err)
	if text := p.String(); !strings.Contains(text, "scale service shop_app from 3 replicas to none\nscale service shop_db from 1 replicas to none\n") {
		t.Errorf("the plan is\n%s", text)
	}
	s.must(q.Pre(t.Context()))
	s.must(q.Freeze(t.Context()))
	for i, want := range []int{0, 0, 1, 0, 1} {
		if got := s.running(services[i]); got != want {
			t.Errorf("frozen: %d containers of service %d run, want %d", got, i, want)
		}
	}
	s.must(q.Thaw(t.Context()))
	s.must(q.Post(t.Context()))
	s.wantRunning(services, before...)
	list, err := s.containers(t.Context(), filters.Arg("label", labelSwarmService+"="+services[1]), filters.Arg("status", "running"))
	s.must(err)
	if got := s.mustSh(list[0].ID, "cat /data/hooks"); got != "after\n" {
		t.Errorf("its post hook wrote %q", got)
	}
	if w := q.Warnings(); len(w) != 1 || !strings.Contains(w[0], "service shop_everywhere is global") {
		t.Errorf("warnings: %q", w)
	}

	// Who restores stops all that use the volume, or nothing.
	users := UsersOptions{Project: s.project, Volumes: []string{"shop_data"}, StateDir: s.state}
	if _, err := s.StopUsers(t.Context(), users); err == nil || !strings.Contains(err.Error(), "docker service rm shop_everywhere") {
		t.Errorf("a global service that uses the volume: %v", err)
	}
	users.Volumes = []string{"shop_other"}
	_, err = s.StopUsers(t.Context(), users)
	s.must(err)
	s.wantRunning(services, 1, 0, 1, 0, 1)
	u, err := s.StopUsers(t.Context(), users) // by another process: it knows what stands still
	s.must(err)
	if !slices.Equal(u.Names(), []string{"app"}) {
		t.Errorf("services that stand still: %q", u.Names())
	}
	_, err = u.Start(t.Context(), users.Volumes)
	s.must(err)
	s.wantRunning(services, before...)

	// A run that dies while it is frozen leaves its replicas in the journal.
	q = s.Quiescer(o)
	s.must(q.Freeze(t.Context()))
	s.must(q.journal.f.Close()) // as the kernel does
	r, err := s.Recover(t.Context(), s.state)
	s.must(err)
	slices.Sort(r.Resumed)
	if !slices.Equal(r.Resumed, []string{"shop_app", "shop_db"}) {
		t.Errorf("recovered %+v", r)
	}
	s.wantRunning(services, before...)

	// Whoever has scaled a service meanwhile is not overruled.
	q = s.Quiescer(o)
	s.must(q.Freeze(t.Context()))
	s.must(s.scale(t.Context(), services[1], 2, func(uint64) bool { return true }))
	s.must(s.api.ServiceRemove(t.Context(), services[0]))
	s.must(q.Thaw(t.Context()))
	s.wantRunning(services[1:2], 2)
}
