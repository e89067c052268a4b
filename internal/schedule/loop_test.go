package schedule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// machine is a computer whose clock tests may set, with a log of what ran.
type machine struct {
	t     *testing.T
	skew  atomic.Int64 // nanoseconds
	log   strings.Builder
	mu    sync.Mutex // two lanes may end at once
	runs  []string
	dues  []Due
	takes time.Duration // a run
	err   error
	last  map[string]time.Time
	loc   *time.Location
}

func (m *machine) now() time.Time { return time.Now().Add(time.Duration(m.skew.Load())).In(m.loc) }

func (m *machine) set(text string) {
	m.t.Helper()
	at, err := time.ParseInLocation(time.DateTime, text, m.loc)
	if err != nil {
		m.t.Fatal(err)
	}
	m.skew.Store(int64(time.Until(at)))
}

// until lets time pass until the machine's clock shows a time.
func (m *machine) until(text string) {
	m.t.Helper()
	at, err := time.ParseInLocation(time.DateTime, text, m.loc)
	if err != nil {
		m.t.Fatal(err)
	}
	time.Sleep(at.Sub(m.now()))
	synctest.Wait()
}

func (m *machine) Last(_ context.Context, job string) (time.Time, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, ok := m.last[job]
	return at, ok
}

func (m *machine) job(name, expr string) Job {
	m.t.Helper()
	return Job{Name: name, Schedule: parse(m.t, expr, m.loc.String()), Run: func(ctx context.Context, due Due) error {
		started := m.now()
		m.mu.Lock()
		m.runs = append(m.runs, name+" "+started.Format("02 15:04:05"))
		m.dues = append(m.dues, due)
		m.mu.Unlock()
		select {
		case <-time.After(m.takes):
		case <-ctx.Done():
			m.mu.Lock()
			m.runs = append(m.runs, name+" stops "+m.now().Format("02 15:04:05"))
			m.mu.Unlock()
			return context.Cause(ctx)
		}
		m.mu.Lock()
		m.last[name] = started
		m.mu.Unlock()
		return m.err
	}}
}

// loop runs a loop until the test's function returns.
func (m *machine) loop(jobs []Job, o Options, test func()) {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.t.Context())
	o.Now, o.History = m.now, m
	o.Log = slog.New(slog.NewTextHandler(&m.log, nil))
	ended := make(chan error, 1)
	go func() { ended <- Loop(ctx, jobs, o) }()
	synctest.Wait()
	test()
	cancel()
	synctest.Wait()
	select {
	case err := <-ended:
		if err != nil {
			m.t.Error(err)
		}
	default:
		m.t.Error("the loop goes on after its context has ended")
	}
}

func (m *machine) want(runs ...string) {
	m.t.Helper()
	if !slices.Equal(m.runs, runs) {
		m.t.Errorf("ran %q instead of %q\n%s", m.runs, runs, &m.log)
	}
}

func (m *machine) logged(text string, times int) {
	m.t.Helper()
	if n := strings.Count(m.log.String(), text); n != times {
		m.t.Errorf("%q is logged %d times instead of %d:\n%s", text, n, times, &m.log)
	}
}

// on runs a test on a machine in a bubble of time.
func on(t *testing.T, zoneName, start string, test func(m *machine)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := &machine{t: t, takes: time.Minute, last: map[string]time.Time{}, loc: zone(t, zoneName)}
		m.set(start)
		test(m)
	})
}

func TestAYearOfTheLoopHasOneRunANight(t *testing.T) {
	for _, y := range years {
		on(t, y.zone, fmt.Sprintf("%d-01-01 12:00:00", y.year), func(m *machine) {
			jobs := []Job{m.job("night", "30 2 * * *"), m.job("midnight", "0 0 * * *")}
			m.loop(jobs, Options{Recheck: 30 * time.Minute}, func() { m.until(fmt.Sprintf("%d-12-31 12:00:00", y.year)) })
			count := map[string]int{}
			for i, run := range m.runs {
				name, _, _ := strings.Cut(run, " ")
				count[name]++
				if m.dues[i].MadeUp || m.dues[i].Missed > 0 {
					t.Errorf("%s: %s is %+v", y.zone, run, m.dues[i])
				}
			}
			nights := time.Date(y.year, 12, 31, 0, 0, 0, 0, time.UTC).YearDay() - 1
			if y.zone == "Pacific/Apia" {
				nights--
			}
			if count["night"] != nights || count["midnight"] != nights {
				t.Errorf("%s (%s): %v runs in %d nights", y.zone, y.odd, count, nights)
			}
		})
	}
}

