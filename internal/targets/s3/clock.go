package s3

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/disko/backupd/internal/store"
)

var (
	_ store.Clock  = (*Target)(nil)
	_ store.Locker = (*Target)(nil)
)

// Now implements store.Clock: the date that the server's answer bears.
func (t *Target) Now(ctx context.Context) (time.Time, error) {
	op := operation{act: "ask for the time", what: t.Location(), action: actionList}
	page, err := t.page(ctx, op, &s3.ListObjectsV2Input{Bucket: &t.opts.Bucket, Prefix: &t.base, MaxKeys: aws.Int32(1)})
	if err != nil {
		return time.Time{}, err
	}
	now, ok := awsmiddleware.GetServerTime(page.ResultMetadata)
	if !ok || now.IsZero() {
		return time.Time{}, fmt.Errorf("ask %s for the time: its answers bear no date: %w", t.server(), store.ErrNoClock)
	}
	return now, nil
}

// Modified implements store.Clock.
func (t *Target) Modified(ctx context.Context, key string) (time.Time, error) {
	if _, err := t.name(key); err != nil {
		return time.Time{}, err
	}
	out, err := t.headObject(ctx, operation{act: "stat", what: key, action: actionGet})
	if err != nil {
		return time.Time{}, err
	}
	if out.LastModified == nil {
		return time.Time{}, fmt.Errorf("stat %s: the server does not say when it was written: %w", key, store.ErrNoClock)
	}
	return *out.LastModified, nil
}

// HostClock implements store.Clock: it is the server's.
func (t *Target) HostClock() bool { return false }

// LockedUntil implements store.Locker. A bucket without object lock is asked
// once; whoever may not see an object's lock learns of it when it cannot delete.
func (t *Target) LockedUntil(ctx context.Context, key string) (time.Time, error) {
	if _, err := t.name(key); err != nil {
		return time.Time{}, err
	}
	if t.unlocked.Load() {
		return time.Time{}, nil
	}
	if !t.lockable.Load() {
		conf, err := t.client.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: &t.opts.Bucket})
		if ctx.Err() != nil {
			return time.Time{}, ctx.Err()
		}
		if err != nil || conf.ObjectLockConfiguration == nil || conf.ObjectLockConfiguration.ObjectLockEnabled == "" {
			t.unlocked.Store(true)  // it has none, or does not tell
			return time.Time{}, nil //nolint:nilerr // then a delete that is refused tells
		}
		t.lockable.Store(true)
	}
	out, err := t.headObject(ctx, operation{act: "stat", what: key, action: actionGet})
	if errors.Is(err, store.ErrNotExist) {
		return time.Time{}, nil
	}
	if err != nil || out.ObjectLockRetainUntilDate == nil {
		return time.Time{}, err
	}
	return *out.ObjectLockRetainUntilDate, nil
}
