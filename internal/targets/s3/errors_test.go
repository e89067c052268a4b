package s3

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/testservers"
)

// speaking returns a target at a server of one's own, which lists nothing and
// hands all else to the handler.
func speaking(t *testing.T, o Options, handler http.HandlerFunc) *Target {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.URL.Query().Get("max-keys") == "1" {
			fmt.Fprint(w, `<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>`)
			return
		}
		w.Header().Set("ETag", `"0123"`)
		handler(w, r)
	}))
	t.Cleanup(server.Close)
	o.Bucket, o.Endpoint = "bucket", server.URL
	secretFiles(t, &o, testservers.Credentials{AccessKey: "access-key", SecretKey: "very-secret"})
	return open(t, o)
}

func saying(status int, header, code, more string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if name, value, ok := strings.Cut(header, ": "); ok {
			w.Header().Set(name, value)
		}
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>words</Message>%s</Error>`, code, more)
		}
	}
}

func TestEachErrorIsOneSentenceWithTheRightSentinel(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	o := Options{Prefix: "app", Region: "us-east-1", Now: func() time.Time { return now }}
	date := "Date: " + now.Add(-20*time.Minute).Format(http.TimeFormat)
	for _, c := range []struct {
		name      string
		handler   http.HandlerFunc
		kind      error
		permanent bool
		says      string
	}{
		{"bucket", saying(404, "", "NoSuchBucket", ""), store.ErrNoTarget, true, "no bucket bucket at 127.0.0.1:"},
		{"key id", saying(403, "", "InvalidAccessKeyId", ""), store.ErrAccess, true, "does not know this access key id"},
		{"secret", saying(403, "", "SignatureDoesNotMatch", ""), store.ErrAccess, true, "AWS_SECRET_ACCESS_KEY"},
		{"token", saying(400, "", "ExpiredToken", ""), store.ErrAccess, true, "session token"},
		{"clock", saying(403, date, "RequestTimeTooSkewed", ""), store.ErrAccess, true, "20m0s ahead"},
		{"clock, by its body", saying(403, "", "RequestTimeTooSkewed", "<ServerTime>2026-01-02T04:04:05Z</ServerTime>"), store.ErrAccess, true, "1h0m0s behind"},
		{"region by header", saying(301, "X-Amz-Bucket-Region: eu-west-3", "PermanentRedirect", ""), nil, true, "region=eu-west-3"},
		{"region by body", saying(400, "", "AuthorizationHeaderMalformed", "<Region>eu-west-3</Region>"), nil, true, "region=eu-west-3"},
		{"access", saying(403, "Date: "+now.Format(http.TimeFormat), "AccessDenied", ""), store.ErrAccess, true, "s3:GetObject on bucket/app/*"},
		{"quota", saying(403, "", "QuotaExceeded", ""), store.ErrNoSpace, true, "full"},
		{"minio full", saying(507, "", "XMinioStorageFull", ""), store.ErrNoSpace, true, "full"},
		{"archive", saying(403, "", "InvalidObjectState", ""), store.ErrAccess, true, "archive"},
		{"busy", saying(503, "Retry-After: 7", "SlowDown", ""), nil, false, "HTTP 503"},
		{"too many", saying(429, "", "TooManyRequests", ""), nil, false, "busy"},
		{"time-out", saying(400, "", "RequestTimeout", ""), nil, false, "HTTP 400"},
		{"teapot", saying(418, "", "Teapot", ""), nil, true, "Teapot: words"},
		{"proxy's page", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprint(w, "<html>&nbsp;")
		}, nil, false, "HTTP 502"},
		{"no answer", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, nil, false, "closed the connection"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := speaking(t, o, c.handler).Get(t.Context(), "dir/key", 0, -1)
			if err == nil {
				t.Fatal("no error")
			}
			t.Log(err)
			if c.kind != nil && !errors.Is(err, c.kind) || isPermanent(err) != c.permanent {
				t.Errorf("%v: want %v, permanent %v", err, c.kind, c.permanent)
			}
			if !strings.HasPrefix(err.Error(), "read dir/key: ") || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q does not say %q", err, c.says)
			}
			if strings.Contains(err.Error(), "very-secret") {
				t.Errorf("the secret is in %q", err)
			}
		})
	}
}

func TestRetryAfterIsPassedOn(t *testing.T) {
	err := speaking(t, Options{}, saying(503, "Retry-After: 7", "SlowDown", "")).Put(t.Context(), "x", nil)
	var wait interface{ RetryAfter() time.Duration }
	if !errors.As(err, &wait) || wait.RetryAfter() != 7*time.Second {
		t.Errorf("%v", err)
	}
}

func TestARealServersRefusalsAreExplained(t *testing.T) {
	eachServer(t, func(t *testing.T, server *testservers.S3) {
		good := on(t, server)
		for _, c := range []struct {
			name   string
			change func(*Options)
			kind   error
			says   string
		}{
			{"bucket", func(o *Options) { o.Bucket = "no-such-bucket" }, store.ErrNoTarget, "no bucket no-such-bucket"},
			{"key id", func(o *Options) {
				secretFiles(t, o, testservers.Credentials{AccessKey: "nobody-knows", SecretKey: server.SecretKey})
			}, store.ErrAccess, "does not know this access key id"},
			{"secret", func(o *Options) {
				secretFiles(t, o, testservers.Credentials{AccessKey: server.AccessKey, SecretKey: "wrong-secret"})
			}, store.ErrAccess, "does not belong"},
			{"region", func(o *Options) { o.Region = "eu-west-3" }, nil, "us-east-1"},
			{"tls", func(o *Options) { o.Endpoint = strings.Replace(o.Endpoint, "http:", "https:", 1) }, nil, "http://"},
		} {
			o := good
			c.change(&o)
			_, err := Open(t.Context(), o)
			if err == nil || !isPermanent(err) || c.kind != nil && !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v", c.name, err)
			}
			if err != nil && strings.Contains(err.Error(), "wrong-secret") {
				t.Errorf("%s: the secret is in %q", c.name, err)
			}
		}
	})
}

func TestABucketThatIsGoneIsNoMissingObject(t *testing.T) {
	eachServer(t, func(t *testing.T, server *testservers.S3) {
		s := open(t, on(t, server))
		s.opts.Bucket = "gone-" + s.opts.Bucket
		_, gerr := s.Get(t.Context(), "x", 0, -1)
		_, serr := s.Stat(t.Context(), "x")
		var lerr error
		for _, lerr = range s.List(t.Context(), "") {
		}
		for act, err := range map[string]error{"get": gerr, "stat": serr, "list": lerr, "put": s.Put(t.Context(), "x", nil), "delete": s.Delete(t.Context(), "x")} {
			if !errors.Is(err, store.ErrNoTarget) {
				t.Errorf("%s: %v, want ErrNoTarget", act, err)
			}
		}
	})
}

func TestServersThatCannotBeReachedAreSaid(t *testing.T) {
	free, err := testservers.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	for endpoint, says := range map[string]string{
		"http://" + free:              "refuses the connection",
		"http://nothing.invalid:9000": "nothing.invalid cannot be resolved",
	} {
		o := Options{Bucket: "bucket", Endpoint: endpoint}
		secretFiles(t, &o, testservers.Credentials{AccessKey: "access", SecretKey: "very-secret"})
		_, err := Open(t.Context(), o)
		if err == nil || isPermanent(err) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", endpoint, err)
		}
	}
}

func TestAPrivateCertificateNeedsItsCAFile(t *testing.T) {
	server := testservers.Versitygw(t)
	o := on(t, server)
	to, err := url.Parse(server.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = to.Scheme, to.Host }}
	tls := httptest.NewTLSServer(proxy) // keeps the Host header, which is signed
	defer tls.Close()
	tls.Config.ErrorLog = nil
	o.Endpoint = tls.URL
	if _, err := Open(t.Context(), o); err == nil || !isPermanent(err) || !strings.Contains(err.Error(), "--s3-ca-file") {
		t.Errorf("without it: %v", err)
	}
	o.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	if _, err := Open(t.Context(), o); err == nil || !isPermanent(err) || !strings.Contains(err.Error(), "ca.pem") {
		t.Errorf("a file that is missing: %v", err)
	}
	if err := os.WriteFile(o.CAFile, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), o); err == nil || !isPermanent(err) {
		t.Errorf("a file without certificates: %v", err)
	}
	if err := os.WriteFile(o.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tls.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, o)
	put(t, s, "x", []byte("over TLS"))
	if b, err := s.Get(t.Context(), "x", 5, -1); err != nil || string(b) != "TLS" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestAnswersThatDoNotFitTheRangeAreErrors(t *testing.T) {
	const body = "0123456789"
	send := func(status int, contentRange, length, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.Header().Set("Content-Length", "10")
				return
			}
			if contentRange != "" {
				w.Header().Set("Content-Range", contentRange)
			}
			if length != "" {
				w.Header().Set("Content-Length", length)
			}
			w.WriteHeader(status)
			io.WriteString(w, body)
			if length == "" {
				w.(http.Flusher).Flush() // no length at all
			}
		}
	}
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		off, n  int64
		short   bool
	}{
		"ignored range":              {send(200, "", "10", body), 2, 3, false},
		"ignored range from 0":       {send(200, "", "10", body), 0, 3, false},
		"other range":                {send(206, "bytes 3-5/10", "3", "345"), 2, 3, false},
		"longer range":               {send(206, "bytes 2-9/10", "8", body[2:]), 2, 3, false},
		"part of the range":          {send(206, "bytes 2-3/10", "2", "23"), 2, 3, false},
		"object ends":                {send(206, "bytes 8-9/10", "2", "89"), 8, 3, true},
		"no Content-Range":           {send(206, "", "3", "234"), 2, 3, false},
		"bad Content-Range":          {send(206, "bytes 2-x/10", "3", "234"), 2, 3, false},
		"length that contradicts":    {send(206, "bytes 2-4/10", "4", "2345"), 2, 3, false},
		"cut body":                   {send(206, "bytes 2-4/10", "3", "23"), 2, 3, false},
		"cut whole":                  {send(200, "", "10", "0123"), 0, -1, false},
		"cut without a length":       {send(200, "", "", "0123"), 0, -1, false},
		"more without a length":      {send(206, "bytes 2-4/10", "", "23456"), 2, 3, false},
		"beyond, and is not":         {send(416, "", "", ""), 2, 3, false},
		"beyond":                     {send(416, "", "", ""), 10, 1, true},
		"the rest, cut by the range": {send(206, "bytes 2-4/10", "3", "234"), 2, -1, false},
	} {
		s := speaking(t, Options{}, c.handler)
		got, err := s.Get(t.Context(), "x", c.off, c.n)
		if err == nil || errors.Is(err, store.ErrShort) != c.short || !c.short && isPermanent(err) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	// What fits, in unusual forms.
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		off, n  int64
		want    string
	}{
		"whole as 200":       {send(200, "", "10", body), 0, 10, body},
		"total not known":    {send(206, "bytes 2-4/*", "3", "234"), 2, 3, "234"},
		"no length, range":   {send(206, "bytes 2-4/10", "", "234"), 2, 3, "234"},
		"no length, whole":   {send(200, "", "", body), 0, -1, body},
		"nothing at the end": {send(416, "", "", ""), 10, -1, ""},
	} {
		s := speaking(t, Options{}, c.handler)
		if got, err := s.Get(t.Context(), "x", c.off, c.n); err != nil || string(got) != c.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// A gateway that says yes to everything has stored nothing.
func TestSuccessThatIsNotS3sIsNotBelieved(t *testing.T) {
	there := map[string]bool{"DELETE": true}
	for act, do := range map[string]func(*Target) error{
		"PUT":    func(s *Target) error { return s.put(t.Context(), "x", []byte("x"), true) },
		"DELETE": func(s *Target) error { return s.Delete(t.Context(), "x") },
		"GET":    func(s *Target) error { _, err := s.Get(t.Context(), "x", 0, -1); return err },
	} {
		s := speaking(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead && !there[act] {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			if r.Method == http.MethodHead {
				w.Header().Set("Content-Length", "1")
			} else {
				w.Header().Del("ETag")
			}
		})
		if err := do(s); err == nil || isPermanent(err) || !strings.Contains(err.Error(), "no answer of S3") {
			t.Errorf("%s: %v", act, err)
		}
	}
}

func TestAListingThatGoesInCirclesEnds(t *testing.T) {
	for name, c := range map[string]struct{ page, says string }{
		"same token":                      {`<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>a</NextContinuationToken></ListBucketResult>`, "how to go on"},
		"no token":                        {`<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>`, "how to go on"},
		"other prefix":                    {`<ListBucketResult><KeyCount>1</KeyCount><Contents><Key>app2/x</Key><Size>1</Size></Contents></ListBucketResult>`, "not below"},
		"without size":                    {`<ListBucketResult><KeyCount>1</KeyCount><Contents><Key>app/x/y</Key></Contents></ListBucketResult>`, "size"},
		"what is no XML":                  {`<html>`, "no answer of S3"},
		"nothing":                         {``, "no answer of S3"},
		"an error that came with success": {`<Error><Code>InternalError</Code></Error>`, "InternalError"},
	} {
		s := speaking(t, Options{Prefix: "app"}, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, c.page) })
		var last error
		for _, err := range s.List(t.Context(), "x/") {
			last = err
		}
		if last == nil || !strings.Contains(last.Error(), c.says) || !strings.Contains(last.Error(), "list s3://bucket/app/x/") {
			t.Errorf("%s: %v", name, last)
		}
	}
}

func TestForeignKeysAreSeenAtTheTopOnly(t *testing.T) {
	s := speaking(t, Options{Prefix: "app"}, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `<ListBucketResult><IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>`)
		for _, key := range []string{"app/", "app/a/b", "app/a/", "app/my+photo.jpg", "app/photos/my%01photo.jpg", "app/.DS_Store", "app/a/.hidden", "app/top"} {
			fmt.Fprintf(w, `<Contents><Key>%s</Key><Size>1</Size></Contents>`, key)
		}
		io.WriteString(w, `</ListBucketResult>`)
	})
	if got := strings.Join(keys(t, s, ""), " | "); got != "a/b | my photo.jpg | top" {
		t.Errorf("%s", got)
	}
}

// overwriting is a server without conditional writes.
func overwriting(refuse bool) (handler http.HandlerFunc, puts *int) {
	objects, puts := map[string]bool{}, new(int)
	return func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodHead && !objects[r.URL.Path]:
			w.WriteHeader(http.StatusNotFound)
		case r.Method == http.MethodHead:
			w.Header().Set("Content-Length", "1")
		case r.Method == http.MethodPut && refuse && r.Header.Get("If-None-Match") != "":
			saying(501, "", "NotImplemented", "")(w, r)
		case r.Method == http.MethodPut:
			objects[r.URL.Path] = true
			*puts++
		}
	}, puts
}

func TestAServerWithoutConditionalWritesIsFoundOutAndNothingIsOverwritten(t *testing.T) {
	for name, c := range map[string]struct {
		refuses bool
		puts    int
	}{"ignores": {false, 3}, "refuses": {true, 2}} {
		handler, puts := overwriting(c.refuses)
		s := speaking(t, Options{}, handler)
		for _, key := range []string{"a", "b"} {
			put(t, s, key, []byte("x"))
			if err := s.Put(context.Background(), key, []byte("y")); !errors.Is(err, store.ErrExist) {
				t.Errorf("%s: put %s again: %v", name, key, err)
			}
		}
		if s.overwrite.mode.Load() != unconditional || *puts != c.puts {
			t.Errorf("%s: mode %d after %d puts, want %d", name, s.overwrite.mode.Load(), *puts, c.puts)
		}
	}
}
