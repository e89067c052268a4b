package agent

import (
	"fmt"
	"slices"
	"time"

	"github.com/disko/backupd/internal/runs"
)

// Watched is a policy whose backups are expected.
type Watched struct {
	Name string
	// Every is the distance of its schedule: the longest between two runs.
	Every time.Duration
	// Since is when the first could have been taken.
	Since time.Time
}

// grace is what a backup may be late: its distance once more, and an hour.
const grace = time.Hour

// Stale is the dead man's rule: it says in a sentence that a policy has had no good
// backup for too long, whether or not any ever ran; empty where all is well.
func (w *Watched) Stale(now time.Time, last *runs.Run) string {
	if w.Every <= 0 {
		return ""
	}
	since, what := w.Since, "none since backupd started to watch"
	if last != nil && last.Finished.After(since) || last != nil && last.Started.After(since) {
		since, what = last.Started, "the last began"
	}
	age := now.Sub(since)
	if age <= 2*w.Every+grace {
		return ""
	}
	return fmt.Sprintf("policy %s has had no good backup for %s (%s %s), and its schedule asks for one every %s; look at `backupd runs` and the log",
		w.Name, round(age), what, since.Local().Format("2006-01-02 15:04 MST"), round(w.Every))
}

func round(d time.Duration) time.Duration {
	if d > 48*time.Hour {
		return d.Round(time.Hour)
	}
	return d.Round(time.Minute)
}

// problems says what is wrong, in sentences: policies without a good backup, and
// last runs that failed. Alarms are told.
func (a *Agent) problems(watched []Watched, host bool) []string {
	all, err := a.History.All()
	if err != nil {
		return []string{err.Error()}
	}
	now := a.Now()
	var out []string
	for i := range watched {
		w := &watched[i]
		var good *runs.Run
		for k := range all {
			if r := &all[k]; r.Kind == runs.Backup && r.Policy == w.Name && (host || r.Stack == a.Stack) && r.Outcome.Good() {
				good = r
			}
		}
		text := w.Stale(now, good)
		a.alarm("stale/"+w.Name, text, fmt.Sprintf("stack %s: no good backup for too long", a.Stack), fmt.Sprintf("stack %s: policy %s has a good backup again", a.Stack, w.Name))
		if text != "" {
			out = append(out, text)
		}
	}
	if !host {
		all = slices.DeleteFunc(all, func(r runs.Run) bool { return r.Stack != a.Stack })
	}
	return append(out, failing(all)...)
}

// failing says of each kind of run, policy and stack whether the last failed.
func failing(all []runs.Run) []string {
	type key struct {
		kind          runs.Kind
		policy, stack string
	}
	last := map[key]*runs.Run{}
	var order []key
	for i := range all {
		r := &all[i]
		if r.Outcome == runs.Interrupted || r.Kind == runs.Seed || r.Policy == "" {
			continue // a person who asks sees what comes of it
		}
		k := key{r.Kind, r.Policy, r.Stack}
		if last[k] == nil {
			order = append(order, k)
		}
		last[k] = r
	}
	var out []string
	for _, k := range order {
		if r := last[k]; r.Outcome == runs.Failed {
			out = append(out, fmt.Sprintf("stack %s: the last %s of policy %s failed: %s", r.Stack, r.Kind, r.Policy, r.Error))
		}
	}
	return out
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
