package retry

import (
	"errors"
	"time"

	"github.com/disko/backupd/internal/store"
)

// answered says that an error is the target's answer: asking again would bring
// the same.
func answered(err error) bool {
	for _, sentinel := range []error{
		store.ErrNotExist, store.ErrExist, store.ErrNoTarget,
		store.ErrNoSpace, store.ErrAccess, store.ErrShort,
	} {
		if errors.Is(err, sentinel) {
			return true
		}
	}
	return false
}

// permanent says that an error calls itself so.
func permanent(err error) bool {
	var p interface{ Permanent() bool }
	return errors.As(err, &p) && p.Permanent()
}

// retryAfter is how long the server asks to be left alone; 0 if it does not.
func retryAfter(err error) time.Duration {
	var r interface{ RetryAfter() time.Duration }
	if !errors.As(err, &r) {
		return 0
	}
	return min(max(r.RetryAfter(), 0), retryAfterMax)
}
