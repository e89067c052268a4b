package docker

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/volume"
)

var socket = binds(defaultSocket + ":" + defaultSocket)

// selfIn runs the probe in a container and returns which one it says it is.
func (l *lab) selfIn(name string, change func(*container.Config, *container.HostConfig)) (*Self, string) {
	l.t.Helper()
	out, errs, code := l.run(name, []string{"self"}, change)
	if code != 0 {
		return nil, errs
	}
	var s Self
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		l.t.Fatal(err, out)
	}
	return &s, ""
}

func TestSelfIsFoundWhateverTheHostNameAndTheNetwork(t *testing.T) {
	l := newLab(t)
	other := l.create("other", []string{"sleep"}, nil)
	l.start(other)
	vol := l.volume("data", volume.CreateOptions{})
	for name, change := range map[string]func(*container.Config, *container.HostConfig){
		"plain":      nil,
		"hostname":   func(c *container.Config, _ *container.HostConfig) { c.Hostname = other[:12] },
		"host":       onNetwork("host"),
		"network":    onNetwork(l.network("own")),
		"neighbour":  all(onNetwork("container:"+other), binds(vol+":/volumes/data")),
		"own-cgroup": func(_ *container.Config, h *container.HostConfig) { h.CgroupnsMode = "private" },
		"init":       func(_ *container.Config, h *container.HostConfig) { yes := true; h.Init = &yes },
		"tmpfs": func(_ *container.Config, h *container.HostConfig) {
			h.Tmpfs = map[string]string{"/scratch": ""}
			h.ReadonlyRootfs = true
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := &lab{l.Engine, t, l.prefix}
			more := change
			if more == nil {
				more = func(*container.Config, *container.HostConfig) {}
			}
			s, errs := l.selfIn(name, all(socket, compose("shop", "backup"), more))
			if s == nil {
				if name == "own-cgroup" && strings.Contains(errs, "cgroup") {
					t.Skip("this kernel has no control group name spaces for it")
				}
				t.Fatal(errs)
			}
			if want := l.prefix + "-" + name; s.Name != want || s.Project != "shop" || s.Service != "backup" || s.Number != 1 {
				t.Errorf("found %q (%s/%s %d), want %q", s.Name, s.Project, s.Service, s.Number, want)
			}
			if s.ImageID != probe.id || s.Created.IsZero() || s.Started.Before(s.Created) || s.MountAt(defaultSocket) == nil {
				t.Errorf("described as %+v", s)
			}
		})
	}
}

// Without the control group, which newer kernels and engines hide, only the
// mounts tell a worker from its agent, and a neighbour from whose network it uses.
func TestSelfIsToldFromContainersThatShareItsNetworkByMountsAlone(t *testing.T) {
	l := newLab(t)
	vol, db := l.volume("state", volume.CreateOptions{}), l.volume("db", volume.CreateOptions{})
	agent := l.create("agent", []string{"sleep"}, binds(vol+":/state"))
	l.start(agent)
	worker := l.create("worker", []string{"sleep"}, all(onNetwork("container:"+agent), binds(db+":/volumes/db:ro"),
		func(_ *container.Config, h *container.HostConfig) { h.VolumesFrom = []string{agent} }))
	l.start(worker)
	twin := l.create("twin", []string{"sleep"}, all(onNetwork("container:"+agent), binds(vol+":/state")))
	for id, want := range map[string]string{agent: agent, worker: worker} {
		seen := l.surroundingsOf(id)
		seen.cgroup, seen.upper = "", ""
		s, err := l.self(t.Context(), seen)
		if err != nil || s.ID != want {
			t.Errorf("self of %.12s: %v, %v", id, s, err)
		}
	}
	// Two that the mounts cannot tell apart are not guessed at.
	l.start(twin)
	seen := l.surroundingsOf(twin)
	seen.cgroup, seen.upper, seen.files = "", "", nil
	if s, err := l.self(t.Context(), seen); !errors.Is(err, ErrUnknownSelf) || !strings.Contains(err.Error(), "twin") {
		t.Errorf("twins: %v, %v", s, err)
	}
	// An engine that has none of the containers says so.
	seen.files = []string{strings.Repeat("a", 64)}
	if _, err := l.self(t.Context(), seen); !errors.Is(err, ErrUnknownSelf) || !strings.Contains(err.Error(), "aaaaaaaaaaaa") {
		t.Errorf("elsewhere: %v", err)
	}
}

