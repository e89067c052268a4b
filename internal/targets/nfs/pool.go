package nfs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// idleLimit is how long a connection is kept for the next operation. Firewalls
// forget silent ones, mostly after minutes; a new one takes one round trip.
const idleLimit = 20 * time.Second

// pool has the connections that no operation uses, and what was mounted.
type pool struct {
	o     Options
	slots chan struct{} // one for each operation under way

	mu      sync.Mutex
	mounted *export // nil: to be mounted by the next operation
	idle    []parked
	closed  bool
}

type parked struct {
	*session
	since time.Time
}

func newPool(o Options) *pool { return &pool{o: o, slots: make(chan struct{}, o.Concurrency)} }

var errClosed = errors.New("the target was closed")

// run lets f use a session. When ctx ends, so does the connection, and with it
// whatever f waits for.
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
	stop := context.AfterFunc(ctx, func() { s.cut(ctx.Err()) })
	err = f(s)
	switch {
	case !stop():
		s.cut(ctx.Err())
		if err != nil {
			err = ctx.Err()
		}
	case s.why() != nil:
		s.cut(nil)
		// The others may have been broken by the same, and not know it yet; and
		// what was mounted may be so no more.
		p.forget()
		if err != nil {
			err = fmt.Errorf("the connection to %s broke: %w", s.RemoteAddr(), s.why())
		}
	default:
		p.park(s)
	}
	return err
}

// take returns an idle session, or a new one.
func (p *pool) take(ctx context.Context) (*session, error) {
	x, s, err := p.pick()
	if err != nil || s != nil {
		return s, err
	}
	if x == nil {
		if x, err = mount(ctx, p.o); err != nil {
			return nil, err
		}
		p.mu.Lock()
		p.mounted = x
		p.mu.Unlock()
	}
	w, err := dial(ctx, p.o, x.port)
	if err != nil {
		p.forget() // the server may be back at another port
		return nil, err
	}
	return &session{client: newClient(w, nfsProgram, p.o.caller()), export: x, now: p.o.Now}, nil
}

func (p *pool) pick() (*export, *session, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, nil, errClosed
	}
	for len(p.idle) > 0 {
		last := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if !last.alive() {
			p.mounted = nil // the server may have restarted
		} else if p.o.Now().Sub(last.since) < idleLimit && last.export == p.mounted {
			return p.mounted, last.session, nil
		}
		last.cut(errDone)
	}
	return p.mounted, nil, nil
}

func (p *pool) park(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || s.export != p.mounted {
		s.cut(errDone)
		return
	}
	p.idle = append(p.idle, parked{s, p.o.Now()})
}

// forget closes the idle connections, and has the next operation mount again.
func (p *pool) forget() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.mounted = nil, nil
	p.mu.Unlock()
	for _, s := range idle {
		s.cut(errDone)
	}
}

func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.forget()
}
