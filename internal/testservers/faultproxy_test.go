package testservers

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
)

const faultContent = "0123456789abcdef"

// faultUpstream is a plain server: GET answers with the content, or the range
// of it; PUT is recorded if it came whole.
type faultUpstream struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string // method, host and headers that matter
	puts []string // bodies
	cuts int      // bodies that broke off
}

func newFaultUpstream(t *testing.T) *faultUpstream {
	u := &faultUpstream{}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		u.mu.Lock()
		defer u.mu.Unlock()
		u.seen = append(u.seen, fmt.Sprint(r.Method, " ", r.Host, " ", r.RequestURI, " ", r.Header["If-None-Match"], r.Header["Range"], r.Header["User-Agent"]))
		if err != nil {
			u.cuts++
			return
		}
		if r.Method == http.MethodPut {
			u.puts = append(u.puts, string(body))
			return
		}
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(faultContent+fmt.Sprint(len(u.puts))))
	}))
	t.Cleanup(u.Close)
	return u
}

func (u *faultUpstream) did() (seen, puts []string, cuts int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.seen), slices.Clone(u.puts), u.cuts
}

// ask makes one request of its own connection.
func ask(p *FaultProxy, method, path, body string, header ...string) (status int, h http.Header, got string, err error) {
	r, err := http.NewRequest(method, p.URL+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, "", err
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}, Timeout: 20 * time.Second}
	resp, err := c.Do(r)
	if err != nil {
		return 0, nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, string(b), err
}

func always(f Fault) func(*http.Request, int) Fault {
	return func(*http.Request, int) Fault { return f }
}

func TestFaultProxyPassesRequestsOnAsTheyAre(t *testing.T) {
	u := newFaultUpstream(t)
	p := NewFaultProxy(t, u.URL, nil)
	r, err := http.NewRequest(http.MethodGet, p.URL+"/a%2Fb/c?x=%20&y", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "bucket.example.com"
	r.Header.Set("Range", "bytes=2-4")
	r.Header["User-Agent"] = nil
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || string(b) != "234" || resp.StatusCode != http.StatusPartialContent || resp.Header.Get("Content-Range") != "bytes 2-4/17" {
		t.Errorf("%q, %v, %v", b, resp, err)
	}
	seen, _, _ := u.did()
	if want := []string{"GET bucket.example.com /a%2Fb/c?x=%20&y [] [bytes=2-4] []"}; !slices.Equal(seen, want) {
		t.Errorf("%q, want %q", seen, want)
	}
	if _, h, got, err := ask(p, http.MethodHead, "/", ""); err != nil || got != "" || h.Get("Content-Length") != "17" {
		t.Errorf("HEAD: %q %v %v", got, h, err)
	}
	if p.Requests() != 2 {
		t.Errorf("%d requests", p.Requests())
	}
}

func TestFaultsThatAnswerForTheServer(t *testing.T) {
	for _, c := range []struct {
		fault  Fault
		status int
		code   string
		after  string
	}{
		{FaultInternal(), 500, "InternalError", ""},
		{FaultSlowDown("7"), 503, "SlowDown", "7"},
		{FaultExpired(), 403, "ExpiredToken", ""},
		{FaultErrorBody("InternalError"), 200, "InternalError", ""},
	} {
		u := newFaultUpstream(t)
		p := NewFaultProxy(t, u.URL, always(c.fault))
		for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete} {
			status, h, got, err := ask(p, method, "/", "body")
			if err != nil || status != c.status || !strings.Contains(got, "<Error><Code>"+c.code+"</Code>") || h.Get("Retry-After") != c.after {
				t.Errorf("%v: %d, %v, %q, %v", c.fault, status, h, got, err)
			}
		}
		if status, _, got, err := ask(p, http.MethodHead, "/", ""); err != nil || status != c.status || got != "" {
			t.Errorf("%v: HEAD: %d, %q, %v", c.fault, status, got, err)
		}
		if seen, _, _ := u.did(); len(seen) > 0 {
			t.Errorf("%v: the upstream saw %q", c.fault, seen)
		}
	}
}

