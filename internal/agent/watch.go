package agent

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/disko/backupd/internal/runs"
	"github.com/disko/backupd/internal/schedule"
	"github.com/disko/backupd/internal/statefile"
)

// Watched is a policy whose backups are expected.
type Watched struct {
	Name            string
	Schedule        *schedule.Schedule
	Jitter, Timeout time.Duration
	// Covers says whether a backup that a person asked for does what the policy is
	// for; nil for never.
	Covers func(r *runs.Run) bool
}

// grace is what a backup may be late beyond what its policy allows it.
const grace = time.Hour

// maxAllowance bounds how long a backup without a time-out may take before it is missed.
const maxAllowance = 24 * time.Hour

// maxAhead is how far ahead of the clock a time may lie before a clock was wrong.
const maxAhead = 25 * time.Hour

// due is when a good backup is to have begun at the latest, if the last began at from.
func (w *Watched) due(from time.Time) time.Time {
	at := w.Schedule.Next(from)
	if at.IsZero() {
		return at
	}
	return at.Add(w.Jitter)
}

// allowance is how long a backup that is due may take to be there: its time-out;
// without one, until the next is due.
func (w *Watched) allowance(due time.Time) time.Duration {
	if w.Timeout > 0 {
		return w.Timeout + grace
	}
	next := w.Schedule.Next(due)
	if next.IsZero() {
		return maxAllowance + grace
	}
	return min(next.Sub(due), maxAllowance) + grace
}

// counts says whether a run is one of what is watched.
func (w *Watched) counts(r *runs.Run) bool {
	return r.Kind == runs.Backup && (r.Policy == w.Name || r.Policy == "" && r.Outcome.Good() && w.Covers != nil && w.Covers(r))
}

// vigil is what is remembered of a policy over restarts.
type vigil struct {
	// Schedule is the one that Since holds for.
	Schedule string    `json:"schedule"`
	Since    time.Time `json:"since"` // when it was first watched
	// Late is when a backup was first seen to be late, by an agent that ran and so
	// could have made it; zero where none is.
	Late time.Time `json:"late,omitzero"`
}

// stale is the dead man's rule: it says in a sentence that a policy has had no good
// backup for longer than its schedule allows, whether or not any ever ran; empty where
// all is well. A machine that was down has the time of a run to make it up, but one
// whose agent dies each time does not get that time anew.
func (w *Watched) stale(now time.Time, v *vigil, past []runs.Run) string {
	if v.Schedule != w.Schedule.String() || v.Since.After(now.Add(maxAhead)) || v.Since.IsZero() {
		*v = vigil{Schedule: w.Schedule.String(), Since: now}
	}
	from, good := v.Since, false
	var failed *runs.Run // the last one, if it failed
	for i := range past {
		r := &past[i]
		if !w.counts(r) || r.Started.After(now.Add(maxAhead)) {
			continue
		}
		switch {
		case r.Outcome.Good():
			failed = nil
			if r.Started.After(from) {
				from, good = r.Started, true
			}
		case r.Outcome == runs.Failed:
			failed = r
		}
	}
	due := w.due(from)
	if due.IsZero() || !now.After(due) {
		v.Late = time.Time{}
		return ""
	}
	if v.Late.IsZero() || v.Late.After(now) {
		v.Late = now
	}
	if now.Sub(v.Late) <= w.allowance(due) {
		return ""
	}
	if failed != nil {
		if next := w.due(failed.Started); !next.IsZero() && now.Before(next.Add(w.allowance(next))) {
			return "" // that it fails is told by itself
		}
	}
	what := "the last began at " + clock(from)
	if !good {
		what = "there was none since " + clock(from)
	}
	return fmt.Sprintf("policy %s has had no good backup for %s: %s, and by its schedule (%s) one was due at %s; look at `backupd runs` and the log",
		w.Name, round(now.Sub(from)), what, w.Schedule, clock(due))
}

func clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04 MST") }

func round(d time.Duration) time.Duration {
	if d > 48*time.Hour {
		return d.Round(time.Hour)
	}
	return d.Round(time.Minute)
}

// vigils are kept in the state directory. They may be lost: then what is late is
// told later.
type vigils struct {
	path string // empty: nowhere
	mu   sync.Mutex
	of   map[string]*vigil // by policy
}

func openVigils(stateDir string) *vigils {
	v := &vigils{of: map[string]*vigil{}}
	if stateDir == "" {
		return v
	}
	v.path = filepath.Join(stateDir, "watched.json")
	if data, err := os.ReadFile(v.path); err == nil {
		_ = json.Unmarshal(data, &v.of)
	}
	if v.of == nil {
		v.of = map[string]*vigil{}
	}
	return v
}

