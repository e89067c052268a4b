package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/disko/backupd/internal/docker"
	"github.com/disko/backupd/internal/metrics"
	"github.com/disko/backupd/internal/runs"
	"github.com/disko/backupd/internal/schedule"
	"github.com/disko/backupd/internal/snapshot"
)

// Policy is what is done by the clock.
type Policy struct {
	Name            string
	Schedule        *schedule.Schedule // never fires where nil
	Jitter, Timeout time.Duration
	Backup          Backup
	Keep            *Retention // nil: everything
	// Drill is done when DrillSchedule says; never where that is nil. Every other
	// time it takes a random older snapshot instead of the latest.
	Drill         Drilling
	DrillSchedule *schedule.Schedule
}

// Service is what an agent serves.
type Service struct {
	Seed     SeedOptions
	Policies []Policy
	// Name is under which the status is published.
	Name string
	// Listen is the address of /metrics, /healthz and /readyz; empty for none.
	Listen string
	// Reload brings new policies.
	Reload <-chan []Policy
}

// Serve seeds fresh volumes, then is healthy, then keeps the schedule, until ctx
// ends. An error is why it cannot serve: its text is what a person reads who
// looks for why the stack did not come up.
func (a *Agent) Serve(ctx context.Context, s Service) error {
	if s.Seed.Source == Host {
		a.Stack = cmp.Or(a.Stack, "host") // only a name for what concerns all
	}
	if err := a.needStack(); err != nil {
		return err
	}
	srv := &server{a: a, s: s, board: &Board{}, since: a.Now(), vigils: openVigils(a.StateDir)}
	past, err := a.History.All()
	if err != nil {
		a.Log.Warn("the history of runs cannot be read", "error", err)
	}
	srv.metrics = metrics.New(a.Version, past)
	if len(past) > 0 {
		srv.counted = past[len(past)-1].ID
	}
	srv.board.Update(func(st *Status) { st.Phase, st.Since, st.Stack = Seeding, srv.since, a.Stack })
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wait, err := srv.board.Publish(ctx, s.Name)
	if err != nil {
		return err
	}
	defer wait()
	stop, err := srv.listen(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if err := a.Recover(ctx); err != nil {
		// A service that stands still is worse than a schedule that is not kept:
		// it is said, and the agent goes on.
		a.Log.Error("not everything that an earlier run stopped could be started again", "error", err)
	}
	if err := srv.seed(ctx); err != nil {
		return err
	}
	return srv.keep(ctx)
}

// Recover makes go on what earlier runs that were killed have left standing
// still, and removes their workers.
func (a *Agent) Recover(ctx context.Context) error {
	if a.StateDir == "" {
		return nil
	}
	if err := a.cleanScratch(); err != nil {
		a.Log.Warn("what a drill that was killed had left cannot be removed", "error", err)
	}
	if a.Engine == nil {
		left, err := docker.LeftOver(a.StateDir)
		if err == nil && len(left) > 0 {
			a.Log.Warn("an earlier run was killed and may have left services stopped, and there is no engine to look: start them by hand, then remove the journals", "journals", left)
		}
		return err
	}
	var errs []error
	if n, err := a.Engine.CleanWorkers(ctx); err != nil {
		errs = append(errs, err)
	} else if n > 0 {
		a.Log.Info("workers of an agent that is gone were removed", "workers", n)
	}
	if n, err := a.Engine.CleanDrills(ctx, docker.ScratchOwner{}); err != nil {
		errs = append(errs, err)
	} else if n > 0 {
		a.Log.Info("what a drill that was killed had left was removed", "things", n)
	}
	rec, err := a.Engine.Recover(ctx, a.StateDir)
	if len(rec.Resumed) > 0 {
		a.Log.Warn("an earlier run was killed; what it had stopped was started again", "services", rec.Resumed)
	}
	return errors.Join(append(errs, err, a.resumeUsers(ctx))...)
}

// server is an agent that serves.
type server struct {
	a       *Agent
	s       Service
	board   *Board
	metrics *metrics.Metrics
	since   time.Time
	vigils  *vigils

	mu       sync.Mutex
	counted  string // the last run of the history that the metrics have
	policies []Policy
}

// listen opens the HTTP server.
func (srv *server) listen(ctx context.Context) (stop func(), err error) {
	if srv.s.Listen == "" {
		return func() {}, nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", srv.s.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen at %s for metrics: %w; choose another address with BACKUPD_LISTEN, or none", srv.s.Listen, err)
	}
	health := func(onlySeeded bool) func() error {
		return func() error {
			st := srv.board.Status()
			return st.Health(srv.a.Now(), onlySeeded)
		}
	}
	handler := srv.metrics.Handler(health(false), health(true))
	h := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { srv.count(); handler.ServeHTTP(w, r) }),
		ReadHeaderTimeout: askTimeout, ReadTimeout: askTimeout, WriteTimeout: 4 * askTimeout,
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			srv.a.Log.Error("metrics are not served any more", "error", err)
		}
	}()
	return func() {
		_ = h.Close()
		<-done
	}, nil
}