func TestAMissedRunIsMadeUpOnceAtStart(t *testing.T) {
	on(t, "Europe/Berlin", "2026-11-26 09:00:00", func(m *machine) {
		m.last["nightly"] = time.Date(2026, 11, 20, 3, 0, 0, 0, m.loc)
		m.loop([]Job{m.job("nightly", "0 3 * * *")}, Options{}, func() { m.until("2026-11-27 12:00:00") })
		m.want("nightly 26 09:00:00", "nightly 27 03:00:00")
		if want := (Due{At: time.Date(2026, 11, 21, 3, 0, 0, 0, m.loc), MadeUp: true, Missed: 5}); !m.dues[0].At.Equal(want.At) || !m.dues[0].MadeUp || m.dues[0].Missed != want.Missed {
			t.Errorf("%+v", m.dues[0])
		}
		if m.dues[1].MadeUp {
			t.Errorf("%+v", m.dues[1])
		}
		m.logged("made up", 1)
	})
}

func TestNothingIsMadeUpThatWasNotMissed(t *testing.T) {
	on(t, "Europe/Berlin", "2026-11-26 09:00:00", func(m *machine) {
		m.last["nightly"] = time.Date(2026, 11, 26, 3, 0, 0, 0, m.loc)
		m.last["interval"] = time.Date(2026, 11, 26, 8, 0, 0, 0, m.loc)
		jobs := []Job{m.job("nightly", "0 3 * * *"), m.job("new", "0 4 * * *"), m.job("interval", "@every 6h"), m.job("never", "@never")}
		m.loop(jobs, Options{}, func() { m.until("2026-11-26 23:00:00") })
		m.want("interval 26 14:00:00", "interval 26 20:00:00")
	})
}

// The next process makes up what this one did not finish.
func TestARunThatIsBrokenOffIsMadeUpByTheNextProcess(t *testing.T) {
	on(t, "Europe/Berlin", "2026-11-26 00:00:00", func(m *machine) {
		m.last["nightly"] = time.Date(2026, 11, 25, 3, 0, 0, 0, m.loc)
		m.takes = time.Hour
		m.loop([]Job{m.job("nightly", "0 3 * * *")}, Options{}, func() { m.until("2026-11-26 03:10:00") })
		m.logged("broken off", 1)
		m.logged("run failed", 0)
		m.loop([]Job{m.job("nightly", "0 3 * * *")}, Options{}, func() { m.until("2026-11-26 12:00:00") })
		m.want("nightly 26 03:00:00", "nightly stops 26 03:10:00", "nightly 26 03:10:00")
	})
}

