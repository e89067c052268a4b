package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/disko/backupd/internal/metrics"
	"github.com/disko/backupd/internal/notify"
	"github.com/disko/backupd/internal/runs"
	"github.com/disko/backupd/internal/schedule"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/snapshot/tree"
	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/targets/directory"
)

// site is an installation: a volume, a target that may be down, a state
// directory, and somebody who is told. The backups are real.
type site struct {
	t      *testing.T
	dir    string
	state  string
	begin  time.Duration // what its clock is ahead of the test's
	down   atomic.Bool   // the target does not answer
	hang   atomic.Bool   // the target takes connections, and no more
	wrap   func(store.Writer) store.Writer
	log    lockedBuffer
	server *httptest.Server
	mu     sync.Mutex
	mail   []string
	reload chan<- []Policy
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newSite is called outside of a bubble: its mail server serves in real time.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir()}
	s.state = filepath.Join(s.dir, "state")
	must(t, os.MkdirAll(filepath.Join(s.dir, "data"), 0o755), os.WriteFile(filepath.Join(s.dir, "data", "file"), []byte("content"), 0o600))
	s.server = httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mail = append(s.mail, string(body))
	}))
	s.server.Config.SetKeepAlivesEnabled(false) // a bubble's time stands still while a connection is read
	s.server.Start()
	t.Cleanup(s.server.Close)
	return s
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (s *site) now() time.Time { return time.Now().Add(s.begin) }

// messages returns what came that has a text in it.
func (s *site) messages(with string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, m := range s.mail {
		if strings.Contains(m, with) {
			out = append(out, m)
		}
	}
	return out
}

// agent is a process of the installation.
func (s *site) agent() *Agent {
	open := func(ctx context.Context) (store.Writer, *snapshot.Repository, error) {
		if s.hang.Load() {
			<-ctx.Done()
			return nil, nil, fmt.Errorf("open the target: %w", ctx.Err())
		}
		if s.down.Load() {
			return nil, nil, errors.New("target s3://bucket: connection refused; look whether the server runs")
		}
		dir, err := directory.Create(filepath.Join(s.dir, "target"))
		if err != nil {
			return nil, nil, err
		}
		var st store.Writer = dir
		if s.wrap != nil {
			st = s.wrap(st)
		}
		repo, err := snapshot.Ensure(ctx, st, snapshot.Options{CacheDir: filepath.Join(s.state, "cache"), Now: s.now})
		return st, repo, err
	}
	log := slog.New(slog.NewTextHandler(&s.log, nil))
	tell, err := notify.New(s.t.Context(), notify.Settings{
		URLs:     []string{"generic://" + strings.TrimPrefix(s.server.URL, "http://") + "/?disabletls=yes"},
		Template: "{{.Level}}: {{.Title}}: {{.Text}}", StateFile: filepath.Join(s.state, "told.json"), Now: s.now, Log: log,
	})
	must(s.t, err)
	a := &Agent{
		Settings: Settings{
			Stack: "shop", Origin: "here", StateDir: s.state, Version: "test", Targets: []string{"target"}, Now: s.now, Log: log, Teller: tell,
			Places: func(ctx context.Context, _ []string) (*Places, error) {
				st, repo, err := open(ctx)
				if err != nil {
					return nil, err
				}
				return &Places{Up: []snapshot.Place{{Store: st, Repo: repo}}, Close: repo.Close}, nil
			},
			Repository: func(ctx context.Context, _ []string) (*snapshot.Repository, func(), error) {
				_, repo, err := open(ctx)
				if err != nil {
					return nil, nil, err
				}
				return repo, repo.Close, nil
			},
		},
		History: runs.Open(filepath.Join(s.state, "runs")), said: &said{},
	}
	return a
}

func (s *site) policy(expr string) Policy {
	s.t.Helper()
	sched, err := schedule.Parse(expr, "UTC")
	must(s.t, err)
	return Policy{Name: "nightly", Schedule: sched, Backup: Backup{Volumes: []snapshot.Source{{Name: "data", Path: filepath.Join(s.dir, "data")}}}}
}

// serve keeps a schedule while test lets time pass, as an agent does when the
// volumes are seeded; then the agent is stopped.
func (s *site) serve(policies []Policy, test func(srv *server)) {
	s.t.Helper()
	a := s.agent()
	reload := make(chan []Policy)
	srv := &server{a: a, s: Service{Policies: policies, Reload: reload}, board: &Board{}, since: a.Now(), vigils: openVigils(a.StateDir), metrics: metrics.New("test", nil)}
	s.reload = reload
	must(s.t, srv.ready("nothing to seed"))
	ctx, cancel := context.WithCancel(s.t.Context())
	ended := make(chan error)
	go func() { ended <- srv.keep(ctx) }()
	test(srv)
	synctest.Wait()
	cancel()
	must(s.t, <-ended)
	a.Teller.Close(s.t.Context())
}

