package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
)

// ErrNoContainer: this process does not run in a container.
var ErrNoContainer = errors.New("not in a container")

// ErrUnknownSelf: this process runs in a container, and the engine does not tell which.
var ErrUnknownSelf = errors.New("cannot tell which container this is")

// Self is the container that this process runs in, as the engine knows it.
type Self struct {
	ID, Name string
	// Project is Compose's, or the Swarm stack; Service is Compose's. Empty where they did
	// not make the container.
	Project, Service string
	Swarm            bool   // made by a swarm
	Number           int    // of the replicas of its service, from 1
	OneOff           bool   // made by `compose run`
	Image            string // as it was named
	ImageID          string // "sha256:..."
	User             string
	CapAdd, CapDrop  []string
	ReadOnly         bool
	Labels           map[string]string
	Mounts           []Mount
	Networks         []string // by name
	Created, Started time.Time

	host   *container.HostConfig // what a worker is to have as well
	config *container.Config
}

// Self finds the container that this process runs in. ErrNoContainer where it
// is in none; ErrUnknownSelf where none of the engine's containers, or more than
// one, can be it.
//
// The host name is not asked: users choose it, and it may even be another
// container's id. What the kernel says is: the process's control group, and what is mounted at
// /etc/hostname. The latter may be a neighbour's (network_mode: container:...),
// so every candidate's mounts are compared with our own.
func (e *Engine) Self(ctx context.Context) (*Self, error) {
	seen, err := lookAround("/")
	if err != nil {
		return nil, err
	}
	return e.self(ctx, seen)
}

// Contained says whether this process runs in a container, as far as can be told
// without an engine.
func Contained() bool {
	seen, err := lookAround("/")
	return err == nil && seen.contained
}

func (e *Engine) self(ctx context.Context, seen surroundings) (*Self, error) {
	if !seen.contained {
		return nil, fmt.Errorf("%w: neither this process's control group nor its mounts tell of one", ErrNoContainer)
	}
	var fits []candidate
	known := false // the engine has one of the containers that the kernel names
	tried := map[string]bool{}
	try := func(id string) error {
		if tried[id] {
			return nil
		}
		tried[id] = true
		c, err := e.api.ContainerInspect(ctx, id)
		if cerrdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("find out which container this is: inspect %.12s: %w", id, explainAccess(err))
		}
		known = true
		if extra, ok := seen.compare(c); ok {
			fits = append(fits, candidate{c, extra})
		}
		return nil
	}
	if seen.cgroup != "" {
		if err := try(seen.cgroup); err != nil {
			return nil, err
		}
		if len(fits) == 1 { // no two containers share one
			return describeSelf(fits[0].InspectResponse), nil
		}
	}
	for _, id := range seen.files {
		if err := try(id); err != nil {
			return nil, err
		}
	}
	if id := cmp.Or(seen.cgroup, strings.Join(seen.files, ", ")); id != "" && !known {
		return nil, fmt.Errorf("%w: this engine has no container %.12s; if DOCKER_HOST leads to another machine's engine, unset it", ErrUnknownSelf, id)
	}
	// A container that uses another's network has the other's /etc/hostname: look
	// at all that run, unless the one found explains every mount that is here.
	if len(fits) != 1 || fits[0].extra > 0 {
		all, err := e.api.ContainerList(ctx, container.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("find out which container this is: list containers: %w", explainAccess(err))
		}
		for _, c := range all {
			if len(c.Mounts) == 0 {
				continue // it fits everywhere, which shows nothing
			}
			if err := try(c.ID); err != nil {
				return nil, err
			}
		}
	}
	if len(fits) == 0 {
		return nil, fmt.Errorf("%w: no container of this engine has the mounts that are here", ErrUnknownSelf)
	}
	slices.SortFunc(fits, func(a, b candidate) int { return cmp.Compare(a.extra, b.extra) })
	if len(fits) > 1 && fits[0].extra == fits[1].extra {
		return nil, fmt.Errorf("%w: %s and %s have the same mounts; give one of them a mount of its own, such as its state volume",
			ErrUnknownSelf, strings.TrimPrefix(fits[0].Name, "/"), strings.TrimPrefix(fits[1].Name, "/"))
	}
	return describeSelf(fits[0].InspectResponse), nil
}

type candidate struct {
	container.InspectResponse
	extra int // mounts that are here and that it does not explain
}

