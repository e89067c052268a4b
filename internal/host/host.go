// Package host runs backupd's commands from outside: on a machine with a Compose
// project and an engine, in a one-off container of the project's backup service,
// as `docker compose run` would. Volumes are then read and written where they
// are: on this machine, behind Docker Desktop, or at another machine's engine.
//
// It also adds a backup service to a project that has none (Init).
package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/term"

	"github.com/disko/backupd/internal/compose"
	"github.com/disko/backupd/internal/docker"
)

// Options say which project is meant and what is to be run.
type Options struct {
	Compose compose.Options
	Args    []string // of backupd: a command, its flags and arguments
	Version string   // of this program, for labels
	Stdin   *os.File // nil: none
	Stdout  io.Writer
	Stderr  io.Writer
	Notice  func(text string)
}

// Run runs a command in the project's backup service and returns its exit code.
func Run(ctx context.Context, o Options) (int, error) {
	if len(o.Args) == 0 { // the image's own command would run, which serves
		return 0, errors.New("run backupd in the backup service: no command is given")
	}
	p, err := compose.Load(ctx, o.Compose)
	if err != nil {
		return 0, err
	}
	switch {
	case p.Backup == nil:
		return 0, p.WhyNoBackup
	case p.WhyNotRun != nil:
		return 0, p.WhyNotRun
	}
	if p.Backup.Image == "" {
		return 0, fmt.Errorf("run backupd in service %s of %s: it has no image; name one in it", p.Backup.Name, p.Files[0])
	}
	e, err := docker.ConnectHost(ctx)
	if err != nil {
		return 0, err
	}
	defer e.Close()
	if err := e.EnsureImage(ctx, p.Backup.Image, o.Notice); err != nil {
		return 0, err
	}
	made, err := e.EnsureVolumes(ctx, p.Name, "backupd "+o.Version, volumes(p))
	if err != nil {
		return 0, fmt.Errorf("prepare project %s: %w", p.Name, err)
	}
	if len(made) > 0 {
		o.Notice("made volumes " + strings.Join(made, ", "))
	}
	states, err := e.States(ctx, p.Name)
	if err != nil {
		return 0, err
	}
	if idle := missing(p.Backup.Depends, states); len(idle) > 0 {
		o.Notice(fmt.Sprintf("service %s depends on %s, which is not running and not started from here; where the command needs it, give it to `docker compose run --rm %s` instead, which starts that first",
			p.Backup.Name, strings.Join(idle, ", "), p.Backup.Name))
	}
	run := runOptions(p, o)
	restore, err := attachTerminal(&run, o)
	if err != nil {
		return 0, err
	}
	defer restore()
	return e.Run(ctx, run)
}

// missing are the services that another depends on, by conditions, and that are
// not what they should be, by their states.
func missing(depends, states map[string]string) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(depends)) {
		want := "running"
		if depends[name] == "service_completed_successfully" {
			want = "exited"
		}
		if states[name] != want {
			names = append(names, name)
		}
	}
	return names
}

// volumes are those that Compose would make for the project.
func volumes(p *compose.Project) []docker.VolumeSpec {
	var out []docker.VolumeSpec
	for _, v := range p.Volumes {
		if v.Used {
			out = append(out, docker.VolumeSpec{Key: v.Key, Name: v.Name, Driver: v.Driver, Options: v.Options, Labels: v.Labels, External: v.External})
		}
	}
	return out
}