// stale asks the dead man's rule for each policy, and forgets those that are
// gone. What it returns is in the order of the list.
func (v *vigils) stale(now time.Time, list []Watched, past []runs.Run) []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	before, _ := json.Marshal(v.of)
	out := make([]string, len(list))
	of := map[string]*vigil{}
	for i := range list {
		w := &list[i]
		is := v.of[w.Name]
		if is == nil {
			is = &vigil{}
		}
		of[w.Name] = is
		out[i] = w.stale(now, is, past)
	}
	v.of = of
	if after, err := json.Marshal(v.of); err == nil && string(after) != string(before) {
		v.save(after)
	}
	return out
}

func (v *vigils) save(data []byte) {
	if v.path != "" {
		_ = statefile.Replace(v.path, data) // they may be lost
	}
}

// problems says what is wrong, in sentences: policies without a good backup, and
// last runs that failed. The former are told; of the latter each run tells by itself.
func (srv *server) problems(now time.Time) []string {
	a := srv.a
	all, err := a.History.All()
	var out []string
	if err != nil {
		out = append(out, err.Error())
	}
	// Where many stacks are served, each pass over all of them is a run of its own.
	all = slices.DeleteFunc(all, func(r runs.Run) bool { return r.Stack != a.Stack })
	policies := srv.current()
	var watched []Watched
	for i := range policies {
		if p := &policies[i]; p.expects(runs.Backup) {
			watched = append(watched, Watched{Name: p.Name, Schedule: p.Schedule, Jitter: p.Jitter, Timeout: p.Timeout, Covers: p.coveredBy})
		}
	}
	for i, text := range srv.vigils.stale(now, watched, all) {
		name := watched[i].Name
		a.alarm("stale/"+name, text, fmt.Sprintf("stack %s: no good backup for too long", a.Stack), fmt.Sprintf("stack %s: policy %s has a good backup again", a.Stack, name))
		if text != "" {
			out = append(out, text)
		}
	}
	return append(out, failing(all, policies)...)
}

// failing says of each policy that there is, and of each kind of its runs,
// whether the last failed. What was interrupted says nothing.
func failing(all []runs.Run, policies []Policy) []string {
	var out []string
	for i := range policies {
		p := &policies[i]
		last := map[runs.Kind]*runs.Run{}
		var order []runs.Kind
		for k := range all {
			r := &all[k]
			byHand := r.Policy == "" && r.Kind == runs.Backup && r.Outcome.Good() && p.coveredBy(r)
			if r.Outcome == runs.Interrupted || r.Kind == runs.Seed || r.Policy != p.Name && !byHand || !p.expects(r.Kind) {
				continue // a person who asks sees what comes of it
			}
			if last[r.Kind] == nil {
				order = append(order, r.Kind)
			}
			last[r.Kind] = r
		}
		for _, kind := range order {
			if r := last[kind]; r.Outcome == runs.Failed {
				out = append(out, fmt.Sprintf("stack %s: the last %s of policy %s failed at %s: %s", r.Stack, r.Kind, r.Policy, clock(r.Finished), r.Error))
			}
		}
	}
	return out
}

// expects says whether a policy has runs of a kind by itself.
func (p *Policy) expects(kind runs.Kind) bool {
	scheduled := p.Schedule != nil && !p.Schedule.Never()
	switch kind {
	case runs.Backup:
		return scheduled
	case runs.Drill:
		return p.DrillSchedule != nil && !p.DrillSchedule.Never()
	case runs.Prune, runs.Forget:
		return scheduled && p.Keep != nil
	}
	return true
}

// coveredBy says whether a backup that a person asked for is as good as the
// policy's own: it went to the same targets, and has all of its volumes.
func (p *Policy) coveredBy(r *runs.Run) bool {
	if len(p.Backup.Targets) > 0 {
		return false // those of the person may have been others
	}
	has := func(name string) bool {
		return slices.ContainsFunc(r.Volumes, func(v runs.Volume) bool { return v.Name == name })
	}
	for _, v := range p.Backup.Volumes {
		if !has(v.Name) {
			return false
		}
	}
	for _, name := range p.Backup.Only {
		if !has(name) {
			return false
		}
	}
	return true
}

func (a *Agent) alarm(key, text, title, well string) {
	switch {
	case a.Teller == nil:
	case text != "":
		a.Teller.Alarm(key, a.Stack, title, text)
	default:
		a.Teller.Clear(key, a.Stack, well)
	}
}