func describeSelf(c container.InspectResponse) *Self {
	s := &Self{ID: c.ID, Name: strings.TrimPrefix(c.Name, "/"), ImageID: c.Image, Mounts: mounts(c.Mounts), host: c.HostConfig, config: c.Config}
	s.Created, _ = time.Parse(time.RFC3339Nano, c.Created)
	if c.State != nil {
		s.Started, _ = time.Parse(time.RFC3339Nano, c.State.StartedAt)
	}
	if c.Config != nil {
		s.Image, s.User, s.Labels = c.Config.Image, c.Config.User, c.Config.Labels
		s.Project, s.Service = projectOf(s.Labels), s.Labels[labelService]
		s.Swarm = s.Labels[labelSwarmService] != ""
		s.Number, _ = strconv.Atoi(s.Labels[labelNumber])
		s.OneOff = strings.EqualFold(s.Labels[labelOneOff], "true")
	}
	if c.HostConfig != nil {
		s.CapAdd, s.CapDrop, s.ReadOnly = c.HostConfig.CapAdd, c.HostConfig.CapDrop, c.HostConfig.ReadonlyRootfs
	}
	if c.NetworkSettings != nil {
		s.Networks = slices.Sorted(maps.Keys(c.NetworkSettings.Networks))
	}
	return s
}

// MountAt returns what is mounted at a path of the container, or nil.
func (s *Self) MountAt(destination string) *Mount {
	for i := range s.Mounts {
		if path.Clean(s.Mounts[i].Destination) == path.Clean(destination) {
			return &s.Mounts[i]
		}
	}
	return nil
}

// surroundings are what the kernel tells of the container that a process is in.
type surroundings struct {
	contained bool              // there are signs of a container at all
	cgroup    string            // container id in the process's control group, or empty
	files     []string          // ids in the sources of /etc/hostname and its like
	mounts    map[string]string // mount point -> path within its file system
	upper     string            // overlay's upper directory at /, where it is told
	resolve   func(string) string
}

// lookAround reads what there is below root, which is / but in tests.
func lookAround(root string) (surroundings, error) {
	info, err := os.ReadFile(filepath.Join(root, "proc/self/mountinfo"))
	if errors.Is(err, os.ErrNotExist) {
		return surroundings{}, fmt.Errorf("%w: there is no /proc/self/mountinfo", ErrNoContainer)
	}
	if err != nil {
		return surroundings{}, fmt.Errorf("find out which container this is: %w", err)
	}
	groups, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return surroundings{}, fmt.Errorf("find out which container this is: %w", err)
	}
	s := readSurroundings(string(info), string(groups))
	// The file alone shows nothing: machines are made from containers' images, too.
	if _, err := os.Stat(filepath.Join(root, ".dockerenv")); err == nil {
		_, mounted := s.mounts["/etc/hostname"]
		s.contained = s.contained || mounted
	}
	s.resolve = func(p string) string {
		if real, err := filepath.EvalSymlinks(filepath.Join(root, p)); err == nil {
			return path.Join("/", strings.TrimPrefix(real, strings.TrimSuffix(root, "/")))
		}
		return p
	}
	return s, nil
}

func readSurroundings(mountinfo, cgroup string) surroundings {
	s := surroundings{mounts: map[string]string{}, resolve: func(p string) string { return p }}
	for line := range strings.Lines(mountinfo) {
		// "36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/sda1 rw"
		f := strings.Fields(line)
		if len(f) < 7 {
			continue
		}
		source, point := unescapeMount(f[3]), unescapeMount(f[4])
		s.mounts[point] = source
		switch point {
		case "/etc/hostname", "/etc/hosts", "/etc/resolv.conf":
			if id := containerID(path.Base(path.Dir(source))); id != "" {
				s.contained = true
				if !slices.Contains(s.files, id) {
					s.files = append(s.files, id)
				}
			}
		case "/":
			for option := range strings.SplitSeq(f[len(f)-1], ",") {
				if upper, ok := strings.CutPrefix(option, "upperdir="); ok {
					s.upper = unescapeMount(upper)
				}
			}
		}
	}
	for line := range strings.Lines(cgroup) {
		// "12:memory:/docker/ID", "0::/system.slice/docker-ID.scope"; "0::/" where
		// the container has a control group name space of its own.
		_, rest, _ := strings.Cut(line, ":")
		_, group, _ := strings.Cut(rest, ":")
		for part := range strings.SplitSeq(strings.TrimSpace(group), "/") {
			part = strings.TrimSuffix(part, ".scope")
			if i := strings.LastIndexAny(part, "-:"); i >= 0 {
				part = part[i+1:]
			}
			if id := containerID(part); id != "" { // the innermost counts: Docker in Docker
				s.cgroup, s.contained = id, true
			}
		}
	}
	return s
}

