package docker

import (
	"strings"
	"testing"
	"time"
)

func TestPlans(t *testing.T) {
	volume := func(name string) []Mount { return []Mount{{Type: "volume", Name: name, RW: true}} }
	bind := func(path string) []Mount { return []Mount{{Type: "bind", Source: path, RW: true}} }
	service := func(name string, mounts []Mount, needs ...string) Service {
		return Service{Name: name, DependsOn: needs, Containers: []Container{{ID: name, Name: "shop-" + name + "-1", State: "running", Mounts: mounts}}}
	}
	stopped := func(s Service) Service { s.Healthcheck = true; return s }
	labelled := func(s Service, pairs ...string) Service {
		s.Labels = map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			s.Labels[pairs[i]] = pairs[i+1]
		}
		return s
	}
	const undo = "read what changed meanwhile, then undo this from below\n"
	for _, c := range []struct {
		name     string
		services []Service // each behind those that it needs
		volumes  []string
		want     string
	}{
		{"nothing writes", []Service{service("web", nil)}, []string{"data"}, "no service has to stand still\n"},
		{
			"what needs others first, and pauses last",
			[]Service{service("cache", volume("data")), stopped(service("db", volume("data"))), service("worker", volume("data"), "db"), stopped(service("app", volume("data"), "db", "cache"))},
			[]string{"data"},
			"stop app: shop-app-1\npause worker: shop-worker-1\nstop db: shop-db-1\npause cache: shop-cache-1\n" + undo,
		},
		{
			"a chain through a service that keeps running",
			[]Service{stopped(service("db", volume("data"))), service("api", nil, "db"), stopped(service("web", volume("data"), "api"))},
			[]string{"data"},
			"stop web: shop-web-1\nstop db: shop-db-1\n" + undo,
		},
		{
			"a bind mount of the directory, above and below it, and beside it",
			[]Service{service("a", bind("/srv/data")), service("b", bind("/srv")), service("c", bind("/srv/data/uploads")), service("d", bind("/srv/data2"))},
			[]string{"/srv/data/"},
			"pause a: shop-a-1\npause b: shop-b-1\npause c: shop-c-1\n" + undo,
		},
		{
			"labels decide, and hooks are around",
			[]Service{
				labelled(service("db", volume("data")), "backupd.quiesce", "none", "backupd.pre", "checkpoint", "backupd.post", "resume", "backupd.post.user", "db"),
				labelled(service("web", nil, "db"), "backupd.quiesce", "stop", "backupd.pre", "maintenance on"),
			},
			[]string{"data"},
			"run in shop-web-1, for at most 5m0s: maintenance on\nrun in shop-db-1, for at most 5m0s: checkpoint\nstop web: shop-web-1\n" + undo +
				"run in shop-db-1 as db, for at most 5m0s: resume\n",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := NewPlan(PlanInput{Stack: &Stack{Project: "shop", Services: c.services}, Volumes: c.volumes})
			if err != nil {
				t.Fatal(err)
			}
			if got := p.String(); got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
		})
	}
}

// A rootless engine without systemd has no control groups, and so no freezer.
func TestWithoutAFreezerServicesAreStopped(t *testing.T) {
	mounts := []Mount{{Type: "volume", Name: "data", RW: true}}
	app := Service{Name: "app", Containers: []Container{
		{ID: "1", Name: "shop-app-1", State: "running", Mounts: mounts},
		{ID: "2", Name: "shop-app-run-1", State: "running", Mounts: mounts, OneOff: true},
	}}
	in := PlanInput{Stack: &Stack{Project: "shop", Services: []Service{app}}, Volumes: []string{"data"}, NoPause: true}
	p, err := NewPlan(in)
	if err != nil {
		t.Fatal(err)
	}
	want := "stop app: shop-app-1\nread what changed meanwhile, then undo this from below\nwarning: container shop-app-run-1 of `docker compose run` would be gone"
	if got := p.String(); !strings.HasPrefix(got, want) {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	in.Stack.Services[0].Labels = map[string]string{"backupd.quiesce": "pause"}
	if _, err := NewPlan(in); err == nil || !strings.Contains(err.Error(), "service app is labelled backupd.quiesce=pause") {
		t.Errorf("a pause that a label asks for: %v", err)
	}
}

// On a node that is no manager nobody can scale: what writes is warned of.
func TestATaskOfTheOwnStackThatNobodyHereMayScaleIsToldOf(t *testing.T) {
	task := Container{
		ID: "1", Name: "shop_db.1.x", State: "running", Labels: map[string]string{labelStack: "shop", labelSwarmService: "s"},
		Mounts: []Mount{{Type: "volume", Name: "shop_db", RW: true}},
	}
	in := PlanInput{Stack: &Stack{Project: "shop"}, Volumes: []string{"shop_db"}, Others: []Container{task}}
	p, err := NewPlan(in)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Steps) > 0 || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "an agent on a manager can scale") {
		t.Errorf("steps %v, warnings %q", p.Steps, p.Warnings)
	}
	in.Stack.Services = []Service{{Name: "db", Containers: in.Others, Swarm: &SwarmService{ID: "s", Name: "shop_db", Replicas: 1, Mounts: task.Mounts}}}
	if p, err = NewPlan(in); err != nil || len(p.Steps) != 1 || len(p.Warnings) > 0 {
		t.Errorf("on a manager: steps %v, warnings %q, %v", p.Steps, p.Warnings, err)
	}
}

