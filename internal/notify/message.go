package notify

import (
	"fmt"
	"strings"
	"text/template"
	"time"

	"github.com/disko/backupd/internal/bytesize"
	"github.com/disko/backupd/internal/runs"
)

// Level is how much a message matters.
type Level string

// Levels of messages.
const (
	Failure  Level = "failure"
	Warning  Level = "warning"
	Recovery Level = "recovery"
	Success  Level = "success"
)

// Levels lists all of them.
var levels = []Level{Failure, Warning, Recovery, Success}

// ParseLevel reads the name of a level.
func ParseLevel(s string) (Level, error) {
	for _, l := range levels {
		if string(l) == s {
			return l, nil
		}
	}
	return "", fmt.Errorf("%q is no kind of message: write failure, warning, recovery or success", s)
}

// Message is what templates get.
type Message struct {
	Level Level
	// Title is one line, Text the sentences below it.
	Title, Text string
	Stack       string
	// Run is the run that is told of; nil for an alarm.
	Run *runs.Run
}

// OfRun makes the message that a run is worth, if any: an interrupted one is
// not. last is the run of the same kind and policy before it, or nil.
func OfRun(r, last *runs.Run) (Message, bool) {
	m := Message{Stack: r.Stack, Run: r}
	what := string(r.Kind)
	if r.Policy != "" {
		what += " " + r.Policy
	}
	if r.Stack != "" {
		what = "stack " + r.Stack + ": " + what
	}
	switch {
	case r.Outcome == runs.Failed:
		m.Level, m.Title = Failure, what+" failed"
	case r.Outcome == runs.Warnings:
		m.Level, m.Title = Warning, what+" ended with warnings"
	case r.Outcome == runs.Done && last != nil && !last.Outcome.Good():
		m.Level, m.Title = Recovery, what+" is well again"
	case r.Outcome == runs.Done:
		m.Level, m.Title = Success, what+" is done"
	default:
		return m, false
	}
	m.Text = describe(r)
	return m, true
}

// describe tells a run in sentences: what failed first, then what was done.
func describe(r *runs.Run) string {
	var b strings.Builder
	if r.Error != "" {
		fmt.Fprintln(&b, r.Error)
	}
	for _, w := range r.Warnings {
		fmt.Fprintln(&b, "Warning:", w)
	}
	for _, t := range r.Targets {
		if t.Error != "" {
			fmt.Fprintf(&b, "Target %s: %s\n", t.Target, t.Error)
		}
	}
	if r.Snapshot != "" {
		fmt.Fprintf(&b, "Snapshot %.8s.\n", r.Snapshot)
	}
	for _, v := range r.Volumes {
		fmt.Fprintf(&b, "Volume %s: %d files, %s; read %s, stored %s.\n", v.Name, v.Files, bytesize.Text(v.Bytes), bytesize.Text(v.Read), bytesize.Text(v.Stored))
	}
	if r.Frozen > 0 {
		fmt.Fprintf(&b, "Services stood still for %.1f s.\n", r.Frozen)
	}
	if r.Freed > 0 {
		fmt.Fprintf(&b, "%s were freed.\n", bytesize.Text(r.Freed))
	}
	fmt.Fprintf(&b, "It took %s.", r.Took().Round(time.Second))
	return b.String()
}

// parseTemplate reads a user's template, and tries it on a message of every
// level, so that a slip shows at the start and not in the night of a failure.
func parseTemplate(text string) (*template.Template, error) {
	t, err := template.New("message").Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, fmt.Errorf("template of messages: %w", err)
	}
	for _, l := range levels {
		for _, r := range []*runs.Run{{Kind: runs.Backup, Outcome: runs.Done, Volumes: []runs.Volume{{Name: "data"}}}, nil} {
			if err := t.Execute(&strings.Builder{}, Message{Level: l, Title: "title", Text: "text", Stack: "shop", Run: r}); err != nil {
				if r == nil {
					return nil, fmt.Errorf("template of messages: %w; an alarm has no run: ask with {{if .Run}}", err)
				}
				return nil, fmt.Errorf("template of messages: %w; a message has Level, Title, Text, Stack and Run", err)
			}
		}
	}
	return t, nil
}
