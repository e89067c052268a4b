//go:build !image

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/disko/backupd/internal/compose"
	"github.com/disko/backupd/internal/docker"
	"github.com/disko/backupd/internal/host"
	"github.com/disko/backupd/internal/snapshot"
)

// projectFlags say which Compose project is meant, where backupd runs outside of it.
type projectFlags struct {
	o       compose.Options
	volumes []string // of --volume
}

func (p *projectFlags) flags(f *pflag.FlagSet) {
	f.StringArrayVarP(&p.o.Files, "compose-file", "f", nil, "on the host: Compose `FILE`; may be repeated (default: COMPOSE_FILE, or compose.yaml here or above)")
	f.StringVarP(&p.o.Name, "project-name", "p", "", "on the host: name of the Compose project")
	f.StringArrayVar(&p.o.EnvFiles, "env-file", nil, "on the host: `FILE` of variables for the Compose file; may be repeated (default: .env)")
	f.StringVar(&p.o.Service, "service", "", "on the host: the backup service (default: found)")
}

// hostFlags are the flags above as they are written, to be taken out of what the
// container gets.
var hostFlags = []string{"--compose-file", "-f", "--project-name", "-p", "--env-file", "--service"}

// given says whether the user asked for a project.
func (p *projectFlags) given(cmd *cobra.Command) bool {
	f := cmd.Flags()
	return f.Changed("compose-file") || f.Changed("project-name") || f.Changed("service")
}

// throughCompose says whether a command must run in the project's backup service,
// since this process sees none of the volumes: it runs on a host, no directory is
// named and no volume mounted, and there is a Compose file.
func (p *projectFlags) throughCompose(ctx context.Context, cmd *cobra.Command, volumes []string) (bool, error) {
	p.volumes = volumes
	paths := slices.ContainsFunc(volumes, func(v string) bool { return strings.Contains(v, "=") })
	if p.given(cmd) {
		if paths {
			return false, fmt.Errorf("%w: --volume NAME=PATH names a directory of this machine, --compose-file, --project-name and --service a project: give one or the other", snapshot.ErrUsage)
		}
		return true, nil
	}
	if paths || docker.Contained() {
		return false, nil
	}
	if _, err := os.Stat(volumesDir); err == nil {
		return false, nil
	}
	_, err := compose.Load(ctx, p.o)
	if errors.Is(err, compose.ErrNoFile) {
		return false, nil
	}
	return err == nil, err
}

// runThroughCompose runs this very command in the backup service.
func (a *app) runThroughCompose(ctx context.Context, p *projectFlags) error {
	args := host.Strip(a.argv, hostFlags...)
	if a.config.given["volume"] == nil { // this side's environment stays here, and all would be restored
		end := len(args)
		if i := slices.Index(args, "--"); i >= 0 {
			end = i
		}
		for _, v := range p.volumes {
			args = slices.Insert(args, end, "--volume="+v)
		}
	}
	code, err := host.Run(ctx, host.Options{
		Compose: p.o, Args: args, Version: version,
		Stdin: os.Stdin, Stdout: a.stdout, Stderr: a.stderr,
		Notice: func(text string) { a.notice("%s", text) },
	})
	if errors.Is(err, compose.ErrNoBackup) || errors.Is(err, compose.ErrNoFile) {
		return fmt.Errorf("%w: %w", snapshot.ErrUsage, err)
	}
	if err != nil {
		return err
	}
	if code != exitDone {
		return &statusError{code: code} // it has said why
	}
	return nil
}

// initProject adds a backup service to the Compose file here.
func (a *app) initProject(ctx context.Context, p *projectFlags, image string, yes bool) error {
	a.interrupted = "interrupted; nothing was changed"
	o := host.InitOptions{
		Compose: p.o, Image: image, Yes: yes,
		Diff: func(name string, old, new []byte) error {
			_, err := a.stdout.Write(diff.Diff(name, old, name, new))
			return err
		},
		Notice: func(text string) { a.notice("%s", text) },
	}
	if term.IsTerminal(int(os.Stdin.Fd())) {
		o.Ask = a.ask
	}
	err := host.Init(ctx, o)
	switch {
	case errors.Is(err, compose.ErrNoFile):
		return fmt.Errorf("%w: %w; to create an encrypted repository instead, say --target TARGET", snapshot.ErrUsage, err)
	case errors.Is(err, host.ErrDeclined):
		return &statusError{exitFailed, err.Error()}
	}
	return err
}

// ask asks a question that Enter answers with no.
func (a *app) ask(question string) (bool, error) {
	fmt.Fprintf(a.stderr, "%s [y/N] ", question)
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		return false, nil //nolint:nilerr // the end of the terminal is no yes
	}
	line = strings.ToLower(strings.TrimSpace(line))
	return line == "y" || line == "yes", nil
}
