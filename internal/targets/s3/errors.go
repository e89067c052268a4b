package s3

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aws/smithy-go"

	"github.com/disko/backupd/internal/store"
)

// failure is an error in one sentence. An error that wraps a store sentinel
// stays as it is however often the operation is repeated; so does one whose
// Permanent says so (no sentinel fits a certificate that nobody trusts). All
// other errors may pass by themselves, and RetryAfter is how long the server
// asked to be left alone.
type failure struct {
	act       string // and its object: "write stacks/shop/..."; may be empty
	kind      error  // a store sentinel, or nil
	why       string // what happened and what to do; may be empty
	cause     error  // for errors.Is and errors.As; not printed
	permanent bool
	after     time.Duration
}

func (f *failure) Error() string {
	var parts []string
	if f.act != "" {
		parts = append(parts, f.act)
	}
	if f.kind != nil {
		parts = append(parts, f.kind.Error())
	}
	if f.why != "" {
		parts = append(parts, f.why)
	}
	return strings.Join(parts, ": ")
}

func (f *failure) Unwrap() []error {
	var all []error
	for _, err := range []error{f.kind, f.cause} {
		if err != nil {
			all = append(all, err)
		}
	}
	return all
}

// Permanent says that repeating the operation is of no use.
func (f *failure) Permanent() bool { return f.permanent || f.kind != nil }

// RetryAfter is how long the server asked to wait; 0 where it did not.
func (f *failure) RetryAfter() time.Duration { return f.after }

// Permissions, as policies call them.
const (
	actionPut    = "s3:PutObject"
	actionGet    = "s3:GetObject"
	actionList   = "s3:ListBucket"
	actionDelete = "s3:DeleteObject"
	actionRetain = "s3:PutObjectRetention"
)

// operation is what was being done.
type operation struct {
	act, what string // "write", a key
	action    string // the permission it needs
}

// serverError is the body of an error, in the parts that the SDK drops.
type serverError struct {
	Code       string `xml:"Code"`
	Message    string `xml:"Message"`
	Region     string `xml:"Region"`
	Endpoint   string `xml:"Endpoint"`
	ServerTime string `xml:"ServerTime"`
}

// explain turns an SDK's error into one sentence with the right sentinel.
func (t *Target) explain(ctx context.Context, op operation, a *answer, err error) error {
	act := op.act + " " + op.what
	if cerr := ctx.Err(); cerr != nil {
		return fmt.Errorf("%s: %w", act, cerr)
	}
	f := &failure{act: act, cause: err}
	if a.status == 0 || a.status < http.StatusMultipleChoices {
		t.explainNetwork(f, err)
		return f
	}
	said := serverError{}
	if xml.Unmarshal(a.body, &said) != nil {
		said = serverError{} // a proxy's page, or a body that was cut
	}
	var api smithy.APIError
	if said.Code == "" && errors.As(err, &api) {
		said.Code, said.Message = api.ErrorCode(), api.ErrorMessage()
	}
	f.after = t.retryAfter(a.header)
	t.explainAnswer(f, op, a, said)
	return f
}

// explainAnswer goes by the code, and by the status where servers differ in their codes.
func (t *Target) explainAnswer(f *failure, op operation, a *answer, said serverError) {
	region := a.header.Get("X-Amz-Bucket-Region")
	if region == "" {
		region = said.Region
	}
	detail := described(a.status, said)
	switch said.Code {
	case "NoSuchBucket":
		f.kind, f.why = store.ErrNoTarget, fmt.Sprintf("there is no bucket %s%s; check the name, or make it with your provider's console or \"aws s3 mb s3://%s\"", t.opts.Bucket, t.where(), t.opts.Bucket)
	case "NoSuchKey":
		f.kind = store.ErrNotExist
	case "InvalidAccessKeyId", "InvalidClientTokenId":
		f.kind, f.why = store.ErrAccess, "the server does not know this access key id; check AWS_ACCESS_KEY_ID, the profile or the file it comes from"
	case "SignatureDoesNotMatch":
		f.kind, f.why = store.ErrAccess, "the secret access key does not belong to the access key id; check AWS_SECRET_ACCESS_KEY, the profile or the file it comes from"
	case "ExpiredToken", "TokenRefreshRequired", "InvalidToken":
		f.kind, f.why = store.ErrAccess, "the session token is invalid or has expired; get new credentials"+detail
	case "RequestTimeTooSkewed":
		f.kind, f.why = store.ErrAccess, t.skewed(a, said)
	case "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "TemporaryRedirect", "InvalidRegion":
		if region != "" && region != t.client.Options().Region {
			f.permanent, f.why = true, fmt.Sprintf("bucket %s is in region %s, and %s was asked; say region=%s", t.opts.Bucket, region, t.client.Options().Region, region)
			return
		}
		f.permanent, f.why = said.Code != "TemporaryRedirect", "the bucket is elsewhere; check region and endpoint"+detail
	case "InvalidObjectState":
		f.kind, f.why = store.ErrAccess, "the object is in an archive; restore it there first, and use a storage class that can be read at once"
	case "ObjectLockConfigurationNotFoundError":
		f.permanent, f.why = true, noLock
	case "PreconditionFailed":
		f.kind = store.ErrExist
	case "NotImplemented":
		f.permanent, f.why = true, "the server does not implement this request"+detail
	case "InvalidBucketName":
		f.permanent, f.why = true, fmt.Sprintf("the server takes %q for no name of a bucket", t.opts.Bucket)
	case "RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "InvalidDigest", "ConditionalRequestConflict", "OperationAborted":
		f.why = "the server could not take the request" + detail // damaged or cut on its way, or met by another one
	default:
		t.explainStatus(f, op, a, said, region)
	}
}

