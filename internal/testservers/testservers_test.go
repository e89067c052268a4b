package testservers

import (
	"bytes"
	"io"
	"os/exec"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

func TestAServerKeepsItsDataOverAKill(t *testing.T) {
	for name, start := range map[string]func(testing.TB) *S3{"versitygw": NewVersitygw, "minio": NewMinio} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			bucket := aws.String(s.Bucket(t))
			if _, err := s.Client().PutObject(t.Context(), &s3.PutObjectInput{Bucket: bucket, Key: aws.String("key"), Body: bytes.NewReader([]byte("content"))}); err != nil {
				t.Fatal(err)
			}
			endpoint := s.Endpoint
			s.Kill(t)
			if err := s.listBuckets(); err == nil {
				t.Error("it answers after the kill")
			}
			s.Restart(t)
			if s.Endpoint != endpoint {
				t.Errorf("it was at %s and is at %s", endpoint, s.Endpoint)
			}
			out, err := s.Client().GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucket, Key: aws.String("key")})
			if err != nil {
				t.Fatal(err)
			}
			defer out.Body.Close()
			if b, err := io.ReadAll(out.Body); err != nil || string(b) != "content" {
				t.Errorf("%q, %v", b, err)
			}
			s.Pause(t)
			if err := s.listBuckets(); err == nil {
				t.Error("it answers while it is paused")
			}
			s.Resume(t)
			if err := s.listBuckets(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestServersAreSharedAndBucketsAreNot(t *testing.T) {
	for name, get := range map[string]func(testing.TB) *S3{"versitygw": Versitygw, "minio": Minio} {
		t.Run(name, func(t *testing.T) {
			s := get(t)
			if s != get(t) {
				t.Error("two servers")
			}
			if a, b := s.Bucket(t), s.Bucket(t); a == b {
				t.Errorf("bucket %s twice", a)
			}
			lock, err := s.Client().GetObjectLockConfiguration(t.Context(), &s3.GetObjectLockConfigurationInput{Bucket: aws.String(s.LockedBucket(t))})
			if err != nil || lock.ObjectLockConfiguration.ObjectLockEnabled != "Enabled" {
				t.Errorf("%+v, %v", lock, err)
			}
		})
	}
}

func TestRcloneRuns(t *testing.T) {
	if out, err := exec.Command(Rclone(t), "version").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
