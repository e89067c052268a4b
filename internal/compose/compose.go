// Package compose reads a project's Compose files, as `docker compose` does, into
// what backupd needs of them: the services, the volumes, and which service is
// backupd's own. Edit adds that service to a file which lacks it.
//
// It is the only importer of compose-go. It asks no engine.
package compose

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

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

var (
	// ErrNoFile: there is no Compose file in the directory or above.
	ErrNoFile = errors.New("no Compose file")
	// ErrNoBackup: none of the services, or more than one, is backupd's.
	ErrNoBackup = errors.New("no backup service")
)

// LabelAgent on a service says that it is the backup service.
const LabelAgent = "backupd.agent"

// Options say which project is meant; the zero value is the one of the working directory.
type Options struct {
	Files    []string // empty: COMPOSE_FILE, or compose.yaml in the working directory or above it, with its override
	Name     string   // empty: COMPOSE_PROJECT_NAME, or what the file or the directory says
	EnvFiles []string // empty: .env
	Service  string   // the backup service; empty: found
}

// Project is what its Compose files say.
type Project struct {
	Name     string
	Dir      string
	Files    []string
	Services []Service // all, by name, also those of profiles that are not active
	Volumes  []Volume  // all, by key
	Backup   *Service  // one of Services, with its environment complete; nil if WhyNoBackup
	// WhyNoBackup says why Backup is nil; it wraps ErrNoBackup.
	WhyNoBackup error
	// WhyNotRun says why Backup cannot be run from here: a secret's file that is
	// missing, say. It may still be read for what it says.
	WhyNotRun error
}

// Volume is a named volume.
type Volume struct {
	Key      string // in the Compose file
	Name     string // the engine's
	Driver   string
	Options  map[string]string
	Labels   map[string]string
	External bool
	Used     bool // by the backup service or one of an active profile: Compose makes only those
}

// Service is a service.
type Service struct {
	Name     string
	Active   bool // of no profile, or an active one
	Image    string
	Labels   map[string]string
	Mounts   []Mount
	Depends  map[string]string // service -> condition
	Database bool              // looks like one; for suggestions only

	// The following are of the backup service only.

	Entrypoint, Env                        []string // Entrypoint nil: the image's
	User, WorkingDir, NetworkMode, Runtime string
	CapAdd, CapDrop, SecurityOpt, GroupAdd []string
	ExtraHosts, DNS                        []string
	ReadOnly, Privileged                   bool
	Init                                   *bool
	Memory                                 int64
	CPUs                                   float64
	Networks                               []string // the engine's names, in the order of priority
	Files                                  []File
}

// Mount is something mounted in a service.
type Mount struct {
	Type       string // volume, bind, tmpfs
	Key        string // of a named volume in the Compose file
	Source     string // the engine's name of the volume, empty if anonymous; or a path
	Target     string
	ReadOnly   bool
	CreatePath bool // make the directory that is bound
	NoCopy     bool
	Subpath    string
	Size       int64 // of a tmpfs, bytes; 0 for no limit
}

// File is a secret or a config: a file on this machine, or a content.
type File struct {
	Name, Target string
	Source       string
	Content      []byte // where Source is empty
	Mode         os.FileMode
	UID, GID     int
}

// Load reads a project.
func Load(ctx context.Context, o Options) (*Project, error) {
	// The order is that of `docker compose`: .env may name the file (COMPOSE_FILE),
	// and the file's directory may have a .env of its own.
	opts, err := cli.NewProjectOptions(o.Files,
		cli.WithOsEnv, cli.WithEnvFiles(o.EnvFiles...), cli.WithDotEnv,
		cli.WithConfigFileEnv, cli.WithDefaultConfigPath,
		cli.WithEnvFiles(o.EnvFiles...), cli.WithDotEnv,
		cli.WithDefaultProfiles(), cli.WithName(o.Name),
		// Another service's missing env_file is none of backupd's business.
		cli.WithoutEnvironmentResolution,
	)
	if err != nil {
		return nil, fmt.Errorf("read the Compose project: %w", err)
	}
	if len(opts.ConfigPaths) == 0 {
		dir, _ := opts.GetWorkingDir()
		return nil, fmt.Errorf("%w: there is no compose.yaml in %s or above it; change to the project's directory, or name the file with --compose-file", ErrNoFile, dir)
	}
	raw, err := opts.LoadProject(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the Compose project: %w", err)
	}
	p := &Project{Name: raw.Name, Dir: raw.WorkingDir, Files: raw.ComposeFiles}
	all := raw.AllServices()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		p.Services = append(p.Services, service(raw, all[name]))
	}
	chosen, err := p.choose(all, o.Service)
	if err != nil {
		p.WhyNoBackup = err
	} else {
		for i := range p.Services {
			if p.Services[i].Name == chosen {
				p.Backup = &p.Services[i]
			}
		}
		if err := complete(raw, all[chosen], p.Backup); err != nil {
			p.WhyNotRun = fmt.Errorf("service %s of %s: %w", chosen, p.where(), err)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(raw.Volumes)) {
		v := raw.Volumes[key]
		p.Volumes = append(p.Volumes, Volume{
			Key: key, Name: v.Name, Driver: v.Driver, Options: v.DriverOpts, Labels: v.Labels, External: bool(v.External),
			Used: slices.ContainsFunc(p.Services, func(s Service) bool {
				return (s.Active || s.Name == chosen) && slices.ContainsFunc(s.Mounts, func(m Mount) bool { return m.Key == key })
			}),
		})
	}
	return p, nil
}

