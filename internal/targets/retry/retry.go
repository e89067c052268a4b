// Package retry repeats the operations of a target that failed for a reason
// that may pass: a lost connection, a time-out, a server that is overloaded.
//
// Invariants:
//   - what the target says for good (a sentinel of package store, an error with
//     Permanent() bool) is passed on at once, unchanged;
//   - nothing goes on after the caller's context has ended, waiting included;
//   - every operation ends: Options.Outage, Attempts and Budget bound the
//     repeating, and a deadline bounds each attempt;
//   - a Put whose answer was lost is told from a key that another writer took,
//     by reading the object back;
//   - a listing yields no key twice, however often it was begun.
//
// It does not know any target, and opens, caches and logs nothing. An attempt
// is ended through its context: a target that does not heed that can hang.
package retry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/disko/backupd/internal/store"
)

// Store is a target whose operations are repeated. Safe for concurrent use if
// the target is.
type Store struct {
	inner    store.Writer
	o        Options
	budget   budget
	watch    watch
	patience patience

	maxYielded int // maxYielded; a test's hook
}

var (
	_ store.Writer = (*Store)(nil)
	_ io.Closer    = (*Store)(nil)
)

// New returns w with its operations repeated.
func New(w store.Writer, o Options) *Store {
	o = o.complete()
	s := &Store{inner: w, o: o, maxYielded: maxYielded}
	s.budget.init(o.Budget)
	s.watch = watch{location: w.Location(), notify: o.Notify, now: o.Now}
	return s
}

// Location implements store.Reader.
func (s *Store) Location() string { return s.inner.Location() }

// Close closes the target, if it is an io.Closer.
func (s *Store) Close() error {
	if c, ok := s.inner.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Get implements store.Getter.
func (s *Store) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	if err := store.CheckKey(key); err != nil {
		return nil, err
	}
	if off < 0 {
		return nil, fmt.Errorf("read %s: offset %d is negative", key, off)
	}
	var data []byte
	_, err := s.repeat(ctx, operation{OpGet, key, n}, func(ctx context.Context) (err error) {
		data, err = s.inner.Get(ctx, key, off, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

// Stat implements store.Getter.
func (s *Store) Stat(ctx context.Context, key string) (store.Info, error) {
	if err := store.CheckKey(key); err != nil {
		return store.Info{}, err
	}
	var info store.Info
	_, err := s.repeat(ctx, operation{OpStat, key, 0}, func(ctx context.Context) (err error) {
		info, err = s.inner.Stat(ctx, key)
		return err
	})
	if err != nil {
		return store.Info{}, err
	}
	return info, nil
}

// Put implements store.Putter. If the first attempt failed, and the key then
// turns out to be taken by an object of the same content, that counts as
// written: whose it is cannot be told.
func (s *Store) Put(ctx context.Context, key string, data []byte) error {
	if err := store.CheckKey(key); err != nil {
		return err
	}
	attempts, err := s.repeat(ctx, operation{OpPut, key, int64(len(data))}, func(ctx context.Context) error {
		return s.inner.Put(ctx, key, data)
	})
	if attempts > 1 && errors.Is(err, store.ErrExist) {
		return s.confirm(ctx, key, data, err)
	}
	return err
}

// confirm asks whether the object that is there is the one that an earlier
// attempt wrote; taken is what the target said.
func (s *Store) confirm(ctx context.Context, key string, data []byte, taken error) error {
	info, err := s.Stat(ctx, key)
	if err == nil && info.Size != int64(len(data)) {
		return taken
	}
	var there []byte
	if err == nil {
		there, err = s.Get(ctx, key, 0, int64(len(data)))
	}
	if err != nil {
		// Not ErrExist: that would say that another object is there.
		return fmt.Errorf("write %s: an earlier attempt may have written it, and it cannot be read back: %w", key, err)
	}
	if !bytes.Equal(there, data) {
		return taken
	}
	return nil
}

// Delete implements store.Deleter.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := store.CheckKey(key); err != nil {
		return err
	}
	_, err := s.repeat(ctx, operation{OpDelete, key, 0}, func(ctx context.Context) error {
		return s.inner.Delete(ctx, key)
	})
	return err
}

// repeat does an operation until it succeeds or has failed for good, and says
// how many attempts that took.
func (s *Store) repeat(ctx context.Context, op operation, do func(context.Context) error) (attempts int, err error) {
	t := s.newTrial(op)
	for over := false; !over; {
		over, err = t.over(ctx, t.attempt(ctx, do))
	}
	return t.attempts, err
}