// count has the metrics count what ran since they last looked, whoever ran it.
func (srv *server) count() {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	all, err := srv.a.History.All()
	if err != nil {
		return
	}
	// A history without what was counted last is a new one.
	first := 1 + slices.IndexFunc(all, func(r runs.Run) bool { return r.ID == srv.counted })
	for i := first; i < len(all); i++ {
		srv.metrics.Observe(&all[i])
		srv.counted = all[i].ID
	}
}

// seed fills fresh volumes, and says so line by line.
func (srv *server) seed(ctx context.Context) error {
	a := srv.a
	show := Show{
		Notice: func(text string) { a.Log.Info(text) },
		Warn: func(volume string, w snapshot.Warning) {
			a.Log.Warn("seed: "+w.What, "volume", volume, "path", w.Path)
		},
	}
	if srv.s.Seed.Source == Host {
		return srv.ready("stacks of the machine are backed up, and not seeded")
	}
	result, err := a.Seed(ctx, srv.s.Seed, show)
	if result != nil {
		for _, v := range result.Volumes {
			a.Log.Info(v.String())
		}
	}
	if err != nil {
		return err
	}
	for _, text := range a.Impatient(ctx, srv.s.Seed) {
		a.Log.Warn(text)
	}
	return srv.ready(result.Summary)
}

// ready lets dependents start.
func (srv *server) ready(summary string) error {
	srv.a.Log.Info(summary)
	srv.metrics.Ready(true)
	srv.board.Update(func(st *Status) { st.Phase, st.Beat, st.Seeded = Serving, srv.a.Now(), summary })
	return nil
}