func runOptions(p *compose.Project, o Options) docker.RunOptions {
	s := p.Backup
	run := docker.RunOptions{
		Project: p.Name, Service: s.Name, Dir: p.Dir, Image: s.Image, Entrypoint: s.Entrypoint, Command: o.Args, Env: s.Env,
		User: s.User, WorkingDir: s.WorkingDir, CapAdd: s.CapAdd, CapDrop: s.CapDrop, SecurityOpt: s.SecurityOpt, GroupAdd: s.GroupAdd,
		ExtraHosts: s.ExtraHosts, DNS: s.DNS, Runtime: s.Runtime, ReadOnly: s.ReadOnly, Privileged: s.Privileged, Init: s.Init,
		Memory: s.Memory, CPUs: s.CPUs, Labels: s.Labels, NetworkMode: s.NetworkMode, Networks: s.Networks,
		Stdout: o.Stdout, Stderr: o.Stderr,
	}
	for _, m := range s.Mounts {
		run.Mounts = append(run.Mounts, docker.RunMount{
			Type: m.Type, Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly,
			CreatePath: m.CreatePath, NoCopy: m.NoCopy, Subpath: m.Subpath, Size: m.Size,
		})
	}
	for _, f := range s.Files {
		run.Files = append(run.Files, docker.RunFile{Target: f.Target, Source: f.Source, Content: f.Content, Mode: f.Mode, UID: f.UID, GID: f.GID})
	}
	return run
}

// attachTerminal hands this process's terminal to the container, if it has one.
// What it returns puts the terminal back.
func attachTerminal(run *docker.RunOptions, o Options) (restore func(), err error) {
	restore = func() {}
	if o.Stdin == nil {
		return restore, nil
	}
	run.Stdin = o.Stdin
	out, ok := o.Stdout.(*os.File)
	in := int(o.Stdin.Fd())
	if !ok || !term.IsTerminal(in) || !term.IsTerminal(int(out.Fd())) {
		return restore, nil
	}
	old, err := term.MakeRaw(in)
	if err != nil {
		return restore, fmt.Errorf("prepare the terminal: %w", err)
	}
	run.TTY = true
	resize, stop := windows(int(out.Fd()))
	run.Resize = resize
	return func() {
		stop()
		_ = term.Restore(in, old) // nothing can be done about it
	}, nil
}

// Strip takes flags that are for this side out of a command line. names are
// those of flags with a value, as in "--compose-file" and "-f".
func Strip(args []string, names ...string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		if args[i] == "--" {
			return append(out, args[i:]...)
		}
		skip := 0
		for _, n := range names {
			switch {
			case args[i] == n:
				skip = 2
			case strings.HasPrefix(args[i], n+"="), len(n) == 2 && strings.HasPrefix(args[i], n) && !strings.HasPrefix(args[i], "--"):
				skip = 1
			}
		}
		if skip == 0 {
			out = append(out, args[i])
			continue
		}
		i += skip - 1
	}
	return out
}

// ErrDeclined: the user did not agree.
var ErrDeclined = errors.New("nothing was changed")

// InitOptions say which project gets a backup service.
type InitOptions struct {
	Compose compose.Options
	Image   string
	Yes     bool
	// Ask puts a question and reads the answer; nil where nobody can be asked.
	Ask    func(question string) (bool, error)
	Diff   func(name string, old, new []byte) error // shows the change
	Notice func(text string)
}

// Init adds a backup service to a project, if the user agrees to the change.
func Init(ctx context.Context, o InitOptions) error {
	p, err := compose.Load(ctx, o.Compose)
	if err != nil {
		return err
	}
	if p.Backup != nil {
		o.Notice(fmt.Sprintf("service %s of %s backs up the project already: nothing to do", p.Backup.Name, p.Files[0]))
		return nil
	}
	edit, err := p.AddBackup(ctx, o.Compose, o.Image)
	if err != nil {
		return err
	}
	if err := o.Diff(edit.File, edit.Old, edit.New); err != nil {
		return err
	}
	for _, s := range edit.ByHand {
		o.Notice(s)
	}
	if !o.Yes {
		if o.Ask == nil {
			return fmt.Errorf("%w: there is no terminal to ask at; say --yes to write it to %s", ErrDeclined, edit.File)
		}
		yes, err := o.Ask(fmt.Sprintf("Write this to %s?", edit.File))
		if err != nil {
			return err
		}
		if !yes {
			return ErrDeclined
		}
	}
	if err := edit.Write(); err != nil {
		return err
	}
	o.Notice(fmt.Sprintf("wrote %s; the stack is called %s at the target (BACKUPD_STACK). Next: set BACKUPD_TARGET in .env (and BACKUPD_SCHEDULE on the server that takes the snapshots), then `docker compose up -d`", edit.File, edit.Stack))
	return nil
}
