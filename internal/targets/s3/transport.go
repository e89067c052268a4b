package s3

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
)

const (
	dialTimeout = 15 * time.Second
	tlsTimeout  = 15 * time.Second
	// idleTimeout is below what load balancers allow, so that they seldom close a
	// connection at the moment it is used again.
	idleTimeout = 45 * time.Second
	// maxErrorBody is how much of an error's body is read.
	maxErrorBody = 64 << 10
)

// newHTTPClient returns a client for S3 alone. It starts from the SDK's
// transport, which knows AWS_CA_BUNDLE and the environment's proxies.
func newHTTPClient(opts Options, cfg aws.Config) (*http.Client, error) {
	var transport *http.Transport
	if c, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok {
		transport = c.GetTransport()
	} else {
		transport = awshttp.NewBuildableClient().GetTransport()
	}
	stall := opts.stallTimeout()
	conns := opts.Concurrency
	if conns == 0 {
		conns = defaultConcurrency
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return newStallConn(conn, stall), nil
	}
	transport.TLSHandshakeTimeout = tlsTimeout
	transport.MaxIdleConns = conns
	transport.MaxIdleConnsPerHost = conns
	transport.MaxConnsPerHost = 0 // whoever asks for more at once gets more
	transport.IdleConnTimeout = idleTimeout
	transport.DisableCompression = true // a range is of the object's bytes
	// HTTP/2 would put all transfers on one connection with one window, and
	// takes 40 % more CPU (BenchmarkPut).
	transport.ForceAttemptHTTP2 = false
	transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	if err := trust(transport, opts.CAFile); err != nil {
		return nil, err
	}
	return &http.Client{
		Transport: transport,
		// A request is signed for one host: S3's redirects are errors to explain.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// trust adds the certificates of a file to those that the system trusts.
func trust(transport *http.Transport, file string) error {
	if transport.TLSClientConfig == nil {
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
	if file == "" {
		return nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return &failure{act: "read the CA file", why: oneLine(err), permanent: true, cause: err}
	}
	pool := transport.TLSClientConfig.RootCAs
	if pool == nil {
		if pool, err = x509.SystemCertPool(); err != nil {
			pool = x509.NewCertPool()
		}
	} else {
		pool = pool.Clone()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return &failure{act: "read the CA file", why: fmt.Sprintf("%s has no certificate in PEM", file), permanent: true}
	}
	transport.TLSClientConfig.RootCAs = pool
	return nil
}

// answer is what the SDK's errors do not keep of a server's answer.
type answer struct {
	status int // 0: there was none
	header http.Header
	body   []byte // of an error
}

type answerKey struct{}

// withAnswer returns a context in which a request leaves its answer.
func withAnswer(ctx context.Context) (context.Context, *answer) {
	a := &answer{header: http.Header{}}
	return context.WithValue(ctx, answerKey{}, a), a
}

// answers is an HTTP client that leaves the answer where withAnswer said.
type answers struct{ client *http.Client }

// Do implements the SDK's HTTPClient.
func (c answers) Do(req *http.Request) (*http.Response, error) {
	resp, err := c.client.Do(req)
	a, _ := req.Context().Value(answerKey{}).(*answer)
	if err != nil || a == nil {
		return resp, err
	}
	a.status, a.header = resp.StatusCode, resp.Header
	if resp.StatusCode >= http.StatusMultipleChoices {
		// A body that is cut says what it says; the status counts.
		a.body, _ = io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
		_ = resp.Body.Close()
		resp.Body = io.NopCloser(bytes.NewReader(a.body))
	}
	return resp, nil
}
