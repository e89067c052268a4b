package docker

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/volume"
)

func TestCoverageTellsWhoTakesEachVolume(t *testing.T) {
	l := newLab(t)
	shop, other, dir := l.prefix, l.prefix+"other", t.TempDir()
	vol := func(project, key string, more ...string) string {
		labels := map[string]string{labelProject: project, labelVolume: key}
		for _, m := range more {
			labels[m] = "true"
		}
		return l.volume(project+"-"+key, volume.CreateOptions{Labels: labels})
	}
	db, state, target, uploads := vol(shop, "db"), vol(shop, "state"), vol(shop, "target"), vol(shop, "uploads")
	wiki, excluded := vol(other, "wiki"), vol(other, "tmp", labelExclude)
	loose, like, data := l.volume("loose", volume.CreateOptions{}), l.volume(l.prefix, volume.CreateOptions{}), vol(shop, "data")
	labels := func(kv ...string) func(*container.Config, *container.HostConfig) {
		return func(c *container.Config, _ *container.HostConfig) {
			for _, l := range kv {
				k, v, _ := strings.Cut(l, "=")
				c.Labels[k] = v
			}
		}
	}
	isAgent := labels(labelTitle + "=backupd")
	environment := func(kv ...string) func(*container.Config, *container.HostConfig) {
		return func(c *container.Config, _ *container.HostConfig) { c.Env = kv }
	}
	l.create("db", nil, all(compose(shop, "db"), binds(db+":/data", dir+":/site", "/etc:/host/etc")))
	l.create("wiki", nil, all(compose(other, "wiki"), binds(wiki+":/data", excluded+":/tmp")))
	// Its env_file is that of all services.
	l.create("server", nil, all(compose(shop, "server"), environment("BACKUPD_TARGET=/backups", "BACKUPD_SCHEDULE=@daily"), binds(data+":/data")))
	l.create("agent", nil, all(compose(shop, "backup"), isAgent, environment("BACKUPD_TARGET=/backups", "BACKUPD_SCHEDULE=@daily"),
		binds(db+":/volumes/database:ro", dir+":/volumes/site:ro", state+":/var/lib/backupd", target+":/backups")))
	l.create("hostagent", nil, all(compose(other, "backup"), labels(labelAgent+"=true"), environment("BACKUPD_TARGET=/backups", "BACKUPD_VOLUMES=project", "BACKUPD_STACK=named")))
	l.create("oneoff", nil, all(compose(shop, "backup"), isAgent, environment("BACKUPD_TARGET=/backups"), func(c *container.Config, _ *container.HostConfig) { c.Labels[labelOneOff] = "True" }))

	c, err := l.Coverage(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]*Holding{}
	for i := range c.Holdings {
		got[c.Holdings[i].Name] = &c.Holdings[i]
	}
	for name, want := range map[string]struct {
		stack, agent, as string
		services         []string
		own, excluded    bool
	}{
		db:       {stack: shop, agent: l.prefix + "-agent", as: "database", services: []string{shop + "/db"}},
		dir:      {stack: shop, agent: l.prefix + "-agent", as: "site", services: []string{shop + "/db"}},
		state:    {stack: shop, own: true},
		target:   {stack: shop, own: true},
		uploads:  {stack: shop},
		data:     {stack: shop, services: []string{shop + "/server"}},
		wiki:     {stack: other, agent: l.prefix + "-hostagent", as: "wiki", services: []string{other + "/wiki"}},
		excluded: {stack: other, excluded: true, services: []string{other + "/wiki"}},
		loose:    {},
		like:     {},
	} {
		h := got[name]
		if h == nil {
			t.Errorf("%s is not listed", name)
			continue
		}
		agents := []string{}
		for _, k := range h.Agents {
			agents = append(agents, c.Agents[k].Container)
		}
		// One agent for the whole machine would take the others too; the engine may be shared.
		mine := slices.DeleteFunc(agents, func(a string) bool { return len(a) < len(l.prefix) || a[:len(l.prefix)] != l.prefix })
		if want.agent == "" && len(mine) > 0 || want.agent != "" && (!slices.Equal(mine, []string{want.agent}) || !slices.Contains(h.Names, want.as)) {
			t.Errorf("%s is taken by %v as %v, want %s as %s", name, mine, h.Names, want.agent, want.as)
		}
		if h.Stack != want.stack || h.Own != want.own || h.Excluded != want.excluded || !reflect.DeepEqual(h.Services, want.services) {
			t.Errorf("%s: %+v, want %+v", name, h, want)
		}
	}
	if got["/etc"] != nil || got[defaultSocket] != nil {
		t.Error("the machine's own directories are listed")
	}
	i := slices.IndexFunc(c.Agents, func(a Agent) bool { return a.Container == l.prefix+"-hostagent" })
	if i < 0 || c.Agents[i].Stack != "named" || c.Agents[i].Volumes != "project" || c.Agents[i].Schedule != "" || c.Agents[i].Running {
		t.Errorf("agents %+v", c.Agents)
	}
	without, err := l.Coverage(t.Context(), false)
	if err != nil || slices.ContainsFunc(without.Holdings, func(h Holding) bool { return h.Bind }) {
		t.Errorf("directories are listed unasked, %v", err)
	}
}

