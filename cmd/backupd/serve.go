package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/disko/backupd/internal/agent"
	"github.com/disko/backupd/internal/config"
	"github.com/disko/backupd/internal/docker"
	"github.com/disko/backupd/internal/notify"
	"github.com/disko/backupd/internal/seed"
	"github.com/disko/backupd/internal/snapshot"
)

func (a *app) serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Seed fresh volumes, then keep the schedule",
		Long: `Seed a stack's fresh volumes from the latest snapshot, become healthy, then
keep the schedule until stopped. It is the image's default command, and all that
a Compose file needs:

  depends_on: {backup: {condition: service_healthy}}

on the other services has them wait for their data. Without a schedule, as in a
clone, it only seeds. SIGHUP reads the configuration file again. "backupd config"
shows what counts; docs/configuration.md explains all settings.
` + exitHelp,
		Args: cobra.NoArgs,
	}
	a.settingFlags(cmd)
	cmd.Flags().Bool("no-owner", false, "let all files that are seeded belong to the user who seeds")
	cmd.RunE = a.runs(func(ctx context.Context, _ []string) error { return a.serve(ctx, cmd) })
	return cmd
}

func (a *app) serve(ctx context.Context, cmd *cobra.Command) error {
	a.interrupted = "stopped"
	live, err := a.openConfig(cmd, a.ownLabels(ctx))
	if err != nil {
		a.rememberFresh(ctx, cmd, nil)
		return err
	}
	c := live.Current()
	if len(a.targets) == 0 {
		a.rememberFresh(ctx, cmd, c)
		return noTarget()
	}
	if _, err := a.options(); err != nil {
		a.rememberFresh(ctx, cmd, c)
		return err
	}
	log := a.logger(c.LogFormat, c.LogLevel)
	a.log = log
	s := a.agentSettings()
	s.Log = log
	if s.Teller, err = a.teller(ctx, c, log); err != nil {
		a.rememberFresh(ctx, cmd, c)
		return usagef("%w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		s.Teller.Close(ctx)
	}()
	if a.engineErr != nil { // it was waited for
		a.rememberFresh(ctx, cmd, c)
		return a.engineErr
	}
	ag, err := agent.New(ctx, s)
	if err != nil {
		a.engineErr = err // or it does not know this container
		a.rememberFresh(ctx, cmd, c)
		return err
	}
	defer ag.Close()
	svc, err := a.service(cmd, c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reload := make(chan []agent.Policy)
	svc.Reload = reload
	var reloads sync.WaitGroup
	reloads.Go(func() { a.reloads(ctx, live, log, reload) })
	log.Info("backupd serves", "version", version, "stack", ag.Stack, "targets", a.targets, "policies", len(svc.Policies))
	err = ag.Serve(ctx, svc)
	cancel()
	reloads.Wait()
	return err
}

// service is what the configuration asks for.
func (a *app) service(cmd *cobra.Command, c *config.Config) (agent.Service, error) {
	svc := agent.Service{Name: a.agentName(), Listen: c.Listen}
	mode := agent.Mode(c.Volumes)
	var sources []snapshot.Source
	var err error
	if mode == agent.Mounted {
		if sources, err = volumes(c.Volume); err != nil {
			return svc, err
		}
	}
	noOwner, err := cmd.Flags().GetBool("no-owner")
	if err != nil {
		return svc, err
	}
	svc.Seed = agent.SeedOptions{
		Mode: seed.Mode(c.Seed), From: c.SeedFrom, Volumes: sources, NoOwner: noOwner,
		Source: mode, Limits: limits(c),
	}
	if svc.Seed.From == "latest" {
		svc.Seed.From = ""
	}
	svc.Policies, err = policies(c, sources)
	return svc, err
}

func limits(c *config.Config) agent.Limits {
	return agent.Limits{Memory: c.Worker.Memory, CPUs: c.Worker.CPUs}
}

// policies are the configuration's, in the agent's terms.
func policies(c *config.Config, sources []snapshot.Source) ([]agent.Policy, error) {
	var out []agent.Policy
	for _, p := range c.Policies {
		q := agent.Policy{
			Name: p.Name, Schedule: p.Schedule, Jitter: p.Jitter, Timeout: p.Timeout,
			Backup: agent.Backup{
				Exclude: p.Exclude, Tags: p.Tags, Targets: p.Targets, Mode: agent.Mode(c.Volumes), Limits: limits(c), MaxShrink: p.MaxShrink,
				Quiesce: agent.Quiesce(p.Quiesce), Pre: serviceHooks(p.Pre), Post: serviceHooks(p.Post),
				HoldBytes: p.FreezeMemory, FreezeLimit: p.FreezeLimit,
			},
			Drill:         agent.Drilling{Targets: p.Targets, Mode: agent.Mode(c.Volumes), Limits: limits(c), Volumes: sources},
			DrillSchedule: p.Drill,
		}
		if q.Backup.Mode == agent.Mounted {
			var err error
			if q.Backup.Volumes, err = chosen(p, sources); err != nil {
				return nil, err
			}
		} else {
			q.Backup.Only = p.Volumes
		}
		if p.Keep != "" {
			keep, err := snapshot.ParsePolicy(p.Keep)
			if err != nil {
				return nil, err
			}
			q.Keep = &agent.Retention{Name: p.Name, Policy: keep, Targets: p.Targets, Zone: c.Zone}
		}
		out = append(out, q)
	}
	return out, nil
}

func serviceHooks(list []config.Hook) []docker.ServiceHook {
	var out []docker.ServiceHook
	for _, h := range list {
		out = append(out, docker.ServiceHook{Service: h.Service, Command: h.Command, User: h.User, Timeout: h.Timeout})
	}
	return out
}

// chosen are the mounted volumes that a policy is for.
func chosen(p config.Policy, sources []snapshot.Source) ([]snapshot.Source, error) {
	if len(p.Volumes) == 0 {
		return sources, nil
	}
	var out []snapshot.Source
	for _, name := range p.Volumes {
		i := slices.IndexFunc(sources, func(s snapshot.Source) bool { return s.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("%w: policy %s: volume %s is not mounted below %s", snapshot.ErrNoVolume, p.Name, name, volumesDir)
		}
		out = append(out, sources[i])
	}
	return out, nil
}

func (a *app) teller(ctx context.Context, c *config.Config, log *slog.Logger) (*notify.Teller, error) {
	s := notify.Settings{Template: c.NotifyTemplate, Ping: c.Ping.Reveal(), Log: log}
	for _, u := range c.Notify {
		s.URLs = append(s.URLs, u.Reveal())
	}
	for _, name := range c.NotifyOn {
		l, err := notify.ParseLevel(name)
		if err != nil {
			return nil, err
		}
		s.On = append(s.On, l)
	}
	if a.stateDir != "" {
		s.StateFile = filepath.Join(a.stateDir, "told.json")
	}
	return notify.New(context.WithoutCancel(ctx), s)
}

// rememberFresh notes which volumes are fresh now, though the agent cannot
// serve: so that they still are when it is started again with its settings put right.
// Where the engine is what is wrong, it is asked then.
func (a *app) rememberFresh(ctx context.Context, cmd *cobra.Command, c *config.Config) {
	if a.stateDir == "" || c != nil && (c.Volumes != "mounted" || c.Seed == "off") {
		return
	}
	named, err := cmd.Flags().GetStringArray("volume") // all that is known of a configuration that is wrong
	if err != nil {
		return
	}
	if c != nil {
		named = c.Volume
	}
	sources, err := volumes(named)
	if err != nil {
		return
	}
	s := a.agentSettings()
	s.WithoutEngine = a.engineErr != nil
	ag, err := agent.New(ctx, s)
	if err != nil {
		return
	}
	defer ag.Close()
	_ = ag.NoteFresh(ctx, sources) // there is an error to be told already
}

// reloads reads the configuration again on each SIGHUP. One that is wrong
// changes nothing.
func (a *app) reloads(ctx context.Context, live *config.Live, log *slog.Logger, out chan<- []agent.Policy) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		changes, err := live.Reload()
		if err != nil {
			log.Error("the configuration was not read again: the old one stays", "error", err)
			continue
		}
		c := live.Current()
		var sources []snapshot.Source
		if c.Volumes == "mounted" {
			if sources, err = volumes(c.Volume); err != nil {
				log.Error("the configuration was not read again: the old one stays", "error", err)
				continue
			}
		}
		p, err := policies(c, sources)
		if err != nil {
			log.Error("the configuration was not read again: the old one stays", "error", err)
			continue
		}
		for _, ch := range changes {
			if ch.Restart {
				log.Warn("a setting changes after a restart only", "setting", ch.Key, "old", ch.Old, "new", ch.New)
			} else {
				log.Info("a setting changed", "setting", ch.Key, "old", ch.Old, "new", ch.New)
			}
		}
		select {
		case out <- p:
			log.Info("the configuration was read again", "changes", len(changes))
		case <-ctx.Done():
			return
		}
	}
}
