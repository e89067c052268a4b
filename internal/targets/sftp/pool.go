package sftp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pkg/sftp"
)

// idleLimit is how long a connection is kept for the next operation. Firewalls
// forget silent ones, mostly after minutes; a new one takes a tenth of a second.
const idleLimit = 20 * time.Second

// pool has the connections that no operation uses.
type pool struct {
	o     Options
	slots chan struct{} // one for each operation under way

	mu     sync.Mutex
	idle   []parked
	closed bool
}

type parked struct {
	*session
	since time.Time
}

func newPool(o Options) *pool { return &pool{o: o, slots: make(chan struct{}, o.Concurrency)} }

var errClosed = errors.New("the target was closed")

// run lets f use a connection. When ctx ends, so does the connection, and with
// it whatever f waits for.
func (p *pool) run(ctx context.Context, f func(*session) error) error {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-p.slots }()
	if err := ctx.Err(); err != nil {
		return err
	}
	s, err := p.take(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	stop := context.AfterFunc(ctx, func() { s.wire.cut(ctx.Err()) })
	err = f(s)
	if !stop() {
		s.cut()
		if err == nil {
			return nil // it was done before the end
		}
		return ctx.Err()
	}
	why := s.wire.why()
	if why == nil && (errors.Is(err, sftp.ErrSSHFxConnectionLost) || errors.Is(err, sftp.ErrSSHFxNoConnection)) {
		why = errors.New("the server ended the session")
	}
	if why != nil && err != nil {
		s.cut()
		// The others may have been broken by the same, and not know it yet.
		p.drop()
		return fmt.Errorf("the connection to %s broke: %w", p.o.address(), why)
	}
	p.park(s)
	return err
}

func (p *pool) take(ctx context.Context) (*session, error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, errClosed
		}
		if len(p.idle) == 0 {
			p.mu.Unlock()
			return p.o.dial(ctx)
		}
		last := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		p.mu.Unlock()
		if last.alive() && time.Since(last.since) < idleLimit {
			return last.session, nil
		}
		last.cut()
	}
}

func (p *pool) park(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || !s.alive() {
		s.cut()
		return
	}
	p.idle = append(p.idle, parked{s, time.Now()})
}

// drop closes the idle connections.
func (p *pool) drop() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, s := range idle {
		s.cut()
	}
}

func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.drop()
}
