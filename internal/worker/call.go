package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// cancelGrace is how long a worker may take to end after it was told to.
const cancelGrace = 30 * time.Second

// Events are what a worker tells while it works. Each is called from the goroutine
// that called Call, one after the other; nil ones are left out.
type Events struct {
	Progress func(Progress)
	Warning  func(Warning)
	Notice   func(text string)
}

// Call has a worker do a request and waits for its end. It returns what the
// worker's handler returned, an *Error where that failed, ErrGone where the worker ended
// without a word, ErrProtocol where it sent something else.
//
// When ctx ends the worker is told to, and may take half a minute; then conn is
// closed, as it is when the protocol is broken. In the other cases conn is left open.
func Call(ctx context.Context, conn io.ReadWriteCloser, r Request, ev Events) (json.RawMessage, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	c := &call{to: &writer{w: conn}, from: newLines(conn), ev: ev, requested: make(chan struct{})}
	r.Version = Version
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() { c.watch(ctx, conn, done) })
	result, err := c.run(ctx, r)
	close(done)
	watch.Wait()
	if errors.Is(err, ErrProtocol) {
		_ = conn.Close() // the error is the protocol's
	}
	var remote *Error
	if err != nil && ctx.Err() != nil && !errors.As(err, &remote) {
		err = errors.Join(context.Cause(ctx), err)
	}
	return result, err
}

type call struct {
	to        *writer
	from      lines
	ev        Events
	requested chan struct{} // closed when the request was sent
}

// watch tells the worker to end when ctx does, and after a while does not wait
// for it any more.
func (c *call) watch(ctx context.Context, conn io.Closer, done <-chan struct{}) {
	select {
	case <-done:
		return
	case <-ctx.Done():
	}
	grace := time.AfterFunc(cancelGrace, func() { _ = conn.Close() })
	defer grace.Stop()
	select {
	case <-c.requested:
		// What fails here, fails for run as well.
		_ = c.to.send(fromAgent{Cancel: &struct{}{}})
	case <-done:
	}
	<-done
}

func (c *call) run(ctx context.Context, r Request) (json.RawMessage, error) {
	if err := c.to.send(r); err != nil {
		return nil, fmt.Errorf("send a worker its request: %w", err)
	}
	close(c.requested)
	for {
		var m fromWorker
		if err := c.from.next(&m); err != nil {
			return nil, fmt.Errorf("hear from a worker: %w", err)
		}
		switch {
		case m.Result != nil:
			return m.Result, nil
		case m.Error != nil:
			return nil, m.Error
		case m.Progress != nil && c.ev.Progress != nil:
			c.ev.Progress(*m.Progress)
		case m.Warning != nil && c.ev.Warning != nil:
			c.ev.Warning(*m.Warning)
		case m.Notice != nil && c.ev.Notice != nil:
			c.ev.Notice(*m.Notice)
		}
	}
}
