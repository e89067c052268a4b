package testservers

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// hijack takes the connection from the HTTP server; nil if that is too late.
func (x *faultExchange) hijack() *net.TCPConn {
	conn, _, err := x.w.(http.Hijacker).Hijack()
	if err != nil {
		x.p.t.Errorf("fault proxy: hijack: %v", err)
		return nil
	}
	return conn.(*net.TCPConn)
}

// reset ends the connection with an RST.
func (x *faultExchange) reset() {
	if conn := x.hijack(); conn != nil {
		faultReset(conn)
	}
}

func faultReset(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}

// faultHead is an answer's status line and header, with the body framed as it
// is said to be.
func faultHead(a *faultAnswer, framing string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", a.status, http.StatusText(a.status))
	h := a.header.Clone()
	for _, name := range []string{"Content-Length", "Transfer-Encoding", "Connection"} {
		h.Del(name)
	}
	h.Set("Connection", "close")
	_ = h.Write(&b)
	if framing != "" {
		b.WriteString(framing + "\r\n")
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// whole is the answer's true framing.
func (a *faultAnswer) whole() string {
	if a.length == "" && a.status == http.StatusNoContent {
		return ""
	}
	length := a.length
	if length == "" {
		length = strconv.Itoa(len(a.body))
	}
	return "Content-Length: " + length
}

// cut is what to send so that the answer lacks something: k bytes of a longer
// body, or half of the head.
func (a *faultAnswer) cut(k int) []byte {
	head := faultHead(a, a.whole())
	if len(a.body) <= k {
		return head[:len(head)/2]
	}
	return append(head, a.body[:k]...)
}

// drip writes a byte at a time, and then nothing until the client goes away or
// the test ends.
func (x *faultExchange) drip(conn *net.TCPConn, data []byte, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := range data {
		if _, err := conn.Write(data[i : i+1]); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-x.p.ended:
			return
		}
	}
	x.standStill(conn)
}

// standStill holds a connection until its client closes it or the test ends.
func (x *faultExchange) standStill(conn *net.TCPConn) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, conn)
	}()
	select {
	case <-gone:
	case <-x.p.ended:
	}
	_ = conn.Close()
	<-gone
}
