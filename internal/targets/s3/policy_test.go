package s3

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/testservers"
)

// policy is one of configs/s3, for a bucket.
func policy(t *testing.T, name, bucket string) string {
	t.Helper()
	const dir = "../../../configs/s3"
	b, err := os.ReadFile(filepath.Join(dir, name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../../docs/targets.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), "configs/s3/"+name+".json") {
		t.Errorf("docs/targets.md does not name configs/s3/%s.json", name)
	}
	return strings.ReplaceAll(string(b), "example-bucket", bucket)
}

// as returns the target that credentials of a policy see.
func as(t *testing.T, server *testservers.S3, o Options, policy string) *Target {
	t.Helper()
	secretFiles(t, &o, server.Assume(t, policy))
	return open(t, o)
}

func wantAccess(t *testing.T, act, action string, err error) {
	t.Helper()
	if !errors.Is(err, store.ErrAccess) {
		t.Errorf("%s: %v, want ErrAccess", act, err)
	} else if !strings.Contains(err.Error(), action) {
		t.Errorf("%s: %v does not name %s", act, err, action)
	}
}

func TestThePublishedPoliciesAreEnoughAndNotMore(t *testing.T) {
	server := testservers.Minio(t)
	o := on(t, server)
	neighbour := open(t, o)
	put(t, neighbour, "other/secret", []byte("secret"))
	o.Prefix = "backups"
	owner := open(t, o)
	put(t, owner, "old", []byte("old"))
	for _, c := range []struct {
		policy        string
		adds, deletes bool
	}{{"add-only", true, false}, {"restore-only", false, false}, {"prune", true, true}} {
		t.Run(c.policy, func(t *testing.T) {
			ctx := t.Context()
			p := policy(t, c.policy, o.Bucket)
			s := as(t, server, o, p)
			if b, err := s.Get(ctx, "old", 1, 2); err != nil || string(b) != "ld" {
				t.Errorf("get: %q, %v", b, err)
			}
			if !slices.Contains(keys(t, s, ""), "old") {
				t.Error("the listing has not the old object")
			}
			if _, err := s.Stat(ctx, "none"); !errors.Is(err, store.ErrNotExist) {
				t.Errorf("stat of what is absent: %v", err)
			}
			err := s.Put(ctx, "new/"+c.policy, []byte("new"))
			if c.adds && err != nil {
				t.Errorf("put: %v", err)
			} else if !c.adds {
				wantAccess(t, "put", "s3:PutObject on "+o.Bucket+"/backups/*", err)
			}
			err = s.Put(ctx, "old", []byte("overwritten"))
			if !errors.Is(err, store.ErrExist) {
				t.Errorf("put over the old: %v, want ErrExist", err)
			}
			if !c.deletes {
				wantAccess(t, "delete", "s3:DeleteObject on "+o.Bucket+"/backups/*", s.Delete(ctx, "old"))
			}
			// Another's prefix.
			elsewhere := o
			elsewhere.Prefix = "other"
			secretFiles(t, &elsewhere, server.Assume(t, p))
			_, err = Open(ctx, elsewhere)
			wantAccess(t, "open another prefix", "s3:ListBucket on "+o.Bucket+" (prefix other/)", err)
			s.base = "other/"
			_, err = s.Get(ctx, "secret", 0, -1)
			wantAccess(t, "get of another prefix", "s3:GetObject on "+o.Bucket+"/other/*", err)
			s.base = "backups/"
			if c.deletes {
				if err := s.Delete(ctx, "old"); err != nil {
					t.Errorf("delete: %v", err)
				}
			}
		})
	}
}

// A key that may put and list, and neither read nor delete.
func TestAKeyThatMayNotReadLeavesNothingBehindAndOverwritesNothing(t *testing.T) {
	server := testservers.Minio(t)
	o := on(t, server)
	o.Prefix = "backups"
	put(t, open(t, o), "old", []byte("old"))
	s := as(t, server, o, strings.Replace(policy(t, "add-only", o.Bucket), `"s3:GetObject", `, "", 1))
	for range 2 {
		if err := s.Put(t.Context(), "old", []byte("new")); !errors.Is(err, store.ErrExist) {
			t.Errorf("put over the old: %v", err)
		}
	}
	put(t, s, "new", []byte("new"))
	if s.overwrite.mode.Load() != conditional {
		t.Error("the server's conditional writes were not found out")
	}
	put(t, s, "more", []byte("more"))
	if got := keys(t, s, ""); !slices.Equal(got, []string{"more", "new", "old"}) {
		t.Errorf("%q", got)
	}
	_, err := s.Get(t.Context(), "new", 0, -1)
	wantAccess(t, "get", "s3:GetObject", err)
}

func TestLockedObjectsCannotBeDeletedAndRunsCan(t *testing.T) {
	eachServer(t, func(t *testing.T, server *testservers.S3) {
		o := on(t, server)
		o.Bucket = server.LockedBucket(t)
		o.LockMode, o.LockDays = Governance, 7
		start := time.Now()
		o.Now = func() time.Time { return start }
		s := open(t, o)
		put(t, s, "stacks/shop/packs/x-0", []byte("pack"))
		put(t, s, "stacks/shop/runs/x.0", []byte("intent"))
		until := func(key string) time.Time {
			t.Helper()
			out, err := server.Client().HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &o.Bucket, Key: &key})
			if err != nil {
				t.Fatal(err)
			}
			return aws.ToTime(out.ObjectLockRetainUntilDate)
		}
		want := start.Add(7 * 24 * time.Hour)
		if got := until("stacks/shop/packs/x-0"); got.Sub(want).Abs() > 2*time.Second {
			t.Errorf("locked until %v, want %v", got, want)
		}
		if got := until("stacks/shop/runs/x.0"); !got.IsZero() {
			t.Errorf("a run's intent is locked until %v", got)
		}
		// Its version cannot be removed.
		out, err := server.Client().ListObjectVersions(t.Context(), &s3.ListObjectVersionsInput{Bucket: &o.Bucket, Prefix: aws.String("stacks/shop/packs/")})
		if err != nil || len(out.Versions) != 1 {
			t.Fatalf("%d versions, %v", len(out.Versions), err)
		}
		if _, err := server.Client().DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &o.Bucket, Key: out.Versions[0].Key, VersionId: out.Versions[0].VersionId}); err == nil {
			t.Error("the locked version was removed")
		}
		s.now = func() time.Time { return start.Add(24 * time.Hour) }
		if err := s.Retain(t.Context(), "stacks/shop/packs/x-0"); err != nil {
			t.Fatal(err)
		}
		if got := until("stacks/shop/packs/x-0"); got.Sub(want) < 23*time.Hour {
			t.Errorf("renewed until %v", got)
		}
		if err := s.Retain(t.Context(), "stacks/shop/packs/none"); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("retain what is absent: %v", err)
		}
		if err := s.Delete(t.Context(), "stacks/shop/runs/x.0"); err != nil {
			t.Error(err)
		}
	})
}

func TestALockThatTheBucketHasNotIsSaid(t *testing.T) {
	eachServer(t, func(t *testing.T, server *testservers.S3) {
		o := on(t, server)
		o.LockMode, o.LockDays = Compliance, 1
		err := open(t, o).Put(t.Context(), "x", []byte("x"))
		if err == nil || !isPermanent(err) || !strings.Contains(err.Error(), "object lock") {
			t.Errorf("%v", err)
		}
	})
}
