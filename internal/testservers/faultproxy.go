package testservers

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
)

// FaultProxy stands before an HTTP server, passes requests on as they are, and
// damages what its hook says. Signatures stay valid: the upstream sees the Host
// that the client addressed.
type FaultProxy struct {
	URL string // http://127.0.0.1:PORT

	// Sign signs a request anew whose signed headers a fault has changed. Nil:
	// the upstream asks for no signature.
	Sign func(r *http.Request) error

	t         testing.TB
	upstream  *url.URL
	transport *http.Transport
	hook      func(r *http.Request, n int) Fault
	requests  atomic.Int64
	ended     <-chan struct{} // closed when the test ends
	serving   sync.WaitGroup  // also those whose connection was hijacked

	mu       sync.Mutex
	listings map[string]faultAnswer // the last one forwarded, by path and query
}

// Fault is what becomes of a request; the zero value: nothing. Faults are made
// by the functions whose names begin with Fault.
type Fault struct {
	name string
	do   func(x *faultExchange)
}

// String is the fault's name.
func (f Fault) String() string {
	if f.do == nil {
		return "none"
	}
	return f.name
}

// NewFaultProxy starts a proxy before an upstream, http://HOST:PORT, that ends
// with the test. The hook is asked before each request; n counts them from 0.
// It is called concurrently.
func NewFaultProxy(t testing.TB, upstream string, hook func(r *http.Request, n int) Fault) *FaultProxy {
	t.Helper()
	u, err := url.Parse(upstream)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	p := &FaultProxy{
		t:        t,
		upstream: u,
		// Bodies go through as they are, and no fault meets another's connection.
		transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true},
		hook:      hook,
		ended:     ended,
		listings:  map[string]faultAnswer{},
	}
	server := httptest.NewServer(p)
	p.URL = server.URL
	t.Cleanup(func() {
		close(ended) // before Close, which waits for the requests
		server.Close()
		p.serving.Wait()
	})
	return p
}

// FaultProxy starts a proxy before the server.
func (s *S3) FaultProxy(t testing.TB, hook func(r *http.Request, n int) Fault) *FaultProxy {
	t.Helper()
	p := NewFaultProxy(t, s.Endpoint, hook)
	p.Sign = s.faultSign
	return p
}

// Requests is how many requests came.
func (p *FaultProxy) Requests() int { return int(p.requests.Load()) }

// ServeHTTP implements http.Handler.
func (p *FaultProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.serving.Add(1)
	defer p.serving.Done()
	n := int(p.requests.Add(1)) - 1
	fault := Fault{}
	if p.hook != nil {
		fault = p.hook(r, n)
	}
	x := &faultExchange{p: p, w: w, r: r}
	if fault.do == nil {
		x.forward()
		return
	}
	fault.do(x)
}

// faultExchange is one request and its answer.
type faultExchange struct {
	p *FaultProxy
	w http.ResponseWriter
	r *http.Request
}

// faultAnswer is a whole answer of the upstream.
type faultAnswer struct {
	status int
	header http.Header
	body   []byte
	length string // of the body as the header has it: a HEAD's has none
}

// send asks the upstream. Nil where that failed, also because body did: the
// upstream's connection is then cut.
func (x *faultExchange) send(change func(r *http.Request), body io.Reader) *faultAnswer {
	ctx, cancel := context.WithCancel(x.r.Context())
	defer cancel()
	sent := make(chan struct{})
	defer close(sent)
	go func() {
		select {
		case <-x.p.ended:
			cancel()
		case <-sent:
		}
	}()
	out := x.r.Clone(ctx)
	out.URL.Scheme, out.URL.Host, out.RequestURI = x.p.upstream.Scheme, x.p.upstream.Host, ""
	out.Body = io.NopCloser(body)
	if out.ContentLength == 0 {
		out.Body = http.NoBody
	}
	if _, has := out.Header["User-Agent"]; !has {
		out.Header["User-Agent"] = nil // else net/http sends its own
	}
	if change != nil {
		change(out)
		if x.p.Sign != nil {
			if err := x.p.Sign(out); err != nil {
				x.p.t.Errorf("fault proxy: sign: %v", err)
			}
		}
	}
	resp, err := x.p.transport.RoundTrip(out)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	a := &faultAnswer{status: resp.StatusCode, header: resp.Header, length: resp.Header.Get("Content-Length")}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		return nil
	}
	x.remember(*a)
	return a
}

// body reads the whole body of the request before any of it is passed on: a
// connection cannot be hijacked while it is read.
func (x *faultExchange) body() io.Reader {
	b, err := io.ReadAll(x.r.Body)
	if err != nil {
		return faultBreak{}
	}
	return bytes.NewReader(b)
}

// answer gets what the upstream says to the request as it is.
func (x *faultExchange) answer() *faultAnswer { return x.send(nil, x.body()) }

// forward is what a proxy without faults does.
func (x *faultExchange) forward() { x.write(x.answer()) }

// write gives an answer to the client as it is; without one the connection is reset.
func (x *faultExchange) write(a *faultAnswer) {
	if a == nil {
		x.reset()
		return
	}
	h := x.w.Header()
	for k, v := range a.header {
		h[k] = v
	}
	h.Del("Connection") // the upstream's own affair
	if _, has := a.header["Date"]; !has {
		h["Date"] = nil
	}
	x.w.WriteHeader(a.status)
	_, _ = x.w.Write(a.body) // the client may be gone
}

// remember keeps listings for FaultStaleList.
func (x *faultExchange) remember(a faultAnswer) {
	if x.listing() && a.status == http.StatusOK {
		x.p.mu.Lock()
		defer x.p.mu.Unlock()
		x.p.listings[x.r.URL.RequestURI()] = a
	}
}

// listing says that the request is a ListObjectsV2.
func (x *faultExchange) listing() bool {
	return x.r.Method == http.MethodGet && x.r.URL.Query().Get("list-type") == "2"
}
