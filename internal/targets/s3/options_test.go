package s3

import (
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/testservers"
)

func TestANameIsReadWithItsSettings(t *testing.T) {
	defaults := Options{Region: "eu-west-1", StorageClass: "STANDARD_IA", Concurrency: 3}
	for name, want := range map[string]Options{
		"s3://bucket":  {Bucket: "bucket", Region: "eu-west-1", StorageClass: "STANDARD_IA", Concurrency: 3},
		"s3://bucket/": {Bucket: "bucket", Region: "eu-west-1", StorageClass: "STANDARD_IA", Concurrency: 3},
		"s3://my.bucket/a/b/?endpoint=https://minio:9000&region=x&profile=p&path-style=true&storage-class=glacier_ir": {
			Bucket: "my.bucket", Prefix: "a/b", Endpoint: "https://minio:9000", Region: "x", Profile: "p", PathStyle: true, StorageClass: "GLACIER_IR", Concurrency: 3,
		},
		"s3://bucket/a?path-style=false&sse=aws:kms&sse-key-id=k&ca-file=/ca.pem&lock-mode=governance&lock-days=30": {
			Bucket: "bucket", Prefix: "a", Region: "eu-west-1", StorageClass: "STANDARD_IA", Concurrency: 3, VirtualHosts: true, SSE: "aws:kms", SSEKeyID: "k", CAFile: "/ca.pem", LockMode: Governance, LockDays: 30,
		},
	} {
		got, err := Parse(name, defaults)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestABadNameIsRefusedWithoutTellingSecrets(t *testing.T) {
	for _, name := range []string{
		"", "s3:", "s3://", "s3:bucket", "S4://bucket", "s3:///prefix", "s3://b", "s3://bucket:9000/x", "s3://bad..bucket", "s3://127.0.0.1", "s3://-bucket", "s3://buc%20ket",
		"s3://AKIA:hunter2@bucket/x", "s3://hunter2@bucket",
		"s3://bucket/../x", "s3://bucket/a/../b", "s3://bucket/%2e%2e/b", "s3://bucket/a//b", "s3://bucket/a b", "s3://bucket/a%00b", "s3://bucket/./a", "s3://bucket/" + strings.Repeat("x", 501),
		"s3://bucket?secret-key=hunter2", "s3://bucket?hunter2", "s3://bucket?HUNTER2=1", "s3://bucket?region=a&region=b", "s3://bucket?region=", "s3://bucket?%zz", "s3://bucket?a;b", "s3://bucket#x",
		"s3://bucket?endpoint=minio:9000", "s3://bucket?endpoint=https://user:hunter2@minio", "s3://bucket?endpoint=ftp://minio", "s3://bucket?endpoint=https://minio?x=hunter2", "s3://bucket?endpoint=https://",
		"s3://bucket?path-style=yes", "s3://bucket?lock-days=x", "s3://bucket?lock-days=3", "s3://bucket?lock-mode=GOVERNANCE", "s3://bucket?lock-mode=soft&lock-days=3", "s3://bucket?lock-mode=COMPLIANCE&lock-days=-1",
		"s3://bucket?sse=rot13", "s3://bucket?sse-key-id=k", "s3://bucket/\x7f", "s3://[::1", "s3://bucket?\x00",
	} {
		_, err := Parse(name, Options{})
		if err == nil {
			t.Errorf("%q is no error", name)
			continue
		}
		if strings.Contains(strings.ToLower(err.Error()), "hunter2") {
			t.Errorf("%q: the secret is in %q", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"s3://bucket", "s3://bucket/a/b?endpoint=https://minio:9000&path-style=true", "s3://bucket/..", "s3://u:p@bucket", "s3://bucket?lock-mode=COMPLIANCE&lock-days=3"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		o, err := Parse(name, Options{})
		if err != nil {
			return
		}
		if err := o.check(); err != nil {
			t.Errorf("%q is taken, and wrong: %v", name, err)
		}
		if strings.Contains("/"+o.Prefix+"/", "/../") || strings.HasPrefix(o.Prefix, "/") || strings.HasSuffix(o.Prefix, "/") {
			t.Errorf("%q has the prefix %q", name, o.Prefix)
		}
	})
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-99/1000", "bytes 5-5/*", "bytes */10", "bytes 9-1/10", "bytes 0-9223372036854775807/1"} {
		f.Add(s, int64(0), int64(100))
	}
	f.Fuzz(func(t *testing.T, s string, off, n int64) {
		if off < 0 || n > largeRange {
			return
		}
		length, err := fits(off, n, 206, s, -1)
		if err == nil && (length <= 0 || n >= 0 && length != n) {
			t.Errorf("%q for %d from %d: %d bytes", s, n, off, length)
		}
	})
}

func TestASecretFileThatIsMissingOrEmptyIsAnErrorAlways(t *testing.T) {
	// Credentials that it could fall back to.
	t.Setenv("AWS_ACCESS_KEY_ID", "fallback")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "fallback")
	server := testservers.Minio(t)
	good := on(t, server)
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte(" \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Options){
		"no id file":     func(o *Options) { o.AccessKeyIDFile = filepath.Join(dir, "none") },
		"no secret file": func(o *Options) { o.SecretAccessKeyFile = filepath.Join(dir, "none") },
		"empty secret":   func(o *Options) { o.SecretAccessKeyFile = empty },
		"empty token":    func(o *Options) { o.SessionTokenFile = empty },
		"a directory":    func(o *Options) { o.SecretAccessKeyFile = dir },
		"id alone":       func(o *Options) { o.SecretAccessKeyFile = "" },
		"secret alone":   func(o *Options) { o.AccessKeyIDFile = "" },
		"token alone":    func(o *Options) { o.AccessKeyIDFile, o.SecretAccessKeyFile, o.SessionTokenFile = "", "", empty },
	} {
		o := good
		change(&o)
		if _, err := Open(t.Context(), o); err == nil {
			t.Errorf("%s is no error", name)
		} else if strings.Contains(err.Error(), server.SecretKey) {
			t.Errorf("%s: the secret is in %q", name, err)
		}
	}
}

// noCredentialsAnywhere hides what this machine may have.
func noCredentialsAnywhere(t *testing.T) {
	t.Helper()
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_EC2_METADATA_SERVICE_ENDPOINT"} {
		t.Setenv(name, "")
	}
	dir := t.TempDir()
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(dir, "config"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(dir, "credentials"))
}

