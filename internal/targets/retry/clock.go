package retry

import (
	"context"
	"fmt"
	"time"

	"github.com/disko/backupd/internal/store"
)

// OpTime asks for the target's clock, or for an object's time.
const OpTime Op = "ask the time of"

var (
	_ store.Clock  = (*Store)(nil)
	_ store.Locker = (*Store)(nil)
)

// Now implements store.Clock; ErrNoClock where the target has none.
func (s *Store) Now(ctx context.Context) (now time.Time, err error) {
	c, ok := s.inner.(store.Clock)
	if !ok {
		return time.Time{}, fmt.Errorf("ask %s for the time: %w", s.Location(), store.ErrNoClock)
	}
	_, err = s.repeat(ctx, operation{OpTime, s.Location(), 0}, func(ctx context.Context) (err error) {
		now, err = c.Now(ctx)
		return err
	})
	return now, err
}

// Modified implements store.Clock; ErrNoClock where the target has none.
func (s *Store) Modified(ctx context.Context, key string) (at time.Time, err error) {
	c, ok := s.inner.(store.Clock)
	if !ok {
		return time.Time{}, fmt.Errorf("ask %s for the time: %w", s.Location(), store.ErrNoClock)
	}
	_, err = s.repeat(ctx, operation{OpTime, key, 0}, func(ctx context.Context) (err error) {
		at, err = c.Modified(ctx, key)
		return err
	})
	return at, err
}

// HostClock implements store.Clock.
func (s *Store) HostClock() bool {
	c, ok := s.inner.(store.Clock)
	return ok && c.HostClock()
}

// LockedUntil implements store.Locker; nothing is locked where the target cannot tell.
func (s *Store) LockedUntil(ctx context.Context, key string) (until time.Time, err error) {
	l, ok := s.inner.(store.Locker)
	if !ok {
		return time.Time{}, nil
	}
	_, err = s.repeat(ctx, operation{OpTime, key, 0}, func(ctx context.Context) (err error) {
		until, err = l.LockedUntil(ctx, key)
		return err
	})
	return until, err
}
