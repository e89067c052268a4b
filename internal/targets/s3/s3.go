// Package s3 keeps objects in a bucket of Amazon S3 or of anything that speaks
// its protocol.
//
// Each operation is one request, and no request is sent twice: what to do about
// a failure is a decorator's business, which tells errors apart by the store's
// sentinels and by Permanent and RetryAfter (see errors.go). An object is one
// PutObject of known length out of memory; there are no multipart uploads, so
// nothing is ever left half sent. Nothing is overwritten: by a conditional
// write where the server has those, and by looking first where it has not
// (see put.go). A connection on which no byte moves is given up (see stall.go).
//
// It makes no buckets, and it knows nothing of what is stored.
package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"

	"github.com/disko/backupd/internal/store"
)

// Target is a bucket, or the part of one below a prefix. It implements
// store.Writer. Safe for concurrent use.
type Target struct {
	opts     Options
	base     string // the prefix and a slash, or empty
	endpoint string // host, for messages; empty for Amazon's
	client   *s3.Client
	http     *http.Client
	now      func() time.Time

	overwrite overwriteGuard

	lockable, unlocked atomic.Bool // what is known of the bucket's object lock
}

var _ store.Writer = (*Target)(nil)

// Open returns the target in a bucket that exists. It asks the server once:
// a listing of at most one object, which any key that is good for something may do.
func Open(ctx context.Context, opts Options) (*Target, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	cfg, err := configuration(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("open s3://%s: %w", opts.Bucket, err)
	}
	httpClient, err := newHTTPClient(opts, cfg)
	if err != nil {
		return nil, fmt.Errorf("open s3://%s: %w", opts.Bucket, err)
	}
	t := &Target{opts: opts, http: httpClient, now: opts.Now, overwrite: newOverwriteGuard()}
	if opts.Prefix != "" {
		t.base = opts.Prefix + "/"
	}
	if t.now == nil {
		t.now = time.Now
	}
	t.client = s3.NewFromConfig(cfg, func(o *s3.Options) { t.configure(o, httpClient) })
	if err := credentialsAtHand(ctx, t.client.Options().Credentials, cfg, t.endpoint == ""); err != nil {
		return nil, fmt.Errorf("open %s: %w", t.Location(), err)
	}
	if err := t.ask(ctx, "open"); err != nil {
		return nil, err
	}
	return t, nil
}

// Create is Open: a bucket costs money and has a region, an owner and rules,
// which are its owner's to choose.
func Create(ctx context.Context, opts Options) (*Target, error) {
	return Open(ctx, opts)
}

// Close closes the connections that wait to be used again. An agent opens its
// targets anew for each run.
func (t *Target) Close() error {
	t.http.CloseIdleConnections()
	return nil
}

// configure is what differs from the SDK's defaults.
func (t *Target) configure(o *s3.Options, httpClient *http.Client) {
	o.HTTPClient = answers{httpClient}
	o.Retryer = aws.NopRetryer{}
	o.DisableClockSkewCorrection = true // it works from the second request on; the first would fail at each run
	o.DisableLogOutputChecksumValidationSkipped = true
	if t.opts.Endpoint != "" {
		o.BaseEndpoint = aws.String(t.opts.Endpoint)
	}
	o.UsePathStyle = t.opts.PathStyle
	host := endpointHost(aws.ToString(o.BaseEndpoint)) // AWS_ENDPOINT_URL and profiles count
	if ofAmazon(host) {
		t.overwrite.mode.Store(conditional) // since 2024, in all regions
		return
	}
	t.endpoint = host
	// Most others have no name per bucket in their DNS.
	o.UsePathStyle = !t.opts.VirtualHosts
	// Many of them refuse a checksum that trails the body, or store the trailer
	// in the object. A hash of the whole in the signature they all check.
	o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
	o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	o.APIOptions = append(o.APIOptions, signPayload)
}

// signPayload has the body's SHA-256 signed over https as well as over http,
// where the SDK does it by itself: 14 ms of CPU for 16 MiB (BenchmarkPut).
func signPayload(stack *middleware.Stack) error {
	signed := &v4.ComputePayloadSHA256{}
	if _, found := stack.Finalize.Get(signed.ID()); !found {
		return nil
	}
	_, err := stack.Finalize.Swap(signed.ID(), signed)
	return err
}

func endpointHost(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return ""
	}
	return u.Host
}

// ofAmazon says that a host is Amazon's, as no host at all is.
func ofAmazon(host string) bool {
	name, _, _ := strings.Cut(strings.ToLower(host), ":")
	return name == "" || strings.HasSuffix(name, ".amazonaws.com") || strings.HasSuffix(name, ".amazonaws.com.cn")
}

// Location implements store.Reader.
func (t *Target) Location() string {
	name := "s3://" + t.opts.Bucket
	if t.opts.Prefix != "" {
		name += "/" + t.opts.Prefix
	}
	if t.endpoint != "" {
		name += " at " + t.endpoint
	}
	return name
}

// name is a key as the bucket knows it.
func (t *Target) name(key string) (*string, error) {
	if err := store.CheckKey(key); err != nil {
		return nil, err
	}
	return aws.String(t.base + key), nil
}

// ask asks whether the bucket is there and may be listed.
func (t *Target) ask(ctx context.Context, act string) error {
	op := operation{act: act, what: t.Location(), action: actionList}
	_, err := t.page(ctx, op, &s3.ListObjectsV2Input{Bucket: &t.opts.Bucket, Prefix: &t.base, MaxKeys: aws.Int32(1)})
	return err
}

// Delete implements store.Deleter. In a bucket with versions it hides the
// object, and removes no version.
func (t *Target) Delete(ctx context.Context, key string) error {
	name, err := t.name(key)
	if err != nil {
		return err
	}
	op := operation{act: "delete", what: key, action: actionDelete}
	actx, a := withAnswer(ctx)
	_, err = t.client.DeleteObject(actx, &s3.DeleteObjectInput{Bucket: &t.opts.Bucket, Key: name})
	if err == nil {
		if a.status == http.StatusNoContent {
			return nil
		}
		// Not S3's own answer: something between may have given it.
		switch _, err := t.head(ctx, op); {
		case err == nil:
			return t.strange(op)
		case isNotExist(err), errors.Is(err, store.ErrAccess):
			return nil
		default:
			return err
		}
	}
	err = t.explain(actx, op, a, err)
	if isNotExist(err) {
		return nil
	}
	return err
}
