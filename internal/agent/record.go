package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/disko/backupd/internal/runs"
	"github.com/disko/backupd/internal/schedule"
)

// record does work as a run: it is in the history when it has ended, then it is
// told, and one line of the log sums it up. work fills in what it did; its error decides how the run ended.
func (a *Agent) record(ctx context.Context, r *runs.Run, work func(ctx context.Context, r *runs.Run) error) error {
	r.ID, r.Stack, r.Started = newID(), a.Stack, a.Now().UTC()
	last := a.lastLike(r)
	if a.Teller != nil && !a.one {
		a.Teller.Started(r)
	}
	err := work(ctx, r)
	r.Finished = a.Now().UTC()
	switch {
	case err != nil && errors.Is(context.Cause(ctx), schedule.ErrTimeout):
		err = fmt.Errorf("not done after %s: %w; allow more time by its policy's timeout, or find out what is slow: %w", r.Took().Round(time.Second), schedule.ErrTimeout, err)
		r.Outcome, r.Error = runs.Failed, runs.Clip(err.Error())
	case err != nil && ctx.Err() != nil:
		// Whatever came of it, it was broken off: a stop of the machine is no failure.
		r.Outcome, r.Error = runs.Interrupted, runs.Clip(err.Error())
	case err != nil:
		r.Outcome, r.Error = runs.Failed, runs.Clip(err.Error())
	case r.Outcome == "":
		r.Outcome = runs.Done
		if len(r.Warnings) > 0 {
			r.Outcome = runs.Warnings
		}
	}
	a.note(r)
	if a.Teller != nil {
		switch {
		case a.one:
			a.Teller.Tell(r, last)
		case r.Parts:
			a.Teller.Ping(r)
		default:
			a.Teller.Ended(r, last)
		}
	}
	a.sumUp(ctx, r)
	return err
}

// note adds a run to the history. That it cannot is said once, until it can again.
func (a *Agent) note(r *runs.Run) {
	err := a.History.Add(*r)
	if a.said.news("history", err != nil) {
		a.Log.Error("the run is not in the history", "error", err)
	}
}

// said remembers what was said of conditions that last.
type said struct {
	mu sync.Mutex
	is map[string]bool
}

// news says whether a condition is there that was not there the last time.
func (s *said) news(what string, is bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.is[what]
	if s.is == nil {
		s.is = map[string]bool{}
	}
	s.is[what] = is
	return is && !was
}

// lastLike is the last run of the same kind and policy that ended by itself.
func (a *Agent) lastLike(r *runs.Run) *runs.Run {
	last, ok, err := a.History.Last(r.Kind, r.Policy, func(l *runs.Run) bool { return l.Stack == r.Stack && l.Outcome != runs.Interrupted })
	if a.said.news("history unreadable", err != nil) {
		a.Log.Warn("the history of runs cannot be read", "error", err)
	}
	if !ok {
		return nil
	}
	return &last
}

// sumUp logs a run in one line.
func (a *Agent) sumUp(ctx context.Context, r *runs.Run) {
	attrs := []slog.Attr{
		slog.String("kind", string(r.Kind)), slog.String("stack", r.Stack), slog.String("outcome", string(r.Outcome)),
		slog.String("took", r.Took().Round(1e6).String()),
	}
	if r.Policy != "" {
		attrs = append(attrs, slog.String("policy", r.Policy))
	}
	if r.Snapshot != "" {
		attrs = append(attrs, slog.String("snapshot", r.Snapshot))
	}
	var files, read, stored uint64
	for _, v := range r.Volumes {
		files, read, stored = files+v.Files, read+v.Read, stored+v.Stored
	}
	if len(r.Volumes) > 0 {
		attrs = append(attrs, slog.Int("volumes", len(r.Volumes)), slog.Uint64("files", files), slog.Uint64("bytes_read", read), slog.Uint64("bytes_stored", stored))
	}
	if r.Frozen > 0 {
		attrs = append(attrs, slog.String("frozen", fmt.Sprintf("%.2fs", r.Frozen)))
	}
	if r.Removed > 0 || r.Freed > 0 {
		attrs = append(attrs, slog.Int("removed", r.Removed), slog.Int64("bytes_freed", r.Freed))
	}
	for _, w := range r.Warnings {
		attrs = append(attrs, slog.String("warning", w))
	}
	level := slog.LevelInfo
	switch r.Outcome {
	case runs.Failed:
		level = slog.LevelError
	case runs.Warnings, runs.Interrupted:
		level = slog.LevelWarn
	}
	if r.Error != "" {
		attrs = append(attrs, slog.String("error", r.Error))
	}
	a.Log.LogAttrs(ctx, level, "run ended", attrs...)
}
