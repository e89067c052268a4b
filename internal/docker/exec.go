package docker

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
)

// markVariable is in the environment of everything that is run in a container.
// The engine has no request that ends an exec, and its process ids are those of
// another machine or namespace: by this, what hangs is found from inside. Its
// value, written after the output, also says that the output is whole.
const markVariable = "BACKUPD_EXEC"

// command is something to be run by sh in a container.
type command struct {
	script string
	env    []string // "NAME=value"
	user   string   // empty: the container's own
	marked bool     // when the script succeeds, the mark is written after its output
}

// process is a command that runs in a container.
type process struct {
	engine    *Engine
	container Container
	id        string // of the exec
	mark      string
	user      string
	conn      types.HijackedResponse
	stderr    tail
	frame     int  // bytes left of the present one
	fromErr   bool // it is of stderr
}

// start runs a command. The process must be ended by wait or by kill.
func (e *Engine) start(ctx context.Context, c Container, cmd command) (*process, error) {
	p := &process{engine: e, container: c, mark: rand.Text(), user: cmd.user}
	argv := []string{"sh", "-c", cmd.script}
	if cmd.marked {
		argv = []string{"sh", "-c", `sh -c "$1" && printf %s "$` + markVariable + `"`, "sh", cmd.script}
	}
	created, err := e.api.ContainerExecCreate(ctx, c.ID, container.ExecOptions{
		User: cmd.user, Cmd: argv, Env: append([]string{markVariable + "=" + p.mark}, cmd.env...), AttachStdout: true, AttachStderr: true,
	})
	if err != nil {
		return nil, explainExec(err)
	}
	p.id = created.ID
	if p.conn, err = e.api.ContainerExecAttach(ctx, p.id, container.ExecAttachOptions{}); err != nil {
		return nil, explainExec(err)
	}
	return p, nil
}

func explainExec(err error) error {
	if cerrdefs.IsConflict(err) {
		return fmt.Errorf("%w; it has to run, and not to be paused", err)
	}
	return explainAccess(err)
}

// Read reads what the command writes to stdout; what it writes to stderr is
// kept, as far as it is the last. An end that is not the end of a frame is an error.
func (p *process) Read(b []byte) (int, error) {
	for {
		for p.frame == 0 {
			var header [8]byte // stream, three zeros, length
			if _, err := io.ReadFull(p.conn.Reader, header[:]); err != nil {
				return 0, err // io.EOF between frames
			}
			if header[0] != 1 && header[0] != 2 {
				return 0, fmt.Errorf("the engine's answer has a frame of stream %d", header[0])
			}
			p.fromErr = header[0] == 2
			p.frame = int(binary.BigEndian.Uint32(header[4:]))
		}
		into := b
		if p.fromErr {
			into = make([]byte, min(p.frame, tailBytes))
		}
		n, err := p.conn.Reader.Read(into[:min(len(into), p.frame)])
		p.frame -= n
		if errors.Is(err, io.EOF) && p.frame > 0 {
			err = io.ErrUnexpectedEOF
		}
		if p.fromErr {
			p.stderr.Write(into[:n]) //nolint:errcheck // it keeps what it can
			if err == nil {
				continue
			}
			n = 0
		}
		return n, err
	}
}

// status asks how the command ended, whose output has ended.
func (p *process) status(ctx context.Context) error {
	for range 50 {
		s, err := p.engine.api.ContainerExecInspect(ctx, p.id)
		if err != nil {
			return fmt.Errorf("ask how it ended: %w", explainAccess(err))
		}
		if !s.Running {
			return p.exit(s.ExitCode)
		}
		// The engine notes the end a moment after the output's.
		if err := sleep(ctx, pollEvery); err != nil {
			return err
		}
	}
	return errors.New("the connection to the engine ended while it ran")
}

func (p *process) exit(code int) error {
	switch code {
	case 0:
		return nil
	case 126, 127:
		return fmt.Errorf("exit code %d: it, or sh, is not in the container or cannot be run, or the engine has lost it%s", code, p.stderr.said())
	}
	return fmt.Errorf("exit code %d%s", code, p.stderr.said())
}

