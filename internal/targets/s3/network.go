package s3

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"

	"github.com/aws/smithy-go"
)

// explainNetwork is for requests that got no answer, or an answer that could
// not be read. Certificates do not mend themselves; everything else may: a name
// that is unknown now may be that of a container that has not started yet.
func (t *Target) explainNetwork(f *failure, err error) {
	server := t.server()
	var (
		dns       *net.DNSError
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		timeout   net.Error
		decode    *smithy.DeserializationError
	)
	switch {
	case errors.As(err, &authority):
		f.permanent, f.why = true, fmt.Sprintf("%s shows a certificate of an authority that this machine does not trust; name the authority's certificate with --s3-ca-file", server)
	case errors.As(err, &hostname):
		f.permanent, f.why = true, fmt.Sprintf("%s shows a certificate of another name; check the endpoint, or say path-style=true: %v", server, hostname)
	case errors.As(err, &invalid):
		f.permanent, f.why = true, fmt.Sprintf("the certificate of %s is not valid: %v", server, invalid)
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		f.permanent, f.why = true, fmt.Sprintf("%s does not speak TLS; write the endpoint with http://", server)
	case errors.Is(err, errStalled):
		f.why = fmt.Sprintf("the connection to %s stood still for %v", server, t.opts.stallTimeout())
	case errors.As(err, &dns):
		f.why = fmt.Sprintf("the name %s cannot be resolved; check endpoint and region, and this machine's DNS", dns.Name)
	case errors.Is(err, syscall.ECONNREFUSED):
		f.why = fmt.Sprintf("%s refuses the connection; is the server running, and is the port right?", server)
	case errors.As(err, &decode):
		f.why = fmt.Sprintf("%s answered what is no answer of S3; is the endpoint right?", server)
	case errors.As(err, &timeout) && timeout.Timeout():
		f.why = fmt.Sprintf("%s does not answer: %s", server, oneLine(innermost(err)))
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, http.ErrServerClosed):
		f.why = fmt.Sprintf("%s closed the connection before it had answered", server)
	default:
		f.why = oneLine(innermost(err))
	}
}

// server names the other side.
func (t *Target) server() string {
	if t.endpoint == "" {
		return "Amazon S3"
	}
	return t.endpoint
}

// innermost leaves out what the SDK and net/http put around an error: their
// names for the request, which the act says already.
func innermost(err error) error {
	for {
		var op *net.OpError
		if errors.As(err, &op) {
			return op
		}
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}
