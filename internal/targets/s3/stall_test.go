package s3

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// requested returns host and path of a target's first request.
func requested(t *testing.T, o Options) string {
	t.Helper()
	o.Region = "us-east-1"
	target := &Target{opts: o, overwrite: newOverwriteGuard()}
	got := ""
	client := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		got = r.URL.Host + r.URL.Path
		return nil, io.EOF
	})}
	target.client = s3.New(s3.Options{Region: o.Region, Credentials: aws.AnonymousCredentials{}}, func(so *s3.Options) { target.configure(so, client) })
	target.ask(t.Context(), "open")
	return got
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// pair is a connection and its other side.
func pair(t *testing.T) (ours, theirs net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if ours, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if theirs, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

const shortStall = 300 * time.Millisecond

func TestAConnectionThatStandsStillFails(t *testing.T) {
	ours, _ := pair(t)
	c := newStallConn(ours, shortStall)
	for act, do := range map[string]func() error{
		"read":  func() error { _, err := c.Read(make([]byte, 1)); return err },
		"write": func() error { _, err := c.Write(make([]byte, 64<<20)); return err },
	} {
		begin := time.Now()
		if err := do(); !errors.Is(err, errStalled) {
			t.Errorf("%s: %v", act, err)
		}
		if took := time.Since(begin); took < shortStall || took > 20*shortStall {
			t.Errorf("%s: after %v", act, took)
		}
	}
}

// While a body goes out slowly, somebody waits for the answer; and the last of
// it lies in the kernel for longer than the timeout.
func TestASlowConnectionIsNoStall(t *testing.T) {
	ours, theirs := pair(t)
	// What the other side's kernel has taken has moved, and is out of sight.
	if err := theirs.(*net.TCPConn).SetReadBuffer(256 << 10); err != nil {
		t.Fatal(err)
	}
	c := newStallConn(ours, shortStall)
	const size = 6 << 20
	begin := time.Now()
	go func() {
		// A slow line: a piece now and then, for several timeouts.
		buf := make([]byte, 256<<10)
		for left := size; left > 0; {
			<-time.After(shortStall / 4)
			n, err := io.ReadFull(theirs, buf)
			if err != nil {
				return
			}
			left -= n
		}
		theirs.Write([]byte("answer"))
	}()
	type result struct {
		answer []byte
		err    error
	}
	answers := make(chan result)
	go func() {
		b := make([]byte, 6)
		_, err := io.ReadFull(c, b)
		answers <- result{b, err}
	}()
	if _, err := c.Write(make([]byte, size)); err != nil {
		t.Fatalf("write: %v", err)
	}
	if r := <-answers; r.err != nil || string(r.answer) != "answer" {
		t.Errorf("read: %q, %v", r.answer, r.err)
	}
	if took := time.Since(begin); took < 3*shortStall {
		t.Errorf("all was done in %v: too fast to show anything", took)
	}
}

func TestAGoodbyeIsNotHeldUp(t *testing.T) {
	ours, _ := pair(t)
	c := newStallConn(ours, time.Hour)
	c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	begin := time.Now()
	if _, err := c.Write(make([]byte, 64<<20)); err == nil {
		t.Error("64 MB went to nobody")
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("after %v", took)
	}
}

// BenchmarkPut is the price of a pack on its way to a server that reads and
// forgets it.
func BenchmarkPut(b *testing.B) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	server := func(tls, h2 bool) *httptest.Server {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
		s.EnableHTTP2 = h2
		if tls {
			s.StartTLS()
		} else {
			s.Start()
		}
		b.Cleanup(s.Close)
		return s
	}
	for _, c := range []struct {
		name            string
		tls, h2, signed bool
	}{
		{"http", false, false, true},
		{"https", true, false, true},
		{"https, body not signed", true, false, false},
		{"https, HTTP2", true, true, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := server(c.tls, c.h2)
			o := Options{Bucket: "bucket", Endpoint: s.URL, Region: "us-east-1"}
			client, err := newHTTPClient(o, aws.Config{})
			if err != nil {
				b.Fatal(err)
			}
			transport := client.Transport.(*http.Transport)
			if c.tls {
				transport.TLSClientConfig.RootCAs = s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
			}
			if c.h2 {
				transport.TLSNextProto, transport.TLSClientConfig.NextProtos, transport.ForceAttemptHTTP2 = nil, nil, true
			}
			target := &Target{opts: o, now: time.Now, overwrite: newOverwriteGuard()}
			target.client = s3.New(s3.Options{Region: o.Region, Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: "id", SecretAccessKey: "secret"}, nil
			})}, func(so *s3.Options) {
				target.configure(so, client)
				if !c.signed {
					so.APIOptions = nil
				}
			})
			b.SetBytes(int64(len(data)))
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := target.put(context.Background(), "key", data, true); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
