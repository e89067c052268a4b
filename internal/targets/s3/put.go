package s3

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/disko/backupd/internal/store"
)

// How a server keeps an object from being replaced. Keys are random per run,
// so that a backup is correct without; this is for hands and for mistakes.
const (
	// unknown: looked for first, and put with a condition that may be ignored.
	unknown = iota
	// conditional: the server refuses a put with If-None-Match: * where there is an object.
	conditional
	// unconditional: it ignores or refuses the condition; objects are looked for first.
	unconditional
)

// maxProbe is the size up to which an object is put twice, once a process, to
// learn whether the server honours the condition. A run's first objects are small.
const maxProbe = 256 << 10

// overwriteGuard is what is known of the server, and this process's own puts.
type overwriteGuard struct {
	mode    *atomic.Int32
	probing *atomic.Bool
	puts    *inFlight
}

func newOverwriteGuard() overwriteGuard {
	return overwriteGuard{mode: new(atomic.Int32), probing: new(atomic.Bool), puts: &inFlight{keys: map[string]chan struct{}{}}}
}

// Put implements store.Putter.
func (t *Target) Put(ctx context.Context, key string, data []byte) error {
	if _, err := t.name(key); err != nil {
		return err
	}
	if t.overwrite.mode.Load() == conditional {
		return t.put(ctx, key, data, true)
	}
	done, err := t.overwrite.puts.begin(ctx, key)
	if err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	defer done()
	taken, err := t.taken(ctx, key)
	if err != nil {
		return err
	}
	if taken {
		return fmt.Errorf("write %s: %w", key, store.ErrExist)
	}
	if t.overwrite.mode.Load() == unconditional {
		return t.put(ctx, key, data, false)
	}
	err = t.put(ctx, key, data, true)
	var refused *failure
	if errors.As(err, &refused) && refused.permanent {
		// It may be the condition that the server does not take.
		if err = t.put(ctx, key, data, false); err == nil {
			t.overwrite.mode.CompareAndSwap(unknown, unconditional)
		}
		return err
	}
	if err == nil {
		t.probe(ctx, key, data)
	}
	return err
}

// probe learns from an object that was just put whether the server honours the
// condition: it is put again, as it is. A server that ignores the condition
// replaces it by itself; nothing is left behind that would have to be removed.
// Whatever else happens, the object is there, and the next one is asked.
func (t *Target) probe(ctx context.Context, key string, data []byte) {
	if len(data) > maxProbe || !t.overwrite.probing.CompareAndSwap(false, true) {
		return
	}
	defer t.overwrite.probing.Store(false)
	switch err := t.put(ctx, key, data, true); {
	case err == nil:
		t.overwrite.mode.CompareAndSwap(unknown, unconditional)
	case errors.Is(err, store.ErrExist):
		t.overwrite.mode.CompareAndSwap(unknown, conditional)
	}
}

// taken looks for an object. A key that may not read may still list.
func (t *Target) taken(ctx context.Context, key string) (bool, error) {
	_, err := t.head(ctx, operation{act: "write", what: key, action: actionGet})
	switch {
	case err == nil:
		return true, nil
	case isNotExist(err):
		return false, nil
	case !errors.Is(err, store.ErrAccess):
		return false, err
	}
	name := t.base + key
	op := operation{act: "write", what: key, action: actionList}
	out, err := t.page(ctx, op, &s3.ListObjectsV2Input{Bucket: &t.opts.Bucket, Prefix: &name, MaxKeys: aws.Int32(1)})
	if err != nil {
		return false, err
	}
	return len(out.Contents) > 0 && aws.ToString(out.Contents[0].Key) == name, nil
}

// put sends the object once. The server checks what it got against a hash: the
// SDK's CRC at Amazon's, the signed SHA-256 elsewhere.
func (t *Target) put(ctx context.Context, key string, data []byte, onlyNew bool) error {
	in := &s3.PutObjectInput{
		Bucket:               &t.opts.Bucket,
		Key:                  aws.String(t.base + key),
		Body:                 bytes.NewReader(data),
		ContentLength:        aws.Int64(int64(len(data))),
		StorageClass:         types.StorageClass(t.opts.StorageClass),
		ServerSideEncryption: types.ServerSideEncryption(t.opts.SSE),
	}
	if onlyNew {
		in.IfNoneMatch = aws.String("*")
	}
	if t.opts.SSEKeyID != "" {
		in.SSEKMSKeyId = &t.opts.SSEKeyID
	}
	op := operation{act: "write", what: key, action: actionPut}
	if t.locks(key) {
		in.ObjectLockMode = types.ObjectLockMode(t.opts.LockMode)
		in.ObjectLockRetainUntilDate = t.until()
		op.action += " and " + actionRetain
		if t.endpoint != "" {
			// Locked objects need a checksum in a header; this one all servers know.
			sum := md5.Sum(data)
			in.ContentMD5 = aws.String(base64.StdEncoding.EncodeToString(sum[:]))
		}
	}
	pctx, a := withAnswer(ctx)
	out, err := t.client.PutObject(pctx, in)
	if err == nil && out.ETag == nil {
		return t.confirm(ctx, op, int64(len(data)))
	}
	if err == nil {
		return nil
	}
	if onlyNew && a.status == http.StatusConflict {
		// Another put or a delete of this key is under way: who wins is not known.
		if taken, terr := t.taken(ctx, key); terr == nil && taken {
			return fmt.Errorf("write %s: %w", key, store.ErrExist)
		}
	}
	return t.explain(pctx, op, a, err)
}

// confirm is for an answer of success that names no object: something between
// may have given it.
func (t *Target) confirm(ctx context.Context, op operation, size int64) error {
	info, err := t.head(ctx, op)
	if isNotExist(err) || err == nil && info.Size != size {
		return t.strange(op)
	}
	return err
}
