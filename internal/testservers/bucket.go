package testservers

import (
	"context"
	"crypto/rand"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Client returns a client that may do everything, for preparing and looking.
func (s *S3) Client() *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: aws.String(s.Endpoint),
		Region:       s.Region,
		UsePathStyle: true,
		Credentials:  s.credentials(),
		Retryer:      aws.NopRetryer{},
		HTTPClient:   &http.Client{Timeout: time.Minute},
	})
}

func (s *S3) credentials() aws.CredentialsProvider {
	return aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: s.AccessKey, SecretAccessKey: s.SecretKey}, nil
	})
}

// Bucket makes a bucket of a new name.
func (s *S3) Bucket(t testing.TB) string {
	t.Helper()
	return s.makeBucket(t, false)
}

// LockedBucket makes a bucket with object lock, and no default retention.
func (s *S3) LockedBucket(t testing.TB) string {
	t.Helper()
	return s.makeBucket(t, true)
}

func (s *S3) makeBucket(t testing.TB, lock bool) string {
	t.Helper()
	name := "test-" + strings.ToLower(rand.Text())
	_, err := s.Client().CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name, ObjectLockEnabledForBucket: aws.Bool(lock)})
	if err != nil {
		t.Fatalf("make bucket: %v", err)
	}
	return name
}

// listBuckets asks whether the server serves.
func (s *S3) listBuckets() error {
	client := s.Client()

	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err := client.ListBuckets(ctx, nil)
	return err
}

// BucketDir returns the directory where a versitygw keeps a bucket: a file
// that is put there by hand is an object.
func (s *S3) BucketDir(t testing.TB, bucket string) string {
	t.Helper()
	if s.process.name != "versitygw" {
		t.Fatalf("%s does not keep objects as files", s.process.name)
	}
	return filepath.Join(s.process.dir, "data", bucket)
}