// pass lets time pass.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (s *site) history() []runs.Run {
	s.t.Helper()
	all, err := runs.Open(filepath.Join(s.state, "runs")).All()
	must(s.t, err)
	return all
}

func outcomes(list []runs.Run) string {
	var out []string
	for _, r := range list {
		out = append(out, string(r.Outcome))
	}
	return strings.Join(out, " ")
}

const day = 24 * time.Hour

func TestATargetThatIsDownForAWeekIsToldOnceADay(t *testing.T) {
	for expr, most := range map[string]int{"30 3 * * *": 7, "0 */4 * * *": 7} {
		t.Run(expr, func(t *testing.T) {
			s := newSite(t)
			synctest.Test(t, func(t *testing.T) {
				s.t = t
				s.serve([]Policy{s.policy(expr)}, func(srv *server) {
					healthy := func(want bool) {
						t.Helper()
						st := srv.board.Status()
						if err := st.Health(s.now(), false); (err == nil) != want {
							t.Errorf("at %s: %v", s.now(), err)
						}
						if err := st.Health(s.now(), true); err != nil {
							t.Errorf("where runs do not matter: %v", err)
						}
					}
					pass(2 * day)
					healthy(true)
					if n := len(s.messages("")); n > 0 {
						t.Errorf("%d messages when all was well: %q", n, s.messages(""))
					}
					s.down.Store(true)
					pass(7 * day)
					healthy(false)
					s.down.Store(false)
					pass(2 * day)
					healthy(true)
				})
				failures, recoveries := s.messages("failure: "), s.messages("recovery: ")
				if len(failures) != most {
					t.Errorf("%d messages of failure, not %d: %q", len(failures), most, failures)
				}
				if len(failures) > 0 && !strings.Contains(failures[0], "connection refused; look whether the server runs") {
					t.Errorf("the message does not say what to do: %q", failures[0])
				}
				if len(recoveries) != 1 || !strings.Contains(recoveries[0], "is well again") {
					t.Errorf("recovery: %q", recoveries)
				}
			})
		})
	}
}

func TestARunThatWasMissedIsMadeUpOnce(t *testing.T) {
	s := newSite(t)
	synctest.Test(t, func(t *testing.T) {
		s.t = t
		p := []Policy{s.policy("30 3 * * *")}
		s.serve(p, func(*server) { pass(day) })
		time.Sleep(3*day + 12*time.Hour) // the machine is down
		s.serve(p, func(srv *server) {
			pass(time.Minute)
			st := srv.board.Status()
			if err := st.Health(s.now(), false); err != nil {
				t.Errorf("after the start: %v", err)
			}
			pass(2 * time.Hour)
		})
		all := s.history()
		if outcomes(all) != "done done" || all[0].Trigger != "schedule" || all[1].Trigger != "catch-up" {
			t.Fatalf("the history has %+v", all)
		}
		if m := s.messages(""); len(m) > 0 {
			t.Errorf("messages: %q", m)
		}
		other := s.agent()
		defer other.Teller.Close(t.Context())
		repo, end, err := other.Repository(t.Context(), nil)
		must(t, err)
		defer end()
		m, err := repo.Find(t.Context(), "shop", "latest")
		if err != nil || m.ID() != all[1].Snapshot || m.Trigger != "schedule" {
			t.Errorf("the latest snapshot is %v, %v", m, err)
		}
	})
}

func TestARunThatTakesTooLongFailsAndSaysSo(t *testing.T) {
	s := newSite(t)
	s.hang.Store(true)
	synctest.Test(t, func(t *testing.T) {
		s.t = t
		p := s.policy("30 3 * * *")
		p.Timeout = 2 * time.Hour
		s.serve([]Policy{p}, func(*server) { pass(6 * time.Hour) })
		all := s.history()
		if len(all) != 1 || all[0].Outcome != runs.Failed || all[0].Took() != 2*time.Hour || !strings.Contains(all[0].Error, "not done after 2h0m0s") || !strings.Contains(all[0].Error, "allow more time") {
			t.Errorf("the history has %+v", all)
		}
		if m := s.messages("failure: "); len(m) != 1 {
			t.Errorf("messages: %q", m)
		}
	})
}