// containerID returns s if it is one: 64 hex digits.
func containerID(s string) string {
	if len(s) != 64 || strings.Trim(s, "0123456789abcdef") != "" {
		return ""
	}
	return s
}

// unescapeMount undoes mountinfo's octal escapes of blanks and backslashes.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// engineMounts are mount points that an engine makes in every container, and
// that it does not list.
var engineMounts = []string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/sbin/docker-init", "/run/secrets", "/proc", "/sys", "/dev"}

// compare says whether a container can be the one that this process is in: it
// runs, and all that the engine mounted in it is mounted here. extra counts what is
// mounted here beyond that: a container that was given another's volumes and
// network has more than the other.
func (s *surroundings) compare(c container.InspectResponse) (extra int, ok bool) {
	if c.ContainerJSONBase == nil || c.State == nil || !c.State.Running {
		return 0, false
	}
	if upper := c.GraphDriver.Data["UpperDir"]; upper != "" && s.upper != "" && upper != s.upper {
		return 0, false
	}
	explained := map[string]bool{"/": true}
	for _, m := range c.Mounts {
		point := s.resolve(path.Clean(m.Destination))
		source, here := s.mounts[point]
		if !here || !sameSource(m, source) {
			return 0, false
		}
		explained[point] = true
	}
	if c.HostConfig != nil {
		for point := range c.HostConfig.Tmpfs {
			explained[s.resolve(path.Clean(point))] = true
		}
	}
	for point := range s.mounts {
		if !within(point, explained) && !slices.ContainsFunc(engineMounts, func(known string) bool { return below(point, known) }) {
			extra++
		}
	}
	return extra, true
}

// sameSource compares a mount's source with the path that mountinfo has for
// it, as far as the two can be compared: the engine may see other paths than this
// kernel does (Docker Desktop), and mounts of their own begin at "/".
func sameSource(m container.MountPoint, root string) bool {
	if m.Name == "" || m.Driver != "local" || !strings.HasSuffix(m.Source, "/volumes/"+m.Name+"/_data") {
		return true
	}
	i := strings.LastIndex(root, "/volumes/")
	return i < 0 || !strings.HasSuffix(root, "/_data") || root[i:] == "/volumes/"+m.Name+"/_data"
}

// within says whether p is one of the points, or lies below one other than "/".
func within(p string, points map[string]bool) bool {
	for q := p; q != "/" && q != "."; q = path.Dir(q) {
		if points[q] {
			return true
		}
	}
	return p == "/"
}

