// Command backupd-host is backupd for machines that cannot read Docker's volumes
// themselves: macOS, Windows, and whoever works on another machine's engine. It
// runs every command in the backup service of the Compose project, and adds that
// service to a project (init).
//
// On Linux cmd/backupd does the same for restore and init.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/disko/backupd/internal/compose"
	"github.com/disko/backupd/internal/host"
)

// version is set when the binary is linked.
var version = "development"

// Exit codes, as of backupd.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// command is one run of the program.
type command struct {
	project        compose.Options
	image          string
	yes            bool
	stdin          *os.File
	stdout, stderr io.Writer
	code           int // of what ran in the container
	started        bool
}

func run(ctx context.Context, args []string, stdin *os.File, stdout, stderr io.Writer) int {
	c := &command{stdin: stdin, stdout: stdout, stderr: stderr}
	root := c.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return c.code
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "backupd: interrupted")
		return exitInterrupted
	}
	fmt.Fprintf(stderr, "backupd: %v\n", err)
	if !c.started || errors.Is(err, compose.ErrNoFile) || errors.Is(err, compose.ErrNoBackup) {
		return exitUsage
	}
	return exitFailed
}

// passed are the commands that run in the backup service, with what is said of
// them here; all their flags are theirs.
var passed = [][2]string{
	{"backup", "Take a snapshot of the project's volumes"},
	{"restore", "Bring volumes back from a snapshot"},
	{"seed", "Fill fresh volumes from the latest snapshot"},
	{"snapshots", "List the snapshots"},
	{"show", "Show what a snapshot is"},
	{"ls", "List what a snapshot holds"},
	{"diff", "Show what differs between two snapshots"},
	{"export", "Write a volume as a .tar.zst"},
	{"verify", "Check that snapshots are whole"},
	{"forget", "Forget snapshots by policy"},
	{"prune", "Delete what only forgotten snapshots needed"},
	{"drill", "Restore a snapshot to scratch volumes, and check it"},
	{"copy", "Copy snapshots to another target"},
	{"key", "List, add, remove and rotate the keys of an encrypted repository"},
	{"coverage", "List every volume of the machine, with its last snapshot"},
	{"runs", "List what was done"},
}

func (c *command) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "backupd",
		Short: "Back up and restore the volumes of a Compose stack",
		Long: `backupd on this machine finds the Compose project of the directory, and runs its
commands in the project's backup service, as docker compose run does. So they
have the service's settings, and "backupd COMMAND --help" is the image's.

-f/--compose-file, -p/--project-name, --env-file and --service say which
project and service, and may stand with every command.

Exit codes are those of the command; 2 also if there is no project.`,
		SilenceUsage: true, SilenceErrors: true, Version: version,
	}
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	for _, p := range passed {
		root.AddCommand(&cobra.Command{
			Use: p[0], Short: p[1], DisableFlagParsing: true,
			RunE: func(cmd *cobra.Command, args []string) error {
				rest, err := c.take(args)
				if err != nil {
					return err
				}
				c.started = true
				return c.inService(cmd.Context(), append([]string{p[0]}, rest...))
			},
		})
	}
	root.AddCommand(c.initCommand())
	return root
}

var hostFlags = []string{"--compose-file", "-f", "--project-name", "-p", "--env-file", "--service"}

func (c *command) flags(f *pflag.FlagSet) {
	f.StringArrayVarP(&c.project.Files, "compose-file", "f", nil, "Compose `FILE`; may be repeated (default: COMPOSE_FILE, or compose.yaml here or above)")
	f.StringVarP(&c.project.Name, "project-name", "p", "", "name of the Compose project")
	f.StringArrayVar(&c.project.EnvFiles, "env-file", nil, "`FILE` of variables for the Compose file; may be repeated (default: .env)")
	f.StringVar(&c.project.Service, "service", "", "the backup service (default: found)")
}

// take reads the flags that are for this side and returns the others.
func (c *command) take(args []string) ([]string, error) {
	rest := host.Strip(args, hostFlags...)
	f := pflag.NewFlagSet("backupd", pflag.ContinueOnError)
	c.flags(f)
	return rest, f.Parse(own(args, rest))
}

// own are the arguments that were taken out.
func own(args, rest []string) []string {
	var out []string
	for _, a := range args {
		if len(rest) > 0 && rest[0] == a {
			rest = rest[1:]
			continue
		}
		out = append(out, a)
	}
	return out
}

func (c *command) notice(text string) { fmt.Fprintf(c.stderr, "backupd: %s\n", text) }

func (c *command) inService(ctx context.Context, args []string) (err error) {
	quiet := slices.Contains(args, "-q") || slices.Contains(args, "--quiet")
	c.code, err = host.Run(ctx, host.Options{
		Compose: c.project, Args: args, Version: version, Stdin: c.stdin, Stdout: c.stdout, Stderr: c.stderr,
		Notice: func(text string) {
			if !quiet {
				c.notice(text)
			}
		},
	})
	return err
}

func (c *command) initCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "init", Short: "Add a backup service to the Compose project of this directory", Args: cobra.NoArgs,
		Long: `Add a backup service to the Compose project of this directory, with its volumes,
and let the services that use them wait until they are filled. The change is
shown, and made if you agree (or with --yes). Comments and the layout of the
file stay.`,
	}
	c.flags(cmd.Flags())
	cmd.Flags().StringVar(&c.image, "image", "backupd:latest", "`image` of the backup service")
	cmd.Flags().BoolVarP(&c.yes, "yes", "y", false, "write the change without asking")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c.started = true
		o := host.InitOptions{
			Compose: c.project, Image: c.image, Yes: c.yes, Notice: c.notice,
			Diff: func(name string, old, new []byte) error {
				_, err := c.stdout.Write(diff.Diff(name, old, name, new))
				return err
			},
		}
		if c.stdin != nil && term.IsTerminal(int(c.stdin.Fd())) {
			o.Ask = c.ask
		}
		return host.Init(cmd.Context(), o)
	}
	return cmd
}

// ask asks a question that Enter answers with no.
func (c *command) ask(question string) (bool, error) {
	fmt.Fprintf(c.stderr, "%s [y/N] ", question)
	line, err := bufio.NewReader(c.stdin).ReadString('\n')
	if err != nil {
		return false, nil //nolint:nilerr // the end of the terminal is no yes
	}
	line = strings.ToLower(strings.TrimSpace(line))
	return line == "y" || line == "yes", nil
}
