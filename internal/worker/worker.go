// Package worker is how an agent and a worker in another container speak with
// each other: JSON, one message a line, over the worker's stdin and stdout.
//
// The agent's first line is the Request. The worker answers with any number of
// progress, warning and notice lines, and with one result or error, which is its
// last line. The agent may send a cancel at any time after the request.
//
// Invariants: a line that is too long, is no JSON, or holds anything unknown is an
// error and never skipped; a side that goes away is an error and never a
// result. Services are frozen by the worker itself, whose journal the agent recovers.
//
// It knows neither containers nor what a command does.
package worker

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Version is the version of the protocol. Agent and worker are the same
// program, so there is nothing to negotiate: another version is refused.
const Version = 1

// maxLine bounds a line. Results are the longest: a summary with a few hundred
// warnings of long paths.
const maxLine = 16 << 20

var (
	// ErrProtocol: what the other side sent cannot be understood.
	ErrProtocol = errors.New("a message that cannot be understood")
	// ErrGone: the other side ended before it had said all.
	ErrGone = errors.New("the other side is gone")
)

// Request is what a worker is to do.
type Request struct {
	Version int      `json:"version"`
	Args    []string `json:"args"`          // a command and its arguments
	Env     []string `json:"env,omitempty"` // KEY=VALUE; secrets travel here, and never in a container's configuration
	Files   []File   `json:"files,omitempty"`
}

// File is a file that the agent has and the worker may not: a secret, say, that
// Compose has put into the agent's container. Env is the variable that is to name it,
// in a list with commas where several files have the same one.
type File struct {
	Env     string `json:"env"`
	Content []byte `json:"content"`
}

// Progress is how far a worker has come. Counters, not steps: each message replaces the last.
type Progress struct {
	Volume     string `json:"volume,omitempty"`
	Files      int64  `json:"files"`
	Bytes      int64  `json:"bytes"`
	TotalFiles int64  `json:"total_files,omitempty"` // 0 while unknown
	TotalBytes int64  `json:"total_bytes,omitempty"`
	Stored     int64  `json:"stored,omitempty"` // bytes sent to the target
}

// Warning is something that could not be read or set.
type Warning struct {
	Volume string `json:"volume"`
	Path   string `json:"path"`
	What   string `json:"what"`
	Notice bool   `json:"notice,omitempty"` // nothing is missing
}

// Error is how a command in a worker failed.
type Error struct {
	Text string `json:"text"`
	Code int    `json:"code"` // the exit code it would have had
}

func (e *Error) Error() string { return e.Text }

// Coder is an error with an exit code of its own; without, a failure has code 1.
type Coder interface{ ExitCode() int }

// ExitCode makes an Error that came from a worker a Coder for the next.
func (e *Error) ExitCode() int { return e.Code }

// fromWorker is one line of a worker; one field is set.
type fromWorker struct {
	Progress *Progress       `json:"progress,omitempty"`
	Warning  *Warning        `json:"warning,omitempty"`
	Notice   *string         `json:"notice,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *Error          `json:"error,omitempty"`
}

// check makes sure that the message says one thing.
func (m *fromWorker) check() error {
	return exactlyOne(m.Progress != nil, m.Warning != nil, m.Notice != nil, m.Result != nil, m.Error != nil)
}

// fromAgent is a line of an agent after the request.
type fromAgent struct {
	Cancel *struct{} `json:"cancel,omitempty"`
}

func (m *fromAgent) check() error { return exactlyOne(m.Cancel != nil) }

func exactlyOne(set ...bool) error {
	n := 0
	for _, s := range set {
		if s {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("%w: it says %d things instead of one", ErrProtocol, n)
	}
	return nil
}

// lines reads messages.
type lines struct{ r *bufio.Reader }

func newLines(r io.Reader) lines { return lines{bufio.NewReaderSize(r, 64<<10)} }

// next reads a line into v. ErrGone where there is no whole line any more.
func (l lines) next(v any) error {
	line, err := l.line()
	if err != nil {
		return err
	}
	return decode(line, v)
}

func (l lines) line() ([]byte, error) {
	var line []byte
	for {
		part, err := l.r.ReadSlice('\n')
		if len(line)+len(part) > maxLine {
			return nil, fmt.Errorf("%w: a line of more than %d bytes", ErrProtocol, maxLine)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, fmt.Errorf("%w: its last line has no end", ErrGone)
		case errors.Is(err, io.EOF):
			return nil, ErrGone
		default:
			return nil, fmt.Errorf("%w: %w", ErrGone, err)
		}
	}
}

// decode reads one JSON value, and nothing beside it.
func decode(line []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %w: %.100q", ErrProtocol, err, line)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: more than one value on a line: %.100q", ErrProtocol, line)
	}
	if c, ok := v.(interface{ check() error }); ok {
		if err := c.check(); err != nil {
			return fmt.Errorf("%w: %.100q", err, line)
		}
	}
	return nil
}

// writer writes messages, each as one Write.
type writer struct {
	mu sync.Mutex
	w  io.Writer
}

func (w *writer) send(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write a message: %w", err)
	}
	if len(line) >= maxLine {
		return fmt.Errorf("write a message: %w: it has %d bytes", ErrProtocol, len(line))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := w.w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return nil
}