func TestAStopOfTheAgentIsNoFailureAndItsRunIsMadeUp(t *testing.T) {
	s := newSite(t)
	synctest.Test(t, func(t *testing.T) {
		s.t = t
		p := []Policy{s.policy("30 3 * * *")}
		s.serve(p, func(*server) { pass(day) })
		s.hang.Store(true)
		s.serve(p, func(*server) { pass(4 * time.Hour) }) // stops in the middle of it
		s.hang.Store(false)
		s.serve(p, func(srv *server) {
			pass(time.Minute)
			st := srv.board.Status()
			if err := st.Health(s.now(), false); err != nil {
				t.Error(err)
			}
		})
		all := s.history()
		if outcomes(all) != "done interrupted done" || all[2].Trigger != "catch-up" {
			t.Errorf("the history has %+v", all)
		}
		if m := s.messages(""); len(m) > 0 {
			t.Errorf("messages: %q", m)
		}
	})
}

func TestAnAgentThatNeverGetsABackupDoneIsAnAlarm(t *testing.T) {
	s := newSite(t)
	s.hang.Store(true) // without a time-out
	synctest.Test(t, func(t *testing.T) {
		s.t = t
		s.serve([]Policy{s.policy("30 3 * * *")}, func(srv *server) {
			pass(day)
			if m := s.messages(""); len(m) > 0 {
				t.Errorf("in the first interval: %q", m)
			}
			pass(2 * day)
			if m := s.messages("no good backup for too long"); len(m) != 1 && len(m) != 2 || !strings.Contains(m[0], "there was none since") {
				t.Errorf("after three days: %q", m)
			}
			st := srv.board.Status()
			if err := st.Health(s.now(), false); err == nil {
				t.Error("it is healthy")
			}
		})
		s.hang.Store(false)
		s.serve([]Policy{s.policy("30 3 * * *")}, func(*server) { pass(day) })
		if m := s.messages("recovery: "); len(m) != 1 || !strings.Contains(m[0], "has a good backup again") {
			t.Errorf("recovery: %q", m)
		}
	})
}

func TestAPersonsRunIsRefusedWhileAnotherIsUnderWayAndAScheduledOneWaits(t *testing.T) {
	s := newSite(t)
	synctest.Test(t, func(t *testing.T) {
		s.t = t
		other := s.agent() // another process
		defer other.Teller.Close(t.Context())
		release, err := other.alone()
		must(t, err)
		p := s.policy("30 3 * * *")
		s.serve([]Policy{p}, func(srv *server) {
			taken, err := srv.a.Backup(t.Context(), p.Backup, Show{})
			if !errors.Is(err, ErrBusy) || taken != nil || !strings.Contains(err.Error(), "another run is under way; nothing was done") {
				t.Errorf("a person's run: %v, %v", taken, err)
			}
			if all := s.history(); len(all) > 0 {
				t.Errorf("it is in the history: %+v", all)
			}
			if _, err := os.Stat(filepath.Join(s.dir, "target")); !os.IsNotExist(err) {
				t.Errorf("it touched the target: %v", err)
			}
			pass(5 * time.Hour)
			if all := s.history(); len(all) > 0 {
				t.Errorf("the scheduled one did not wait: %+v", all)
			}
			release()
			pass(2 * askLock)
		})
		if all := s.history(); outcomes(all) != "done" || all[0].Took() < time.Hour {
			t.Errorf("the history has %+v", all)
		}
	})
}

func TestAReloadChangesTheSchedule(t *testing.T) {
	s := newSite(t)
	synctest.Test(t, func(t *testing.T) {
		s.t = t
		s.serve([]Policy{s.policy("30 3 * * *")}, func(srv *server) {
			pass(time.Hour)
			s.reload <- []Policy{s.policy("0 2 * * *")}
			pass(90 * time.Minute)
			if all := s.history(); outcomes(all) != "done" {
				t.Errorf("at half past two: %+v", all)
			}
			s.reload <- nil
			pass(2 * day)
		})
		if all := s.history(); len(all) != 1 {
			t.Errorf("a policy that is gone ran: %+v", all)
		}
	})
}

func TestHalfARestoreIsNotBackedUp(t *testing.T) {
	s := newSite(t)
	synctest.Test(t, func(t *testing.T) {
		s.t = t
		mark := filepath.Join(s.dir, "data", tree.IncompleteMark)
		must(t, os.WriteFile(mark, nil, 0o600))
		s.serve([]Policy{s.policy("30 3 * * *")}, func(*server) {
			pass(day)
			must(t, os.Remove(mark))
			pass(day)
		})
		all := s.history()
		if outcomes(all) != "failed done" || !strings.Contains(all[0].Error, "volume data: it holds an unfinished restore") {
			t.Errorf("the history has %+v", all)
		}
	})
}

