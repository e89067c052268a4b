package s3

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"
)

const (
	defaultConcurrency  = 8
	defaultStallTimeout = 60 * time.Second
	// maxPrefix leaves a key of the store's 512 bytes room in S3's 1024.
	maxPrefix = 500
)

// Modes of object lock.
const (
	Governance = "GOVERNANCE" // those with a permission of its own may delete all the same
	Compliance = "COMPLIANCE" // nobody may
)

// Options says which bucket, and how to reach it. The zero value of all but
// Bucket is the default.
type Options struct {
	Bucket string
	Prefix string // without slashes at its ends; empty: the whole bucket

	// Endpoint is an URL. Empty: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the
	// profile's, else Amazon's.
	Endpoint string
	// Region is empty for AWS_REGION or the profile's, else us-east-1.
	Region  string
	Profile string // of the AWS configuration files
	// PathStyle and VirtualHosts say where a bucket's name stands: in the
	// path, or in front of the host name. Neither: in front of it at
	// Amazon's, unless it has a dot and the endpoint is https, and in the path elsewhere.
	PathStyle, VirtualHosts bool

	StorageClass string // empty: the bucket's default
	SSE          string // "", AES256, aws:kms
	SSEKeyID     string // with aws:kms; empty: the account's own key
	CAFile       string // PEM; trusted besides the system's

	// LockMode is empty, Governance or Compliance: objects cannot be deleted or
	// replaced for LockDays days after they were put. The bucket needs object lock.
	LockMode string
	LockDays int

	// Files of secrets. If one is named, no other credentials are used: a file
	// that is missing, unreadable or empty is an error.
	AccessKeyIDFile, SecretAccessKeyFile, SessionTokenFile string

	Concurrency  int           // connections kept open; default 8
	StallTimeout time.Duration // how long a connection may stand still; default 60 s
	Now          func() time.Time
}

var (
	bucketName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]$`)
	address    = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+$`)
	prefixPart = regexp.MustCompile(`^[A-Za-z0-9!_.*'()+=@,~-]+$`)
)

// check reports what can be seen to be wrong without asking anybody.
func (o Options) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !bucketName.MatchString(o.Bucket) || strings.Contains(o.Bucket, "..") || address.MatchString(o.Bucket) {
		bad("bucket %q: a bucket's name has 3 to 63 letters, digits, dots, hyphens or underscores", o.Bucket)
	}
	if err := checkPrefix(o.Prefix); err != nil {
		errs = append(errs, err)
	}
	if o.Endpoint != "" {
		if err := checkEndpoint(o.Endpoint); err != nil {
			errs = append(errs, err)
		}
	}
	if o.PathStyle && o.VirtualHosts {
		bad("the bucket's name stands in the path or in front of the host, not in both")
	}
	switch o.SSE {
	case "", "AES256", "aws:kms":
	default:
		bad("server-side encryption %q: must be AES256 or aws:kms", o.SSE)
	}
	if o.SSEKeyID != "" && o.SSE != "aws:kms" {
		bad("a key for server-side encryption is used with aws:kms only")
	}
	switch o.LockMode {
	case "":
		if o.LockDays != 0 {
			bad("%d days of object lock, and no mode: say %s or %s", o.LockDays, Governance, Compliance)
		}
	case Governance, Compliance:
		if o.LockDays < 1 || o.LockDays > 36500 {
			bad("object lock for %d days: must be 1 to 36500", o.LockDays)
		}
	default:
		bad("object lock %q: must be %s or %s", o.LockMode, Governance, Compliance)
	}
	if (o.AccessKeyIDFile == "") != (o.SecretAccessKeyFile == "") || o.SessionTokenFile != "" && o.AccessKeyIDFile == "" {
		bad("files of credentials: name one for the access key id and one for the secret access key, and none alone")
	}
	if o.Profile != "" && o.AccessKeyIDFile != "" {
		bad("credentials come from files or from the profile %q, not from both", o.Profile)
	}
	if o.Concurrency < 0 || o.StallTimeout < 0 {
		bad("concurrency %d, stall timeout %v: must not be negative", o.Concurrency, o.StallTimeout)
	}
	return errors.Join(errs...)
}

func (o Options) stallTimeout() time.Duration {
	if o.StallTimeout == 0 {
		return defaultStallTimeout
	}
	return o.StallTimeout
}

func checkPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	if len(prefix) > maxPrefix {
		return fmt.Errorf("prefix of %d bytes: must have %d at most", len(prefix), maxPrefix)
	}
	for part := range strings.SplitSeq(prefix, "/") {
		if part == "." || part == ".." || !prefixPart.MatchString(part) {
			return fmt.Errorf("prefix %q: must be names of letters, digits and -_.!*'()+=@,~ joined by single slashes, none of them \".\" or \"..\", as in s3://bucket/backups/shop", prefix)
		}
	}
	return nil
}

// checkEndpoint does not say the endpoint, which may hold a password.
func checkEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return errors.New("the endpoint must be an URL, as in https://minio.example.com:9000")
	case u.User != nil:
		return errors.New("the endpoint must not hold credentials; name files of them, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	case u.RawQuery != "" || u.Fragment != "":
		return errors.New("the endpoint must have neither a query nor a fragment, as in https://minio.example.com:9000")
	}
	return nil
}
