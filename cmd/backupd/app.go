package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/worker"
)

// app is what the commands share: the common flags and where to print.
type app struct {
	stdout, stderr io.Writer
	argv           []string // the command line, without the program's name
	targets        []string
	stack          string
	origin         string
	stateDir       string
	secrets        secrets
	target         targetFlags
	surroundings   surroundings
	worker         *worker.Agent // who is told, in a worker; else nil
	config         configFlags
	common         *pflag.FlagSet // the flags of every command
	json, quiet    bool
	started        bool         // a command's own work began: errors are no usage errors any more
	log            *slog.Logger // of a process that lasts; nil: notices are lines of stderr
	interrupted    string       // what an interrupt leaves, where the common sentence is wrong

	closers   *closers // of targets
	engineErr error    // why the engine that was asked for the labels does not answer
}

// closers are what is to be closed when a piece of work is done.
type closers struct {
	mu   sync.Mutex
	list []io.Closer
}

func (c *closers) add(x io.Closer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, x)
}

// close closes all: targets' connections and child processes.
func (c *closers) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range c.list {
		_ = x.Close() // all that counts was answered
	}
	c.list = nil
}

// scope is the same app, with targets of its own, which end closes: for work that
// is done again and again by a process that lasts.
func (a *app) scope(targets []string) (b *app, end func()) {
	own := *a
	own.closers = &closers{}
	if len(targets) > 0 {
		own.targets = targets
	}
	return &own, own.closers.close
}

// volumesDir is where the Compose examples mount volumes.
const volumesDir = "/volumes"

func defaultStateDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/backupd"
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "backupd")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".local", "state", "backupd")
}

// fromEnvironment sets the flags that were not given from BACKUPD_<FLAG>.
func fromEnvironment(cmd *cobra.Command) (err error) {
	if err := checkSecrets(cmd.Flags()); err != nil {
		return err
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		name := "BACKUPD_" + envName(f.Name)
		value, ok := os.LookupEnv(name)
		if !ok || value == "" || f.Changed || err != nil || f.Name == "help" {
			return
		}
		values := []string{value}
		if f.Value.Type() == "stringArray" {
			values = strings.Split(value, ",")
		}
		for _, v := range values {
			if f.Name != "passphrase" { // whose spaces count, as they do in a file
				v = strings.TrimSpace(v)
			}
			if serr := cmd.Flags().Set(f.Name, v); serr != nil {
				err = fmt.Errorf("%w: %s: %w", snapshot.ErrUsage, name, serr)
			}
		}
	})
	return err
}

// runs wraps a command's work, which begins when flags and arguments are read.
func (a *app) runs(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.started = true
		return f(cmd.Context(), args)
	}
}

func (a *app) options() (o snapshot.Options, err error) {
	if a.stateDir != "" {
		o.CacheDir = filepath.Join(a.stateDir, "cache")
		o.TrustDir = filepath.Join(a.stateDir, "trust")
	}
	o.Notice = func(text string) { a.warn(text) }
	o.Credentials, err = a.secrets.credentials()
	return o, err
}

// open opens the repository for reading: of several targets, the first that answers.
func (a *app) open(ctx context.Context) (*snapshot.Repository, error) {
	if len(a.targets) == 0 {
		return nil, noTarget()
	}
	var errs []error
	for i, name := range a.targets {
		repo, err := a.openOne(ctx, name)
		if err == nil {
			return repo, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil || errors.Is(err, snapshot.ErrUsage) || errors.Is(err, snapshot.ErrKey) {
			break
		}
		if i+1 < len(a.targets) {
			a.notice("%v; trying the next target", err)
		}
	}
	return nil, errors.Join(errs...)
}

func (a *app) openOne(ctx context.Context, name string) (*snapshot.Repository, error) {
	o, err := a.options()
	if err != nil {
		return nil, err
	}
	st, err := a.openTarget(ctx, name)
	if err != nil {
		return nil, err
	}
	return snapshot.Open(ctx, readOnly{st}, o)
}

// oneTarget returns the target of a command that changes one.
func (a *app) oneTarget() (string, error) {
	switch len(a.targets) {
	case 0:
		return "", noTarget()
	case 1:
		return a.targets[0], nil
	}
	return "", fmt.Errorf("%w: several targets are named, and this command changes one; say which with a single --target", snapshot.ErrUsage)
}

// openToChange opens the repository of the one target that a command changes.
func (a *app) openToChange(ctx context.Context) (*snapshot.Repository, store.Writer, error) {
	target, err := a.oneTarget()
	if err != nil {
		return nil, nil, err
	}
	o, err := a.options()
	if err != nil {
		return nil, nil, err
	}
	st, err := a.openTarget(ctx, target)
	if err != nil {
		return nil, nil, err
	}
	repo, err := snapshot.Open(ctx, readOnly{st}, o)
	return repo, st, err
}

// volumes reads --volume flags; without any, the directories below /volumes.
func volumes(flags []string) ([]snapshot.Source, error) {
	var out []snapshot.Source
	for _, f := range flags {
		name, path, ok := strings.Cut(f, "=")
		if !ok { // one that is mounted where all are
			path = filepath.Join(volumesDir, f)
			if st, err := os.Stat(path); err != nil || !st.IsDir() || strings.Contains(f, "/") {
				return nil, fmt.Errorf("%w: --volume %q: there is no directory %s; write it as NAME=PATH, as in --volume data=/srv/data", snapshot.ErrUsage, f, path)
			}
		}
		if path == "" {
			return nil, fmt.Errorf("%w: --volume %q: write it as NAME=PATH, as in --volume data=/volumes/data", snapshot.ErrUsage, f)
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		out = append(out, snapshot.Source{Name: name, Path: abs})
	}
	if len(flags) > 0 {
		return out, nil
	}
	entries, err := os.ReadDir(volumesDir)
	if err != nil {
		return nil, fmt.Errorf("%w: no volume named, and %s cannot be read: %w; say --volume NAME=PATH, or mount the volumes below %s", snapshot.ErrUsage, volumesDir, err, volumesDir)
	}
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, snapshot.Source{Name: e.Name(), Path: filepath.Join(volumesDir, e.Name())})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: no volume named, and there is none below %s; say --volume NAME=PATH", snapshot.ErrUsage, volumesDir)
	}
	return out, nil
}

// printJSON prints one object on one line.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// warn tells what is wrong and stops nothing.
func (a *app) warn(text string) {
	if a.log != nil {
		a.log.Warn(text)
		return
	}
	fmt.Fprintf(a.stderr, "backupd: warning: %s\n", text)
}

// notice tells something that is no result, unless the user wants quiet.
func (a *app) notice(format string, args ...any) {
	switch {
	case a.log != nil:
		a.log.Info(fmt.Sprintf(format, args...))
	case !a.quiet:
		fmt.Fprintf(a.stderr, "backupd: "+format+"\n", args...)
	}
}
