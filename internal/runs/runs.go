// Package runs is the record of what backupd did: one Run each for a backup, a
// drill, a retention or a seeding, and a History of them that outlives restarts.
//
// Invariants: a record is appended when its run has ended, and never changed; a
// record that was cut short by a crash is left out and does not hide the others.
// It holds nothing secret, and deciding what a run means to anybody (telling,
// counting, running again) is its readers' business.
package runs

import (
	"slices"
	"strings"
	"time"
)

// Kind is what a run was for.
type Kind string

// Kinds of runs.
const (
	Backup  Kind = "backup"
	Drill   Kind = "drill"
	Forget  Kind = "forget"
	Prune   Kind = "prune"
	Seed    Kind = "seed"
	Restore Kind = "restore"
)

// Outcome is how a run ended.
type Outcome string

// Outcomes. A run with warnings did what it was for; some files could not be
// read, or one of several targets did not answer.
const (
	Done        Outcome = "done"
	Warnings    Outcome = "warnings"
	Failed      Outcome = "failed"
	Interrupted Outcome = "interrupted"
)

// Good says whether the run did what it was for.
func (o Outcome) Good() bool { return o == Done || o == Warnings }

// Run is one run. Its JSON form is stable. Sizes are in bytes.
type Run struct {
	ID       string    `json:"id"` // random, 16 hex digits
	Kind     Kind      `json:"kind"`
	Policy   string    `json:"policy,omitempty"` // which policy asked for it; empty where a person did
	Stack    string    `json:"stack,omitempty"`
	Trigger  string    `json:"trigger"` // schedule, catch-up, start or manual
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	Outcome  Outcome   `json:"outcome"`
	// Error says what failed, why, and what to do.
	Error    string   `json:"error,omitempty"`
	Warnings []string `json:"warnings,omitempty"` // at most MaxWarnings
	Snapshot string   `json:"snapshot,omitempty"` // that was taken, restored or proven
	// Frozen is how long services stood still, in seconds.
	Frozen  float64  `json:"frozen_seconds,omitempty"`
	Volumes []Volume `json:"volumes,omitempty"`
	Targets []Target `json:"targets,omitempty"`
	// Parts: it is a pass over several stacks, each of which has a run of its own.
	Parts bool `json:"parts,omitempty"`
	// Removed counts snapshots that were forgotten, or objects that were
	// deleted; Freed is the bytes of the latter.
	Removed int   `json:"removed,omitempty"`
	Freed   int64 `json:"freed,omitempty"`
}

// MaxWarnings bounds the warnings of a record; MaxText the bytes of each, and of
// its error.
const (
	MaxWarnings = 20
	MaxText     = 8 << 10
)

// Clip shortens a text to MaxText.
func Clip(text string) string {
	if len(text) <= MaxText {
		return text
	}
	return strings.ToValidUTF8(text[:MaxText], "") + " ..."
}

// Took is how long the run lasted.
func (r *Run) Took() time.Duration { return r.Finished.Sub(r.Started) }

// Warn adds a warning, unless there are many already.
func (r *Run) Warn(text string) {
	text = Clip(text)
	if len(r.Warnings) < MaxWarnings && !slices.Contains(r.Warnings, text) {
		r.Warnings = append(r.Warnings, text)
	}
}

// Volume is what a run did with one volume.
type Volume struct {
	Name     string `json:"name"`
	Files    uint64 `json:"files"`
	Bytes    uint64 `json:"bytes"`
	Read     uint64 `json:"bytes_read"`
	Stored   uint64 `json:"bytes_stored"`
	Warnings uint64 `json:"warnings"`
}

// Target is what became of a run on one of its targets.
type Target struct {
	Target   string `json:"target"`
	Snapshot string `json:"snapshot,omitempty"`
	Error    string `json:"error,omitempty"`
}
