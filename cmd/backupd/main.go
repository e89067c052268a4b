// Command backupd backs up and restores the volumes of a Compose stack.
//
// This package holds flags, wiring, signals, exit codes and printing; what
// they do is in internal/snapshot.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/disko/backupd/internal/seed"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/worker"
)

// version is set when the binary is linked.
var version = "development"

// Exit codes; they are part of the interface.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitWarnings    = 3 // done, but some files could not be read
	exitNotFound    = 4 // no such repository, snapshot or volume
	exitDamage      = 5
	exitInterrupted = 130
)

const exitHelp = `
Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 3 done with
warnings (some files could not be read); 4 no such repository, snapshot or
volume; 5 damage found; 130 interrupted.

Every flag can also be set as BACKUPD_<FLAG>, as in BACKUPD_TARGET=/backups;
one that may be repeated takes a list with commas. It can stand in the file that
--config names, too. Results go to stdout,
everything else to stderr.`

func main() {
	collect(collectPacking)
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is main with what it touches passed in; it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{stdout: stdout, stderr: onScreen(stderr), argv: args, closers: &closers{}}
	defer a.closers.close()
	root := a.command()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	interrupted := ctx.Err() != nil && errors.Is(err, context.Canceled)
	code := exitCode(err, a.started)
	if interrupted {
		code = exitInterrupted
		err = errors.New("interrupted; nothing was committed, and what was there is as it was")
		if a.interrupted != "" {
			err = errors.New(a.interrupted)
		}
	}
	var quiet *statusError
	if !errors.As(err, &quiet) || quiet.text != "" {
		fmt.Fprintf(stderr, "backupd: %v\n", err)
	}
	if code == exitUsage && !a.started {
		fmt.Fprintln(stderr, `Run "backupd --help", or "backupd COMMAND --help", for how to use it.`)
	}
	return code
}

// statusError ends the program with a code of its own, and a text where there is one to say.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

func exitCode(err error, started bool) int {
	var status *statusError
	var remote *worker.Error // which had it from here
	switch {
	case errors.As(err, &status):
		return status.code
	case !started, errors.Is(err, snapshot.ErrUsage), errors.Is(err, snapshot.ErrAmbiguous), errors.Is(err, snapshot.ErrKey), errors.Is(err, sealed.ErrNoIdentity):
		return exitUsage
	case errors.Is(err, snapshot.ErrDamaged), errors.Is(err, sealed.ErrForged), errors.Is(err, snapshot.ErrSetBack):
		return exitDamage
	case errors.Is(err, snapshot.ErrNoRepository), errors.Is(err, snapshot.ErrForeign), errors.Is(err, snapshot.ErrNoSnapshot),
		errors.Is(err, snapshot.ErrNoVolume), errors.Is(err, store.ErrNoTarget), errors.Is(err, seed.ErrNoSnapshot):
		return exitNotFound
	case errors.As(err, &remote):
		return remote.Code
	}
	return exitFailed
}

// explainArguments has commands that get too many or too few arguments say what they take.
func explainArguments(parent *cobra.Command) {
	for _, cmd := range parent.Commands() {
		if check := cmd.Args; check != nil {
			cmd.Args = func(cmd *cobra.Command, args []string) error {
				if check(cmd, args) == nil {
					return nil
				}
				given := "no argument"
				if len(args) > 0 {
					given = fmt.Sprintf("%q", args)
				}
				return fmt.Errorf("%w: %s was given %s; write it as: %s", snapshot.ErrUsage, cmd.CommandPath(), given, cmd.UseLine())
			}
		}
		explainArguments(cmd)
	}
}

// command builds the tree of commands.
func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "backupd",
		Short: "Back up and restore the volumes of a Compose stack",
		Long: `backupd takes snapshots of Docker volumes, incrementally, and brings them
back. What it stores is ordinary tar and zstd: a repository restores itself
with the restore.sh that lies in it.
` + exitHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	f := root.PersistentFlags()
	a.common = f
	f.StringArrayVar(&a.targets, "target", nil, "where the snapshots are: a directory, s3://, nfs://, sftp:// or rclone: (\"backupd help targets\"); may be repeated")
	f.StringVar(&a.stack, "stack", "", "name of the stack, the Compose project")
	f.StringVar(&a.origin, "origin", "", "name of this installation (default: the Docker engine's id); a change of it has everything read once")
	f.StringVar(&a.stateDir, "state-dir", defaultStateDir(), "where caches and undo are kept; may be lost at any time")
	f.StringVar(&a.config.file, "config", "", "configuration `FILE` (YAML); \"backupd config\" shows what counts")
	a.secrets.flags(f)
	a.target.flags(f)
	f.BoolVar(&a.json, "json", false, "print results as JSON")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "no progress, no notices; errors and results only")
	root.AddCommand(
		a.backupCommand(), a.restoreCommand(), a.withSizes(a.snapshotsCommand()), a.showCommand(), a.lsCommand(),
		a.diffCommand(), a.exportCommand(), a.verifyCommand(), a.copyCommand(), a.forgetCommand(), a.pruneCommand(), a.coverageCommand(), a.initCommand(), a.keyCommand(),
		a.serveCommand(), a.seedCommand(), a.drillCommand(), a.healthCommand(), a.runsCommand(), a.notifyCommand(), a.configCommand(), a.versionCommand(), a.workerCommand(), a.targetsTopic(),
	)
	explainArguments(root)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", snapshot.ErrUsage, err) })
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return a.configure(cmd) }
	return root
}
