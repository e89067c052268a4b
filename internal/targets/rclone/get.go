package rclone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"

	"github.com/disko/backupd/internal/store"
)

// Get implements store.Getter.
func (t *Target) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	data, err := t.get(ctx, key, off, n)
	if err != nil {
		return nil, t.explain("read", key, err)
	}
	return data, nil
}

// get takes one request where all is well. Whatever else comes, a look at the
// object tells apart an absent object, a range beyond its end, and a fault:
// to ranges beyond the end old versions answer with nonsense, or hang up.
func (t *Target) get(ctx context.Context, key string, off, n int64) (data []byte, err error) {
	var fault error
	if n > 0 && off >= 0 && off <= math.MaxInt64-n || n < 0 && off == 0 {
		data, fault = t.fetch(ctx, key, off, n)
		if fault == nil || ctx.Err() != nil {
			return data, fault
		}
	}
	it, err := t.stat(ctx, key)
	if err != nil {
		return nil, err
	}
	if n < 0 {
		n = max(it.Size-off, 0)
	}
	switch {
	case off < 0 || off > it.Size || n > it.Size-off:
		return nil, fmt.Errorf("%w: has %d bytes, wanted %d from %d", store.ErrShort, it.Size, n, off)
	case n == 0:
		return []byte{}, nil
	case fault == nil:
		return t.fetch(ctx, key, off, n)
	case isStatus(fault, http.StatusNotFound):
		// It is there, and could not be opened; rclone says no more than that.
		return nil, errors.New("rclone finds the object and cannot open it; its log with -vv says why")
	}
	return nil, fault
}

// errRange: the answer is of another range than was asked for.
var errRange = errors.New("rclone answered with another range")

// fetch returns exactly n bytes from off, or the whole object where n < 0.
func (t *Target) fetch(ctx context.Context, key string, off, n int64) (data []byte, err error) {
	err = t.do(ctx, func(ctx context.Context, c *child) error {
		req, err := c.request(ctx, http.MethodGet, "["+targetFs+"]/"+key, "", nil)
		if err != nil {
			return err
		}
		whole := n < 0
		if !whole {
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
		}
		resp, err := c.http.Do(req)
		if err != nil {
			return unwrapURL(err)
		}
		defer resp.Body.Close()
		size := resp.ContentLength
		switch resp.StatusCode {
		case http.StatusOK:
			if !whole || size < 0 {
				return errRange
			}
		case http.StatusPartialContent:
			var first, last int64
			if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/", &first, &last); err != nil || first != off || last < first || size != last-first+1 {
				return errRange
			}
			if size != n {
				return errRange
			}
		default:
			return t.failure(resp)
		}
		data = make([]byte, size)
		if _, err := io.ReadFull(resp.Body, data); err != nil {
			return fmt.Errorf("rclone's answer was cut short: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}