func TestFaultsOfTheConnection(t *testing.T) {
	big := strings.Repeat("x", 1<<20)
	for _, c := range []struct {
		fault   Fault
		err     error // of a GET
		prefix  string
		applied bool // the PUT
	}{
		{FaultReset(), syscall.ECONNRESET, "", false},
		{FaultResetRequest(1000), syscall.ECONNRESET, "", false},
		{FaultLost(), syscall.ECONNRESET, "", true},
		{FaultResetAnswer(5), syscall.ECONNRESET, "", true},
		{FaultCut(5), io.ErrUnexpectedEOF, "01234", true},
		{FaultCutChunked(5), io.ErrUnexpectedEOF, "01234", true},
	} {
		t.Run(c.fault.String(), func(t *testing.T) {
			u := newFaultUpstream(t)
			p := NewFaultProxy(t, u.URL, always(c.fault))
			_, _, got, err := ask(p, http.MethodGet, "/", "")
			if !errors.Is(err, c.err) && !errors.Is(err, io.EOF) || got != c.prefix && c.prefix != "" {
				t.Errorf("GET: %q, %v, want %q, %v", got, err, c.prefix, c.err)
			}
			for _, method := range []string{http.MethodHead, http.MethodPut} {
				if status, _, _, err := ask(p, method, "/", big); err == nil {
					t.Errorf("%s: %d", method, status)
				}
			}
			_, puts, cuts := u.did()
			if applied := len(puts) == 1 && puts[0] == big; applied != c.applied || !applied && len(puts) > 0 {
				t.Errorf("%d PUTs reached the upstream, want %v", len(puts), c.applied)
			}
			if strings.HasPrefix(c.fault.String(), "reset in the request") && cuts == 0 {
				t.Error("the upstream saw no part of the PUT")
			}
		})
	}
}

func TestFaultsOfTheBody(t *testing.T) {
	const all = faultContent + "0"
	for _, c := range []struct {
		fault  Fault
		header []string
		status int
		want   string
		says   string // Content-Range
	}{
		{FaultNone, nil, 200, all, ""},
		{FaultShort(5), nil, 200, "01234", ""},
		{FaultShort(0), nil, 200, "", ""},
		{FaultShort(100), nil, 200, all, ""},
		{FaultShortChunked(5), nil, 200, "01234", ""},
		{FaultShortChunked(0), nil, 200, "", ""},
		{FaultShortChunked(100), nil, 200, all, ""},
		{FaultShort(2), []string{"Range", "bytes=4-9"}, 206, "45", "bytes 4-9/17"},
		{FaultIgnoreRange(), []string{"Range", "bytes=4-9"}, 200, all, ""},
		{FaultOtherRange(), []string{"Range", "bytes=4-9"}, 206, "345678", "bytes 3-8/17"},
		{FaultOtherRange(), []string{"Range", "bytes=0-3"}, 206, "1234", "bytes 1-4/17"},
		{FaultOtherRange(), []string{"Range", "bytes=4-"}, 206, all[3:], "bytes 3-16/17"},
		{FaultOtherRange(), nil, 200, all, ""},
		{FaultFlipAnswer(1), nil, 200, "0\xce" + all[2:], ""},
		{FaultFlipAnswer(1000), nil, 200, all, ""},
		{FaultLatency(20*time.Millisecond, FaultShort(5)), nil, 200, "01234", ""},
		{FaultLatency(20*time.Millisecond, FaultNone), nil, 200, all, ""},
	} {
		p := NewFaultProxy(t, newFaultUpstream(t).URL, always(c.fault))
		start := time.Now()
		status, h, got, err := ask(p, http.MethodGet, "/", "", c.header...)
		if err != nil || status != c.status || got != c.want || h.Get("Content-Range") != c.says {
			t.Errorf("%v, %v: %d, %q, %q, %v", c.fault, c.header, status, got, h.Get("Content-Range"), err)
		}
		if strings.Contains(c.fault.String(), "later") && time.Since(start) < 20*time.Millisecond {
			t.Errorf("%v took %v", c.fault, time.Since(start))
		}
	}
}

func TestFaultsOfTheRequest(t *testing.T) {
	u := newFaultUpstream(t)
	p := NewFaultProxy(t, u.URL, func(_ *http.Request, n int) Fault {
		return []Fault{FaultFlipRequest(1), FaultIgnoreCondition(), FaultNone}[n]
	})
	for range 3 {
		if status, _, _, err := ask(p, http.MethodPut, "/", "abc", "If-None-Match", "*", "User-Agent", "test"); err != nil || status != 200 {
			t.Errorf("%d, %v", status, err)
		}
	}
	seen, puts, _ := u.did()
	if want := []string{"a\x9dc", "abc", "abc"}; !slices.Equal(puts, want) {
		t.Errorf("%q, want %q", puts, want)
	}
	for i, condition := range []bool{true, false, true} {
		if strings.Contains(seen[i], "[*]") != condition {
			t.Errorf("request %d: %s", i, seen[i])
		}
	}
}

