package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/disko/backupd/internal/store"
)

// session is one connection, and used by one operation at a time: cutting it
// is how an operation is cancelled, and hurts no other.
type session struct {
	*sftp.Client
	wire *wire
	lost chan struct{} // closed when the connection has ended
}

// dial connects, logs in and starts the subsystem. Cancelling ctx ends it.
func (o Options) dial(ctx context.Context) (*session, error) {
	keys, err := o.hostKeys()
	if err != nil {
		return nil, hostKeyError(err)
	}
	ctx, cancel := context.WithTimeout(ctx, o.StallTimeout)
	defer cancel()
	creds, err := o.credentials(ctx)
	if err != nil {
		return nil, err
	}
	defer creds.close()
	tcp, err := (&net.Dialer{}).DialContext(ctx, "tcp", o.address())
	if err != nil {
		return nil, o.explainDial(err)
	}
	w := &wire{Conn: tcp, stall: o.StallTimeout}
	stop := context.AfterFunc(ctx, func() { w.cut(context.Cause(ctx)) })
	s, err := o.handshake(w, keys, creds)
	if !stop() && err == nil {
		s.cut()
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = tcp.Close() // nothing was written yet
		if why := w.why(); why != nil && !errors.Is(err, store.ErrAccess) {
			err = why
		}
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("the server took the connection and did not answer for %s", o.StallTimeout)
		}
		return nil, fmt.Errorf("connect to %s: %w", o.address(), err)
	}
	return s, nil
}

func (o Options) handshake(w *wire, keys hostKeys, creds *credentials) (*session, error) {
	var stranger error
	conn, chans, reqs, err := ssh.NewClientConn(w, o.address(), &ssh.ClientConfig{
		User: o.User,
		Auth: creds.methods,
		HostKeyCallback: func(host string, remote net.Addr, key ssh.PublicKey) error {
			stranger = keys.check(host, remote, key)
			return stranger
		},
		HostKeyAlgorithms: keys.algorithms,
	})
	var nego *ssh.AlgorithmNegotiationError
	switch {
	case stranger != nil:
		return nil, hostKeyError(stranger)
	case errors.As(err, &nego) && keys.algorithms != nil:
		return nil, hostKeyError(fmt.Errorf("the server shows no host key of the known kind (%s), or shares no cipher; if its keys were replaced, ask its owner for the new one: %w", strings.Join(keys.algorithms, ", "), err))
	case err != nil && strings.Contains(err.Error(), "unable to authenticate"):
		return nil, creds.refused(o)
	case err != nil:
		return nil, err
	}
	client := ssh.NewClient(conn, chans, reqs)
	fs, err := sftp.NewClient(client, sftp.UseConcurrentWrites(true))
	if err != nil {
		_ = client.Close() // the error that counts is the one above
		return nil, fmt.Errorf("the server has no sftp subsystem: %w", err)
	}
	s := &session{Client: fs, wire: w, lost: make(chan struct{})}
	go func() {
		defer close(s.lost)
		_ = fs.Wait() // why it ended is in the wire
	}()
	return s, nil
}

// cut ends the connection without a farewell, and waits for its goroutine.
func (s *session) cut() {
	s.wire.cut(net.ErrClosed)
	_ = s.Close() // the connection is gone already
	<-s.lost
}

func (s *session) alive() bool {
	select {
	case <-s.lost:
		return false
	default:
		return true
	}
}

// explainDial makes sentences of why there is no connection.
func (o Options) explainDial(err error) error {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Errorf("%w: the name %q of the sftp server is not known here; check it", store.ErrNoTarget, o.Host)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("connect to %s: %w; check the port, and whether an SSH server runs there", o.address(), err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("connect to %s: nothing answers within %s; check the address and firewalls", o.address(), o.StallTimeout)
	}
	return fmt.Errorf("connect to %s: %w", o.address(), err)
}

// wire is a connection that ends when nothing moves. Each read may last as
// long as the stall time-out, and what is sent in the meantime renews it. So
// an idle connection ends by itself as well.
type wire struct {
	net.Conn
	stall time.Duration
	cause atomic.Pointer[error]
	sever sync.Once
}

func (w *wire) Read(b []byte) (int, error) {
	if err := w.SetReadDeadline(time.Now().Add(w.stall)); err != nil {
		return 0, err
	}
	n, err := w.Conn.Read(b)
	w.note(err)
	return n, err
}

func (w *wire) Write(b []byte) (int, error) {
	if err := w.SetWriteDeadline(time.Now().Add(w.stall)); err != nil {
		return 0, err
	}
	n, err := w.Conn.Write(b)
	w.note(err)
	if err == nil {
		err = w.SetReadDeadline(time.Now().Add(w.stall))
	}
	return n, err
}

// note keeps the first error: those that follow only say that it is closed.
func (w *wire) note(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("nothing was received for %s: %w", w.stall, os.ErrDeadlineExceeded)
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("the server closed it")
	}
	if err != nil {
		w.cause.CompareAndSwap(nil, &err)
	}
}

func (w *wire) why() error {
	if p := w.cause.Load(); p != nil {
		return *p
	}
	return nil
}

func (w *wire) cut(why error) {
	w.sever.Do(func() {
		w.note(why)
		_ = w.Conn.Close() // whatever was under way has failed with why
	})
}
