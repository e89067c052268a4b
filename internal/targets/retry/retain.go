package retry

import (
	"context"

	"github.com/disko/backupd/internal/store"
)

// OpRetain is the renewal of an object's lock.
const OpRetain Op = "lock"

var _ store.Retainer = (*Store)(nil)

// Retain implements store.Retainer; it does nothing where the target locks no objects.
func (s *Store) Retain(ctx context.Context, key string) error {
	l, ok := s.inner.(store.Retainer)
	if !ok {
		return nil
	}
	_, err := s.repeat(ctx, operation{OpRetain, key, 0}, func(ctx context.Context) error { return l.Retain(ctx, key) })
	return err
}