func TestDumpsAreOfServicesThatRun(t *testing.T) {
	dump := map[string]string{"backupd.dump": "postgres"}
	stack := &Stack{Services: []Service{
		{Name: "db", Labels: dump, Containers: []Container{{ID: "1", State: "exited"}, {ID: "2", State: "running"}, {ID: "3", State: "running"}}},
		{Name: "web", Containers: []Container{{ID: "4", State: "running"}}},
		{Name: "backup", Labels: dump, Containers: []Container{{ID: "5", State: "exited"}}},
	}}
	got, err := Dumps(stack, []string{"5"})
	if err != nil || len(got) != 1 || got[0].Service != "db" || got[0].Container.ID != "2" || got[0].Dump.File != "dump.sql" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := Dumps(stack, nil); err == nil {
		t.Error("a service that does not run can be dumped")
	}
}

func TestHooksOfAConfigurationAreAroundThoseOfLabels(t *testing.T) {
	running := func(name, label string) Service {
		return Service{Name: name, Labels: map[string]string{"backupd.pre": label, "backupd.post": label}, Containers: []Container{{ID: name, Name: name, State: "running"}}}
	}
	stopped := Service{Name: "idle", Containers: []Container{{ID: "idle", Name: "idle", State: "exited"}}}
	in := PlanInput{
		Stack: &Stack{Project: "shop", Services: []Service{running("db", "label"), stopped}},
		Pre:   []ServiceHook{{Service: "db", Command: "first", User: "www", Timeout: time.Minute}, {Service: "db", Command: "second"}, {Service: "idle", Command: "x"}},
		Post:  []ServiceHook{{Service: "db", Command: "last"}},
	}
	p, err := NewPlan(in)
	if err != nil {
		t.Fatal(err)
	}
	const want = "run in db as www, for at most 1m0s: first\nrun in db, for at most 5m0s: second\nrun in db, for at most 5m0s: label\nno service has to stand still\n" +
		"run in db, for at most 5m0s: label\nrun in db, for at most 5m0s: last\nwarning: service idle does not run: its hooks are left out\n"
	if p.String() != want {
		t.Errorf("the plan is\n%s", p)
	}
	in.Post = append(in.Post, ServiceHook{Service: "dbb", Command: "x"})
	if _, err := NewPlan(in); err == nil || !strings.Contains(err.Error(), "no container of a service dbb") {
		t.Errorf("a hook for a service that is not there: %v", err)
	}
}

func TestChecksOfDrillsAreReadFromLabels(t *testing.T) {
	for label, want := range map[string]Check{
		"postgres": {Kind: Postgres}, "postgresql": {Kind: Postgres}, "mysql": {Kind: MySQL}, "mariadb": {Kind: MariaDB}, "mongodb": {Kind: MongoDB}, "mongo": {Kind: MongoDB}, "redis": {Kind: Redis}, "valkey": {Kind: Redis},
		"pg_amcheck --all": {Hook: Hook{Command: "pg_amcheck --all"}},
	} {
		p, err := ParsePolicy("db", map[string]string{"backupd.drill": label})
		want.Timeout = defaultDrillTimeout
		if err != nil || p.Drill != want {
			t.Errorf("%s: %+v, %v", label, p.Drill, err)
		}
	}
	for _, label := range []string{"mongdb", "postgers", " "} {
		if p, err := ParsePolicy("db", map[string]string{"backupd.drill": label}); err == nil {
			t.Errorf("%q is %+v", label, p.Drill)
		}
	}
}