// keep keeps the schedule.
func (srv *server) keep(ctx context.Context) error {
	a := srv.a
	srv.setPolicies(srv.s.Policies)
	jobs := srv.jobs()
	if len(jobs) == 0 {
		a.Log.Info("no schedule is set: nothing is backed up by itself; set BACKUPD_SCHEDULE on the server for that")
	}
	changes := make(chan []schedule.Job)
	var reloads sync.WaitGroup
	reloads.Go(func() { // until the first run the metrics would say nothing
		for _, p := range srv.current() {
			srv.stock(ctx, p)
		}
	})
	reloads.Go(func() {
		for {
			select {
			case p, ok := <-srv.s.Reload:
				if !ok {
					return
				}
				srv.setPolicies(p)
				select {
				case changes <- srv.jobs():
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	err := schedule.Loop(ctx, jobs, schedule.Options{
		Now: a.Now, Log: a.Log, History: history{a}, Seed: a.Origin, Changes: changes, Beat: srv.beat,
	})
	srv.board.Update(func(st *Status) { st.Phase = Ending })
	reloads.Wait()
	return err
}

func (srv *server) setPolicies(p []Policy) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	srv.policies = p
}

// current are the policies that count now.
func (srv *server) current() []Policy {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	return srv.policies
}

// jobs are what the policies ask for. All of one stack go one after the other.
func (srv *server) jobs() []schedule.Job {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	var jobs []schedule.Job
	for _, p := range srv.policies {
		if p.Schedule != nil && !p.Schedule.Never() {
			jobs = append(jobs, schedule.Job{
				Name: string(runs.Backup) + " " + p.Name, Lane: srv.a.Stack, Schedule: p.Schedule, Jitter: p.Jitter, Timeout: p.Timeout,
				Run: func(ctx context.Context, due schedule.Due) error {
					err := srv.backup(ctx, p, due)
					srv.stock(ctx, p)
					return err
				},
			})
		}
		if p.DrillSchedule != nil && !p.DrillSchedule.Never() {
			jobs = append(jobs, schedule.Job{
				Name: string(runs.Drill) + " " + p.Name, Lane: srv.a.Stack, Schedule: p.DrillSchedule, Jitter: p.Jitter, Timeout: p.Timeout,
				Run: func(ctx context.Context, due schedule.Due) error { return srv.drill(ctx, p, due) },
			})
		}
	}
	return jobs
}

// noted hides an error from the loop, which would log it: the run's line has it.
func noted(error) error { return nil }

func trigger(due schedule.Due) string {
	if due.MadeUp {
		return "catch-up"
	}
	return "schedule"
}

// backup does a policy's backup and, if it succeeded, what retention asks for.
func (srv *server) backup(ctx context.Context, p Policy, due schedule.Due) error {
	b := p.Backup
	b.Policy, b.Trigger = p.Name, trigger(due)
	if b.Mode == Host {
		_, err := srv.a.BackupHost(ctx, b, Show{})
		if p.Keep != nil && ctx.Err() == nil {
			err = errors.Join(err, srv.a.thinHost(ctx, *p.Keep))
		}
		return noted(err)
	}
	if _, err := srv.a.Backup(ctx, b, Show{}); err != nil {
		return noted(err)
	}
	if p.Keep != nil {
		return noted(srv.a.Thin(ctx, *p.Keep))
	}
	return nil
}

// drill does a policy's drill: of the latest snapshot, and every other time of an
// older one, because what lies there for long may rot.
func (srv *server) drill(ctx context.Context, p Policy, due schedule.Due) error {
	d := p.Drill
	d.Policy, d.Trigger = p.Name, trigger(due)
	if all, err := srv.a.History.All(); err == nil {
		for i := range all {
			if all[i].Kind == runs.Drill && all[i].Policy == p.Name && all[i].Outcome.Good() {
				d.Random = !d.Random
			}
		}
	}
	if d.Mode == Host {
		_, err := srv.a.DrillHost(ctx, d, Show{})
		if errors.Is(err, ErrSettings) {
			return err // before there was any run
		}
		return noted(err)
	}
	_, err := srv.a.Drill(ctx, d, Show{})
	return noted(err)
}

// beat notes a sign of life, and looks whether anything is wrong.
func (srv *server) beat(st schedule.Status) {
	srv.count()
	var next time.Time
	if len(st.Next) > 0 {
		next = st.Next[0].At
	}
	srv.metrics.Next(next)
	problems := srv.problems(st.Now)
	srv.board.Update(func(s *Status) {
		if !slices.Equal(s.Problems, problems) && len(problems) > 0 {
			srv.a.Log.Warn("something is wrong", slog.Any("problems", problems))
		}
		s.Beat, s.Next, s.Problems = srv.a.Now(), next, problems
	})
}

// history tells the loop what ran before.
type history struct{ a *Agent }

// Last implements schedule.History. Where many stacks are served, a pass over all
// of them is what ran: one that was cut off is made up.
func (h history) Last(_ context.Context, job string) (time.Time, bool) {
	all, _ := h.a.History.All() // what cannot be read is not known
	for _, r := range slices.Backward(all) {
		if string(r.Kind)+" "+r.Policy == job && r.Stack == h.a.Stack && r.Outcome != runs.Interrupted && r.Trigger != "manual" {
			return r.Started, true
		}
	}
	return time.Time{}, false
}
