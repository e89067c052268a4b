package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/disko/backupd/internal/agent"
	"github.com/disko/backupd/internal/bytesize"
	"github.com/disko/backupd/internal/seed"
	"github.com/disko/backupd/internal/snapshot"
)

// surroundings say whose volumes are meant where none is named.
type surroundings struct {
	mode   string
	memory string
	cpus   float64
}

func (s *surroundings) flags(f *pflag.FlagSet) {
	f.StringVar(&s.mode, "volumes", "mounted", "whose volumes: mounted (below /volumes), project (all of the Compose project, by workers), host (of every project on the machine, by workers)")
	f.StringVar(&s.memory, "worker-memory", "", "most memory that a worker may use, as in 512m")
	f.Float64Var(&s.cpus, "worker-cpus", 0, "most processors that a worker may use, as in 1.5")
}

// complete says which volumes a backup takes.
func (s *surroundings) complete(b *agent.Backup, vols []string) (err error) {
	if b.Mode, b.Limits, err = s.parse(); err != nil {
		return err
	}
	if b.Mode == agent.Mounted {
		b.Volumes, err = volumes(vols)
		return err
	}
	if len(vols) > 0 {
		return usagef("--volume names what is mounted, and --volumes=%s what is not; give one of them", s.mode)
	}
	return nil
}

func (s *surroundings) parse() (agent.Mode, agent.Limits, error) {
	mode := agent.Mode(s.mode)
	switch mode {
	case "":
		mode = agent.Mounted
	case agent.Mounted, agent.Project, agent.Host:
	default:
		return "", agent.Limits{}, usagef("--volumes %q: write mounted, project or host", s.mode)
	}
	limits := agent.Limits{CPUs: s.cpus}
	if s.memory != "" {
		var err error
		if limits.Memory, err = bytesize.Parse(s.memory); err != nil {
			return "", agent.Limits{}, usagef("--worker-memory: %w", err)
		}
	}
	if s.cpus < 0 {
		return "", agent.Limits{}, usagef("--worker-cpus %v: must not be negative", s.cpus)
	}
	return mode, limits, nil
}

// agent finds out where this process runs, and opens what it needs.
func (a *app) agent(ctx context.Context) (*agent.Agent, error) {
	if _, err := a.options(); err != nil {
		return nil, err // a secret that cannot be had: before anything is done
	}
	return agent.New(ctx, a.agentSettings())
}

// seedOutage is how long a target may be away that a stack is seeded from: a
// person waits for it, and a seed that ended goes on where it was. --outage says otherwise.
const seedOutage = 2 * time.Minute

func (a *app) agentSettings() agent.Settings {
	return agent.Settings{
		Stack: a.stack, Origin: a.origin, StateDir: a.stateDir, Version: version, Targets: a.targets,
		Log: slog.New(slog.DiscardHandler), WorkerSettings: a.workerSettings, Free: freeSpace,
		Notice: func(text string) { a.notice("%s", text) },
		Places: func(ctx context.Context, targets []string) (*agent.Places, error) {
			b, end := a.scope(targets)
			up, down, err := b.places(ctx)
			closing := func() {
				for _, p := range up {
					p.Repo.Close()
				}
				end()
			}
			if err != nil {
				closing()
				return nil, err
			}
			return &agent.Places{Up: up, Down: down, Close: closing}, nil
		},
		Repository: func(ctx context.Context, targets []string) (*snapshot.Repository, func(), error) {
			b, end := a.scope(targets)
			if b.target.o.Retry.Outage == 0 {
				b.target.o.Retry.Outage = seedOutage
			}
			repo, err := b.open(ctx)
			if err != nil {
				end()
				return nil, nil, err
			}
			return repo, func() { repo.Close(); end() }, nil
		},
	}
}

// logger is for what lasts: text on a terminal, JSON elsewhere.
func (a *app) logger(format string, level slog.Level) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	_, terminal := a.stderr.(*screen)
	if format == "json" || format != "text" && !terminal {
		return slog.New(slog.NewJSONHandler(a.stderr, o))
	}
	return slog.New(slog.NewTextHandler(a.stderr, o))
}

// agentName is the name under which the agent of this container, or of this
// state directory outside of one, says how it is.
func (a *app) agentName() string {
	if id, ok := seed.OwnContainerID(); ok {
		return id
	}
	dir, err := filepath.Abs(a.stateDir)
	if err != nil {
		dir = a.stateDir
	}
	return fmt.Sprintf("%d:%s", os.Getuid(), dir)
}
