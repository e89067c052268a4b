package agent

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/disko/backupd/internal/runs"
	"github.com/disko/backupd/internal/schedule"
	"github.com/disko/backupd/internal/snapshot"
)

func at(t *testing.T, text string) time.Time {
	t.Helper()
	out, err := time.Parse("2006-01-02 15:04", text)
	must(t, err)
	return out
}

// TestTheDeadMansRule looks every half hour, as an agent would that runs between
// from and to, and wants the first alarm at a time; empty for none.
func TestTheDeadMansRule(t *testing.T) {
	type span struct{ from, to string }
	for _, c := range []struct {
		name, expr string
		timeout    time.Duration
		good       []string // starts of good backups
		failed     []string
		agent      []span
		alarm      string
	}{
		{name: "nothing ever ran", expr: "0 3 * * *", agent: []span{{"2026-01-05 12:00", "2026-01-09 00:00"}}, alarm: "2026-01-07 05:00"},
		{name: "with a time-out it is sooner", expr: "0 3 * * *", timeout: 2 * time.Hour, agent: []span{{"2026-01-05 12:00", "2026-01-09 00:00"}}, alarm: "2026-01-06 07:00"},
		{name: "the first interval", expr: "0 3 1 * *", agent: []span{{"2026-01-05 12:00", "2026-02-01 03:00"}}},
		{name: "a weekend", expr: "0 3 * * 1-5", timeout: time.Hour, good: []string{"2026-01-09 03:00"}, agent: []span{{"2026-01-09 00:00", "2026-01-12 04:00"}}},
		{name: "one night is missed", expr: "0 3 * * *", timeout: time.Hour, good: []string{"2026-01-06 03:00", "2026-01-07 03:00"}, agent: []span{{"2026-01-05 12:00", "2026-01-09 00:00"}}, alarm: "2026-01-08 06:00"},
		{name: "the machine was down", expr: "0 3 * * *", timeout: time.Hour, good: []string{"2026-01-06 03:00", "2026-01-10 12:01"}, agent: []span{{"2026-01-05 12:00", "2026-01-06 12:00"}, {"2026-01-10 12:00", "2026-01-11 00:00"}}},
		{name: "it dies in each run", expr: "0 3 * * *", timeout: time.Hour, agent: []span{{"2026-01-05 12:00", "2026-01-06 03:10"}, {"2026-01-06 03:30", "2026-01-06 03:40"}, {"2026-01-06 04:30", "2026-01-06 04:40"}, {"2026-01-06 06:00", "2026-01-06 06:10"}}, alarm: "2026-01-06 06:00"},
		{name: "it fails each night, which is told by itself", expr: "0 3 * * *", timeout: time.Hour, failed: []string{"2026-01-06 03:00", "2026-01-07 03:00", "2026-01-08 03:00"}, agent: []span{{"2026-01-05 12:00", "2026-01-09 03:00"}}},
		{name: "it failed, and then nothing", expr: "0 3 * * *", timeout: time.Hour, failed: []string{"2026-01-06 03:00"}, agent: []span{{"2026-01-05 12:00", "2026-01-09 00:00"}}, alarm: "2026-01-07 05:00"},
		{name: "a backup of the future, by a clock that was wrong", expr: "0 3 * * *", timeout: time.Hour, good: []string{"2031-01-01 03:00"}, agent: []span{{"2026-01-05 12:00", "2026-01-09 00:00"}}, alarm: "2026-01-06 06:00"},
		{name: "every six hours", expr: "@every 6h", good: []string{"2026-01-05 18:00"}, agent: []span{{"2026-01-05 12:00", "2026-01-07 00:00"}}, alarm: "2026-01-06 08:00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sched, err := schedule.Parse(c.expr, "UTC")
			must(t, err)
			var history []runs.Run
			add := func(o runs.Outcome, list []string) {
				for _, text := range list {
					history = append(history, runs.Run{ID: text, Kind: runs.Backup, Policy: "p", Outcome: o, Started: at(t, text)})
				}
			}
			add(runs.Done, c.good)
			add(runs.Failed, c.failed)
			state := t.TempDir()
			for _, s := range c.agent {
				v := openVigils(state)
				for now := at(t, s.from); !now.After(at(t, s.to)); now = now.Add(30 * time.Minute) {
					var past []runs.Run
					for _, r := range history {
						if !r.Started.After(now) || r.Started.Year() > 2030 {
							past = append(past, r)
						}
					}
					text := v.stale(now, []Watched{{Name: "p", Schedule: sched, Timeout: c.timeout}}, past)[0]
					if text == "" {
						continue
					}
					if got := now.Format("2006-01-02 15:04"); got != c.alarm {
						t.Errorf("alarm at %q, not %q: %s", got, c.alarm, text)
					}
					return
				}
			}
			if c.alarm != "" {
				t.Error("no alarm")
			}
		})
	}
}