// below says whether p is dir or lies below it.
func below(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// Witness answers from the engine what a seed must know before it writes.
type Witness struct {
	Engine *Engine
	Self   *Self // nil outside of a container
}

// EverStarted names the containers that mount the volume and have ever been
// started; backupd's own are left out. The volume is the engine's name of one, or
// the path of a directory that is bound. A directory counts as mounted also by its
// other names: as the directory behind a local volume, or from above or below by
// a container that may write to it.
func (w Witness) EverStarted(ctx context.Context, volume string) ([]string, error) {
	list, err := w.Engine.containers(ctx)
	if err != nil {
		return nil, fmt.Errorf("find out who has used volume %s: list containers: %w", volume, explainAccess(err))
	}
	dirs, err := w.Engine.directoriesOf(ctx, volume)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, c := range list {
		if !slices.ContainsFunc(c.Mounts, func(m Mount) bool { return touches(m, volume, dirs) }) {
			continue
		}
		info, err := w.Engine.api.ContainerInspect(ctx, c.ID)
		if cerrdefs.IsNotFound(err) {
			continue // removed since it was listed; what it left lies in the volume
		}
		if err != nil {
			return nil, fmt.Errorf("find out who has used volume %s: inspect container %s: %w", volume, c.Name, explainAccess(err))
		}
		if w.isBackupd(c, info.Image) || info.State == nil {
			continue
		}
		if started, err := time.Parse(time.RFC3339Nano, info.State.StartedAt); err != nil || started.Year() > 1 {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// isBackupd says whether a container is one of backupd's: this one, its
// workers, others of its image or its service.
func (w Witness) isBackupd(c Container, imageID string) bool {
	if c.Labels[labelWorker] != "" || c.Labels[labelTitle] == "backupd" {
		return true
	}
	if w.Self == nil {
		return false
	}
	return c.ID == w.Self.ID || imageID == w.Self.ImageID ||
		w.Self.Service != "" && c.Labels[labelProject] == w.Self.Project && c.Labels[labelService] == w.Self.Service
}

// labelTitle is on the image of backupd, and so on its containers.
const labelTitle = "org.opencontainers.image.title"

// directoriesOf returns the directories of the engine's machine that a volume is:
// where the engine keeps it, and what a local one binds.
func (e *Engine) directoriesOf(ctx context.Context, volume string) ([]string, error) {
	if path.IsAbs(volume) {
		return []string{path.Clean(volume)}, nil
	}
	v, err := e.api.VolumeInspect(ctx, volume)
	if cerrdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("inspect volume %s: %w", volume, explainAccess(err))
	}
	return directories(v.Driver, v.Mountpoint, v.Options), nil
}

func directories(driver, mountpoint string, options map[string]string) []string {
	var dirs []string
	if mountpoint != "" {
		dirs = append(dirs, path.Clean(mountpoint))
	}
	if device := options["device"]; driver == "local" && path.IsAbs(device) && slices.Contains(strings.Split(options["o"], ","), "bind") {
		dirs = append(dirs, path.Clean(device))
	}
	return dirs
}

// touches says whether a mount is of the volume, by its name or a directory of it.
func touches(m Mount, volume string, dirs []string) bool {
	if m.Name != "" && m.Name == volume {
		return true
	}
	source := path.Clean(m.Source)
	for _, dir := range dirs {
		switch {
		case source == dir:
			return true
		case m.Source == "" || !m.RW || source == "/" || m.Name != "":
			// One that only reads a part, or all of the machine, says nothing.
		case below(source, dir), below(dir, source):
			return true
		}
	}
	return false
}

// Undependent is a service that mounts volumes and does not wait for the service
// that seeds them.
type Undependent struct {
	Service string
	Volumes []string // of those asked for; as they were named
	// Waits is the condition it depends on where that does not wait long enough:
	// service_started lets it start when the seed has only begun.
	Waits string
}

// Undependent finds the services of a stack that mount one of the volumes (the
// engine's names, or paths that are bound) and may start before service is
// healthy or done. To depend on one that waits is enough.
func (s *Stack) Undependent(service string, volumes []string) []Undependent {
	var out []Undependent
	for _, svc := range s.Services {
		if svc.Name == service {
			continue
		}
		var mounted []string
		for _, v := range volumes {
			if slices.ContainsFunc(svc.Containers, func(c Container) bool {
				return !c.OneOff && slices.ContainsFunc(c.Mounts, func(m Mount) bool { return m.Name == v || path.IsAbs(v) && path.Clean(m.Source) == path.Clean(v) })
			}) {
				mounted = append(mounted, v)
			}
		}
		if len(mounted) > 0 && !s.waitsFor(svc, service, map[string]bool{}) {
			u := Undependent{Service: svc.Name, Volumes: mounted}
			if slices.Contains(svc.DependsOn, service) {
				u.Waits = svc.Waits[service]
			}
			out = append(out, u)
		}
	}
	return out
}

// waitsFor says whether a service starts only when another is healthy or done,
// itself or because one that it depends on does.
func (s *Stack) waitsFor(svc Service, service string, seen map[string]bool) bool {
	if seen[svc.Name] {
		return false
	}
	seen[svc.Name] = true
	for _, d := range svc.DependsOn {
		if d == service && svc.Waits[d] != "service_started" {
			return true
		}
		if next := s.Service(d); d != service && next != nil && s.waitsFor(*next, service, seen) {
			return true
		}
	}
	return false
}

// containersLabelled lists containers by a label.
func (e *Engine) containersLabelled(ctx context.Context, label string) ([]Container, error) {
	return e.containers(ctx, filters.Arg("label", label))
}
