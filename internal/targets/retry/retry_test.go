package retry

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/store/storetest"
	"github.com/disko/backupd/internal/targets/targetstest"
)

var errDown = errors.New("connection refused")

// at once: the suite cannot run on a virtual clock, for it has subtests.
var atOnce = Options{Base: 1, Max: 1}

func TestTheContractIsKeptOverAHealthyTarget(t *testing.T) {
	targetstest.Run(t, func(*testing.T) store.Writer { return New(storetest.NewMemory(), Options{}) })
}

func TestTheContractIsKeptWhereEverySecondOperationFails(t *testing.T) {
	for name, fault := range map[string]storetest.Fault{"before": storetest.FailBefore, "after": storetest.FailAfter} {
		for parity := range 2 {
			t.Run(fmt.Sprint(name, " ", parity), func(t *testing.T) {
				targetstest.Run(t, func(*testing.T) store.Writer {
					m := storetest.NewMemory()
					return New(&storetest.Faulty{Writer: m, Hook: func(op, key string, n int) storetest.Fault {
						// A Put that never reached an object of the same content
						// looks like one whose answer was lost, and succeeds:
						// see TestAnObjectOfTheSameContentCountsAsWritten.
						if n%2 == parity && (op != storetest.OpPut || m.Bytes(key) == nil) {
							return fault
						}
						return storetest.None
					}}, atOnce)
				})
			})
		}
	}
}

// faulty has an object "there", and fails as hook says.
func faulty(hook func(op, key string, n int) storetest.Fault) (*storetest.Memory, *storetest.Faulty) {
	m := storetest.NewMemory()
	m.SetBytes("there", []byte("there"))
	return m, &storetest.Faulty{Writer: m, Hook: hook}
}

// down fails whatever is asked before a moment.
func down(until time.Time) func(string, string, int) storetest.Fault {
	return func(string, string, int) storetest.Fault {
		if time.Now().Before(until) {
			return storetest.FailBefore.With(errDown)
		}
		return storetest.None
	}
}

// each does every operation once and hands its error over.
func each(ctx context.Context, s store.Writer, got func(op string, err error)) {
	_, err := s.Get(ctx, "there", 0, -1)
	got("get", err)
	_, err = s.Stat(ctx, "there")
	got("stat", err)
	got("put", s.Put(ctx, "new", []byte("new")))
	got("delete", s.Delete(ctx, "there"))
	_, err = list(ctx, s, "")
	got("list", err)
}

func list(ctx context.Context, s store.Lister, prefix string) (keys []string, err error) {
	for info, err := range s.List(ctx, prefix) {
		if err != nil {
			return keys, err
		}
		keys = append(keys, info.Key)
	}
	return keys, nil
}

func TestAnAnswerLostIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, f := faulty(func(op, _ string, n int) storetest.Fault {
			if op == storetest.OpPut && n < 2 {
				return storetest.FailAfter
			}
			return storetest.None
		})
		if err := New(f, Options{}).Put(t.Context(), "new", []byte("new")); err != nil {
			t.Error(err)
		}
		if string(m.Bytes("new")) != "new" {
			t.Errorf("it holds %q", m.Bytes("new"))
		}
	})
}

func TestAnObjectOfOtherContentIsNotTakenForOurs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, other := range []string{"", "NEW", "new and more", "ne"} {
			m, f := faulty(func(op, _ string, n int) storetest.Fault {
				if n == 0 {
					return storetest.FailBefore
				}
				return storetest.None
			})
			m.SetBytes("new", []byte(other))
			if err := New(f, Options{}).Put(t.Context(), "new", []byte("new")); !errors.Is(err, store.ErrExist) {
				t.Errorf("over %q: %v, want ErrExist", other, err)
			}
			if string(m.Bytes("new")) != other {
				t.Errorf("%q is now %q", other, m.Bytes("new"))
			}
		}
	})
}

func TestAnObjectOfTheSameContentCountsAsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for attempt, want := range []error{store.ErrExist, nil} {
			_, f := faulty(func(_, _ string, n int) storetest.Fault {
				if n < attempt {
					return storetest.FailBefore
				}
				return storetest.None
			})
			if err := New(f, Options{}).Put(t.Context(), "there", []byte("there")); !errors.Is(err, want) {
				t.Errorf("at attempt %d: %v, want %v", attempt+1, err, want)
			}
		}
	})
}

// An agent that may only write cannot ask what became of its Put.
func TestAnObjectThatCannotBeReadBackIsNotCalledTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, f := faulty(func(op, _ string, n int) storetest.Fault {
			switch {
			case n == 0:
				return storetest.FailAfter
			case op != storetest.OpPut:
				return storetest.FailBefore.With(store.ErrAccess)
			}
			return storetest.None
		})
		err := New(f, Options{}).Put(t.Context(), "new", []byte("new"))
		if errors.Is(err, store.ErrExist) || !errors.Is(err, store.ErrAccess) {
			t.Errorf("%v, want ErrAccess and not ErrExist", err)
		}
	})
}

type selfMade struct {
	permanent bool
	after     time.Duration
}

func (selfMade) Error() string               { return "of its own kind" }
func (e selfMade) Permanent() bool           { return e.permanent }
func (e selfMade) RetryAfter() time.Duration { return e.after }

func TestWhatIsForGoodIsSaidAtOnce(t *testing.T) {
	for _, cause := range []error{
		store.ErrNotExist, store.ErrExist, store.ErrNoTarget, store.ErrNoSpace, store.ErrAccess, store.ErrShort,
		selfMade{permanent: true},
		context.Canceled, context.DeadlineExceeded,
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			if errors.Is(cause, context.DeadlineExceeded) {
				var stop context.CancelFunc
				ctx, stop = context.WithTimeout(ctx, 0)
				defer stop()
			}
			if errors.Is(cause, context.Canceled) {
				cancel(nil)
			}
			_, f := faulty(func(string, string, int) storetest.Fault { return storetest.FailBefore.With(cause) })
			start, calls := time.Now(), 0
			each(ctx, New(f, Options{}), func(op string, err error) {
				calls++
				if !errors.Is(err, cause) || f.Ops() != calls {
					t.Errorf("%s: %v after %d operations, want %v after %d", op, err, f.Ops(), cause, calls)
				}
			})
			if took := time.Since(start); took != 0 {
				t.Errorf("it took %v", took)
			}
			cancel(nil)
		})
	}
}

func TestAForeignCancellationIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, cause := range []error{context.Canceled, context.DeadlineExceeded, selfMade{}} {
			_, f := faulty(func(_, _ string, n int) storetest.Fault {
				if n%2 == 0 {
					return storetest.FailBefore.With(cause)
				}
				return storetest.None
			})
			each(t.Context(), New(f, Options{}), func(op string, err error) {
				if err != nil {
					t.Errorf("%s: %v", op, err)
				}
			})
		}
	})
}

func TestBadNamesNeverReachTheTarget(t *testing.T) {
	_, f := faulty(nil)
	s := New(f, Options{})
	if _, err := s.Get(t.Context(), "there", -1, 1); err == nil {
		t.Error("an offset of -1 is no error")
	}
	if _, err := list(t.Context(), s, "no-slash"); err == nil {
		t.Error("a prefix without a slash is no error")
	}
	if err := s.Delete(t.Context(), "../x"); err == nil {
		t.Error("../x is no error")
	}
	if f.Ops() > 0 {
		t.Errorf("%d operations", f.Ops())
	}
}

func TestWaitingEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, f := faulty(down(time.Now().Add(time.Hour)))
		s := New(f, Options{Base: time.Hour, Max: time.Hour, Outage: 9 * time.Hour})
		for range 20 {
			ctx, cancel := context.WithCancel(t.Context())
			start := time.Now()
			time.AfterFunc(time.Millisecond, cancel)
			each(ctx, s, func(op string, err error) {
				if !errors.Is(err, context.Canceled) {
					t.Errorf("%s: %v", op, err)
				}
			})
			if took := time.Since(start); took > time.Millisecond {
				t.Errorf("it took %v", took)
			}
		}
	})
}

func TestCancellingSaysWhatFailedBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, f := faulty(down(time.Now().Add(time.Hour)))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := New(f, Options{}).Stat(ctx, "there")
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errDown) {
			t.Error(err)
		}
	})
}

func TestCancellingAnAttemptIsNotGivingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hanging{Writer: storetest.NewMemory(), first: 1}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		err := New(h, Options{Attempts: 1}).Put(ctx, "new", nil)
		if !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "given up") {
			t.Error(err)
		}
	})
}

func TestAnOutageOfFiveMinutesIsSurvived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, f := faulty(nil)
		s := New(f, Options{})
		start := time.Now()
		f.Hook = down(start.Add(5 * time.Minute))
		// Many at once: an outage is one, whatever the number it meets.
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				if err := s.Put(t.Context(), fmt.Sprint("new/", i), []byte("x")); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took < 5*time.Minute || took > 6*time.Minute {
			t.Errorf("it took %v", took)
		}
		if n := len(m.Keys()); n != 101 {
			t.Errorf("%d objects", n)
		}
	})
}

func TestAnOutageOfTwentyMinutesEndsWithAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		m, f := faulty(down(start.Add(20 * time.Minute)))
		err := New(f, Options{}).Put(t.Context(), "new", []byte("new"))
		if took := time.Since(start); took != 15*time.Minute {
			t.Errorf("it took %v, want the whole outage and no more", took)
		}
		if !errors.Is(err, errDown) || m.Bytes("new") != nil {
			t.Error(err)
		}
		for _, part := range []string{"put new: connection refused", fmt.Sprint("after ", f.Ops(), " attempts in 15m0s"), "memory", "run it again"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q lacks %q", err, part)
			}
		}
		// Two decorators do not multiply.
		var p interface{ Permanent() bool }
		if !errors.As(err, &p) || !p.Permanent() {
			t.Error("it would be repeated by another decorator")
		}
	})
}

// The last attempt comes when the outage's time is over, not before: what was
// shorter ends nothing, whatever the dice say.
func TestNoOutageShorterThanTheLimitEndsAnOperation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 200 {
			_, f := faulty(down(time.Now().Add(15*time.Minute - 1)))
			if _, err := New(f, Options{}).Stat(t.Context(), "there"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestWaitsAreJitteredWithinTheirBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bounds := []time.Duration{100, 200, 400, 800, 1000, 1000, 1000}
		longest := make([]time.Duration, len(bounds))
		shortest := slices.Repeat([]time.Duration{time.Hour}, len(bounds))
		for range 1000 {
			var at []time.Time
			_, f := faulty(func(string, string, int) storetest.Fault {
				at = append(at, time.Now())
				return storetest.FailBefore
			})
			s := New(f, Options{Base: 100 * time.Millisecond, Max: time.Second, Attempts: len(bounds) + 1})
			if _, err := s.Stat(t.Context(), "there"); !errors.Is(err, storetest.ErrFault) || !strings.Contains(err.Error(), "8 attempts") {
				t.Fatal(err)
			}
			if len(at) != len(bounds)+1 {
				t.Fatalf("%d attempts", len(at))
			}
			for i := range bounds {
				wait := at[i+1].Sub(at[i])
				longest[i], shortest[i] = max(longest[i], wait), min(shortest[i], wait)
			}
		}
		for i, bound := range bounds {
			bound *= time.Millisecond
			// A thousand throws come near both ends.
			if longest[i] > bound || longest[i] < bound*95/100 || shortest[i] > bound*5/100 {
				t.Errorf("retry %d: waits from %v to %v, want 0 to %v", i, shortest[i], longest[i], bound)
			}
		}
	})
}

func TestTheServersWishIsHeededWithinBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for asked, want := range map[time.Duration]time.Duration{
			-time.Hour: 0, 0: 0, time.Minute: time.Minute, 24 * time.Hour: 2 * time.Minute,
		} {
			_, f := faulty(func(_, _ string, n int) storetest.Fault {
				if n == 0 {
					return storetest.FailBefore.With(selfMade{after: asked})
				}
				return storetest.None
			})
			start := time.Now()
			_, err := New(f, Options{Base: time.Second}).Stat(t.Context(), "there")
			if took := time.Since(start); err != nil || took < want || took > want+time.Second {
				t.Errorf("asked for %v: %v, waited %v", asked, err, took)
			}
		}
	})
}

func TestAWishForThePastDoesNotHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, f := faulty(func(_, _ string, n int) storetest.Fault {
			if n < 20 {
				return storetest.FailBefore.With(selfMade{after: -time.Hour})
			}
			return storetest.None
		})
		start := time.Now()
		if _, err := New(f, Options{}).Stat(t.Context(), "there"); err != nil || time.Since(start) < time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestATargetThatFailsTooOftenEndsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			every int // which operation fails
			lasts bool
		}{{2, false}, {5, false}, {20, true}} {
			const healthy = 10000 // before; they save nothing up
			_, f := faulty(func(_, _ string, n int) storetest.Fault {
				if n >= healthy && n%c.every == 0 {
					return storetest.FailBefore.With(errDown)
				}
				return storetest.None
			})
			s := New(f, Options{})
			for range healthy {
				if _, err := s.Stat(t.Context(), "there"); err != nil {
					t.Fatal(err)
				}
			}
			var err error
			done := 0
			for ; done < 10000 && err == nil; done++ {
				_, err = s.Stat(t.Context(), "there")
			}
			if c.lasts != (err == nil) {
				t.Errorf("every %d.: %v after %d operations", c.every, err, done)
			}
			if err != nil && (!errors.Is(err, errDown) || !strings.Contains(err.Error(), "too often") || done < 300 || done > 500*c.every) {
				t.Errorf("every %d.: %v after %d operations", c.every, err, done)
			}
		}
		_, f := faulty(func(_, _ string, n int) storetest.Fault {
			if n%2 == 0 {
				return storetest.FailBefore
			}
			return storetest.None
		})
		s := New(f, Options{Budget: -1})
		for range 2000 {
			if _, err := s.Stat(t.Context(), "there"); err != nil {
				t.Fatalf("without a bound: %v", err)
			}
		}
	})
}

// hanging does not answer its first operations until their context ends.
type hanging struct {
	store.Writer
	first int
	n     int
	waits []time.Duration
}

func (h *hanging) hang(ctx context.Context) error {
	if h.n++; h.n > h.first {
		return nil
	}
	start := time.Now()
	<-ctx.Done()
	h.waits = append(h.waits, time.Since(start))
	return fmt.Errorf("hung: %w", ctx.Err())
}

func (h *hanging) Put(ctx context.Context, key string, data []byte) error {
	if err := h.hang(ctx); err != nil {
		return err
	}
	return h.Writer.Put(ctx, key, data)
}

func (h *hanging) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		for info, err := range h.Writer.List(ctx, prefix) {
			if !yield(info, err) {
				return
			}
			if err := h.hang(ctx); err != nil {
				yield(store.Info{}, err)
				return
			}
		}
	}
}

func TestAnAttemptThatHangsIsEndedAndRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hanging{Writer: storetest.NewMemory(), first: 2}
		s := New(h, Options{})
		if err := s.Put(t.Context(), "new", []byte("new")); err != nil {
			t.Fatal(err)
		}
		if want := slices.Repeat([]time.Duration{DefaultTimeout(OpPut, 3)}, 2); !slices.Equal(h.waits, want) {
			t.Errorf("attempts ended after %v, want %v", h.waits, want)
		}
		h.first, h.n = 1000, 0
		start := time.Now()
		err := s.Put(t.Context(), "other", []byte("new"))
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took > defaultOutage+2*DefaultTimeout(OpPut, 3) {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// slow moves bytes at a rate.
type slow struct {
	store.Writer
	rate int
}

func (s *slow) Put(ctx context.Context, key string, data []byte) error {
	timer := time.NewTimer(time.Duration(len(data)) * time.Second / time.Duration(s.rate))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return s.Writer.Put(ctx, key, data)
	}
}

func TestASlowLineIsNoOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &slow{Writer: storetest.NewMemory(), rate: 40 << 10}
		s := New(f, Options{})
		pack := make([]byte, 16<<20)
		var took [3]time.Duration
		for i := range took {
			start := time.Now()
			if err := s.Put(t.Context(), fmt.Sprint(i), pack); err != nil {
				t.Fatal(err)
			}
			took[i] = time.Since(start)
		}
		// The first found out how slow it is; the others know.
		if want := 16 << 20 * time.Second / (40 << 10); took[1] != want || took[2] != want {
			t.Errorf("%v, want %v", took[1:], want)
		}
		// Back on a fast line a hang is noticed as soon as ever, after a while.
		f.rate = 1 << 30
		for i := range 10 {
			if err := s.Put(t.Context(), fmt.Sprint("fast", i), pack); err != nil {
				t.Fatal(err)
			}
		}
		if n := s.patience.factor(16 << 20); n != 1 {
			t.Errorf("deadlines are still %d times as long", n)
		}
	})
}

func TestPatienceDoesNotOutlastTheOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(&slow{Writer: storetest.NewMemory(), rate: 1}, Options{})
		pack := make([]byte, 16<<20)
		for range 5 {
			start := time.Now()
			err := s.Put(t.Context(), "x", pack)
			first := DefaultTimeout(OpPut, 16<<20) * maxPatience
			if took := time.Since(start); err == nil || took > first+defaultOutage+DefaultTimeout(OpPut, 16<<20) {
				t.Errorf("%v after %v", err, took)
			}
		}
	})
}

func TestDeadlinesFollowTheSize(t *testing.T) {
	for bytes, want := range map[int64]time.Duration{
		0: 90 * time.Second, 1 << 20: 98 * time.Second, 16 << 20: 218 * time.Second, -1: 602 * time.Second,
		1 << 62: (90 + 8192) * time.Second,
	} {
		if got := DefaultTimeout(OpGet, bytes); got != want {
			t.Errorf("%d bytes: %v, want %v", bytes, got, want)
		}
	}
}

func TestAListingThatBreaksYieldsEachKeyOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := storetest.NewMemory()
		for i := range 1000 {
			m.SetBytes(fmt.Sprintf("d/%d", i), nil)
		}
		// Each attempt comes 100 keys further, in an order of its own.
		broken := &unordered{Memory: m, breaks: func(attempt, n int) bool { return n == 100*attempt && attempt < 9 }}
		keys, err := list(t.Context(), New(broken, Options{}), "d/")
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(keys)
		if !slices.Equal(keys, m.Keys()) {
			t.Errorf("%d keys, %d different", len(keys), len(slices.Compact(keys)))
		}
	})
}

// Attempts that advance are no outage, however long they take altogether.
func TestAListingThatAdvancesMayFailLongerThanAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := storetest.NewMemory()
		for i := range 100 {
			m.SetBytes(fmt.Sprintf("d/%02d", i), nil)
		}
		h := &hanging{Writer: m, first: 100 * 100}
		// The n-th attempt hangs after its first key that is new: a memory's
		// order is that of the keys.
		o := Options{}
		start := time.Now()
		s := New(&resuming{hanging: h}, o)
		keys, err := list(t.Context(), s, "d/")
		if err != nil || len(keys) != 100 {
			t.Errorf("%d keys, %v", len(keys), err)
		}
		if took := time.Since(start); took < 2*defaultOutage {
			t.Errorf("it took %v only", took)
		}
	})
}

// resuming hangs after one key more at each attempt.
type resuming struct {
	*hanging
	attempts int
}

