package schedule

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// Job is a function and when to call it.
type Job struct {
	// Name is unique; history and logs know the job by it.
	Name string
	// Lane: jobs of one lane never run at the same time. The stack's name, where
	// one loop serves several.
	Lane     string
	Schedule *Schedule
	// Jitter is the most that a run starts late; Offset says by how much. It does
	// not apply to @every, which has no time that many machines share.
	Jitter time.Duration
	// Timeout ends a run's context; zero is no limit.
	Timeout time.Duration
	// Run does the work. It returns soon after its context has ended, whose cause
	// is ErrTimeout after the time-out. What it returns is logged by the loop.
	Run func(ctx context.Context, due Due) error
}

// Due says why a run takes place.
type Due struct {
	At     time.Time // when the schedule fired, without jitter
	MadeUp bool      // it is late: the machine was down, asleep, or its clock was set
	Missed int       // runs beyond this one that are not made up
}

// History knows what ran before this process began.
type History interface {
	// Last returns when the job's last run began that came to an end, well or
	// not. One that was cut off does not count, and so is made up.
	Last(ctx context.Context, job string) (time.Time, bool)
}

// Options of a loop; the zero value serves.
type Options struct {
	Now     func() time.Time // the wall clock; nil is time.Now
	Log     *slog.Logger     // nil is slog.Default
	History History          // nil: nothing ran before, and nothing is made up
	// Seed makes the jitter differ between installations that name their jobs alike.
	Seed string
	// Recheck is how often the wall clock is read at least: timers stand still while
	// the machine sleeps, and do not follow a clock that is set. 30 s if zero.
	Recheck time.Duration
	// Changes brings new lists of jobs. What is under way goes on.
	Changes <-chan []Job
	// Beat is called each time the loop has looked at the clock. It must not block.
	Beat func(Status)
}

// Status is what the loop is about to do.
type Status struct {
	Now     time.Time
	Next    []Upcoming // by time; jobs that never run by themselves are left out
	Running []string
	Waiting []string // for a job of their lane
}

// Upcoming is the next run of a job, with its jitter.
type Upcoming struct {
	Job string
	At  time.Time
}

// ErrTimeout is the cause of a context that ended by a job's time-out.
var ErrTimeout = errors.New("the time-out has passed")

// maxBack is how far a clock may be set back before a run of its former time is
// no longer taken for one of today's.
const maxBack = 25 * time.Hour

// Keys of log lines.
const (
	keyJob      = "job"
	keyDue      = "due"
	keyNext     = "next"
	keyError    = "error"
	keyDuration = "duration"
	keyBy       = "by"
	keyOther    = "running"
	keyMissed   = "missed"
)

// Loop runs jobs when they are due, until ctx ends; then it waits for those that
// are under way, whose context ends with ctx. Its errors are about the jobs
// themselves; those of runs are logged.
//
//   - At start, a run that was missed since the last one in the history is made up,
//     once however many were missed. Without a history nothing is made up.
//   - Jobs of one lane never overlap. A run that is due while another job of its
//     lane is under way waits for it, in the order in which they were due. A run that is due
//     while the job itself waits or is under way is skipped, and said.
//   - A clock that goes ahead (the machine slept, or the clock was set) makes due
//     what lies between, once for each job. After a clock was set back, a night
//     that had its run does not get another; jobs of every hour or interval go on from the new time.
func Loop(ctx context.Context, jobs []Job, o Options) error {
	if err := check(jobs); err != nil {
		return err
	}
	l := &loop{o: o, lanes: map[string]string{}, done: make(chan result)}
	if l.o.Now == nil {
		l.o.Now = time.Now
	}
	if l.o.Log == nil {
		l.o.Log = slog.Default()
	}
	if l.o.Recheck <= 0 {
		l.o.Recheck = 30 * time.Second
	}
	l.now = l.o.Now().Round(0)
	l.take(ctx, jobs)
	l.run(ctx)
	for len(l.lanes) > 0 {
		l.ended(ctx, <-l.done)
	}
	return nil
}

func check(jobs []Job) error {
	seen := map[string]bool{}
	for _, j := range jobs {
		switch {
		case j.Name == "" || j.Run == nil:
			return fmt.Errorf("schedule: a job needs a name and something to run (%q)", j.Name)
		case seen[j.Name]:
			return fmt.Errorf("schedule: two jobs are called %q; give each a name of its own", j.Name)
		}
		seen[j.Name] = true
	}
	return nil
}