func TestNightsWhenTheClocksChangeHaveOneRun(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	must(t, err)
	for eve, nights := range map[string][]string{
		"2026-03-28 00:00": {"28 02:30 CET", "29 03:00 CEST", "30 02:30 CEST"},
		"2026-10-24 00:00": {"24 02:30 CEST", "25 02:30 CEST", "26 02:30 CET"},
	} {
		s := newSite(t)
		synctest.Test(t, func(t *testing.T) {
			s.t = t
			at, err := time.ParseInLocation("2006-01-02 15:04", eve, berlin)
			must(t, err)
			s.begin = time.Until(at)
			p := s.policy("CRON_TZ=Europe/Berlin 30 2 * * *")
			s.serve([]Policy{p}, func(*server) { pass(3*day - time.Hour) })
			var got []string
			for _, r := range s.history() {
				got = append(got, r.Started.In(berlin).Format("02 15:04 MST"))
			}
			if !slices.Equal(got, nights) {
				t.Errorf("runs: %q, not %q", got, nights)
			}
		})
	}
}

func TestMetricsCountWhatOthersRanAndNothingTwice(t *testing.T) {
	s := newSite(t)
	synctest.Test(t, func(t *testing.T) {
		s.t = t
		p := s.policy("30 3 * * *")
		count := func(srv *server, policy string) string {
			t.Helper()
			srv.count()
			w := httptest.NewRecorder()
			well := func() error { return nil }
			srv.metrics.Handler(well, well).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
			for line := range strings.Lines(w.Body.String()) {
				if n, ok := strings.CutPrefix(line, `backupd_runs_total{kind="backup",outcome="done",policy="`+policy+`",stack="shop"} `); ok {
					return strings.TrimSpace(n)
				}
			}
			return "0"
		}
		s.serve([]Policy{p}, func(srv *server) {
			pass(2 * day)
			other := s.agent() // docker compose run backup backup
			defer other.Teller.Close(t.Context())
			_, err := other.Backup(t.Context(), p.Backup, Show{})
			must(t, err)
			if a, b := count(srv, "nightly"), count(srv, ""); a != "2" || b != "1" {
				t.Errorf("%s runs by schedule and %s by hand are counted", a, b)
			}
			must(t, os.RemoveAll(filepath.Join(s.state, "runs"))) // the state is lost
			pass(day)
			if a := count(srv, "nightly"); a != "3" {
				t.Errorf("%s runs by schedule are counted after the state was lost", a)
			}
		})
	})
}

// frugal is a target whose credentials may add, and no more.
type frugal struct{ store.Writer }

func (f frugal) Put(ctx context.Context, key string, data []byte) error {
	if strings.Contains(key, "/forgotten/") {
		return fmt.Errorf("put %s: %w", key, store.ErrAccess)
	}
	return f.Writer.Put(ctx, key, data)
}

func (f frugal) Delete(_ context.Context, key string) error {
	return fmt.Errorf("delete %s: %w", key, store.ErrAccess)
}

func TestRetentionWithCredentialsThatMayNotDeleteIsAWarning(t *testing.T) {
	s := newSite(t)
	s.wrap = func(w store.Writer) store.Writer { return frugal{w} }
	synctest.Test(t, func(t *testing.T) {
		s.t = t
		p := s.policy("30 3 * * *")
		keep, err := snapshot.ParsePolicy("1 last")
		must(t, err)
		p.Keep = &Retention{Name: p.Name, Policy: keep}
		s.serve([]Policy{p}, func(srv *server) {
			pass(3 * day)
			st := srv.board.Status()
			if err := st.Health(s.now(), false); err != nil {
				t.Errorf("not healthy: %v", err)
			}
		})
		var last runs.Run
		for _, r := range s.history() {
			if r.Kind == runs.Backup && r.Outcome != runs.Done {
				t.Errorf("a backup ended as %+v", r)
			}
			if r.Kind == runs.Prune {
				last = r
			}
		}
		if last.Outcome != runs.Warnings || len(last.Warnings) != 1 || !strings.Contains(last.Warnings[0], "may not delete") || !strings.Contains(last.Warnings[0], "with others") {
			t.Errorf("retention ended as %+v", last)
		}
	})
}