func TestANewScheduleIsWatchedFromThenOn(t *testing.T) {
	v := openVigils(t.TempDir())
	daily, err := schedule.Parse("0 3 * * *", "UTC")
	must(t, err)
	hourly, err := schedule.Parse("0 * * * *", "UTC")
	must(t, err)
	good := []runs.Run{{ID: "a", Kind: runs.Backup, Policy: "p", Outcome: runs.Done, Started: at(t, "2026-01-05 03:00")}}
	ask := func(now string, s *schedule.Schedule) string {
		return v.stale(at(t, now), []Watched{{Name: "p", Schedule: s}}, good)[0]
	}
	if text := ask("2026-01-05 12:00", daily); text != "" {
		t.Error(text)
	}
	if text := ask("2026-01-05 20:00", hourly) + ask("2026-01-05 21:30", hourly); text != "" {
		t.Error("the hourly backup is missed that nobody asked for yet:", text)
	}
}

func TestWhatFailedIsWrongUntilAGoodRunOrItsPolicyIsGone(t *testing.T) {
	sched, err := schedule.Parse("0 3 * * *", "UTC")
	must(t, err)
	vol := func(names ...string) (out []runs.Volume) {
		for _, n := range names {
			out = append(out, runs.Volume{Name: n})
		}
		return out
	}
	p := Policy{Name: "p", Schedule: sched, Keep: &Retention{}, Backup: Backup{Volumes: []snapshot.Source{{Name: "db"}, {Name: "files"}}}}
	elsewhere := p
	elsewhere.Backup.Targets = []string{"/other"}
	unscheduled := p
	unscheduled.Schedule = nil
	failed := runs.Run{Kind: runs.Backup, Policy: "p", Outcome: runs.Failed, Error: "no space"}
	byHand := runs.Run{Kind: runs.Backup, Trigger: "manual", Outcome: runs.Warnings, Volumes: vol("db", "files", "more")}
	part := runs.Run{Kind: runs.Backup, Trigger: "manual", Outcome: runs.Done, Volumes: vol("db")}
	for _, c := range []struct {
		name     string
		runs     []runs.Run
		policies []Policy
		wrong    bool
	}{
		{"failed", []runs.Run{failed}, []Policy{p}, true},
		{"then interrupted", []runs.Run{failed, {Kind: runs.Backup, Policy: "p", Outcome: runs.Interrupted}}, []Policy{p}, true},
		{"then good", []runs.Run{failed, {Kind: runs.Backup, Policy: "p", Outcome: runs.Done}}, []Policy{p}, false},
		{"then good by hand", []runs.Run{failed, byHand}, []Policy{p}, false},
		{"then failed after it", []runs.Run{failed, byHand, failed}, []Policy{p}, true},
		{"by hand, but not all of it", []runs.Run{failed, part}, []Policy{p}, true},
		{"by hand, who knows where to", []runs.Run{failed, byHand}, []Policy{elsewhere}, true},
		{"a person's failure", []runs.Run{{Kind: runs.Backup, Outcome: runs.Failed}}, []Policy{p}, false},
		{"another policy's", []runs.Run{failed}, []Policy{{Name: "q", Schedule: sched}}, false},
		{"without a schedule any more", []runs.Run{failed}, []Policy{unscheduled}, false},
		{"retention", []runs.Run{{Kind: runs.Prune, Policy: "p", Outcome: runs.Failed}}, []Policy{p}, true},
		{"the seed", []runs.Run{{Kind: runs.Seed, Outcome: runs.Failed}}, []Policy{p}, false},
	} {
		if got := failing(c.runs, c.policies); len(got) > 0 != c.wrong {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}

func TestBackupsGoOnWhenTheStateCannotBeWrittenAndThatIsSaidOnce(t *testing.T) {
	s := newSite(t)
	must(t, os.MkdirAll(s.state, 0o700))
	fill := fullDisk(t, s.state)
	synctest.Test(t, func(t *testing.T) {
		s.t = t
		p := []Policy{s.policy("30 3 * * *")}
		s.serve(p, func(srv *server) {
			pass(day)
			pad(t, filepath.Join(s.state, "runs", "history.jsonl"))
			fill()
			pass(3 * day)
			st := srv.board.Status()
			if err := st.Health(s.now(), false); err != nil {
				t.Error(err)
			}
			all, _ := srv.a.History.All()
			if outcomes(all) != "done done done done" {
				t.Errorf("the agent remembers %s: %+v", outcomes(all), all)
			}
			other := s.agent()
			defer other.Teller.Close(t.Context())
			repo, end, err := other.Repository(t.Context(), nil)
			must(t, err)
			defer end()
			if list, err := repo.List(t.Context(), "shop"); err != nil || len(list) != 4 {
				t.Errorf("%d snapshots, %v", len(list), err)
			}
		})
		for _, text := range []string{"the run is not in the history", "nothing keeps two runs"} {
			if n := strings.Count(s.log.String(), text); n > 1 || n == 0 && strings.HasPrefix(text, "the run") {
				t.Errorf("%q is said %d times:\n%s", text, n, s.log.String())
			}
		}
	})
}

// pad ends a file of lines where a page ends, so that it needs room for more.
func pad(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	st, err := f.Stat()
	must(t, err)
	_, err = f.WriteString(strings.Repeat("\n", int(4096-st.Size()%4096)))
	must(t, err, f.Close())
}

func TestAStateDirectoryOfANewerVersionIsReadAndWhatItsUnknownMembersSayIsPassedOver(t *testing.T) {
	s := newSite(t)
	must(t, os.MkdirAll(filepath.Join(s.state, "runs"), 0o700))
	lines := ""
	for n, extra := range []string{``, `,"colour":"red","nested":{"a":[1,2]}`} {
		lines += fmt.Sprintf(`{"id":"%016d","kind":"backup","policy":"nightly","stack":"shop","trigger":"schedule","started":"1999-12-3%dT03:30:00Z","finished":"1999-12-3%dT03:31:00Z","outcome":"done"%s}`+"\n", n, n, n, extra)
	}
	lines += `{"id":"00000000000000ff","kind":"polish","stack":"shop","outcome":"shiny","trigger":"moon"}` + "\n"
	must(t, os.WriteFile(filepath.Join(s.state, "runs", "history.jsonl"), []byte(lines), 0o600),
		os.WriteFile(filepath.Join(s.state, "watched.json"), []byte(`{"nightly":{"schedule":"30 3 * * *","since":"1999-12-01T00:00:00Z","mood":"good"}}`), 0o600),
		os.WriteFile(filepath.Join(s.state, "told.json"), []byte(`{"backup/nightly/shop":{"what":"failure","at":"1999-12-31T00:00:00Z","how":"loud"}}`), 0o600))
	synctest.Test(t, func(t *testing.T) { // it begins at the midnight of 2000-01-01
		s.t = t
		s.serve([]Policy{s.policy("30 3 * * *")}, func(srv *server) {
			pass(time.Hour)
			if all := s.history(); len(all) != 3 {
				t.Errorf("something was made up: %+v", all)
			}
			pass(3 * time.Hour)
			st := srv.board.Status()
			if err := st.Health(s.now(), false); err != nil {
				t.Error(err)
			}
		})
	})
	if all := s.history(); len(all) != 4 || all[3].Outcome != runs.Done || all[3].Trigger != "schedule" {
		t.Errorf("the history has %+v", all)
	}
	var watched map[string]vigil
	data, err := os.ReadFile(filepath.Join(s.state, "watched.json"))
	must(t, err, json.Unmarshal(data, &watched))
	if w := watched["nightly"]; !w.Since.Equal(at(t, "1999-12-01 00:00")) {
		t.Errorf("watched: %s", data)
	}
}
