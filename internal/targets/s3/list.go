package s3

import (
	"context"
	"fmt"
	"iter"
	"net/url"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/disko/backupd/internal/store"
)

// List implements store.Lister, a page of a thousand objects a request. Keys
// that the store cannot have are somebody else's and are left out, but at the
// top, where they tell that the bucket is.
func (t *Target) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		if err := t.list(ctx, prefix, func(info store.Info) bool { return yield(info, nil) }); err != nil {
			yield(store.Info{}, err)
		}
	}
}

func (t *Target) list(ctx context.Context, prefix string, yield func(store.Info) bool) error {
	if prefix != "" {
		if !strings.HasSuffix(prefix, "/") {
			return fmt.Errorf("list %q: a prefix ends in a slash", prefix)
		}
		if err := store.CheckKey(strings.TrimSuffix(prefix, "/")); err != nil {
			return fmt.Errorf("list: %w", err)
		}
	}
	below := t.base + prefix
	in := &s3.ListObjectsV2Input{
		Bucket: &t.opts.Bucket,
		Prefix: &below,
		// A foreign key may have bytes that XML has not.
		EncodingType: types.EncodingTypeUrl,
	}
	op := operation{act: "list", what: "s3://" + t.opts.Bucket + "/" + below, action: actionList}
	seen := map[string]bool{} // tokens: a server that gives one twice would be asked for ever
	for {
		page, err := t.page(ctx, op, in)
		if err != nil {
			return err
		}
		for _, o := range page.Contents {
			name, err := listedName(page, o)
			if err != nil {
				return fmt.Errorf("list %s: %w", op.what, err)
			}
			key, ours := strings.CutPrefix(name, t.base)
			if !ours || !strings.HasPrefix(key, prefix) {
				return fmt.Errorf("list %s: the server lists %q, which is not below %q", op.what, name, below)
			}
			if !listed(key) {
				continue
			}
			if o.Size == nil || *o.Size < 0 {
				return fmt.Errorf("list %s: the server does not say the size of %s", op.what, key)
			}
			if !yield(store.Info{Key: key, Size: *o.Size}) {
				return nil
			}
		}
		if !aws.ToBool(page.IsTruncated) {
			return nil
		}
		token := aws.ToString(page.NextContinuationToken)
		if token == "" || seen[token] {
			return fmt.Errorf("list %s: the server says that there is more, and does not say how to go on", op.what)
		}
		seen[token] = true
		in.ContinuationToken = &token
	}
}

// page asks for one page of a listing. An empty body is no empty bucket.
func (t *Target) page(ctx context.Context, op operation, in *s3.ListObjectsV2Input) (*s3.ListObjectsV2Output, error) {
	ctx, a := withAnswer(ctx)
	page, err := t.client.ListObjectsV2(ctx, in)
	if err != nil {
		return nil, t.explain(ctx, op, a, err)
	}
	if page.Name == nil && page.IsTruncated == nil && page.KeyCount == nil {
		return nil, t.strange(op)
	}
	return page, nil
}

// strange is an answer that came with success, and not from an S3 server.
func (t *Target) strange(op operation) error {
	return &failure{act: op.act + " " + op.what, why: fmt.Sprintf("%s answered what is no answer of S3; is the endpoint right, and what stands between?", t.server())}
}

func listedName(page *s3.ListObjectsV2Output, o types.Object) (string, error) {
	name := aws.ToString(o.Key)
	if page.EncodingType != types.EncodingTypeUrl {
		return name, nil
	}
	plain, err := url.QueryUnescape(name)
	if err != nil {
		return "", fmt.Errorf("the server lists a key that cannot be read: %q", name)
	}
	return plain, nil
}

// listed says whether a key is to be seen: a store's key, or one at the top
// that is neither hidden nor the mark of a directory.
func listed(key string) bool {
	if store.CheckKey(key) == nil {
		return true
	}
	return key != "" && key[0] != '.' && !strings.Contains(key, "/")
}