type loop struct {
	o     Options
	jobs  []*entry
	lanes map[string]string // that are busy, and with which job
	done  chan result
	now   time.Time // of the last look at the clock
	slept time.Duration
}

// entry is a job's state.
type entry struct {
	Job
	offset  time.Duration
	due     time.Time // next time of the schedule; zero for none
	last    time.Time // the last one that was run, or the start of the run that the history knows
	waiting *Due
	told    bool // that it waits
	running bool
}

type result struct {
	job, lane string
	started   time.Time
	err       error
}

// at is when the next run is to start.
func (e *entry) at() time.Time { return e.due.Add(e.offset) }

func (l *loop) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		l.look()
		for _, e := range l.jobs {
			if !e.due.IsZero() && !l.now.Before(e.at()) {
				l.fire(ctx, e)
			}
		}
		l.startWaiting(ctx)
		l.beat()
		l.slept = l.untilNext()
		timer.Reset(l.slept)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case r := <-l.done:
			l.ended(ctx, r)
		case jobs := <-l.o.Changes:
			if err := check(jobs); err != nil {
				l.o.Log.ErrorContext(ctx, "new jobs are refused; the old ones stay", keyError, err)
				break
			}
			l.take(ctx, jobs)
		}
	}
}

// look reads the clock and notices when it jumped.
func (l *loop) look() {
	before := l.now
	l.now = l.o.Now().Round(0)
	by := l.now.Sub(before)
	switch {
	case by < -time.Minute:
		l.o.Log.Warn("the clock was set back; runs go by the new time", keyBy, -by)
		for _, e := range l.jobs {
			l.setBack(e)
		}
	case by > l.slept+max(2*l.o.Recheck, time.Minute):
		l.o.Log.Warn("the clock went ahead: the machine slept, or the clock was set", keyBy, by)
	}
}

// setBack plans a job again after the clock was set back.
func (l *loop) setBack(e *entry) {
	if e.Schedule.Never() {
		return
	}
	base := l.now.Add(-e.offset)
	if !e.Schedule.elapsed() && e.last.After(base) && e.last.Sub(base) <= maxBack {
		base = e.last
	}
	e.due = e.Schedule.Next(base)
}

// take replaces the list of jobs. A job whose name stays keeps its state.
func (l *loop) take(ctx context.Context, jobs []Job) {
	old := map[string]*entry{}
	for _, e := range l.jobs {
		old[e.Name] = e
	}
	l.jobs = nil
	for _, j := range jobs {
		e := &entry{Job: j}
		if e.Schedule == nil {
			e.Schedule = &Schedule{}
		}
		if e.Schedule.every == 0 {
			e.offset = Offset(l.o.Seed+"\x00"+e.Name, e.Jitter)
		}
		o, known := old[j.Name]
		if known {
			e.last, e.waiting, e.told, e.running = o.last, o.waiting, o.told, o.running
		}
		switch {
		case known && o.Schedule.text == e.Schedule.text && o.Schedule.loc == e.Schedule.loc && o.offset == e.offset:
			e.due = o.due
		case e.Schedule.Never():
			e.waiting = nil
		default:
			e.due = e.Schedule.Next(l.base(ctx, e, known))
			l.o.Log.InfoContext(ctx, "planned", keyJob, e.Name, keyNext, e.at())
		}
		l.jobs = append(l.jobs, e)
	}
}

// base is the time from which a job's next run is reckoned: its last run, so that
// one that was missed is due at once.
func (l *loop) base(ctx context.Context, e *entry, known bool) time.Time {
	if !known && l.o.History != nil {
		last, ok := l.o.History.Last(ctx, e.Name)
		if ok && last.After(l.now.Add(maxBack)) {
			l.o.Log.WarnContext(ctx, "the last run lies in the future: a clock was wrong; runs go by the present time", keyJob, e.Name, "last", last)
			ok = false
		}
		if ok {
			e.last = last.Round(0)
			return e.last
		}
	}
	if base := l.now.Add(-e.offset); base.After(e.last) {
		return base
	}
	return e.last
}

