package docker

import (
	"reflect"
	"strconv"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/volume"
)

func itoa(n int) string { return strconv.Itoa(n) }

func TestAStackIsDescribedWithServicesInOrderAndItsVolumes(t *testing.T) {
	l := newLab(t)
	if l.ID == "" || l.Version == "" || l.API == "" {
		t.Errorf("engine %+v", l.Engine)
	}
	project := l.prefix
	labels := map[string]string{labelProject: project, labelVolume: "db"}
	db := l.volume("db", volume.CreateOptions{Labels: labels, DriverOpts: map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}})
	shared := l.volume("shared", volume.CreateOptions{})
	l.volume("foreign", volume.CreateOptions{})
	healthy := func(c *container.Config, _ *container.HostConfig) {
		c.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "/probe", "show"}}
	}
	app := compose(project, "app", labelDependsOn+"=db:service_healthy:false,cache:service_started:true", labelDir+"=/srv/shop", "backupd.quiesce=pause")
	l.create("app-2", nil, all(app, binds(shared+":/srv:ro"), func(c *container.Config, _ *container.HostConfig) { c.Labels[labelNumber] = "2" }))
	one := l.create("app-1", nil, app)
	l.create("run", nil, all(app, func(c *container.Config, _ *container.HostConfig) { c.Labels[labelOneOff] = "True" }))
	l.create("db", nil, all(compose(project, "db"), healthy, binds(db+":/data")))
	l.create("cache", nil, compose(project, "cache"))
	l.create("else", nil, compose(project+"2", "other"))
	l.start(one)

	s, err := l.Stack(t.Context(), project)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, svc := range s.Services {
		names = append(names, svc.Name)
	}
	if want := []string{"db", "cache", "app"}; !reflect.DeepEqual(names, want) {
		t.Errorf("services %v, want %v", names, want)
	}
	if s.Dir != "/srv/shop" || s.Service("nothing") != nil {
		t.Errorf("stack %+v", s)
	}
	if got := s.Service("app"); len(got.Containers) != 3 || got.Containers[0].ID != one || got.Containers[0].State != "running" ||
		!got.Containers[2].OneOff || got.Labels["backupd.quiesce"] != "pause" || got.Image != probeImage || got.ImageID != probe.id ||
		got.Labels["of-the-image"] != "yes" || got.Healthcheck || got.Waits["db"] != "service_healthy" || got.Waits["cache"] != "service_started" {
		t.Errorf("app: %+v", got)
	}
	if got := s.Service("db"); !got.Healthcheck || len(got.Containers[0].Mounts) != 1 || got.Containers[0].Mounts[0].Name != db || !got.Containers[0].Mounts[0].RW {
		t.Errorf("db: %+v", got)
	}
	if len(s.Volumes) != 2 || s.Volumes[0].Name != db || s.Volumes[0].Key != "db" || s.Volumes[0].Options["o"] != "size=1m" ||
		s.Volumes[0].Created.IsZero() || s.Volumes[1].Name != shared || s.Volumes[1].Key != shared || s.Volumes[1].Project != "" {
		t.Errorf("volumes %+v", s.Volumes)
	}
	if empty, err := l.Stack(t.Context(), project+"3"); err != nil || len(empty.Services)+len(empty.Volumes) != 0 {
		t.Errorf("no such project: %+v, %v", empty, err)
	}
}
