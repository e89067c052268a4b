package storetest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync/atomic"
	"time"

	"github.com/disko/backupd/internal/store"
)

// Names of operations, as a Hook gets them. A listing is one operation: its
// key is the prefix, and it is applied when its last object was yielded.
const (
	OpGet    = "get"
	OpStat   = "stat"
	OpList   = "list"
	OpPut    = "put"
	OpDelete = "delete"
	OpTime   = "time" // of the target, with an empty key, or of an object
)

// ErrFault is the error of operations that fail because a Hook said so,
// unless its Fault brings one.
var ErrFault = errors.New("injected fault")

// Fault says what becomes of one operation. The zero value: nothing.
type Fault struct {
	before, after bool
	err           error
	call          func() // with before or after, in place of an error
}

var (
	// None lets the operation be.
	None = Fault{}
	// FailBefore refuses the operation: it is not applied.
	FailBefore = Fault{before: true}
	// FailAfter applies the operation and loses its answer.
	FailAfter = Fault{after: true}
)

// With returns the fault with another error than ErrFault.
func (f Fault) With(err error) Fault {
	f.err = err
	return f
}

// CallBefore calls a function before the operation, which is then applied if
// the function returns: to kill the process, or to cancel a context.
func CallBefore(call func()) Fault { return Fault{before: true, call: call} }

// CallAfter calls a function when the operation was applied; it then succeeds.
func CallAfter(call func()) Fault { return Fault{after: true, call: call} }

func (f Fault) hit(op, key string) error {
	if f.call != nil {
		f.call()
		return nil
	}
	err := f.err
	if err == nil {
		err = ErrFault
	}
	return fmt.Errorf("%s %s: %w", op, key, err)
}

// Faulty is a store whose operations fail as its Hook says. Safe for
// concurrent use, if the Hook is.
type Faulty struct {
	store.Writer
	// Hook is asked before each operation; n counts them from 0. Nil: no faults.
	Hook func(op, key string, n int) Fault

	ops atomic.Int64
}

var _ store.Writer = (*Faulty)(nil)

// Ops is how many operations were begun.
func (f *Faulty) Ops() int { return int(f.ops.Load()) }

func (f *Faulty) fault(op, key string) Fault {
	n := int(f.ops.Add(1)) - 1
	if f.Hook == nil {
		return None
	}
	return f.Hook(op, key, n)
}

// around does an operation with what its fault adds.
func (f *Faulty) around(op, key string, do func() error) error {
	fault := f.fault(op, key)
	if fault.before {
		if err := fault.hit(op, key); err != nil {
			return err
		}
	}
	err := do()
	if err == nil && fault.after {
		err = fault.hit(op, key)
	}
	return err
}

// Get implements store.Getter.
func (f *Faulty) Get(ctx context.Context, key string, off, n int64) (data []byte, err error) {
	err = f.around(OpGet, key, func() error {
		data, err = f.Writer.Get(ctx, key, off, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

// Stat implements store.Getter.
func (f *Faulty) Stat(ctx context.Context, key string) (info store.Info, err error) {
	err = f.around(OpStat, key, func() error {
		info, err = f.Writer.Stat(ctx, key)
		return err
	})
	return info, err
}

// Now implements store.Clock, where the store does.
func (f *Faulty) Now(ctx context.Context) (now time.Time, err error) {
	c, ok := f.Writer.(store.Clock)
	if !ok {
		return time.Time{}, store.ErrNoClock
	}
	err = f.around(OpTime, "", func() error {
		now, err = c.Now(ctx)
		return err
	})
	return now, err
}

// Modified implements store.Clock, where the store does.
func (f *Faulty) Modified(ctx context.Context, key string) (at time.Time, err error) {
	c, ok := f.Writer.(store.Clock)
	if !ok {
		return time.Time{}, store.ErrNoClock
	}
	err = f.around(OpTime, key, func() error {
		at, err = c.Modified(ctx, key)
		return err
	})
	return at, err
}

// HostClock implements store.Clock.
func (f *Faulty) HostClock() bool {
	c, ok := f.Writer.(store.Clock)
	return ok && c.HostClock()
}

// Put implements store.Putter.
func (f *Faulty) Put(ctx context.Context, key string, data []byte) error {
	return f.around(OpPut, key, func() error { return f.Writer.Put(ctx, key, data) })
}

// Delete implements store.Deleter.
func (f *Faulty) Delete(ctx context.Context, key string) error {
	return f.around(OpDelete, key, func() error { return f.Writer.Delete(ctx, key) })
}

// List implements store.Lister.
func (f *Faulty) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		stopped, failed := false, false
		err := f.around(OpList, prefix, func() error {
			for info, err := range f.Writer.List(ctx, prefix) {
				failed = err != nil
				if stopped = !yield(info, err); stopped || failed {
					return err
				}
			}
			return nil
		})
		// What the store itself yielded as an error was passed on already; a
		// reader who stopped is told nothing more.
		if err != nil && !stopped && !failed {
			yield(store.Info{}, err)
		}
	}
}
