// Package testservers starts real servers for tests: two independent S3
// servers, and rclone. They listen on 127.0.0.1 at free ports, keep their data
// in temporary directories, and die with the test process, however that ends.
//
// Versitygw and Minio are started once a test process and shared; a test that
// pauses or kills its server, or fills it, takes NewVersitygw or NewMinio. The
// binaries come from test/servers, which builds them when they are absent.
package testservers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// S3 is a running S3 server.
type S3 struct {
	Endpoint             string // http://127.0.0.1:PORT
	AccessKey, SecretKey string // may do everything
	Region               string

	process *process
}

// Versitygw returns this process's versitygw, on its posix backend. It knows
// conditional writes and object lock, and no policies for users.
func Versitygw(t testing.TB) *S3 { return shared(t, "versitygw", sharedVersitygw) }

// Minio returns this process's MinIO.
func Minio(t testing.TB) *S3 { return shared(t, "minio", sharedMinio) }

// NewVersitygw starts a versitygw that ends with the test.
func NewVersitygw(t testing.TB) *S3 { return own(t, "versitygw", startVersitygw) }

// NewMinio starts a MinIO that ends with the test.
func NewMinio(t testing.TB) *S3 { return own(t, "minio", startMinio) }

// Rclone returns the path of an rclone binary.
func Rclone(t testing.TB) string {
	t.Helper()
	return Binary(t, "rclone")
}

// Shared by all tests of a process, for each start takes a second or two.
var (
	sharedVersitygw = sync.OnceValues(func() (*S3, error) { return startShared(startVersitygw) })
	sharedMinio     = sync.OnceValues(func() (*S3, error) { return startShared(startMinio) })
)

func shared(t testing.TB, server string, start func() (*S3, error)) *S3 {
	t.Helper()
	Binary(t, server)
	s, err := start()
	if err != nil {
		t.Fatalf("start %s: %v", server, err)
	}
	return s
}

func startShared(start func(dir string) (*S3, error)) (*S3, error) {
	dir, err := tempDirOfProcess()
	if err != nil {
		return nil, err
	}
	return start(dir)
}

func own(t testing.TB, server string, start func(dir string) (*S3, error)) *S3 {
	t.Helper()
	Binary(t, server)
	s, err := start(t.TempDir())
	if err != nil {
		t.Fatalf("start %s: %v", server, err)
	}
	t.Cleanup(s.process.kill)
	return s
}

const (
	accessKey = "backupd-test"
	secretKey = "backupd-test-secret"
	region    = "us-east-1"
)

func startVersitygw(dir string) (*S3, error) {
	for _, sub := range []string{"data", "versions", "iam"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, err
		}
	}
	return startS3(&process{
		name: "versitygw",
		dir:  dir,
		args: func(addr string) []string {
			return []string{
				"--port", addr, "--region", region, "--iam-dir", filepath.Join(dir, "iam"),
				"posix", "--versioning-dir", filepath.Join(dir, "versions"), filepath.Join(dir, "data"),
			}
		},
		env: []string{"ROOT_ACCESS_KEY=" + accessKey, "ROOT_SECRET_KEY=" + secretKey},
	})
}

func startMinio(dir string) (*S3, error) {
	return startS3(&process{
		name: "minio",
		dir:  dir,
		args: func(addr string) []string {
			return []string{"server", "--quiet", "--address", addr, "--certs-dir", filepath.Join(dir, "certs"), filepath.Join(dir, "data")}
		},
		env: []string{"MINIO_ROOT_USER=" + accessKey, "MINIO_ROOT_PASSWORD=" + secretKey, "MINIO_SITE_REGION=" + region, "MINIO_BROWSER=off", "MINIO_UPDATE=off"},
	})
}

func startS3(p *process) (*S3, error) {
	s := &S3{AccessKey: accessKey, SecretKey: secretKey, Region: region, process: p}
	p.ready = func() error {
		s.Endpoint = "http://" + p.addr
		return s.listBuckets()
	}
	// Another process may take the free port before the server does.
	var err error
	for range 3 {
		if err = p.start(); err == nil {
			return s, nil
		}
		p.addr = ""
		if !errors.Is(err, errEnded) {
			break
		}
	}
	return nil, fmt.Errorf("%w\n%s", err, p.log())
}

// Pause stops the server's process in its tracks (SIGSTOP): connections stay
// open, and nothing answers. It goes on when the test ends, or at Resume.
func (s *S3) Pause(t testing.TB) {
	t.Helper()
	t.Cleanup(func() { _ = s.process.resume() }) // one that was killed needs none
	if err := s.process.pause(); err != nil {
		t.Fatalf("pause %s: %v", s.process.name, err)
	}
}

// Resume lets a paused server go on.
func (s *S3) Resume(t testing.TB) {
	t.Helper()
	if err := s.process.resume(); err != nil {
		t.Fatalf("resume %s: %v", s.process.name, err)
	}
}

// Kill ends the server with SIGKILL and waits until it is gone. A shared one
// stays away until Restart.
func (s *S3) Kill(t testing.TB) {
	t.Helper()
	s.process.kill()
}

// Restart starts the server again, at the same port with the same data, and
// returns when it answers. One that runs is killed first.
func (s *S3) Restart(t testing.TB) {
	t.Helper()
	s.process.kill()
	if err := s.process.start(); err != nil {
		t.Fatalf("restart %s: %v\n%s", s.process.name, err, s.process.log())
	}
}
