package testservers

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"time"
)

// FaultNone passes the request on.
var FaultNone = Fault{}

// FaultError answers with an S3 error without asking the upstream; an empty
// code is the page of a load balancer. retryAfter is the header's value; empty:
// there is none.
func FaultError(status int, code, retryAfter string) Fault {
	return Fault{fmt.Sprint(status, " ", code), func(x *faultExchange) {
		h := http.Header{"Content-Type": {"application/xml"}}
		if retryAfter != "" {
			h.Set("Retry-After", retryAfter)
		}
		a := &faultAnswer{status: status, header: h, body: faultDocument(code)}
		if code == "" {
			h.Set("Content-Type", "text/html")
			a.body = fmt.Appendf(nil, "<html><head><title>%d %s</title></head><body><hr></body></html>\n", status, http.StatusText(status))
		}
		x.body()
		x.write(a)
	}}
}

// FaultSlowDown is a server that is overloaded.
func FaultSlowDown(retryAfter string) Fault {
	return FaultError(http.StatusServiceUnavailable, "SlowDown", retryAfter)
}

// FaultInternal is a server with a fault of its own.
func FaultInternal() Fault {
	return FaultError(http.StatusInternalServerError, "InternalError", "")
}

// FaultExpired is a server that finds the session's credentials too old.
func FaultExpired() Fault { return FaultError(http.StatusForbidden, "ExpiredToken", "") }

// faultDocument is an error as S3 writes it.
func faultDocument(code string) []byte {
	return fmt.Appendf(nil, `<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>%s</Code><Message>Said by the fault proxy.</Message><RequestId>0</RequestId><HostId>0</HostId></Error>`, code)
}

// FaultReset resets the connection; the upstream sees nothing of the request.
func FaultReset() Fault {
	return Fault{"reset", (*faultExchange).reset}
}

// FaultResetRequest passes k bytes of the request's body on, then resets both
// connections. A request of no longer body is not passed on at all.
func FaultResetRequest(k int) Fault {
	return Fault{fmt.Sprint("reset in the request at ", k), func(x *faultExchange) {
		if x.r.ContentLength > int64(k) {
			part, _ := io.ReadAll(io.LimitReader(x.r.Body, int64(k)))
			x.send(nil, io.MultiReader(bytes.NewReader(part), faultBreak{}))
		}
		x.reset()
	}}
}

// faultBreak makes the transport cut the upstream's connection.
type faultBreak struct{}

func (faultBreak) Read([]byte) (int, error) { return 0, errors.New("fault: the request ends here") }

// FaultResetAnswer resets the connection after k bytes of the answer's body,
// or within its head where it has no more than that.
func FaultResetAnswer(k int) Fault {
	return Fault{fmt.Sprint("reset in the answer at ", k), func(x *faultExchange) {
		a := x.answer()
		conn := x.hijack()
		if a != nil && conn != nil {
			_, _ = conn.Write(a.cut(k))
		}
		if conn != nil {
			faultReset(conn)
		}
	}}
}

// FaultLost lets the upstream do what is asked, and resets the connection in
// place of the answer.
func FaultLost() Fault {
	return Fault{"answer lost", func(x *faultExchange) {
		x.answer()
		x.reset()
	}}
}

// FaultSilence takes the request and never answers it; the upstream sees nothing.
func FaultSilence() Fault {
	return Fault{"silence", func(x *faultExchange) {
		if conn := x.hijack(); conn != nil {
			x.standStill(conn)
		}
	}}
}

// FaultSlow sends the answer's head and k bytes of its body, one at a time, and
// then nothing; the connection stays open. Where the body has no more than k
// bytes, the head stops half way.
func FaultSlow(k int, every time.Duration) Fault {
	return Fault{fmt.Sprint("slow, and still at ", k), func(x *faultExchange) {
		a := x.answer()
		conn := x.hijack()
		if conn == nil {
			return
		}
		if a != nil {
			data := a.cut(k)
			sent := max(len(data)-k, 0)
			_, _ = conn.Write(data[:sent])
			x.drip(conn, data[sent:], every)
		}
		_ = conn.Close()
	}}
}

// FaultCut sends k bytes of the body under the whole one's length, and ends
// the connection in order.
func FaultCut(k int) Fault {
	return Fault{fmt.Sprint("cut at ", k), func(x *faultExchange) {
		x.raw(func(a *faultAnswer) []byte { return a.cut(k) })
	}}
}

// FaultCutChunked sends k bytes of the body in a chunk, without the chunk that
// would be the end, and ends the connection in order.
func FaultCutChunked(k int) Fault {
	return Fault{fmt.Sprint("cut between chunks at ", k), func(x *faultExchange) {
		x.raw(func(a *faultAnswer) []byte {
			if len(a.body) <= k {
				return a.cut(k)
			}
			b := faultHead(a, "Transfer-Encoding: chunked")
			if k > 0 { // an empty chunk is the end
				b = fmt.Appendf(b, "%x\r\n%s\r\n", k, a.body[:k])
			}
			return b
		})
	}}
}