func service(p *types.Project, s types.ServiceConfig) Service {
	_, active := p.Services[s.Name]
	out := Service{Name: s.Name, Active: active, Image: s.Image, Labels: s.Labels, Depends: map[string]string{}, Database: looksLikeDatabase(s.Image)}
	for name, d := range s.DependsOn {
		out.Depends[name] = d.Condition
	}
	for _, v := range s.Volumes {
		m := Mount{Type: v.Type, Source: v.Source, Target: v.Target, ReadOnly: v.ReadOnly}
		switch {
		case v.Type == types.VolumeTypeVolume && v.Source != "":
			m.Key = v.Source
			m.Source = cmp.Or(p.Volumes[v.Source].Name, v.Source)
			if v.Volume != nil {
				m.NoCopy, m.Subpath = v.Volume.NoCopy, v.Volume.Subpath
			}
		case v.Type == types.VolumeTypeBind:
			m.CreatePath = v.Bind == nil || bool(v.Bind.CreateHostPath)
		case v.Type == types.VolumeTypeTmpfs && v.Tmpfs != nil:
			m.Size = int64(v.Tmpfs.Size)
		}
		out.Mounts = append(out.Mounts, m)
	}
	return out
}

// looksLikeDatabase goes by the image's name, which is good enough to suggest a label.
func looksLikeDatabase(image string) bool {
	name := imageName(image)
	return slices.ContainsFunc([]string{"postgres", "postgis", "timescale", "mysql", "mariadb", "percona", "mongo", "redis", "valkey"}, func(db string) bool { return strings.HasPrefix(name, db) })
}

// imageName is the last part of an image's name: "registry:5000/team/backupd:1@sha256:..." is backupd.
func imageName(image string) string {
	image, _, _ = strings.Cut(image, "@")
	name, _, _ := strings.Cut(path.Base(image), ":")
	return name
}

// choose finds the backup service: the one that is named; the one that is
// labelled; the one that is told its target; the one whose image is called so.
func (p *Project) choose(all types.Services, named string) (string, error) {
	if named != "" {
		if _, ok := all[named]; !ok {
			return "", fmt.Errorf("%w: there is no service %s in %s; it has %s", ErrNoBackup, named, p.where(), strings.Join(slices.Sorted(maps.Keys(all)), ", "))
		}
		return named, nil
	}
	for _, is := range []func(types.ServiceConfig) bool{
		func(s types.ServiceConfig) bool { yes, _ := strconv.ParseBool(s.Labels[LabelAgent]); return yes },
		func(s types.ServiceConfig) bool { _, ok := s.Environment["BACKUPD_TARGET"]; return ok },
		func(s types.ServiceConfig) bool { return strings.Contains(imageName(s.Image), "backupd") },
	} {
		var fits []string
		for _, name := range slices.Sorted(maps.Keys(all)) {
			if is(all[name]) {
				fits = append(fits, name)
			}
		}
		switch len(fits) {
		case 0:
		case 1:
			return fits[0], nil
		default:
			return "", fmt.Errorf("%w: %s may each be it in %s; give one the label %s: \"true\", or name it with --service", ErrNoBackup, strings.Join(fits, " and "), p.where(), LabelAgent)
		}
	}
	return "", fmt.Errorf("%w: no service of %s has the image backupd, BACKUPD_TARGET in its environment, or the label %s: \"true\"; `backupd init` adds one", ErrNoBackup, p.where(), LabelAgent)
}

