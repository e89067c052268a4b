package retry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/disko/backupd/internal/store"
)

// maxYielded is how many keys a listing remembers, at about 26 bytes each. One
// that fails after more cannot be begun again.
const maxYielded = 1 << 20

// List implements store.Lister. A listing that fails in the middle is begun
// again, and what it has yielded is left out. The target promises no order, so
// that needs a set of the keys.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		if prefix != "" && !strings.HasSuffix(prefix, "/") {
			yield(store.Info{}, fmt.Errorf("list %q: a prefix ends in a slash", prefix))
			return
		}
		l := listing{trial: s.newTrial(operation{OpList, prefix, 0}), yield: yield, yielded: yielded{}}
		for {
			err := l.attempt(ctx)
			if len(l.yielded) > s.maxYielded && err != nil && !answered(err) {
				err = finalError{fmt.Errorf("list %q: failed after %d keys, too many to begin again: %w", prefix, len(l.yielded), err)}
			}
			over, err := l.trial.over(ctx, err)
			if over && err != nil {
				yield(store.Info{}, err)
			}
			if over {
				return
			}
		}
	}
}

type listing struct {
	trial   *trial
	yield   func(store.Info, error) bool
	yielded yielded
}

// attempt lists from the start. Its deadline is for the next key; the reader's
// own time does not count.
func (l *listing) attempt(ctx context.Context) error {
	l.trial.start()
	limit := l.trial.s.o.OpTimeout(OpList, 0)
	actx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := newDeadline(limit, cancel)
	defer timer.stop()
	for info, err := range l.trial.s.inner.List(actx, l.trial.op.key) {
		timer.stop()
		if err != nil {
			if errors.Is(context.Cause(actx), errDeadline) && ctx.Err() == nil {
				err = noAnswer(limit, err)
			}
			return err
		}
		if l.yielded.add(info.Key, l.trial.s.maxYielded) {
			l.trial.progress()
			if !l.yield(info, nil) {
				return nil // its reader has enough
			}
		}
		timer.start()
	}
	return nil
}

// yielded is a set of keys. 128 bits of SHA-256: a key that is taken for
// another would be missing from a listing, and whoever writes to the target
// chooses keys.
type yielded map[[16]byte]struct{}

// add says whether the key was not there. The set has one key more than most
// at the utmost.
func (y yielded) add(key string, most int) bool {
	sum := sha256.Sum256([]byte(key))
	id := [16]byte(sum[:16])
	if _, there := y[id]; there {
		return false
	}
	if len(y) <= most {
		y[id] = struct{}{}
	}
	return true
}

// errDeadline is the cause of an attempt's end by its own deadline.
var errDeadline = errors.New("deadline of an attempt")

// deadline cancels an attempt when it was not stopped in time.
type deadline struct {
	timer *time.Timer // nil: there is none
	limit time.Duration
}

func newDeadline(limit time.Duration, cancel context.CancelCauseFunc) deadline {
	if limit <= 0 {
		return deadline{}
	}
	return deadline{time.AfterFunc(limit, func() { cancel(errDeadline) }), limit}
}

func (d deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
}

func (d deadline) start() {
	if d.timer != nil {
		d.timer.Reset(d.limit)
	}
}