func (r *resuming) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		r.attempts++
		n := 0
		for info, err := range r.Writer.List(ctx, prefix) {
			if n == r.attempts {
				yield(store.Info{}, r.hang(ctx))
				return
			}
			if n++; !yield(info, err) {
				return
			}
		}
	}
}

// unordered lists in the order of a map and breaks off after n keys.
type unordered struct {
	*storetest.Memory
	attempt int
	breaks  func(attempt, n int) bool
}

func (u *unordered) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		u.attempt++
		all := map[string]store.Info{}
		for info, err := range u.Memory.List(ctx, prefix) {
			if err != nil {
				yield(info, err)
				return
			}
			all[info.Key] = info
		}
		n := 0
		for info := range maps.Values(all) {
			if u.breaks(u.attempt, n) {
				yield(store.Info{}, errDown)
				return
			}
			if n++; !yield(info, nil) {
				return
			}
		}
	}
}

func TestAReadersBreakEndsAListingAndItsRepeating(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, f := faulty(func(_, _ string, n int) storetest.Fault {
			if n == 0 {
				return storetest.FailAfter
			}
			return storetest.None
		})
		for i := range 10 {
			m.SetBytes(fmt.Sprint("d/", i), nil)
		}
		s := New(f, Options{})
		n := 0
		for _, err := range s.List(t.Context(), "d/") {
			if err != nil {
				t.Fatal(err)
			}
			if n++; n == 5 {
				break
			}
		}
		if n != 5 || f.Ops() != 1 {
			t.Errorf("%d keys in %d operations", n, f.Ops())
		}
	})
}

func TestTheReadersOwnTimeIsNotTheTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, f := faulty(nil)
		for i := range 10 {
			m.SetBytes(fmt.Sprint("d/", i), nil)
		}
		for _, err := range New(f, Options{}).List(t.Context(), "d/") {
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
		}
		if f.Ops() != 1 {
			t.Errorf("%d operations", f.Ops())
		}
	})
}

func TestAListingThatHangsIsEndedAndBegunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := storetest.NewMemory()
		for i := range 10 {
			m.SetBytes(fmt.Sprint("d/", i), nil)
		}
		h := &hanging{Writer: m, first: 1}
		keys, err := list(t.Context(), New(h, Options{}), "d/")
		if err != nil || len(keys) != 10 {
			t.Errorf("%q, %v", keys, err)
		}
		if len(h.waits) != 1 || h.waits[0] != timeoutBase {
			t.Errorf("ended after %v", h.waits)
		}
	})
}

// endless yields more keys than a listing may remember, and breaks off.
type endless struct {
	store.Writer
	keys     int
	listings int
}

func (e *endless) List(context.Context, string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		e.listings++
		for i := range e.keys {
			if !yield(store.Info{Key: strconv.Itoa(i)}, nil) {
				return
			}
		}
		yield(store.Info{}, errDown)
	}
}

func TestAListingTooLongToRememberIsNotBegunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endless{Writer: storetest.NewMemory(), keys: 1010}
		s := New(e, Options{})
		s.maxYielded = 1000
		n, failed := 0, error(nil)
		for _, err := range s.List(t.Context(), "") {
			if failed = err; err == nil {
				n++
			}
		}
		if n != e.keys || !errors.Is(failed, errDown) || e.listings != 1 {
			t.Errorf("%d keys in %d listings, %v", n, e.listings, failed)
		}
	})
}

func TestAnOutageIsToldOnceAndItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events []Event
		_, f := faulty(nil)
		s := New(f, Options{Notify: func(e Event) { events = append(events, e) }})
		start := time.Now()
		f.Hook = down(start.Add(3 * time.Minute))
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, err := s.Stat(t.Context(), "there"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(events) != 2 || events[0].Err == nil || events[1].Err != nil {
			t.Fatalf("%v", events)
		}
		if e := events[0]; !errors.Is(e.Err, errDown) || e.Since != start || e.Until != start.Add(15*time.Minute) || e.Now.Sub(start) < quiet || e.Now.Sub(start) > time.Minute {
			t.Errorf("%+v", e)
		}
		want := fmt.Sprintf("target memory does not answer (stat there: connection refused); trying on until %s", start.Add(15*time.Minute).Format("15:04"))
		if got := events[0].String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		if got := events[1].String(); !strings.HasPrefix(got, "target memory answers again, after 3m") {
			t.Errorf("%q", got)
		}
	})
}

func TestABriefFaultIsNotTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, f := faulty(nil)
		s := New(f, Options{Notify: func(e Event) { t.Errorf("%v", e) }})
		for range 100 {
			f.Hook = down(time.Now().Add(time.Second))
			if _, err := s.Stat(t.Context(), "there"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// What a listing has spent on yielding is no outage.
func TestALongListingThatBreaksBrieflyIsNotTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := storetest.NewMemory()
		for i := range 10 {
			m.SetBytes(fmt.Sprint("d/", i), nil)
		}
		broken := &unordered{Memory: m, breaks: func(attempt, n int) bool { return n == 9 && attempt == 1 }}
		n := 0
		for _, err := range New(broken, Options{Notify: func(e Event) { t.Errorf("%v", e) }}).List(t.Context(), "d/") {
			if n++; err != nil {
				t.Fatal(err)
			}
			if n < 9 {
				time.Sleep(time.Minute)
			}
		}
		if n != 10 {
			t.Errorf("%d keys", n)
		}
	})
}

// A proxy that cuts long uploads lets the short ones through meanwhile.
func TestAnOutageOfOneKeyIsToldOnceThoughOthersSucceed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []bool
		end := time.Now().Add(5 * time.Minute)
		_, f := faulty(func(op, _ string, _ int) storetest.Fault {
			if op == storetest.OpPut && time.Now().Before(end) {
				return storetest.FailBefore.With(errDown)
			}
			return storetest.None
		})
		s := New(f, Options{Notify: func(e Event) { told = append(told, e.Err != nil) }})
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := s.Put(t.Context(), "new", nil); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			for time.Now().Before(end) {
				if _, err := s.Stat(t.Context(), "there"); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Second)
			}
		})
		wg.Wait()
		if !slices.Equal(told, []bool{true, false}) {
			t.Errorf("told: %v", told)
		}
	})
}

func TestWhatEndsWithAnErrorIsNotToldToBeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events []Event
		_, f := faulty(down(time.Now().Add(time.Hour)))
		s := New(f, Options{Notify: func(e Event) { events = append(events, e) }})
		_, err := s.Stat(t.Context(), "there")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err2 := s.Stat(ctx, "there")
		if err == nil || err2 == nil || len(events) != 2 || events[0].Err == nil || events[1].Err == nil {
			t.Errorf("%v, %v, %v", err, err2, events)
		}
		time.Sleep(time.Hour)
		if _, err := s.Stat(t.Context(), "there"); err != nil || len(events) != 2 {
			t.Errorf("%v, %v", err, events)
		}
	})
}

func TestAnErrorWithoutTheKeyGetsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(&slow{Writer: storetest.NewMemory(), rate: 1}, Options{})
		err := s.Put(t.Context(), "dir/object", make([]byte, 1000))
		if err == nil || !strings.HasPrefix(err.Error(), "write dir/object: no answer within 1m30s: context deadline exceeded; given up after ") {
			t.Error(err)
		}
	})
}

type closer struct {
	store.Writer
	closed int
}

func (c *closer) Close() error { c.closed++; return errDown }

func TestCloseClosesTheTarget(t *testing.T) {
	c := &closer{Writer: storetest.NewMemory()}
	if err := New(c, Options{}).Close(); !errors.Is(err, errDown) || c.closed != 1 {
		t.Errorf("%v, closed %d times", err, c.closed)
	}
	if err := New(storetest.NewMemory(), Options{}).Close(); err != nil {
		t.Error(err)
	}
}
