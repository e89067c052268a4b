package nfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/disko/backupd/internal/store"
)

const (
	// Ports below 1024 are root's: a server exporting with "secure", Linux's
	// default, takes calls from no other. Linux's own client uses these.
	lowestReserved, highestReserved = 665, 1023
	reservedTries                   = 64
	// writeSlice is what one write call is given, so that a slow link that
	// moves is not taken for one that stalls.
	writeSlice = 256 << 10
)

// wire is a connection that ends when nothing moves: each read, and each write
// of a slice, may last as long as the stall time-out.
type wire struct {
	net.Conn
	stall time.Duration

	mu    sync.Mutex
	cause error // the first: those that follow only say that it is closed
}

// dial connects from a reserved port where it may have one.
func dial(ctx context.Context, o Options, port int) (*wire, error) {
	ctx, cancel := context.WithTimeout(ctx, o.StallTimeout)
	defer cancel()
	addr := o.address(port)
	conn, err := dialReserved(ctx, addr)
	if conn == nil && err == nil {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	}
	if err != nil {
		return nil, explainDial(o, addr, err)
	}
	return &wire{Conn: conn, stall: o.StallTimeout}, nil
}

// dialReserved returns neither a connection nor an error where no reserved
// port is to be had.
func dialReserved(ctx context.Context, addr string) (net.Conn, error) {
	span := highestReserved - lowestReserved + 1
	first := rand.IntN(span)
	for i := range reservedTries {
		d := net.Dialer{LocalAddr: &net.TCPAddr{Port: lowestReserved + (first+i)%span}}
		conn, err := d.DialContext(ctx, "tcp", addr)
		switch {
		case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
			return nil, nil
		case errors.Is(err, syscall.EADDRINUSE), errors.Is(err, syscall.EADDRNOTAVAIL):
			continue
		}
		return conn, err
	}
	return nil, nil
}

// reserved says that the server sees a port that is root's, if nothing on the
// way changes it.
func (w *wire) reserved() bool {
	a, ok := w.LocalAddr().(*net.TCPAddr)
	return ok && a.Port <= highestReserved
}

func explainDial(o Options, addr string, err error) error {
	var dns *net.DNSError
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Errorf("%w: the name %q of the NFS server is not known here; check it", store.ErrNoTarget, o.Host)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("connect to %s: nothing answers within %s; check the address and firewalls", addr, o.StallTimeout)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("connect to %s: %w; check whether an NFS server runs there", addr, err)
	}
	return fmt.Errorf("connect to %s: %w", addr, err)
}

func (w *wire) Read(b []byte) (int, error) {
	if err := w.SetReadDeadline(time.Now().Add(w.stall)); err != nil {
		return 0, w.note(err)
	}
	n, err := w.Conn.Read(b)
	return n, w.note(err)
}

func (w *wire) Write(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		if err = w.SetWriteDeadline(time.Now().Add(w.stall)); err != nil {
			break
		}
		var m int
		m, err = w.Conn.Write(b[n:min(len(b), n+writeSlice)])
		n += m
	}
	return n, w.note(err)
}

// note keeps why the connection broke, and says that instead of its symptoms.
func (w *wire) note(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("nothing moved for %s: %w", w.stall, os.ErrDeadlineExceeded)
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("the server closed it")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cause == nil {
		w.cause = err
	}
	return w.cause
}

func (w *wire) why() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cause
}

// cut ends the connection, and whatever waits for it, with a reason.
func (w *wire) cut(why error) {
	_ = w.note(why)
	if tcp, ok := w.Conn.(*net.TCPConn); ok {
		// A farewell would keep one of the few reserved ports for a minute.
		_ = tcp.SetLinger(0)
	}
	_ = w.Close() // what was under way has failed with why
}

// alive asks whether the server has ended an idle connection.
func (w *wire) alive() bool {
	tcp, ok := w.Conn.(*net.TCPConn)
	if !ok || w.why() != nil {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil || tcp.SetReadDeadline(time.Time{}) != nil {
		return false
	}
	open := false
	err = raw.Read(func(fd uintptr) bool {
		open = stillOpen(fd)
		return true
	})
	return open && err == nil
}
