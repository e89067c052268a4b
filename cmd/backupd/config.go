package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/disko/backupd/internal/config"
	"github.com/disko/backupd/internal/docker"
	"github.com/disko/backupd/internal/seed"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/targets"
)

// configFlags is what the command line says about the configuration.
type configFlags struct {
	file  string
	given map[string][]string // flags that stood on the command line
}

// settingsAnnotation marks commands that read the whole configuration and not
// only what sets their flags.
const settingsAnnotation = "settings"

// lenientAnnotation marks commands that do without the file where it is wrong: an
// agent that keeps its old configuration is well, and must not be said to be ill.
const lenientAnnotation = "lenient"

// hidden are values that no listing shows.
var hidden = []string{"passphrase", "agent-key"}

// notInFile are common flags that belong to one call.
var notInFile = []string{"json", "quiet", "config", "help"}

// configure sets a command's flags: what stood on the command line counts, then
// the environment, then the file.
func (a *app) configure(cmd *cobra.Command) error {
	a.config.given = map[string][]string{}
	cmd.Flags().Visit(func(f *pflag.Flag) { a.config.given[f.Name] = flagValues(f) })
	if err := fromEnvironment(cmd); err != nil {
		return err
	}
	if a.config.file == "" || cmd.Annotations[settingsAnnotation] != "" {
		return nil
	}
	src := a.sources(cmd)
	src.WithoutSecrets = true
	c, err := config.Load(src)
	if err != nil && cmd.Annotations[lenientAnnotation] != "" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", snapshot.ErrUsage, err)
	}
	return a.fromFile(cmd, c)
}

// fromFile sets the flags that neither the command line nor the environment set.
func (a *app) fromFile(cmd *cobra.Command, c *config.Config) error {
	values := c.Flags()
	for _, name := range sortedNames(values) {
		f := cmd.Flags().Lookup(name)
		if f == nil || f.Changed || changed(cmd, name+"-file") || changed(cmd, strings.TrimSuffix(name, "-file")) {
			continue // a secret and its file are two ways to say one thing
		}
		for _, v := range values[name] {
			if err := cmd.Flags().Set(name, v); err != nil {
				return fmt.Errorf("%w: configuration: %s: %w", snapshot.ErrUsage, name, err)
			}
		}
	}
	return nil
}

func changed(cmd *cobra.Command, flag string) bool {
	f := cmd.Flags().Lookup(flag)
	return f != nil && f.Changed
}

// openConfig reads the whole configuration, for a command with settingFlags, and
// sets the command's flags by it. labels are those of the service that this is.
func (a *app) openConfig(cmd *cobra.Command, labels map[string]string) (*config.Live, error) {
	src := a.sources(cmd)
	src.Environ = os.Environ()
	src.Labels = labels
	live, err := config.Open(src)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", snapshot.ErrUsage, err)
	}
	return live, a.fromFile(cmd, live.Current())
}

// settingFlags gives a command a flag for every setting that has none yet; the
// command's own flags are made before.
func (a *app) settingFlags(cmd *cobra.Command) {
	if cmd.Annotations == nil {
		cmd.Annotations = map[string]string{}
	}
	cmd.Annotations[settingsAnnotation] = "all"
	common := []string{"stack", "origin", "target", "state-dir"}
	for _, s := range config.Settings() {
		if slices.Contains(common, s.Name) || s.FileOnly() || cmd.Flags().Lookup(s.Name) != nil {
			continue
		}
		help := s.Help
		if s.Default != "" {
			help += " (default " + s.Default + ")"
		}
		if s.Repeatable() {
			cmd.Flags().StringArray(s.Name, nil, help+"; may be repeated")
		} else {
			cmd.Flags().String(s.Name, "", help)
		}
		if s.Secret() {
			cmd.Flags().String(s.Name+"-file", "", "`FILE` that holds "+s.Name)
		}
	}
}

// sources are the file and the flags, for every command.
func (a *app) sources(cmd *cobra.Command) config.Sources {
	return config.Sources{
		File: a.config.file, Flags: a.knownFlags(cmd.Root()), Checks: a.checks(),
		Defaults: map[string]string{"state-dir": defaultStateDir()},
	}
}

// checks are for texts that other packages read.
func (a *app) checks() map[string]func(string) error {
	name := func(what string) func(string) error {
		return func(text string) error { return withoutUsage(snapshot.CheckName(what, text)) }
	}
	return map[string]func(string) error{
		"stack": name("stack"),
		"tag":   name("tag"),
		"keep": func(text string) error {
			_, err := snapshot.ParsePolicy(text)
			return withoutUsage(err)
		},
		"target": func(text string) error { return targets.Check(text, targets.Options{}) },
	}
}