func TestWithoutCredentialsOneSentenceComesSoon(t *testing.T) {
	noCredentialsAnywhere(t)
	// A network that swallows what is sent to the metadata server.
	hole, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	for name, c := range map[string]struct {
		o        Options
		metadata string
		most     time.Duration
	}{
		"another's server": {Options{Bucket: "bucket", Endpoint: "http://127.0.0.1:1"}, "", time.Second},
		"Amazon's":         {Options{Bucket: "bucket"}, "http://" + hole.Addr().String(), 2 * metadataTimeout},
	} {
		t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", c.metadata)
		begin := time.Now()
		_, err := Open(t.Context(), c.o)
		if took := time.Since(begin); took > c.most {
			t.Errorf("%s: after %v", name, took)
		}
		if err == nil || !isPermanent(err) || !strings.Contains(err.Error(), "AWS_ACCESS_KEY_ID") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(t.Context(), Options{Bucket: "bucket", Profile: "none"}); err == nil || !isPermanent(err) {
		t.Errorf("a profile that is not there: %v", err)
	}
}

func TestTheSDKsOwnCredentialsAreHonoured(t *testing.T) {
	server := testservers.Minio(t)
	bucket := server.Bucket(t)
	want := store.Info{Key: "x", Size: 1}
	try := func(o Options) {
		t.Helper()
		s, err := Open(t.Context(), o)
		if err != nil {
			t.Error(err)
			return
		}
		if err := s.Put(t.Context(), "x", []byte("x")); err != nil {
			t.Error(err)
		}
		if info, err := s.Stat(t.Context(), "x"); info != want || err != nil {
			t.Errorf("%+v, %v", info, err)
		}
		s.Delete(t.Context(), "x")
		if got, at := s.Location(), "s3://"+bucket+" at "+strings.TrimPrefix(server.Endpoint, "http://"); got != at {
			t.Errorf("location %q, want %q", got, at)
		}
	}
	noCredentialsAnywhere(t)
	credentials := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(credentials, []byte("[shop]\naws_access_key_id = "+server.AccessKey+"\naws_secret_access_key = "+server.SecretKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", credentials)
	try(Options{Bucket: bucket, Endpoint: server.Endpoint, Profile: "shop"})
	t.Setenv("AWS_ACCESS_KEY_ID", server.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", server.SecretKey)
	t.Setenv("AWS_ENDPOINT_URL", server.Endpoint)
	try(Options{Bucket: bucket})
}

func TestABucketsNameStandsWhereTheServerLooksForIt(t *testing.T) {
	for name, c := range map[string]struct {
		o    Options
		host string
	}{
		"Amazon's":           {Options{Bucket: "bucket"}, "bucket.s3.us-east-1.amazonaws.com/"},
		"Amazon's, dots":     {Options{Bucket: "my.bucket"}, "s3.us-east-1.amazonaws.com/my.bucket"},
		"another's":          {Options{Bucket: "bucket", Endpoint: "https://minio.example.com"}, "minio.example.com/bucket"},
		"another's, virtual": {Options{Bucket: "bucket", Endpoint: "https://oss.example.com", VirtualHosts: true}, "bucket.oss.example.com/"},
	} {
		if got := requested(t, c.o); !strings.HasPrefix(got, c.host) {
			t.Errorf("%s: asked %s, want %s", name, got, c.host)
		}
	}
}
