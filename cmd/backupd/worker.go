package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/disko/backupd/internal/agent"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/worker"
)

// workerCommands are what an agent may have done by a worker.
var workerCommands = []string{"backup", "seed", "restore", "drill"}

// workerCommand is what runs in the containers that an agent makes: it reads a
// request from stdin and answers on stdout.
func (a *app) workerCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "worker", Hidden: true, Args: cobra.NoArgs, Short: "Do what an agent asks for on stdin"}
	cmd.RunE = a.runs(func(ctx context.Context, _ []string) error {
		return worker.Serve(ctx, os.Stdin, a.stdout, a.serveRequest)
	})
	return cmd
}

func (a *app) serveRequest(ctx context.Context, r worker.Request, ag *worker.Agent) (any, error) {
	if len(r.Args) == 0 || !slices.Contains(workerCommands, r.Args[0]) {
		return nil, usagef("a worker does %s", strings.Join(workerCommands, " or "))
	}
	os.Clearenv()
	for _, kv := range r.Env {
		if name, value, ok := strings.Cut(kv, "="); ok {
			if err := os.Setenv(name, value); err != nil {
				return nil, fmt.Errorf("set %s: %w", name, err)
			}
		}
	}
	if err := receive(r.Files); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	b := &app{stdout: &out, stderr: &lines{say: ag.Notice}, closers: &closers{}, quiet: true, worker: ag}
	defer b.closers.close()
	root := b.command()
	root.SetArgs(slices.Insert(slices.Clone(r.Args), 1, "--json"))
	err := root.ExecuteContext(ctx)
	var result json.RawMessage
	if json.Valid(out.Bytes()) {
		result = out.Bytes()
	}
	if r.Args[0] == "seed" { // its result says of every volume what was done, also where one failed
		answer := struct {
			Result json.RawMessage
			Err    string
		}{Result: result}
		if err != nil && result == nil {
			return nil, coded{err, exitCode(err, b.started)}
		}
		if err != nil {
			answer.Err = err.Error()
		}
		return answer, nil
	}
	if code := exitCode(err, b.started); err != nil && (code != exitWarnings || result == nil) {
		return nil, coded{err, code}
	}
	return result, nil
}

// coded is an error with its exit code.
type coded struct {
	error
	code int
}

func (c coded) ExitCode() int { return c.code }
func (c coded) Unwrap() error { return c.error }

// lines passes on text line by line.
type lines struct {
	say func(string)
	buf []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.buf = append(l.buf, p...)
	for {
		line, rest, ok := bytes.Cut(l.buf, []byte{'\n'})
		if !ok {
			return len(p), nil
		}
		l.say(strings.TrimPrefix(string(line), "backupd: "))
		l.buf = rest
	}
}

// toAgent is how a worker tells its agent what it does, instead of a terminal.
func toAgent(ag *worker.Agent, progress *snapshot.Progress) (show agent.Show, stop func()) {
	end, done := make(chan struct{}), make(chan struct{})
	tell := func() {
		ag.Progress(worker.Progress{
			Files: progress.Files.Load(), Bytes: progress.Bytes.Load(), Stored: progress.Stored.Load(),
			TotalFiles: progress.TotalFiles.Load(), TotalBytes: progress.TotalBytes.Load(),
		})
	}
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
				tell()
			}
		}
	}()
	show = agent.Show{
		Progress: progress, Notice: ag.Notice,
		Warn: func(volume string, w snapshot.Warning) {
			ag.Warning(worker.Warning{Volume: volume, Path: w.Path, What: w.What, Notice: w.Notice})
		},
	}
	return show, func() {
		close(end)
		<-done
		tell()
	}
}