// withoutUsage takes off the prefix that the program's own sentence has already.
func withoutUsage(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(strings.TrimPrefix(err.Error(), snapshot.ErrUsage.Error()+": "))
}

// knownFlags are the flags of all commands, so that a variable for one is no
// unknown one for another.
func (a *app) knownFlags(root *cobra.Command) []config.Flag {
	var out []config.Flag
	seen := map[string]bool{}
	add := func(f *pflag.Flag, file bool) {
		if seen[f.Name] {
			return
		}
		seen[f.Name] = true
		_, usage := pflag.UnquoteUsage(f)
		out = append(out, config.Flag{
			Name: f.Name, Help: usage, Type: f.Value.Type(), Secret: slices.Contains(hidden, f.Name),
			EnvironmentOnly: !file || slices.Contains(notInFile, f.Name), Given: a.config.given[f.Name],
		})
	}
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) { add(f, true) })
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) { add(f, false) })
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(root)
	return out
}

// flagValues are the values of a flag that was given.
func flagValues(f *pflag.Flag) []string {
	if s, ok := f.Value.(pflag.SliceValue); ok {
		return s.GetSlice()
	}
	return []string{f.Value.String()}
}

func sortedNames[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for name := range m {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func (a *app) configCommand() *cobra.Command {
	var schema bool
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check the configuration, and show what counts and where it comes from",
		Long: `Check the configuration and show each setting, its value, and where that comes
from: the command line, the environment, the file of --config, a label of the
service that backupd runs as, or the default; in this order, the first counts.
Secrets are not shown. All that is wrong is said at once.

docs/configuration.md explains the settings; configs/backupd.yaml is an example.
` + exitHelp,
		Example: `  backupd config --config backupd.yaml
  docker compose run --rm backup config`,
		Args: cobra.NoArgs,
	}
	a.settingFlags(cmd)
	cmd.Flags().BoolVar(&schema, "schema", false, "print the JSON schema of the file, for editors")
	cmd.RunE = a.runs(func(ctx context.Context, _ []string) error {
		if schema {
			out, err := config.Schema(a.knownFlags(cmd.Root()))
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(out)
			return err
		}
		live, err := a.openConfig(cmd, a.ownLabels(ctx))
		if err != nil {
			return err
		}
		return a.printConfig(live.Current())
	})
	return cmd
}

// ownLabels are the labels of the container that this process runs in: none where
// there is no container, or no engine to ask.
func (a *app) ownLabels(ctx context.Context) map[string]string {
	if _, in := seed.OwnContainerID(); !in {
		return nil
	}
	e, err := docker.Connect(ctx, func(text string) { a.notice("%s", text) })
	if err != nil {
		if !errors.Is(err, docker.ErrNoEngine) {
			a.engineErr = err
			a.notice("the labels of this container cannot be read: %v", err)
		}
		return nil
	}
	defer e.Close()
	self, err := e.Self(ctx)
	switch {
	case errors.Is(err, docker.ErrNoContainer):
	case err != nil:
		a.notice("the labels of this container cannot be read: %v", err)
	default:
		return self.Labels
	}
	return nil
}

// nextRun is when a policy runs next.
type nextRun struct {
	Policy string     `json:"policy"`
	Backup *time.Time `json:"backup,omitempty"`
	Drill  *time.Time `json:"drill,omitempty"`
}

func (a *app) printConfig(c *config.Config) error {
	next := make([]nextRun, 0, len(c.Policies))
	now := time.Now()
	for _, p := range c.Policies {
		n := nextRun{Policy: p.Name}
		if at := p.Schedule.Next(now); !at.IsZero() {
			n.Backup = &at
		}
		if at := p.Drill.Next(now); !at.IsZero() {
			n.Drill = &at
		}
		next = append(next, n)
	}
	if a.json {
		return a.printJSON(struct {
			Settings []config.Value `json:"settings"`
			Next     []nextRun      `json:"next"`
		}{c.Effective(), next})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SETTING\tVALUE\tFROM")
	for _, v := range c.Effective() {
		text := v.Text()
		if text == "" {
			text = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", v.Key, text, v.Where())
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, n := range next {
		if n.Backup == nil {
			a.notice("policy %s: no schedule; it runs when it is asked to", n.Policy)
		} else {
			a.notice("policy %s: next backup at %s", n.Policy, n.Backup.Format("Mon 2006-01-02 15:04:05 MST"))
		}
		if n.Drill != nil {
			a.notice("policy %s: next drill at %s", n.Policy, n.Drill.Format("Mon 2006-01-02 15:04:05 MST"))
		}
	}
	return nil
}