func (p *Project) where() string {
	if len(p.Files) == 0 {
		return "project " + p.Name
	}
	return p.Files[0]
}

// complete fills in what is needed to run the service.
func complete(p *types.Project, s types.ServiceConfig, out *Service) error {
	one := *p
	one.Services = types.Services{s.Name: s}
	resolved, err := one.WithServicesEnvironmentResolved(true)
	if err != nil {
		return fmt.Errorf("read its environment: %w", err)
	}
	env := resolved.Services[s.Name].Environment
	for _, k := range slices.Sorted(maps.Keys(env)) {
		if v := env[k]; v != nil { // KEY without a value and not set here: not set there
			out.Env = append(out.Env, k+"="+*v)
		}
	}
	out.Entrypoint = s.Entrypoint
	out.User, out.WorkingDir, out.NetworkMode, out.Runtime = s.User, s.WorkingDir, s.NetworkMode, s.Runtime
	out.CapAdd, out.CapDrop, out.SecurityOpt, out.GroupAdd = s.CapAdd, s.CapDrop, s.SecurityOpt, s.GroupAdd
	out.ExtraHosts, out.DNS = s.ExtraHosts.AsList(":"), s.DNS
	out.ReadOnly, out.Privileged, out.Init = s.ReadOnly, s.Privileged, s.Init
	out.Memory, out.CPUs = int64(s.MemLimit), float64(s.CPUS)
	for _, t := range s.Tmpfs {
		target, _, _ := strings.Cut(t, ":")
		out.Mounts = append(out.Mounts, Mount{Type: types.VolumeTypeTmpfs, Target: target})
	}
	if out.NetworkMode == "" {
		for _, key := range s.NetworksByPriority() {
			out.Networks = append(out.Networks, cmp.Or(p.Networks[key].Name, key))
		}
	}
	for _, r := range s.Secrets {
		target := cmp.Or(r.Target, r.Source)
		if !path.IsAbs(target) {
			target = path.Join("/run/secrets", target)
		}
		f, err := file(p, "secret", types.FileReferenceConfig(r), types.FileObjectConfig(p.Secrets[r.Source]), target)
		if err != nil {
			return err
		}
		out.Files = append(out.Files, f)
	}
	for _, r := range s.Configs {
		target := cmp.Or(r.Target, r.Source)
		if !path.IsAbs(target) {
			target = "/" + target
		}
		f, err := file(p, "config", types.FileReferenceConfig(r), types.FileObjectConfig(p.Configs[r.Source]), target)
		if err != nil {
			return err
		}
		out.Files = append(out.Files, f)
	}
	return nil
}

func file(p *types.Project, kind string, r types.FileReferenceConfig, o types.FileObjectConfig, target string) (File, error) {
	f := File{Name: r.Source, Target: target, Mode: 0o444}
	if r.Mode != nil {
		f.Mode = os.FileMode(*r.Mode)
	}
	for _, id := range []struct {
		text string
		to   *int
	}{{r.UID, &f.UID}, {r.GID, &f.GID}} {
		if id.text == "" {
			continue
		}
		n, err := strconv.Atoi(id.text)
		if err != nil {
			return f, fmt.Errorf("%s %s: its uid and gid must be numbers, not %q", kind, r.Source, id.text)
		}
		*id.to = n
	}
	switch {
	case bool(o.External):
		return f, fmt.Errorf("%s %s is external: it can be read in a swarm only; give it a file", kind, r.Source)
	case o.Environment != "":
		v, ok := p.Environment[o.Environment]
		if !ok {
			return f, fmt.Errorf("%s %s: the environment variable %s is not set", kind, r.Source, o.Environment)
		}
		f.Content = []byte(v)
	case o.Content != "":
		f.Content = []byte(o.Content)
	case o.File != "":
		f.Source = o.File
		if !filepath.IsAbs(f.Source) {
			f.Source = filepath.Join(p.WorkingDir, f.Source)
		}
		if _, err := os.Stat(f.Source); err != nil {
			return f, fmt.Errorf("%s %s: %w; create the file", kind, r.Source, err)
		}
	default:
		return f, fmt.Errorf("%s %s: it is not defined", kind, r.Source)
	}
	return f, nil
}
