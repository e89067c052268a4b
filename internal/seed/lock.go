package seed

import (
	"context"
	"errors"
	"os"
	"time"
)

// errBusy says that somebody else has a lock.
var errBusy = errors.New("another process holds it")

// wait takes the lock on an open file or directory. It asks again and again,
// because a system call that waits cannot be interrupted. patience bounds the
// wait, with errBusy at its end; 0 is for ever. waiting is called once if there is a wait.
func wait(ctx context.Context, f *os.File, patience time.Duration, waiting func()) error {
	err := tryLock(f)
	if !errors.Is(err, errBusy) {
		return err
	}
	if waiting != nil {
		waiting()
	}
	var end <-chan time.Time
	if patience > 0 {
		t := time.NewTimer(patience)
		defer t.Stop()
		end = t.C
	}
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-end:
			return errBusy
		case <-again.C:
			if err := tryLock(f); !errors.Is(err, errBusy) {
				return err
			}
		}
	}
}
