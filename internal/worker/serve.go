package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Handler does what a request asks for and returns what becomes the result. It
// returns when ctx ends.
type Handler func(ctx context.Context, r Request, agent *Agent) (result any, err error)

// Agent is the other side, as a worker sees it. Its methods may be called from several goroutines.
type Agent struct {
	out  *writer
	gone context.CancelCauseFunc
}

// Serve reads a request, has it done, and writes how it ended. The handler's
// ctx ends when the agent cancels, when it goes away (in is at its end, or out
// breaks), and with ctx. The error is the protocol's: a handler that failed has told the agent so.
//
// in should be closed after Serve returned: until then a goroutine may be reading it.
func Serve(ctx context.Context, in io.Reader, out io.Writer, handle Handler) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	a := &Agent{out: &writer{w: out}, gone: end}
	from := newLines(in)
	var r Request
	if err := from.next(&r); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	if r.Version != Version {
		err := fmt.Errorf("%w: the agent speaks version %d and this worker version %d; restart the agent, so that both are of one image", ErrProtocol, r.Version, Version)
		return errors.Join(err, a.out.send(fromWorker{Error: &Error{Text: err.Error(), Code: 1}}))
	}
	go a.listen(from, end) // ends with the agent's side of the pipe
	result, err := handle(ctx, r, a)
	gone := context.Cause(ctx) // before the end is told, after which the agent may leave
	var last fromWorker
	if err == nil {
		last.Result, err = json.Marshal(result)
	}
	if err != nil {
		last = fromWorker{Error: describe(ctx, err)}
	}
	if serr := a.out.send(last); serr != nil {
		return fmt.Errorf("tell the agent how it ended: %w", serr)
	}
	if errors.Is(gone, ErrGone) || errors.Is(gone, ErrProtocol) {
		return gone
	}
	return nil
}

// describe makes an error one that travels.
func describe(ctx context.Context, err error) *Error {
	e := &Error{Text: err.Error(), Code: 1}
	var c Coder
	if errors.As(err, &c) {
		e.Code = c.ExitCode()
	} else if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		e.Code = 130
	}
	return e
}

// errCancelled is why a handler's ctx ends when the agent says so.
var errCancelled = errors.New("cancelled by the agent")

// listen reads what the agent sends until it goes away.
func (a *Agent) listen(from lines, end context.CancelCauseFunc) {
	for {
		var m fromAgent
		err := from.next(&m)
		if err == nil {
			end(errCancelled)
			continue // until it goes away
		}
		end(fmt.Errorf("hear from the agent: %w", err))
		return
	}
}

// Progress tells how far the work has come.
func (a *Agent) Progress(p Progress) { a.tell(fromWorker{Progress: &p}) }

// Warning tells of something that could not be read or set.
func (a *Agent) Warning(w Warning) { a.tell(fromWorker{Warning: &w}) }

// Notice tells something that is no warning.
func (a *Agent) Notice(text string) { a.tell(fromWorker{Notice: &text}) }

// tell sends a message. An agent that does not hear ends the work.
func (a *Agent) tell(m fromWorker) {
	if err := a.out.send(m); err != nil {
		a.gone(err)
	}
}
