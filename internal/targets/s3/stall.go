package s3

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// writePiece is how much is handed to the kernel at once, so that a slow line
// is seen to move: 64 KiB a minute is not a stall.
const writePiece = 64 << 10

// errStalled: the other side went away without a word, or stands still.
var errStalled = errors.New("no byte moved")

// stallConn is a connection that fails when no byte moved on it, either way,
// for a time. A peer that vanished without closing would hold a run for ever.
//
// Reading and writing go on at the same time, and one waits while the other
// moves: each, when its own deadline comes, asks whether anything moved since.
// Bytes that the kernel took and has not yet delivered count when they leave,
// for a slow line drains a full buffer for longer than the timeout.
type stallConn struct {
	net.Conn
	timeout time.Duration

	read, written atomic.Int64 // bytes
	// released: somebody set a deadline of their own (TLS, before it says
	// goodbye), and it is not to be moved.
	released atomic.Bool
}

func newStallConn(conn net.Conn, timeout time.Duration) *stallConn {
	return &stallConn{Conn: conn, timeout: timeout}
}

// moved is a number that grows when a byte moves.
func (c *stallConn) moved() int64 {
	return c.read.Load() + c.written.Load() - unsent(c.Conn)
}

func (c *stallConn) Read(b []byte) (int, error) {
	for {
		before := c.moved()
		if !c.released.Load() {
			if err := c.Conn.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
				return 0, err
			}
		}
		n, err := c.Conn.Read(b)
		c.read.Add(int64(n))
		if !c.stalled(err) {
			return n, err
		}
		if n > 0 {
			return n, nil
		}
		if c.moved() == before {
			return 0, c.error("read")
		}
	}
}

func (c *stallConn) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		before := c.moved()
		if !c.released.Load() {
			if err := c.Conn.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
				return done, err
			}
		}
		n, err := c.Conn.Write(b[done:min(len(b), done+writePiece)])
		done += n
		c.written.Add(int64(n))
		if err == nil {
			continue
		}
		if !c.stalled(err) {
			return done, err
		}
		if c.moved() == before {
			return done, c.error("write")
		}
	}
	return done, nil
}

func (c *stallConn) stalled(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) && !c.released.Load()
}

func (c *stallConn) error(act string) error {
	return fmt.Errorf("%s: %w for %v", act, errStalled, c.timeout)
}

// SetDeadline implements net.Conn, for whoever is about to close.
func (c *stallConn) SetDeadline(t time.Time) error {
	c.released.Store(true)
	return c.Conn.SetDeadline(t)
}

// SetWriteDeadline implements net.Conn, for whoever is about to close.
func (c *stallConn) SetWriteDeadline(t time.Time) error {
	c.released.Store(true)
	return c.Conn.SetWriteDeadline(t)
}