func TestFaultsThatStandStillEndWithTheirClientAndWithTheTest(t *testing.T) {
	for name, c := range map[string]struct {
		fault Fault
		want  string // the end of what comes
	}{
		"silence":          {FaultSilence(), ""},
		"slow in the body": {FaultSlow(5, time.Millisecond), "01234"},
		"slow in the head": {FaultSlow(100, time.Millisecond), ""},
	} {
		var left net.Conn
		t.Run(name, func(t *testing.T) {
			p := NewFaultProxy(t, newFaultUpstream(t).URL, always(c.fault))
			dial := func() net.Conn {
				conn, err := net.Dial("tcp", strings.TrimPrefix(p.URL, "http://"))
				if err != nil {
					t.Fatal(err)
				}
				io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
				conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
				got, err := io.ReadAll(conn)
				if e, ok := errors.AsType[net.Error](err); !ok || !e.Timeout() {
					t.Errorf("%q, %v, want silence", got, err)
				}
				if !bytes.HasSuffix(got, []byte(c.want)) || c.want == "" && bytes.Contains(got, []byte("\r\n\r\n")) {
					t.Errorf("%q, want the end %q", got, c.want)
				}
				return conn
			}
			dial().Close()
			left = dial() // the proxy's clean-up must not wait for it
		})
		left.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, err := left.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: %d bytes after the test", name, n)
		} else if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
			t.Errorf("%s: the connection outlived its test", name)
		}
		left.Close()
	}
}

func TestFaultStaleListSaysWhatWasSaidBefore(t *testing.T) {
	u := newFaultUpstream(t)
	p := NewFaultProxy(t, u.URL, func(_ *http.Request, n int) Fault {
		if n >= 2 {
			return FaultStaleList()
		}
		return FaultNone
	})
	get := func(path, want string) {
		t.Helper()
		if _, _, got, err := ask(p, http.MethodGet, path, ""); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
	get("/b?list-type=2&prefix=a", faultContent+"0")
	ask(p, http.MethodPut, "/", "x")
	get("/b?list-type=2&prefix=a", faultContent+"0")
	get("/b?list-type=2&prefix=other", faultContent+"1")
	get("/b", faultContent+"1")
}

// A real server checks the signature, which covers what these faults change.
func TestFaultProxySignsWhatItChanges(t *testing.T) {
	s := Versitygw(t)
	bucket := aws.String(s.Bucket(t))
	fault := FaultNone
	p := s.FaultProxy(t, func(*http.Request, int) Fault { return fault })
	behind := *s
	behind.Endpoint = p.URL
	c := behind.Client()
	put := func(body string) error {
		_, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: bucket, Key: aws.String("a/b c+d"), Body: strings.NewReader(body), IfNoneMatch: aws.String("*")})
		return err
	}
	get := func(r string) string {
		t.Helper()
		out, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucket, Key: aws.String("a/b c+d"), Range: aws.String(r)})
		if err != nil {
			t.Error(err)
			return ""
		}
		defer out.Body.Close()
		b, err := io.ReadAll(out.Body)
		return fmt.Sprint(string(b), " ", aws.ToString(out.ContentRange), " ", err)
	}
	if err := put(faultContent); err != nil {
		t.Fatal(err)
	}
	var api smithy.APIError
	if err := put("other"); !errors.As(err, &api) || api.ErrorCode() != "PreconditionFailed" {
		t.Errorf("%v, want PreconditionFailed", err)
	}
	fault = FaultIgnoreRange()
	if got := get("bytes=2-4"); got != faultContent+"  <nil>" {
		t.Errorf("%q", got)
	}
	fault = FaultOtherRange()
	if got := get("bytes=2-4"); got != "123 bytes 1-3/16 <nil>" {
		t.Errorf("%q", got)
	}
	fault = FaultFlipRequest(0)
	if err := put("other"); err == nil {
		t.Error("a damaged body was taken")
	}
	fault = FaultIgnoreCondition()
	if err := put("other"); err != nil {
		t.Error(err)
	}
	fault = FaultNone
	if got := get("bytes=0-"); got != "other bytes 0-4/5 <nil>" {
		t.Errorf("%q", got)
	}
}
