package retry

import (
	"context"

	"github.com/disko/backupd/internal/store"
)

// OpOpen is the opening of a target.
const OpOpen Op = "open"

// Open opens the target at location, which is for messages, again where that failed for a reason that may pass, and
// returns it with its operations repeated. What an attempt opened and cannot
// use, it has to close itself.
func Open(ctx context.Context, location string, o Options, open func(context.Context) (store.Writer, error)) (*Store, error) {
	var inner store.Writer
	s := &Store{o: o.complete()}
	s.budget.init(s.o.Budget)
	s.watch = watch{location: location, notify: s.o.Notify, now: s.o.Now}
	_, err := s.repeat(ctx, operation{OpOpen, "", 0}, func(ctx context.Context) (err error) {
		inner, err = open(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return New(inner, o), nil
}
