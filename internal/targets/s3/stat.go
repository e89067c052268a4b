package s3

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/disko/backupd/internal/store"
)

// Stat implements store.Getter.
func (t *Target) Stat(ctx context.Context, key string) (store.Info, error) {
	if _, err := t.name(key); err != nil {
		return store.Info{}, err
	}
	return t.stat(ctx, operation{act: "stat", what: key, action: actionGet})
}

func (t *Target) stat(ctx context.Context, op operation) (store.Info, error) {
	info, err := t.head(ctx, op)
	if !isNotExist(err) {
		return info, err
	}
	// A HEAD's 404 does not say whether the bucket is still there.
	if gone := t.ask(ctx, op.act+" "+op.what+": open"); errors.Is(gone, store.ErrNoTarget) {
		return store.Info{}, gone
	}
	return store.Info{}, err
}

func (t *Target) head(ctx context.Context, op operation) (store.Info, error) {
	out, err := t.headObject(ctx, op)
	if err != nil {
		return store.Info{}, err
	}
	if out.ContentLength == nil {
		return store.Info{}, fmt.Errorf("%s %s: the server does not say its size", op.act, op.what)
	}
	return store.Info{Key: op.what, Size: *out.ContentLength}, nil
}

func (t *Target) headObject(ctx context.Context, op operation) (*s3.HeadObjectOutput, error) {
	ctx, a := withAnswer(ctx)
	out, err := t.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &t.opts.Bucket, Key: aws.String(t.base + op.what)})
	if err != nil {
		return nil, t.explain(ctx, op, a, err)
	}
	if out.ETag == nil && out.LastModified == nil {
		return nil, t.strange(op)
	}
	return out, nil
}
