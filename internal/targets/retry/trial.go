package retry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// operation is what is repeated.
type operation struct {
	op    Op
	key   string // or a listing's prefix
	bytes int64  // that it moves; negative: unknown
}

// trial is one operation over all its attempts.
type trial struct {
	s  *Store
	op operation

	attempts int       // that were made
	failures int       // in a row
	began    time.Time // the first of these failures' attempt
	failed   time.Time // when that had failed
	watched  bool      // counted by s.watch
}

func (s *Store) newTrial(op operation) *trial { return &trial{s: s, op: op} }

// end is when the operation has been failing for too long.
func (t *trial) end() time.Time { return t.failed.Add(t.s.o.Outage) }

// attempt does the operation once, within its deadline.
func (t *trial) attempt(ctx context.Context, do func(context.Context) error) error {
	start := t.start()
	limit := t.limit(start)
	if limit <= 0 {
		return do(ctx)
	}
	actx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := do(actx)
	missed := err != nil && !answered(err) && actx.Err() != nil && ctx.Err() == nil
	t.s.patience.learn(t.op.bytes, t.s.o.Now().Sub(start), limit, err == nil, missed)
	if missed {
		return noAnswer(limit, err)
	}
	return err
}

// start counts an attempt.
func (t *trial) start() time.Time {
	now := t.s.o.Now()
	t.attempts++
	if t.failures == 0 {
		t.began = now
	}
	return now
}

// limit is how long an attempt may take that starts now. What patience adds
// does not outlast the outage.
func (t *trial) limit(now time.Time) time.Duration {
	plain := t.s.o.OpTimeout(t.op.op, t.op.bytes)
	limit := plain * t.s.patience.factor(t.op.bytes)
	if t.failures > 0 {
		limit = min(limit, max(plain, t.end().Sub(now)))
	}
	return limit
}

func noAnswer(limit time.Duration, err error) error {
	if limit > time.Second {
		limit = limit.Round(time.Second)
	}
	return fmt.Errorf("no answer within %v: %w", limit, err)
}

// over decides after an attempt. If it is not over, it has waited for the next.
func (t *trial) over(ctx context.Context, err error) (bool, error) {
	switch {
	case err == nil, answered(err):
		t.s.budget.answered()
		t.unwatch(true)
		return true, err
	case permanent(err):
		t.unwatch(false)
		return true, err
	case ctx.Err() != nil:
		t.unwatch(false)
		return true, t.cancelled(ctx, err)
	}
	now := t.s.o.Now()
	if t.failures == 0 {
		t.failed = now
	}
	t.failures++
	if why, advice := t.exhausted(now); why != "" {
		t.unwatch(false)
		return true, t.givenUp(now, why, advice, err)
	}
	t.observe(now, err)
	if !wait(ctx, t.pause(now, err)) {
		t.unwatch(false)
		return true, t.cancelled(ctx, err)
	}
	return false, nil
}

// progress says that the operation advanced before it failed: what failed
// before that is over.
func (t *trial) progress() {
	t.failures = 0
	t.began = t.s.o.Now()
	t.unwatch(true)
}

// exhausted says why there is no further attempt, and what to do.
func (t *trial) exhausted(now time.Time) (why, advice string) {
	switch {
	case !t.s.budget.spend():
		return fmt.Sprintf("requests to %s fail too often", t.s.watch.location),
			"look for what is overloaded or cuts connections on the way there, then run it again"
	case t.attempts >= t.s.o.Attempts, !now.Before(t.end()):
		return fmt.Sprintf("%s does not answer", t.s.watch.location),
			"check the network and that the target is up, then run it again"
	}
	return "", ""
}

// pause is how long to wait: never so long that the last attempt would come
// after the outage's end, and never less than the server asked for.
func (t *trial) pause(now time.Time, err error) time.Duration {
	d := rand.N(backoff(t.s.o.Base, t.s.o.Max, t.failures-1)+1) + retryAfter(err)
	return min(d, t.end().Sub(now))
}

// backoff is the longest wait before retry n, from 0.
func backoff(base, limit time.Duration, n int) time.Duration {
	for ; n > 0 && base < limit; n-- {
		base *= 2
	}
	return min(base, limit)
}

// wait says whether ctx lasted.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}

// cancelled is the error of an operation whose caller has ended it after, or
// by which, an attempt failed.
func (t *trial) cancelled(ctx context.Context, last error) error {
	if errors.Is(last, ctx.Err()) {
		return last
	}
	return fmt.Errorf("%s%w after %d attempts; the last: %w", t.prefix(last), ctx.Err(), t.attempts, last)
}

// finalError ends the repeating, also in another Store around this one.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }
func (finalError) Permanent() bool { return true }

func (t *trial) givenUp(now time.Time, why, advice string, last error) error {
	times := fmt.Sprintf("after %d attempts in %v", t.attempts, now.Sub(t.began).Round(time.Second))
	if t.attempts == 1 {
		times = "after 1 attempt"
	}
	return finalError{fmt.Errorf("%s%w; given up %s, because %s: %s", t.prefix(last), last, times, why, advice)}
}

// prefix says the act, where the target's own error does not.
func (t *trial) prefix(err error) string {
	if t.op.op == OpOpen || t.op.key != "" && strings.Contains(err.Error(), t.op.key) {
		return ""
	}
	if t.op.op == OpList {
		return fmt.Sprintf("%s %q: ", t.op.op, t.op.key)
	}
	return fmt.Sprintf("%s %s: ", t.op.op, t.op.key)
}