func TestTheLoopWaitsForARunThatHasToCleanUp(t *testing.T) {
	on(t, "UTC", "2026-11-26 02:59:00", func(m *machine) {
		cleaned := false
		job := m.job("nightly", "0 3 * * *")
		job.Run = func(ctx context.Context, _ Due) error {
			<-ctx.Done()
			time.Sleep(8 * time.Second) // starts services again
			cleaned = true
			return ctx.Err()
		}
		ctx, cancel := context.WithCancel(m.t.Context())
		ended := make(chan error)
		go func() {
			ended <- Loop(ctx, []Job{job}, Options{Now: m.now, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
		}()
		m.until("2026-11-26 03:10:00")
		cancel()
		if err := <-ended; err != nil || !cleaned {
			t.Errorf("%v, cleaned %v", err, cleaned)
		}
	})
}

func TestRunsOfOneStackNeverOverlap(t *testing.T) {
	on(t, "UTC", "2026-11-26 00:00:00", func(m *machine) {
		m.takes = 90 * time.Minute
		other := m.job("other", "0 1 * * *")
		other.Lane = "wiki"
		jobs := []Job{m.job("third", "30 1 * * *"), m.job("second", "10 1 * * *"), m.job("first", "0 1 * * *"), other}
		var busiest int
		beat := func(s Status) { busiest = max(busiest, len(s.Running)) }
		m.loop(jobs, Options{Beat: beat}, func() { m.until("2026-11-26 12:00:00") })
		slices.Sort(m.runs[:2]) // two lanes begin at once
		m.want("first 26 01:00:00", "other 26 01:00:00", "second 26 02:30:00", "third 26 04:00:00")
		m.logged("run waits for another", 2)
		if busiest != 2 {
			t.Errorf("%d runs at the same time in two lanes", busiest)
		}
	})
}

func TestARunThatIsDueDuringTheLastIsSkippedAndSaid(t *testing.T) {
	on(t, "UTC", "2026-11-26 00:30:00", func(m *machine) {
		m.takes = 150 * time.Minute
		m.loop([]Job{m.job("hourly", "@hourly")}, Options{}, func() { m.until("2026-11-26 06:30:00") })
		m.want("hourly 26 01:00:00", "hourly 26 04:00:00")
		m.logged("run skipped: the last one is still under way", 4)
	})
}

func TestATimeoutEndsARunAndIsItsError(t *testing.T) {
	on(t, "UTC", "2026-11-26 00:00:00", func(m *machine) {
		m.takes = 5 * time.Hour
		job := m.job("nightly", "0 3 * * *")
		job.Timeout = time.Hour
		m.loop([]Job{job}, Options{}, func() { m.until("2026-11-26 12:00:00") })
		m.want("nightly 26 03:00:00", "nightly stops 26 04:00:00")
		m.logged("not done within 1h0m0s", 1)
	})
}

func TestAFailedRunIsLoggedAndTheNextNightComes(t *testing.T) {
	on(t, "UTC", "2026-11-26 00:00:00", func(m *machine) {
		m.err = errors.New("no space left")
		m.loop([]Job{m.job("nightly", "0 3 * * *")}, Options{}, func() { m.until("2026-11-28 00:00:00") })
		m.want("nightly 26 03:00:00", "nightly 27 03:00:00")
		m.logged(`level=ERROR msg="run failed"`, 2)
	})
}

func TestRunsStartWithinTheirJitterAndADayApart(t *testing.T) {
	on(t, "UTC", "2026-11-26 00:00:00", func(m *machine) {
		job := m.job("nightly", "0 3 * * *")
		job.Jitter = 30 * time.Minute
		offset := Offset("shop\x00nightly", job.Jitter)
		if offset == 0 {
			t.Fatal("choose another name")
		}
		m.loop([]Job{job}, Options{Seed: "shop"}, func() { m.until("2026-11-28 00:00:00") })
		late := func(day int) string {
			return "nightly " + time.Date(2026, 11, day, 3, 0, 0, 0, m.loc).Add(offset).Format("02 15:04:05")
		}
		m.want(late(26), late(27))
		// A process that starts between the time and its jitter is not late.
		m.runs = nil
		m.set("2026-11-28 03:00:10")
		m.loop([]Job{job}, Options{Seed: "shop"}, func() { m.until("2026-11-28 12:00:00") })
		m.want(late(28))
		m.logged("made up", 0)
	})
}

func TestAMachineThatSleptMakesUpOneRun(t *testing.T) {
	on(t, "UTC", "2026-11-26 00:00:00", func(m *machine) {
		m.loop([]Job{m.job("nightly", "0 3 * * *"), m.job("hourly", "30 * * * *")}, Options{}, func() {
			m.until("2026-11-26 01:00:00")
			m.skew.Add(int64(55 * time.Hour)) // closed for two days and more
			m.until("2026-11-28 08:10:00")
			m.until("2026-11-29 03:10:00")
		})
		m.want("hourly 26 00:30:00", "hourly 28 08:00:30", "nightly 28 08:01:30", "hourly 28 08:30:00", "hourly 28 09:30:00",
			"hourly 28 10:30:00", "hourly 28 11:30:00", "hourly 28 12:30:00", "hourly 28 13:30:00", "hourly 28 14:30:00", "hourly 28 15:30:00",
			"hourly 28 16:30:00", "hourly 28 17:30:00", "hourly 28 18:30:00", "hourly 28 19:30:00", "hourly 28 20:30:00", "hourly 28 21:30:00",
			"hourly 28 22:30:00", "hourly 28 23:30:00", "hourly 29 00:30:00", "hourly 29 01:30:00", "hourly 29 02:30:00", "nightly 29 03:00:00")
		m.logged("the clock went ahead", 1)
	})
}

func TestAClockThatIsSetBackDoublesNoNight(t *testing.T) {
	on(t, "UTC", "2026-11-26 00:00:00", func(m *machine) {
		m.loop([]Job{m.job("nightly", "0 3 * * *"), m.job("weekly", "0 12 * * 4")}, Options{}, func() {
			m.until("2026-11-26 03:30:00")
			m.skew.Add(-int64(time.Hour))
			m.until("2026-11-27 12:00:00")
		})
		m.want("nightly 26 03:00:00", "weekly 26 12:00:00", "nightly 27 03:00:00")
		m.logged("the clock was set back", 1)
	})
}

// A board without a clock of its own starts in some wrong year.
func TestAClockThatWasYearsAheadIsFollowedBack(t *testing.T) {
	on(t, "UTC", "2036-01-01 00:00:00", func(m *machine) {
		jobs := []Job{m.job("nightly", "0 3 * * *"), m.job("hourly", "@hourly")}
		m.loop(jobs, Options{}, func() {
			m.until("2036-01-01 03:30:00")
			m.runs = nil
			m.set("2026-11-26 02:30:00")
			m.until("2026-11-26 03:30:00")
		})
		m.want("nightly 26 03:00:00", "hourly 26 03:01:00")
		// The next process finds runs of 2036 in its history.
		m.runs, m.last["nightly"] = nil, time.Date(2036, 1, 1, 3, 0, 0, 0, m.loc)
		m.loop(jobs[:1], Options{}, func() { m.until("2026-11-27 12:00:00") })
		m.want("nightly 27 03:00:00")
		m.logged("lies in the future", 1)
	})
}

func TestNewJobsTakeOverWhileARunGoesOn(t *testing.T) {
	on(t, "UTC", "2026-11-26 00:00:00", func(m *machine) {
		m.takes = time.Hour
		changes := make(chan []Job)
		m.loop([]Job{m.job("nightly", "0 3 * * *"), m.job("gone", "0 5 * * *")}, Options{Changes: changes}, func() {
			m.until("2026-11-26 03:10:00")
			changes <- []Job{m.job("nightly", "30 3 * * *"), m.job("new", "20 3 * * *")}
			m.until("2026-11-26 03:40:00")
			changes <- []Job{m.job("a", "@daily"), m.job("a", "@daily")}
			m.until("2026-11-26 12:00:00")
		})
		// The run of 03:00 is not cut off and not joined by another; 03:30 is skipped.
		m.want("nightly 26 03:00:00", "new 26 04:00:00")
		m.logged("still under way", 1)
		m.logged("new jobs are refused", 1)
	})
}

func TestTheLoopShowsThatItIsAlive(t *testing.T) {
	on(t, "UTC", "2026-11-26 00:00:00", func(m *machine) {
		var last Status
		m.loop([]Job{m.job("b", "0 4 * * *"), m.job("a", "0 3 * * *"), m.job("never", "")}, Options{Beat: func(s Status) { last = s }}, func() {
			m.until("2026-11-26 01:00:10")
			if age := m.now().Sub(last.Now); age > 30*time.Second {
				t.Errorf("the last beat is %s old", age)
			}
			if fmt.Sprint(last.Next) != fmt.Sprint([]Upcoming{{"a", time.Date(2026, 11, 26, 3, 0, 0, 0, m.loc)}, {"b", time.Date(2026, 11, 26, 4, 0, 0, 0, m.loc)}}) {
				t.Errorf("%v", last.Next)
			}
		})
	})
}

func TestJobsThatCannotBeKeptApartAreAnError(t *testing.T) {
	run := func(context.Context, Due) error { return nil }
	for _, jobs := range [][]Job{{{Name: "a", Run: run}, {Name: "a", Run: run}}, {{Name: "a"}}, {{Run: run}}} {
		if err := Loop(t.Context(), jobs, Options{}); err == nil {
			t.Errorf("%v is taken", jobs)
		}
	}
}