// killGrace is what processes are given to end by themselves.
const killGrace = 5 * time.Second

// kill ends the command and all that it has started, and closes the connection.
// The error says that something may still run.
func (p *process) kill(ctx context.Context) error {
	p.conn.Close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 4*killGrace)
	defer cancel()
	if err := p.signal(ctx, "TERM", false); err != nil {
		return err
	}
	for left := killGrace; left > 0; left -= pollEvery {
		if p.ended(ctx) {
			break
		}
		if err := sleep(ctx, pollEvery); err != nil {
			return p.survives(err)
		}
	}
	// What it has started may not have listened; it may even start more meanwhile.
	return p.signal(ctx, "KILL", true)
}

// signal sends a signal to all processes that have the mark; if asked, until there are none.
func (p *process) signal(ctx context.Context, name string, again bool) error {
	// /proc of the container has its own processes alone; those of other users
	// cannot be read, and were not started here. One that has ended has no environment.
	script := fmt.Sprintf(`found=1; while [ $found = 1 ]; do found=0
for d in /proc/[0-9]*; do grep -qs %s=%s "$d/environ" && kill -%s "${d#/proc/}" && found=%d; done; done; :`,
		markVariable, p.mark, name, map[bool]int{true: 1}[again])
	killer, err := p.engine.start(ctx, p.container, command{script: script, user: p.user})
	if cerrdefs.IsNotFound(err) || cerrdefs.IsConflict(err) && p.ended(ctx) {
		return nil // the container is gone, and its processes with it
	}
	if err != nil {
		return p.survives(err)
	}
	defer killer.conn.Close()
	stop := context.AfterFunc(ctx, killer.conn.Close)
	defer stop()
	if _, err := io.Copy(io.Discard, killer); err != nil {
		return p.survives(err)
	}
	if err := killer.status(ctx); err != nil {
		return p.survives(err)
	}
	return nil
}

// ended says whether the engine knows that the command has ended.
func (p *process) ended(ctx context.Context) bool {
	s, err := p.engine.api.ContainerExecInspect(ctx, p.id)
	return err == nil && !s.Running || cerrdefs.IsNotFound(err)
}

func (p *process) survives(err error) error {
	return fmt.Errorf("it may still run in container %s, because it could not be ended: %w", p.container.Name, err)
}

// run runs a command to its end, with a time-out if that is not zero. A command
// that fails is an error with the last lines that it wrote.
func (e *Engine) run(ctx context.Context, c Container, cmd command, timeout time.Duration) error {
	p, err := e.start(ctx, c, cmd)
	if err != nil {
		return err
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it took longer than %s", timeout))
		defer cancel()
	}
	stop := context.AfterFunc(ctx, p.conn.Close)
	defer stop()
	// Both streams say what went wrong.
	_, err = io.Copy(&p.stderr, p)
	if ctx.Err() != nil {
		said := p.stderr.said()
		if kerr := p.kill(ctx); kerr != nil {
			return fmt.Errorf("%w, and %w%s", context.Cause(ctx), kerr, said)
		}
		return fmt.Errorf("%w, and was ended%s", context.Cause(ctx), said)
	}
	p.conn.Close()
	if err != nil {
		return fmt.Errorf("read its output: %w", err)
	}
	return p.status(ctx)
}

const (
	tailBytes = 4 << 10
	tailLines = 10
)

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(b []byte) (int, error) {
	t.b = append(t.b, b...)
	if len(t.b) > 2*tailBytes {
		t.b = append(t.b[:0], t.b[len(t.b)-tailBytes:]...)
	}
	return len(b), nil
}

// said is the last lines, to stand behind an error.
func (t *tail) said() string {
	b := bytes.TrimSpace(t.b[max(0, len(t.b)-tailBytes):])
	if len(b) == 0 {
		return ""
	}
	lines := strings.Split(strings.ToValidUTF8(string(b), "?"), "\n")
	return "; it said last: " + strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
}