// fire has a job run as soon as its lane is free, and plans the next run.
func (l *loop) fire(ctx context.Context, e *entry) {
	due := Due{At: e.due, MadeUp: l.now.Sub(e.at()) > max(2*l.o.Recheck, time.Minute)}
	e.last = e.due
	base := l.now.Add(-e.offset)
	if base.Before(e.due) {
		base = e.due
	}
	if e.Schedule.every == 0 { // @every has no times that it could miss
		const most = 1000
		for t := e.Schedule.Next(e.due); due.Missed < most && !t.After(base); t = e.Schedule.Next(t) {
			due.Missed++
		}
	}
	e.due = e.Schedule.Next(base)
	switch {
	case e.running:
		l.o.Log.WarnContext(ctx, "run skipped: the last one is still under way", keyJob, e.Name, keyDue, due.At, keyNext, e.at())
	case e.waiting != nil:
		l.o.Log.WarnContext(ctx, "run skipped: the last one still waits", keyJob, e.Name, keyDue, due.At, keyNext, e.at())
	default:
		e.waiting, e.told = &due, false
	}
}

// startWaiting starts what waits and whose lane is free, the longest due first.
func (l *loop) startWaiting(ctx context.Context) {
	var waiting []*entry
	for _, e := range l.jobs {
		if e.waiting != nil {
			waiting = append(waiting, e)
		}
	}
	slices.SortStableFunc(waiting, func(a, b *entry) int { return a.waiting.At.Compare(b.waiting.At) })
	for _, e := range waiting {
		if other, busy := l.lanes[e.Lane]; busy {
			if !e.told {
				l.o.Log.InfoContext(ctx, "run waits for another of its stack", keyJob, e.Name, keyOther, other, keyDue, e.waiting.At)
				e.told = true
			}
			continue
		}
		l.start(ctx, e)
	}
}

func (l *loop) start(ctx context.Context, e *entry) {
	due, job, started := *e.waiting, e.Job, l.now
	e.waiting, e.running = nil, true
	l.lanes[e.Lane] = e.Name
	if due.MadeUp {
		l.o.Log.WarnContext(ctx, "a run that was missed is made up", keyJob, e.Name, keyDue, due.At, keyMissed, due.Missed)
	}
	go func() { // Loop waits for it
		l.done <- result{job: job.Name, lane: job.Lane, started: started, err: call(ctx, job, due)}
	}()
}

// call runs a job within its time-out.
func call(ctx context.Context, job Job, due Due) error {
	if job.Timeout <= 0 {
		return job.Run(ctx, due)
	}
	limited, cancel := context.WithTimeoutCause(ctx, job.Timeout, ErrTimeout)
	defer cancel()
	err := job.Run(limited, due)
	if err != nil && errors.Is(context.Cause(limited), ErrTimeout) {
		return fmt.Errorf("not done within %s: %w; allow more time, or find what is slow: %w", job.Timeout, ErrTimeout, err)
	}
	return err
}

// ended frees the lane of a job and logs what came of it.
func (l *loop) ended(ctx context.Context, r result) {
	delete(l.lanes, r.lane)
	next := time.Time{}
	for _, e := range l.jobs {
		if e.Name == r.job {
			e.running = false
			if !e.due.IsZero() {
				next = e.at()
			}
		}
	}
	attrs := []any{keyJob, r.job, keyDuration, l.o.Now().Round(0).Sub(r.started).Round(time.Millisecond), keyNext, next}
	switch {
	case r.err == nil:
		l.o.Log.DebugContext(ctx, "job ended", attrs...) // what it did, it says by itself
	case ctx.Err() != nil && errors.Is(r.err, context.Canceled):
		l.o.Log.WarnContext(ctx, "run broken off: the agent stops", append(attrs, keyError, r.err)...)
	default:
		l.o.Log.ErrorContext(ctx, "run failed", append(attrs, keyError, r.err)...)
	}
}

// untilNext is how long nothing is due, as far as the clock can be trusted.
func (l *loop) untilNext() time.Duration {
	wait := l.o.Recheck
	for _, e := range l.jobs {
		if !e.due.IsZero() {
			wait = min(wait, e.at().Sub(l.now))
		}
	}
	return max(wait, 0)
}

func (l *loop) beat() {
	if l.o.Beat == nil {
		return
	}
	s := Status{Now: l.now}
	for _, e := range l.jobs {
		if !e.due.IsZero() {
			s.Next = append(s.Next, Upcoming{Job: e.Name, At: e.at()})
		}
		if e.waiting != nil {
			s.Waiting = append(s.Waiting, e.Name)
		}
	}
	for _, name := range l.lanes {
		s.Running = append(s.Running, name)
	}
	slices.SortStableFunc(s.Next, func(a, b Upcoming) int { return a.At.Compare(b.At) })
	slices.SortFunc(s.Running, cmp.Compare)
	l.o.Beat(s)
}
