package docker

import (
	"maps"
	"strings"
	"testing"
)

func TestAVolumeOfNoProjectIsAStackOfItsOwn(t *testing.T) {
	for name, tt := range map[string]struct {
		volumes []Volume
		want    map[string]string
	}{
		"of a project":              {[]Volume{{Name: "shop_db", Project: "shop"}}, map[string]string{"shop_db": "shop"}},
		"of none":                   {[]Volume{{Name: "loose"}, {Name: "shop_db", Project: "shop"}}, map[string]string{"loose": "loose", "shop_db": "shop"}},
		"named like a project":      {[]Volume{{Name: "shop"}, {Name: "shop_db", Project: "shop"}}, map[string]string{"shop": "shop.volume", "shop_db": "shop"}},
		"and like what that yields": {[]Volume{{Name: "shop"}, {Name: "shop.volume"}, {Name: "shop_db", Project: "shop"}}, map[string]string{"shop": "shop.volume.volume", "shop.volume": "shop.volume", "shop_db": "shop"}},
	} {
		if got := HostStacks(tt.volumes); !maps.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

func TestForAVolumeOfNoProjectOnlyTheOneProjectThatUsesItStandsStill(t *testing.T) {
	loose := []string{"loose"}
	of := func(name, project, state string, rw bool, more ...string) Container {
		c := Container{ID: name, Name: name, State: state, Labels: map[string]string{}, Mounts: []Mount{{Type: "volume", Name: "loose", RW: rw}}}
		if project != "" {
			c.Labels[labelProject], c.Labels[labelService] = project, "app"
		}
		for _, l := range more {
			k, v, _ := strings.Cut(l, "=")
			c.Labels[k] = v
		}
		return c
	}
	for name, tt := range map[string]struct {
		list    []Container
		project string
		warned  string // containers
	}{
		"nobody":                           {},
		"one project":                      {[]Container{of("a", "shop", "running", true), of("b", "shop", "running", false)}, "shop", ""},
		"one that does not run":            {[]Container{of("a", "shop", "exited", true)}, "shop", ""},
		"one, and a container of none":     {[]Container{of("a", "shop", "running", true), of("b", "", "running", true)}, "shop", ""},
		"one, backupd and its workers":     {[]Container{of("a", "shop", "running", true), of("own", "backup", "running", true), of("w", "", "running", true, labelWorker+"=x"), of("x", "other", "running", true, labelTitle+"=backupd")}, "shop", ""},
		"two":                              {[]Container{of("a", "shop", "running", true), of("b", "wiki", "running", true)}, "", "container a of project shop, container b of project wiki"},
		"two, of which one does not write": {[]Container{of("a", "shop", "running", true), of("b", "wiki", "running", false)}, "", "container a of project shop"},
		"none of a project":                {[]Container{of("a", "", "running", true), of("b", "", "exited", true), of("c", "", "running", false)}, "", "container a of no project"},
	} {
		project, warnings := usersOf(tt.list, loose, []string{"own"})
		for i := range warnings {
			var ok bool
			if warnings[i], ok = strings.CutSuffix(warnings[i], " writes to volume loose and keeps running: files may change while they are read"); !ok {
				t.Errorf("%s: it warns %q", name, warnings[i])
			}
		}
		if project == "" && strings.Join(warnings, ", ") != tt.warned || project != tt.project {
			t.Errorf("%s: project %q, warned of %q; want %q, %q", name, project, warnings, tt.project, tt.warned)
		}
	}
}

func TestForAVolumeThatAProjectOnlyUsesNoLabelOfAnotherServiceCounts(t *testing.T) {
	app := Service{Name: "app", Labels: map[string]string{}, Containers: []Container{{ID: "1", Name: "app-1", State: "running", Mounts: []Mount{{Name: "loose", RW: true}}}}}
	mail := Service{Name: "mail", Labels: map[string]string{labelQuiesce: "stop", labelPre: "flush"}, Containers: []Container{{ID: "2", Name: "mail-1", State: "running"}}}
	stack := (&Stack{Project: "shop", Services: []Service{app, mail}}).Using([]string{"loose"})
	p, err := NewPlan(PlanInput{Stack: stack, Volumes: []string{"loose"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Steps) != 1 || p.Steps[0].Service != "app" || len(p.Pre) > 0 {
		t.Errorf("the plan is\n%s", p)
	}
}
