package docker

import (
	"reflect"
	"slices"
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
	loose := l.volume("loose", volume.CreateOptions{})
	environment := func(kv ...string) func(*container.Config, *container.HostConfig) {
		return func(c *container.Config, _ *container.HostConfig) { c.Env = kv }
	}
	l.create("db", nil, all(compose(shop, "db"), binds(db+":/data", dir+":/site", "/etc:/host/etc")))
	l.create("wiki", nil, all(compose(other, "wiki"), binds(wiki+":/data", excluded+":/tmp")))
	l.create("agent", nil, all(compose(shop, "backup"), environment("BACKUPD_TARGET=/backups", "BACKUPD_SCHEDULE=@daily"),
		binds(db+":/volumes/database:ro", dir+":/volumes/site:ro", state+":/var/lib/backupd", target+":/backups")))
	l.create("hostagent", nil, all(compose(other, "backup"), environment("BACKUPD_TARGET=/backups", "BACKUPD_VOLUMES=project", "BACKUPD_STACK=named")))
	l.create("oneoff", nil, all(compose(shop, "backup"), environment("BACKUPD_TARGET=/backups"), func(c *container.Config, _ *container.HostConfig) { c.Labels[labelOneOff] = "True" }))

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
		wiki:     {stack: other, agent: l.prefix + "-hostagent", as: "wiki", services: []string{other + "/wiki"}},
		excluded: {stack: other, excluded: true, services: []string{other + "/wiki"}},
		loose:    {},
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
