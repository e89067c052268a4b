package main

import (
	"context"
	"io"
	"net"
	"sync"
	"time"
)

// delayed forwards connections from a port of its own to another, each byte
// later by half of the round trip: a line with latency, and of a rate where one is set.
type delayed struct {
	listener net.Listener
	to       string
	half     time.Duration
	rate     int // bytes a second that each connection may carry each way; 0: no limit
	wg       sync.WaitGroup
}

func delay(to string, roundTrip time.Duration, rate int) (*delayed, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &delayed{listener: l, to: to, half: roundTrip / 2, rate: rate}
	d.wg.Go(d.serve)
	return d, nil
}

func (d *delayed) addr() string { return d.listener.Addr().String() }

func (d *delayed) close() {
	_ = d.listener.Close()
	d.wg.Wait()
}

func (d *delayed) serve() {
	for {
		c, err := d.listener.Accept()
		if err != nil {
			return
		}
		d.wg.Go(func() { d.forward(c) })
	}
}

func (d *delayed) forward(c net.Conn) {
	defer c.Close()
	time.Sleep(d.half) // the server hears of the connection later, too
	up, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", d.to)
	if err != nil {
		return
	}
	defer up.Close()
	var both sync.WaitGroup
	both.Go(func() { d.pipe(up, c) })
	both.Go(func() { d.pipe(c, up) })
	both.Wait()
}

type parcel struct {
	data []byte
	due  time.Time
}

// pipe copies from one end to the other through a line that holds 16 MiB.
func (d *delayed) pipe(to, from net.Conn) {
	line := make(chan parcel, 256)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(line)
		for {
			buf := make([]byte, 64<<10)
			n, err := from.Read(buf)
			if n > 0 {
				line <- parcel{buf[:n], time.Now().Add(d.half)}
			}
			if err != nil {
				return
			}
		}
	})
	broken := false
	for p := range line {
		if broken {
			continue
		}
		time.Sleep(time.Until(p.due))
		if d.rate > 0 {
			time.Sleep(time.Duration(len(p.data)) * time.Second / time.Duration(d.rate))
		}
		if _, err := to.Write(p.data); err != nil {
			broken = true
			_ = from.Close()
		}
	}
	reader.Wait()
	if t, ok := to.(*net.TCPConn); ok {
		_ = t.CloseWrite()
	} else if c, ok := to.(io.Closer); ok {
		_ = c.Close()
	}
}
