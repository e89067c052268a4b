package s3

import (
	"context"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

const day = 24 * time.Hour

// locks says that an object is to be locked: all are, but a run's intents,
// which the run removes when it ends, and what prune removes when it has done its work.
func (t *Target) locks(key string) bool {
	key = "/" + key
	return t.opts.LockMode != "" && !strings.Contains(key, "/runs/") && !strings.Contains(key, "/condemned/") && !strings.Contains(key, "/forgotten/")
}

func (t *Target) until() *time.Time {
	until := t.now().Add(time.Duration(t.opts.LockDays) * day).UTC().Truncate(time.Second)
	return &until
}

// Retain locks an object that is there for the options' days from now on: one
// that a new snapshot relies on. Without object lock it does nothing.
func (t *Target) Retain(ctx context.Context, key string) error {
	name, err := t.name(key)
	if err != nil {
		return err
	}
	if !t.locks(key) {
		return nil
	}
	ctx, a := withAnswer(ctx)
	_, err = t.client.PutObjectRetention(ctx, &s3.PutObjectRetentionInput{
		Bucket:    &t.opts.Bucket,
		Key:       name,
		Retention: &types.ObjectLockRetention{Mode: types.ObjectLockRetentionMode(t.opts.LockMode), RetainUntilDate: t.until()},
	})
	if err != nil {
		return t.explain(ctx, operation{act: "lock", what: key, action: actionRetain}, a, err)
	}
	return nil
}