// FaultShort sends k bytes of a longer body as if they were all, under their
// own length.
func FaultShort(k int) Fault {
	return Fault{fmt.Sprint("short at ", k), func(x *faultExchange) {
		x.raw(func(a *faultAnswer) []byte {
			if len(a.body) <= k {
				return append(faultHead(a, a.whole()), a.body...)
			}
			return append(faultHead(a, fmt.Sprint("Content-Length: ", k)), a.body[:k]...)
		})
	}}
}

// FaultShortChunked is FaultShort in chunks, with the one that is the end.
func FaultShortChunked(k int) Fault {
	return Fault{fmt.Sprint("short in chunks at ", k), func(x *faultExchange) {
		x.raw(func(a *faultAnswer) []byte {
			if len(a.body) <= k {
				return append(faultHead(a, a.whole()), a.body...)
			}
			b := faultHead(a, "Transfer-Encoding: chunked")
			if k > 0 { // an empty chunk is the end
				b = fmt.Appendf(b, "%x\r\n%s\r\n", k, a.body[:k])
			}
			return append(b, "0\r\n\r\n"...)
		})
	}}
}

// raw sends what is made of the upstream's answer and closes the connection.
func (x *faultExchange) raw(damaged func(a *faultAnswer) []byte) {
	a := x.answer()
	conn := x.hijack()
	if conn == nil {
		return
	}
	defer conn.Close()
	if a != nil {
		_, _ = conn.Write(damaged(a))
	}
}

// FaultErrorBody answers 200 with an error's document, and does nothing.
func FaultErrorBody(code string) Fault {
	return Fault{"200 with " + code, func(x *faultExchange) {
		x.body()
		x.write(&faultAnswer{status: http.StatusOK, header: http.Header{"Content-Type": {"application/xml"}}, body: faultDocument(code)})
	}}
}

// FaultIgnoreRange is a server that does not know ranges.
func FaultIgnoreRange() Fault { return faultWithout("Range") }

// FaultIgnoreCondition is a server that does not know conditional writes.
func FaultIgnoreCondition() Fault { return faultWithout("If-None-Match") }

func faultWithout(header string) Fault {
	return Fault{"no " + header, func(x *faultExchange) {
		if x.r.Header.Get(header) == "" {
			x.forward()
			return
		}
		x.write(x.send(func(r *http.Request) { r.Header.Del(header) }, x.body()))
	}}
}

var faultRange = regexp.MustCompile(`^bytes=([0-9]+)-([0-9]*)$`)

// FaultOtherRange sends another range than was asked for, a byte earlier or
// later, and says so in Content-Range.
func FaultOtherRange() Fault {
	return Fault{"another range", func(x *faultExchange) {
		m := faultRange.FindStringSubmatch(x.r.Header.Get("Range"))
		if m == nil {
			x.forward()
			return
		}
		first, _ := strconv.Atoi(m[1])
		by := 1
		if first > 0 {
			by = -1
		}
		to := m[2]
		if last, err := strconv.Atoi(to); err == nil {
			to = strconv.Itoa(last + by)
		}
		x.write(x.send(func(r *http.Request) { r.Header.Set("Range", fmt.Sprintf("bytes=%d-%s", first+by, to)) }, x.body()))
	}}
}

// FaultFlipAnswer inverts byte k of the answer's body, if it has one.
func FaultFlipAnswer(k int) Fault {
	return Fault{fmt.Sprint("answer damaged at ", k), func(x *faultExchange) {
		a := x.answer()
		if a != nil && k < len(a.body) {
			a.body[k] ^= 0xff
		}
		x.write(a)
	}}
}

// FaultFlipRequest inverts byte k of the request's body on its way, if it has one.
func FaultFlipRequest(k int) Fault {
	return Fault{fmt.Sprint("request damaged at ", k), func(x *faultExchange) {
		body, err := io.ReadAll(x.r.Body)
		if err != nil {
			x.reset()
			return
		}
		if k < len(body) {
			body[k] ^= 0xff
		}
		x.write(x.send(nil, bytes.NewReader(body)))
	}}
}

// FaultStaleList answers a listing as it was answered the last time that it was
// passed on; a request that was not, is.
func FaultStaleList() Fault {
	return Fault{"stale listing", func(x *faultExchange) {
		x.p.mu.Lock()
		a, known := x.p.listings[x.r.URL.RequestURI()]
		x.p.mu.Unlock()
		if !known || !x.listing() {
			x.forward()
			return
		}
		x.write(&a)
	}}
}

// FaultLatency waits, then does what next says.
func FaultLatency(d time.Duration, next Fault) Fault {
	return Fault{fmt.Sprintf("%v later %v", d, next), func(x *faultExchange) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-x.p.ended:
		}
		if next.do == nil {
			x.forward()
			return
		}
		next.do(x)
	}}
}