// surroundingsOf reads them through /proc, as a process in the container would.
func (l *lab) surroundingsOf(id string) surroundings {
	l.t.Helper()
	c, err := l.api.ContainerInspect(l.t.Context(), id)
	if err != nil {
		l.t.Fatal(err)
	}
	if !c.State.Running || c.State.Pid == 0 {
		l.t.Fatalf("container %s does not run", c.Name)
	}
	proc := filepath.Join("/proc", itoa(c.State.Pid))
	info, err := os.ReadFile(filepath.Join(proc, "mountinfo"))
	if err != nil {
		l.t.Skipf("needs to see the engine's processes: %v", err)
	}
	groups, err := os.ReadFile(filepath.Join(proc, "cgroup"))
	if err != nil {
		l.t.Fatal(err)
	}
	return readSurroundings(string(info), string(groups))
}

func TestOutsideOfAContainerSelfSaysSo(t *testing.T) {
	dir := t.TempDir()
	if _, err := lookAround(dir); !errors.Is(err, ErrNoContainer) {
		t.Errorf("without /proc: %v", err)
	}
	// A machine that was made from a container's image has the file, too.
	const root, hostname = "27 1 254:0 / / rw - ext4 /dev/vda rw\n", "28 27 0:50 /hostname /etc/hostname rw - tmpfs tmpfs rw\n"
	for info, want := range map[string]bool{root: false, root + hostname: true} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "proc", "self"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{".dockerenv": "", "proc/self/mountinfo": info} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if seen, err := lookAround(dir); err != nil || seen.contained != want {
			t.Errorf("contained %v, %v, want %v with %q", seen.contained, err, want, info)
		}
	}
	seen := readSurroundings("27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n", "0::/user.slice/session-1.scope\n")
	seen.contained = false
	if _, err := (&Engine{}).self(t.Context(), seen); !errors.Is(err, ErrNoContainer) {
		t.Errorf("on a host: %v", err)
	}
}

func TestContainerIDsAreReadFromEveryFormOfControlGroupAndMount(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	outer := strings.Repeat("f", 64)
	for _, c := range []struct{ name, mountinfo, cgroup, wantCgroup, wantFile string }{
		{"v1", "", "12:memory:/docker/" + id + "\n1:name=systemd:/docker/" + id, id, ""},
		{"systemd", "", "0::/system.slice/docker-" + id + ".scope", id, ""},
		{"rootless", "", "0::/user.slice/user-1000.slice/user@1000.service/app.slice/docker-" + id + ".scope/init", id, ""},
		{"nested", "", "3:pids:/docker/" + outer + "/docker/" + id, id, ""},
		{"containerd", "", "0::/system.slice/containerd.service/kubepods:cri-containerd:" + id, id, ""},
		{"hidden", "", "0::/", "", ""},
		{"host", "", "0::/init.scope\n", "", ""},
		{"mount", "51 40 254:0 /var/lib/docker/containers/" + id + "/hostname /etc/hostname rw,relatime - ext4 /dev/vda rw", "", "", id},
		{"own disk", "51 40 254:16 /containers/" + id + "/hosts /etc/hosts ro - xfs /dev/vdb rw", "", "", id},
		{"blanks", `51 40 254:16 /my\040disk/docker/containers/` + id + `/resolv.conf /etc/resolv.conf ro shared:1 master:2 - xfs /dev/vdb rw`, "", "", id},
		{"podman", "51 40 0:50 /containers/overlay-containers/" + id + "/userdata/hostname /etc/hostname rw - tmpfs tmpfs rw", "", "", ""},
		{"short", "51 40", "x", "", ""},
	} {
		s := readSurroundings(c.mountinfo, c.cgroup)
		file := ""
		if len(s.files) > 0 {
			file = s.files[0]
		}
		if s.cgroup != c.wantCgroup || file != c.wantFile || s.contained != (s.cgroup != "" || file != "") {
			t.Errorf("%s: control group %q, file %q, contained %v", c.name, s.cgroup, file, s.contained)
		}
	}
}