func (t *Target) explainStatus(f *failure, op operation, a *answer, said serverError, region string) {
	detail := described(a.status, said)
	switch {
	case full(a.status, said):
		f.kind, f.why = store.ErrNoSpace, "the server's disk or quota is full; free space, or have the quota raised"+detail
	case strings.Contains(said.Message, "ObjectLockConfiguration"): // Amazon and its likes: InvalidRequest
		f.permanent, f.why = true, noLock
	case a.status == http.StatusNotFound:
		f.kind = store.ErrNotExist // a HEAD has no body to say more
	case a.status == http.StatusPreconditionFailed:
		f.kind = store.ErrExist
	case a.status == http.StatusUnauthorized, a.status == http.StatusForbidden, a.status == http.StatusProxyAuthRequired:
		f.kind, f.why = store.ErrAccess, t.denied(op)+detail
		if d := t.skew(a, said); d.Abs() > maxSkew {
			f.why = t.skewed(a, said)
		}
	case region != "" && region != t.client.Options().Region && a.status < http.StatusInternalServerError:
		f.permanent, f.why = true, fmt.Sprintf("bucket %s is in region %s, and %s was asked; say region=%s", t.opts.Bucket, region, t.client.Options().Region, region)
	case a.status == http.StatusRequestTimeout, a.status == http.StatusConflict, a.status == http.StatusTooManyRequests, a.status == http.StatusTooEarly:
		f.why = "the server is busy" + detail
	case a.status >= http.StatusInternalServerError && a.status != http.StatusNotImplemented:
		f.why = "the server has a fault of its own" + detail
	default:
		f.permanent, f.why = true, "the server refuses the request"+detail
	}
}

const noLock = "the bucket has no object lock; it is switched on when a bucket is made"

// denied names the permission as a policy would.
func (t *Target) denied(op operation) string {
	on := t.opts.Bucket + "/" + t.base + "*"
	if op.action == actionList {
		on = t.opts.Bucket
		if t.base != "" {
			on += " (prefix " + t.base + ")"
		}
	}
	return fmt.Sprintf("this access key may not do %s on %s; allow it in the key's or the bucket's policy", op.action, on)
}

// full knows the codes of Amazon's relatives for a full disk and for a quota.
func full(status int, said serverError) bool {
	switch said.Code {
	case "QuotaExceeded", "QuotaExceededException", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "StorageQuotaExceeded", "InsufficientStorage", "NotEnoughSpace", "InsufficientCapacity", "TotalQuotaExceeded":
		return true
	}
	// Backblaze says AccessDenied with a sentence about the cap.
	return status == http.StatusInsufficientStorage || strings.Contains(strings.ToLower(said.Message), "storage cap exceeded")
}

// maxSkew is what S3 tolerates between its clock and a request's.
const maxSkew = 15 * time.Minute

// skew is how far this machine's clock is ahead; 0 where the answer has no time.
func (t *Target) skew(a *answer, said serverError) time.Duration {
	server, err := time.Parse(time.RFC3339, said.ServerTime)
	if err != nil {
		if server, err = http.ParseTime(a.header.Get("Date")); err != nil {
			return 0
		}
	}
	return t.now().Sub(server)
}

func (t *Target) skewed(a *answer, said serverError) string {
	const act = "set the clock of the one that is wrong"
	d := t.skew(a, said)
	switch {
	case d > 0:
		return fmt.Sprintf("this machine's clock is %v ahead of the server's; %s", d.Round(time.Second), act)
	case d < 0:
		return fmt.Sprintf("this machine's clock is %v behind the server's; %s", -d.Round(time.Second), act)
	}
	return "this machine's clock and the server's differ too much; " + act
}

// retryAfter reads both forms of the header.
func (t *Target) retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if s, err := strconv.Atoi(v); err == nil {
		return min(max(time.Duration(s)*time.Second, 0), time.Hour)
	}
	if at, err := http.ParseTime(v); err == nil {
		return min(max(at.Sub(t.now()), 0), time.Hour)
	}
	return 0
}

// where names the server for a sentence.
func (t *Target) where() string {
	if t.endpoint == "" {
		return ""
	}
	return " at " + t.endpoint
}

// described is the server's own words, in brackets.
func described(status int, said serverError) string {
	words := strings.TrimSpace(said.Code)
	if said.Message != "" {
		words = strings.TrimPrefix(words+": "+said.Message, ": ")
	}
	if words = line(words, 300); words != "" {
		words = ", " + words
	}
	return fmt.Sprintf(" (HTTP %d%s)", status, words)
}

// oneLine is an error for a sentence.
func oneLine(err error) string { return line(err.Error(), 500) }

func line(s string, most int) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}

func isNotExist(err error) bool { return errors.Is(err, store.ErrNotExist) }
