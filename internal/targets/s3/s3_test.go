package s3

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/targets/targetstest"
	"github.com/disko/backupd/internal/testservers"
)

// secretFiles writes credentials where Options look for them.
func secretFiles(t *testing.T, o *Options, c testservers.Credentials) {
	t.Helper()
	dir := t.TempDir()
	for _, f := range []struct {
		name, content string
		to            *string
	}{
		{"id", c.AccessKey, &o.AccessKeyIDFile},
		{"secret", c.SecretKey, &o.SecretAccessKeyFile},
		{"token", c.SessionToken, &o.SessionTokenFile},
	} {
		*f.to = ""
		if f.content == "" {
			continue
		}
		*f.to = filepath.Join(dir, f.name)
		if err := os.WriteFile(*f.to, []byte(f.content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// on returns options for a new bucket of a server.
func on(t *testing.T, s *testservers.S3) Options {
	t.Helper()
	o := Options{Bucket: s.Bucket(t), Endpoint: s.Endpoint, Region: s.Region}
	secretFiles(t, &o, testservers.Credentials{AccessKey: s.AccessKey, SecretKey: s.SecretKey})
	return o
}

func open(t *testing.T, o Options) *Target {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// servers are those that every promise is asked of.
var servers = map[string]func(testing.TB) *testservers.S3{
	"versitygw": testservers.Versitygw,
	"minio":     testservers.Minio,
}

func eachServer(t *testing.T, test func(t *testing.T, s *testservers.S3)) {
	for name, start := range servers {
		t.Run(name, func(t *testing.T) { test(t, start(t)) })
	}
}

func TestS3KeepsTheContract(t *testing.T) {
	eachServer(t, func(t *testing.T, s *testservers.S3) {
		targetstest.Run(t, func(t *testing.T) store.Writer { return open(t, on(t, s)) })
	})
}

func TestS3KeepsTheContractBelowAPrefix(t *testing.T) {
	eachServer(t, func(t *testing.T, s *testservers.S3) {
		targetstest.Run(t, func(t *testing.T) store.Writer {
			o := on(t, s)
			// Neighbours that must never be seen.
			for _, prefix := range []string{"app2", "app", ""} {
				o.Prefix = prefix
				put(t, open(t, o), "zzz/neighbour", []byte(prefix))
			}
			o.Prefix = "app/nested"
			return open(t, o)
		})
	})
}

// rclone's server passes most of the suite, but for a 500 now and then where
// several put one key at once, and one for a delete of what it takes for a directory.
func TestRcloneServesWhatABackupNeeds(t *testing.T) {
	binary := testservers.Rclone(t)
	addr, err := testservers.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command(binary, "serve", "s3", "--addr", addr, "--auth-key", "rclone-key,rclone-secret", "--config", filepath.Join(dir, "none"), dir)
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	server := &testservers.S3{Endpoint: "http://" + addr, AccessKey: "rclone-key", SecretKey: "rclone-secret", Region: "us-east-1"}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := server.Client().ListBuckets(t.Context(), nil); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%v\n%s", err, log.String())
		}
	}
	s := open(t, on(t, server))
	for _, key := range []string{"backupd.json", "stacks/shop/runs/x.0", "stacks/shop/packs/x-0"} {
		put(t, s, key, []byte(key))
		if err := s.Put(t.Context(), key, []byte("other")); !errors.Is(err, store.ErrExist) {
			t.Errorf("put %s again: %v, want ErrExist", key, err)
		}
	}
	if got, err := s.Get(t.Context(), "stacks/shop/packs/x-0", 7, 4); err != nil || string(got) != "shop" {
		t.Errorf("%q, %v", got, err)
	}
	if err := s.Delete(t.Context(), "stacks/shop/runs/x.0"); err != nil {
		t.Error(err)
	}
	if got := keys(t, s, "stacks/"); !slices.Equal(got, []string{"stacks/shop/packs/x-0"}) {
		t.Errorf("%q", got)
	}
}

func put(t *testing.T, s store.Putter, key string, data []byte) {
	t.Helper()
	if err := s.Put(context.Background(), key, data); err != nil {
		t.Fatal(err)
	}
}

func keys(t *testing.T, s store.Lister, prefix string) []string {
	t.Helper()
	var all []string
	for info, err := range s.List(context.Background(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, info.Key)
	}
	slices.Sort(all)
	return all
}

func TestTwentyThousandObjectsAreListedOverPages(t *testing.T) {
	server := testservers.Versitygw(t)
	o := on(t, server)
	want := map[string]int64{}
	for i := range 20000 {
		key := fmt.Sprintf("many/%02d/%d", i%50, i)
		want[key] = int64(len(key))
		path := filepath.Join(server.BucketDir(t, o.Bucket), key)
		if i < 50 {
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(path, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wantListed(t, open(t, o), want)
}

func TestMoreThanAPageIsListed(t *testing.T) {
	s := open(t, on(t, testservers.Minio(t)))
	put(t, s, "first", nil) // learns how to put, before many do at once
	want := map[string]int64{}
	var wg sync.WaitGroup
	for i := range 1100 {
		want[fmt.Sprintf("many/%d", i)] = 2
	}
	next := make(chan string)
	for range 16 {
		wg.Go(func() {
			for key := range next {
				if err := s.Put(t.Context(), key, []byte("xy")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for key := range want {
		next <- key
	}
	close(next)
	wg.Wait()
	wantListed(t, s, want)
}

func wantListed(t *testing.T, s store.Lister, want map[string]int64) {
	t.Helper()
	got := map[string]int64{}
	for info, err := range s.List(t.Context(), "many/") {
		if err != nil {
			t.Fatal(err)
		}
		got[info.Key] = info.Size
	}
	if !maps.Equal(got, want) {
		t.Errorf("%d objects, or other ones, instead of %d", len(got), len(want))
	}
}

func TestAServerThatStandsStillIsGivenUp(t *testing.T) {
	server := testservers.NewVersitygw(t)
	o := on(t, server)
	o.StallTimeout = 500 * time.Millisecond
	s := open(t, o)
	put(t, s, "there", make([]byte, 1<<20))
	server.Pause(t)
	for act, do := range map[string]func() error{
		"get":    func() error { _, err := s.Get(t.Context(), "there", 0, -1); return err },
		"put":    func() error { return s.Put(t.Context(), "small", nil) },
		"big":    func() error { return s.Put(t.Context(), "big", make([]byte, 40<<20)) },
		"delete": func() error { return s.Delete(t.Context(), "other") },
		"list": func() error {
			for _, err := range s.List(t.Context(), "") {
				return err
			}
			return nil
		},
	} {
		begin := time.Now()
		err := do()
		if err == nil || isPermanent(err) {
			t.Errorf("%s: %v, want an error that may pass", act, err)
		} else if !strings.Contains(err.Error(), "stood still") {
			t.Errorf("%s: %v", act, err)
		}
		if took := time.Since(begin); took > 8*time.Second {
			t.Errorf("%s took %v", act, took)
		}
	}
	server.Resume(t)
	if data, err := s.Get(t.Context(), "there", 0, -1); err != nil || len(data) != 1<<20 {
		t.Errorf("after it: %d bytes, %v", len(data), err)
	}
}

// isPermanent is what a retrying decorator asks.
func isPermanent(err error) bool {
	for _, kind := range []error{store.ErrAccess, store.ErrExist, store.ErrNoSpace, store.ErrNoTarget, store.ErrNotExist, store.ErrShort} {
		if errors.Is(err, kind) {
			return true
		}
	}
	var p interface{ Permanent() bool }
	return errors.As(err, &p) && p.Permanent()
}

func TestAServerKilledDuringPutsShowsNothingHalf(t *testing.T) {
	for name, start := range map[string]func(testing.TB) *testservers.S3{"versitygw": testservers.NewVersitygw, "minio": testservers.NewMinio} {
		t.Run(name, func(t *testing.T) {
			server := start(t)
			s := open(t, on(t, server))
			put(t, s, "first", nil)
			const size = 16 << 20
			done := map[string]bool{"first": true}
			for round := range 3 {
				var mu sync.Mutex
				var wg sync.WaitGroup
				finished := make(chan struct{}, 1000)
				for i := range 3 {
					wg.Go(func() {
						for j := 0; ; j++ {
							key := fmt.Sprintf("packs/%d-%d-%d", round, i, j)
							if s.Put(t.Context(), key, make([]byte, size)) != nil {
								return
							}
							mu.Lock()
							done[key] = true
							mu.Unlock()
							finished <- struct{}{}
						}
					})
				}
				<-finished // others are in their midst
				server.Kill(t)
				wg.Wait()
				server.Restart(t)
			}
			found := map[string]bool{}
			for info, err := range s.List(t.Context(), "") {
				if err != nil {
					t.Fatal(err)
				}
				found[info.Key] = true
				if info.Key != "first" && info.Size != size {
					t.Errorf("%s has %d bytes", info.Key, info.Size)
				}
			}
			for key := range done {
				if !found[key] {
					t.Errorf("%s was put and is not there", key)
				}
			}
			if len(done) < 4 {
				t.Errorf("only %d objects were put", len(done))
			}
		})
	}
}
