package seed

import (
	"fmt"
	"strings"
)

// Outcome is what became of a volume.
type Outcome string

// Outcomes.
const (
	Filled Outcome = "seeded"  // it is what the snapshot has
	Fresh  Outcome = "fresh"   // it is fresh, and was not seeded: by a dry run, or because of the error
	Left   Outcome = "left"    // it was left alone
	Unsure Outcome = "doubt"   // it was left alone, though it may not be what it should
	Failed Outcome = "failed"  // seeding it ended; it is not complete
	Begun  Outcome = "pending" // seeding it began earlier and was not finished by this run
)

// VolumeResult says what became of one volume, and why.
type VolumeResult struct {
	Volume
	Outcome Outcome `json:"outcome"`
	// Why goes on after the volume's name: "is empty".
	Why string `json:"why"`
	// Help is the command that would do what was not done; empty if none would.
	Help     string `json:"help,omitempty"`
	Snapshot string `json:"snapshot,omitempty"`
}

func (v VolumeResult) String() string {
	s := fmt.Sprintf("volume %s %s", v.Name, v.Why)
	switch v.Outcome {
	case Filled:
		s += fmt.Sprintf(": it was seeded from snapshot %.8s", v.Snapshot)
	case Fresh:
		if v.Snapshot != "" {
			s += fmt.Sprintf(": it would be seeded from snapshot %.8s", v.Snapshot)
		} else {
			s += ": it waits to be seeded"
		}
	case Left, Unsure:
		s += ": left alone"
	case Failed:
		s += fmt.Sprintf(": seeding it from snapshot %.8s ended, it is not complete", v.Snapshot)
	case Begun:
		s += ": it waits to be finished"
	}
	if v.Help != "" {
		s += fmt.Sprintf("; `%s` would seed it", v.Help)
		if strings.Contains(v.Help, " restore ") {
			s = strings.TrimSuffix(s, "` would seed it") + "` would restore over it, and can be undone"
		}
	}
	return s
}

// Result is what a run decided and did.
type Result struct {
	Stack    string         `json:"stack"`
	Mode     Mode           `json:"mode"`
	DryRun   bool           `json:"dry_run,omitempty"`
	Snapshot string         `json:"snapshot,omitempty"` // the one to seed from, if one was asked for
	Volumes  []VolumeResult `json:"volumes"`
	Error    string         `json:"error,omitempty"`
	// Summary is one sentence; after an error its text.
	Summary string `json:"summary"`
}

func newResult(o *Options) *Result {
	return &Result{Stack: o.Stack, Mode: o.Mode, DryRun: o.DryRun, Volumes: []VolumeResult{}}
}

// Count returns how many volumes had an outcome.
func (r *Result) Count(o Outcome) int {
	n := 0
	for _, v := range r.Volumes {
		if v.Outcome == o {
			n++
		}
	}
	return n
}

// Lines are the result for a log: one for each volume, then the summary, which after an error
// is the reason. So it is the last line of the log of a container that exits then.
func (r *Result) Lines() []string {
	var out []string
	for _, v := range r.Volumes {
		out = append(out, v.String())
	}
	return append(out, r.Summary)
}

func (r *Result) add(d *Decision) {
	v := VolumeResult{Volume: d.Volume, Why: d.Why, Help: d.Help, Snapshot: d.Snapshot}
	switch d.Action {
	case Seed:
		v.Outcome = Fresh
	case Resume:
		v.Outcome = Begun
	case Doubt:
		v.Outcome = Unsure
	default:
		v.Outcome = Left
	}
	r.Volumes = append(r.Volumes, v)
}

func (r *Result) set(d *Decision) {
	last := len(r.Volumes)
	r.add(d)
	v := r.Volumes[last]
	r.Volumes = r.Volumes[:last]
	*r.of(d) = v
}

func (r *Result) of(d *Decision) *VolumeResult {
	for i := range r.Volumes {
		if r.Volumes[i].Name == d.Name {
			return &r.Volumes[i]
		}
	}
	r.Volumes = append(r.Volumes, VolumeResult{Volume: d.Volume})
	return &r.Volumes[len(r.Volumes)-1]
}

func (r *Result) outcome(d *Decision, s Snapshot, o Outcome) {
	v := r.of(d)
	v.Outcome, v.Snapshot = o, s.ID
}

func (r *Result) seeded(d *Decision, s Snapshot) { r.outcome(d, s, Filled) }
func (r *Result) failed(d *Decision, s Snapshot) { r.outcome(d, s, Failed) }
func (r *Result) would(d *Decision, s Snapshot)  { r.outcome(d, s, Fresh) }

func (r *Result) summarize() {
	n := len(r.Volumes)
	done, left, doubt := r.Count(Filled), r.Count(Left), r.Count(Unsure)
	switch {
	case r.Error != "":
		r.Summary = r.Error
	case r.Mode == Off:
		r.Summary = fmt.Sprintf("stack %s: seeding is off", r.Stack)
	case n == 0:
		r.Summary = fmt.Sprintf("stack %s: there is no volume to seed", r.Stack)
	case r.DryRun:
		r.Summary = fmt.Sprintf("stack %s: %d of %d volumes would be seeded, %d would be left alone; nothing was changed", r.Stack, r.Count(Fresh)+r.Count(Begun), n, left+doubt)
	case done > 0:
		r.Summary = fmt.Sprintf("stack %s: %d of %d volumes seeded from snapshot %.8s, %d left alone", r.Stack, done, n, r.Snapshot, left+doubt)
	case doubt > 0:
		r.Summary = fmt.Sprintf("stack %s: nothing was seeded; %d of %d volumes are in doubt, see above", r.Stack, doubt, n)
	default:
		r.Summary = fmt.Sprintf("stack %s: nothing to seed, all %d volumes are the project's own", r.Stack, n)
	}
}
