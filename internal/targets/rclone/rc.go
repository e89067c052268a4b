package rclone

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// maxError bounds what is read of an error's answer.
const maxError = 64 << 10

// rcError is what rclone says of a call that failed.
type rcError struct {
	status int
	text   string
}

func (e *rcError) Error() string { return e.text }

func isStatus(err error, status int) bool {
	var e *rcError
	return errors.As(err, &e) && e.status == status
}

// call calls a function of rclone's, decodes its answer into out (nil: none is
// wanted), and takes care of a child that died or stands still.
func (t *Target) call(ctx context.Context, function string, in map[string]any, out any) error {
	if in == nil {
		in = map[string]any{}
	}
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return t.do(ctx, func(ctx context.Context, c *child) error {
		req, err := c.request(ctx, http.MethodPost, function, "application/json", bytes.NewReader(body))
		if err != nil {
			return err
		}
		return t.answer(c, req, out)
	})
}

func (c *child) request(ctx context.Context, method, path, contentType string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth(c.user, c.password)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return req, nil
}

// answer sends a request and reads a JSON answer.
func (t *Target) answer(c *child, req *http.Request, out any) error {
	resp, err := c.http.Do(req)
	if err != nil {
		return unwrapURL(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return t.failure(resp)
	}
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("read rclone's answer: %w", err)
	}
	return nil
}

// failure reads the error of an answer that is none.
func (t *Target) failure(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxError))
	if err != nil {
		return fmt.Errorf("read rclone's answer: %w", err)
	}
	var said struct {
		Error string `json:"error"`
	}
	text := strings.TrimSpace(string(b))
	if json.Unmarshal(b, &said) == nil && said.Error != "" {
		text = said.Error
	}
	return &rcError{resp.StatusCode, "rclone: " + redact(text, t.o.secrets())}
}

// unwrapURL takes the address out of a client's error.
func unwrapURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

// errStall ends what a child that stands still would keep waiting.
type errStall struct{ text string }

func (e errStall) Error() string { return e.text }

// do runs f with a child, a new one if the last has ended, and watches it.
func (t *Target) do(ctx context.Context, f func(context.Context, *child) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := t.running(ctx)
	if err != nil {
		return err
	}
	watched, cancel := context.WithCancelCause(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		t.watch(watched, c, cancel)
	}()
	err = f(watched, c)
	cause := context.Cause(watched)
	cancel(nil)
	<-over
	var stall errStall
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(cause, &stall):
		return stall
	}
	var said *rcError
	if errors.As(err, &said) || errors.Is(err, errRange) {
		return err
	}
	// The wire between us broke; if the process did, that is the reason.
	select {
	case <-c.ended:
		text := "rclone ended in the middle: " + c.printed.last()
		if isAny(text, configWords) {
			return t.o.classify(text) // old versions read it late
		}
		return errors.New(text)
	case <-time.After(100 * time.Millisecond):
		return err
	}
}

// patience is how many stall times rclone may go on answering without moving
// a byte: it tries again by itself, and long listings move none.
const patience = 10

// watch asks the child from time to time whether it lives and moves anything,
// and ends ctx when not. Between whiles an operation may be silent: rclone
// answers an upload when all of it is stored.
func (t *Target) watch(ctx context.Context, c *child, end context.CancelCauseFunc) {
	tick := time.NewTicker(t.o.StallTimeout / 4)
	defer tick.Stop()
	var moved int64
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		n, err := t.bytesMoved(ctx, c)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && c.alive():
			end(errStall{fmt.Sprintf("rclone does not answer for %s; it is started again", t.o.StallTimeout)})
			c.kill()
			return
		case err != nil:
			return // the operation sees that, too
		case n != moved:
			moved, last = n, time.Now()
		case time.Since(last) > patience*t.o.StallTimeout:
			end(errStall{fmt.Sprintf("rclone has moved nothing for %s", patience*t.o.StallTimeout)})
			return
		}
	}
}

func (t *Target) bytesMoved(ctx context.Context, c *child) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, t.o.StallTimeout)
	defer cancel()
	req, err := c.request(ctx, http.MethodPost, "core/stats", "application/json", strings.NewReader("{}"))
	if err != nil {
		return 0, err
	}
	var stats struct {
		Bytes int64 `json:"bytes"`
	}
	err = t.answer(c, req, &stats)
	return stats.Bytes, err
}

// running returns the child, and starts one where none is.
func (t *Target) running(ctx context.Context) (*child, error) {
	select {
	case t.starting <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-t.starting }()
	if t.closed {
		return nil, errClosed
	}
	if t.child != nil && t.child.alive() {
		return t.child, nil
	}
	c, err := t.o.start(ctx)
	if err != nil {
		return nil, err
	}
	t.child = c
	return c, nil
}

// end kills the child; the next operation starts another.
func (t *Target) end() {
	t.starting <- struct{}{}
	defer func() { <-t.starting }()
	if t.child != nil && t.child.alive() {
		t.child.kill()
	}
}
