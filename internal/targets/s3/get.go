package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/disko/backupd/internal/store"
)

const (
	// largeRange is asked for only of objects that are known to have it.
	largeRange = 1 << 30
	// trusted is how much memory is taken for a length that only the server says.
	trusted = 64 << 20
)

// Get implements store.Getter.
func (t *Target) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	if _, err := t.name(key); err != nil {
		return nil, err
	}
	if off < 0 {
		return nil, fmt.Errorf("read %s: from byte %d", key, off)
	}
	// Nothing cannot be asked for, and a server may stumble over numbers that no
	// object has.
	if n == 0 || n > largeRange || off > math.MaxInt64-largeRange {
		info, err := t.stat(ctx, operation{act: "read", what: key, action: actionGet})
		if err != nil {
			return nil, err
		}
		if off > info.Size || n > info.Size-off {
			return nil, short(key, info.Size, off, n)
		}
		if n == 0 || off == info.Size {
			return []byte{}, nil
		}
	}
	return t.get(ctx, key, off, n)
}

func (t *Target) get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	in := &s3.GetObjectInput{Bucket: &t.opts.Bucket, Key: aws.String(t.base + key)}
	// The whole is asked for as a range too, for the answer then says the
	// object's size. At Amazon's only a plain one comes with a checksum, which is better.
	ranged := off > 0 || n >= 0 || t.endpoint != ""
	if n >= 0 {
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	} else if ranged {
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", off))
	}
	op := operation{act: "read", what: key, action: actionGet}
	ctx, a := withAnswer(ctx)
	out, err := t.client.GetObject(ctx, in)
	if err != nil {
		if ranged && a.status == http.StatusRequestedRangeNotSatisfiable {
			return t.beyond(ctx, key, off, n)
		}
		return nil, t.explain(ctx, op, a, err)
	}
	defer out.Body.Close()
	if out.ETag == nil && out.LastModified == nil {
		return nil, t.strange(op) // a gateway's page, or an error that came with success
	}

	length := int64(-1) // not said
	if out.ContentLength != nil {
		length = *out.ContentLength
	}
	if ranged {
		if length, err = fits(off, n, a.status, aws.ToString(out.ContentRange), length); err != nil {
			return nil, fmt.Errorf("read %s: %w", key, err)
		}
	}
	data, err := readBody(out.Body, length)
	if err != nil {
		if cerr := ctx.Err(); cerr != nil {
			return nil, fmt.Errorf("read %s: %w", key, cerr)
		}
		return nil, t.explainBody(op, err)
	}
	if length < 0 {
		// The end of the body is then the end of the object, or of a connection.
		return t.complete(ctx, op, data)
	}
	return data, nil
}

// beyond is for a range that begins at or after the object's end, of which
// only nothing can be had.
func (t *Target) beyond(ctx context.Context, key string, off, n int64) ([]byte, error) {
	info, err := t.stat(ctx, operation{act: "read", what: key, action: actionGet})
	if err != nil {
		return nil, err
	}
	if off == info.Size && n <= 0 {
		return []byte{}, nil
	}
	if off < info.Size && n <= info.Size-off {
		return nil, fmt.Errorf("read %s: the server has no %d bytes from %d of an object of %d bytes", key, n, off, info.Size)
	}
	return nil, short(key, info.Size, off, n)
}

func short(key string, size, off, n int64) error {
	if n < 0 {
		return fmt.Errorf("read %s: %w: has %d bytes, wanted those from %d", key, store.ErrShort, size, off)
	}
	return fmt.Errorf("read %s: %w: has %d bytes, wanted %d from %d", key, store.ErrShort, size, n, off)
}

var (
	errCut  = errors.New("the answer was cut")
	errLong = errors.New("the server sent more bytes than it said")
)

// readBody reads exactly length bytes, or all where length is negative.
func readBody(body io.Reader, length int64) ([]byte, error) {
	if length < 0 {
		return io.ReadAll(body)
	}
	data := make([]byte, 0, min(length, trusted))
	for int64(len(data)) < length {
		if len(data) == cap(data) {
			grown := make([]byte, len(data), min(length, 2*int64(cap(data))))
			copy(grown, data)
			data = grown
		}
		n, err := io.ReadFull(body, data[len(data):cap(data)])
		data = data[:len(data)+n]
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("%w after %d of %d bytes", errCut, len(data), length)
		}
		if err != nil {
			return nil, err
		}
	}
	// The end is read too: there the SDK compares checksums.
	var more [1]byte
	for {
		n, err := body.Read(more[:])
		if n > 0 {
			return nil, errLong
		}
		if errors.Is(err, io.EOF) {
			return data, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// explainBody is explain for an answer that began well.
func (t *Target) explainBody(op operation, err error) error {
	f := &failure{act: op.act + " " + op.what, cause: err, why: oneLine(err)}
	if !errors.Is(err, errCut) && !errors.Is(err, errLong) {
		t.explainNetwork(f, err)
	}
	return f
}

// complete compares data with the object's size.
func (t *Target) complete(ctx context.Context, op operation, data []byte) ([]byte, error) {
	info, err := t.stat(ctx, op)
	if err != nil {
		return nil, err
	}
	if info.Size != int64(len(data)) {
		return nil, fmt.Errorf("%s %s: %w after %d of %d bytes", op.act, op.what, errCut, len(data), info.Size)
	}
	return data, nil
}