func TestVolumesThatServicesHaveUsedAreKnown(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	vol := l.volume("db", volume.CreateOptions{})
	bound := l.volume("bound", volume.CreateOptions{DriverOpts: map[string]string{"type": "none", "o": "bind", "device": dir}})
	agent := l.create("agent", []string{"sleep"}, all(compose(l.prefix, "backup"), binds(vol+":/volumes/db")))
	l.start(agent)
	w := Witness{l.Engine, l.inspected(agent)}
	w.Self.ImageID = "another image's" // the services here are of the same
	ask := func(volume string, want ...string) {
		t.Helper()
		got, err := w.EverStarted(t.Context(), volume)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s was used by %v, %v; want %v", volume, got, err, want)
		}
	}
	db := l.create("db", []string{"show"}, all(compose(l.prefix, "db"), binds(vol+":/data")))
	ask(vol) // created only: Compose creates all before it starts any
	second := l.create("second", []string{"show"}, all(compose(l.prefix, "backup"), binds(vol+":/data")))
	l.start(second) // another of the own service
	ask(vol)
	l.start(db)
	ask(vol, l.prefix+"-db")
	l.wait(db)
	ask(vol, l.prefix+"-db") // and after it has ended

	ask(bound)
	direct := l.create("direct", []string{"show"}, binds(dir+":/data"))
	l.start(direct)
	ask(bound, l.prefix+"-direct")
	ask(dir, l.prefix+"-direct")
	ask(dir+"/below", l.prefix+"-direct")
	ask(l.prefix + "_nothing")
	w.Self.ImageID = probe.id
	ask(vol)
}

func (l *lab) wait(id string) {
	l.t.Helper()
	r, failed := l.api.ContainerWait(l.t.Context(), id, container.WaitConditionNotRunning)
	select {
	case <-r:
	case err := <-failed:
		l.t.Fatal(err)
	}
}

func TestServicesThatDoNotWaitForTheSeedAreNamed(t *testing.T) {
	service := func(name, volume string, waits map[string]string) Service {
		s := Service{Name: name, Waits: waits, Containers: []Container{{Mounts: []Mount{{Type: "volume", Name: volume}}}}}
		for d := range waits {
			s.DependsOn = append(s.DependsOn, d)
		}
		return s
	}
	s := Stack{Services: []Service{
		service("backup", "shop_db", nil),
		service("db", "shop_db", map[string]string{"backup": "service_healthy"}),
		service("seeded", "shop_db", map[string]string{"backup": "service_completed_successfully"}),
		service("app", "shop_db", map[string]string{"db": "service_started"}),
		service("hasty", "shop_db", map[string]string{"backup": "service_started"}),
		service("free", "shop_db", nil),
		service("circle", "shop_db", map[string]string{"circle": "service_started"}),
		service("elsewhere", "shop_cache", nil),
	}}
	got := s.Undependent("backup", []string{"shop_db", "shop_uploads"})
	want := []Undependent{
		{Service: "hasty", Volumes: []string{"shop_db"}, Waits: "service_started"},
		{Service: "free", Volumes: []string{"shop_db"}},
		{Service: "circle", Volumes: []string{"shop_db"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