func TestWhatAnAgentTakesIsReadFromWhatItIsTold(t *testing.T) {
	mount := func(name, at string) Mount { return Mount{Type: "volume", Name: name, Destination: at, RW: true} }
	socket := Mount{Type: "bind", Source: "/var/run/docker.sock", Destination: "/var/run/docker.sock"}
	anonymous := strings.Repeat("ab", 32)
	for name, tt := range map[string]struct {
		args, env []string
		labels    map[string]string
		mounts    []Mount
		takes     string // of the volumes below, as NAME or VOLUME=NAME
		maybe     string
		schedule  string
	}{
		"what is mounted":         {mounts: []Mount{mount("shop_db", "/volumes/data"), mount("loose", "/srv/loose")}, takes: "shop_db=data"},
		"what is named":           {env: []string{"BACKUPD_VOLUME=lost=/srv/loose, else=/else"}, mounts: []Mount{mount("shop_db", "/volumes/data"), mount("loose", "/srv/loose")}, takes: "loose=lost"},
		"a directory of it":       {env: []string{"BACKUPD_VOLUME=lost=/srv/loose/below"}, mounts: []Mount{mount("loose", "/srv/loose")}, takes: "loose=lost"},
		"the project's":           {env: []string{"BACKUPD_VOLUMES=project"}, takes: "shop_db=db"},
		"the machine's":           {env: []string{"BACKUPD_VOLUMES=host", "BACKUPD_SCHEDULE=@daily"}, takes: "loose=loose shop_db=db wiki_db=db", schedule: "@daily"},
		"by the command line":     {args: []string{"serve", "--volumes=project", "--schedule", "@hourly"}, env: []string{"BACKUPD_VOLUMES=host"}, takes: "shop_db=db", schedule: "@hourly"},
		"by labels":               {labels: map[string]string{"backupd.volumes": "host", "backupd.schedule": "@daily", "backupd.policy.often.schedule": "@hourly"}, mounts: []Mount{socket}, takes: "loose=loose shop_db=db wiki_db=db", schedule: "@daily, @hourly"},
		"labels without a socket": {labels: map[string]string{"backupd.volumes": "host", "backupd.schedule": "@daily"}},
		"the environment first":   {env: []string{"DOCKER_HOST=tcp://proxy:2375", "BACKUPD_SCHEDULE=@never"}, labels: map[string]string{"backupd.volumes": "project", "backupd.schedule": "@daily"}, takes: "shop_db=db"},
		"perhaps by a file":       {env: []string{"BACKUPD_CONFIG=/etc/backupd.yaml"}, mounts: []Mount{mount("shop_db", "/volumes/data")}, takes: "shop_db=data", maybe: "loose wiki_db"},
		"a file that cannot":      {env: []string{"BACKUPD_CONFIG=/etc/backupd.yaml", "BACKUPD_VOLUMES=project"}, takes: "shop_db=db"},
		"a file that names":       {env: []string{"BACKUPD_CONFIG=/etc/backupd.yaml", "BACKUPD_VOLUMES=mounted"}, mounts: []Mount{mount("loose", "/srv/loose")}, maybe: "loose"},
	} {
		s := settingsOf(Container{Labels: tt.labels, Mounts: tt.mounts}, tt.args, tt.env)
		a := newAgent(Container{Labels: map[string]string{labelProject: "shop"}, Mounts: tt.mounts}, s)
		var takes, maybe []string
		for _, v := range []Volume{{Name: "loose", Key: "loose"}, {Name: "shop_db", Key: "db", Project: "shop"}, {Name: "wiki_db", Key: "db", Project: "wiki"}, {Name: anonymous, Key: anonymous}} {
			h := &Holding{Volume: v}
			if as, _ := a.takes(h); as != "" {
				takes = append(takes, v.Name+"="+as)
			} else if a.mayTake(h) {
				maybe = append(maybe, v.Name)
			}
		}
		if strings.Join(takes, " ") != tt.takes || strings.Join(maybe, " ") != tt.maybe || a.Schedule != tt.schedule {
			t.Errorf("%s: it takes %q, perhaps %q, at %q; want %q, %q, %q", name, takes, maybe, a.Schedule, tt.takes, tt.maybe, tt.schedule)
		}
	}
}
