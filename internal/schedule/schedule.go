// Package schedule decides when something runs, and runs it: cron expressions
// (Parse, Next), and the loop that keeps them (Loop).
//
// It knows a function to call and nothing of backups, containers or settings.
// When to run is a pure function of an expression and a moment; the loop is
// given its clock.
//
// Changes of the clock for daylight saving neither skip nor double a night. An
// expression that leaves out some hours of the day names times: each of them
// comes once a day, a time that the change skips comes when the clock has
// jumped, and of a time that comes twice the first counts. An expression that
// has every hour (`*/15 * * * *`, @hourly), and @every, go by the time
// that passes: they keep their distance through the change.
package schedule

import (
	"fmt"
	"time"

	"github.com/robfig/cron/v3"
)

// Schedule is a parsed expression. The zero value never fires.
type Schedule struct {
	text  string
	spec  *cron.SpecSchedule // bit sets of the fields, read by Parse
	loc   *time.Location
	every time.Duration // of @every
}

// horizon is how far ahead Next looks: 29 February can be eight years away.
const horizon = 9 * 366

// String returns the expression as it was given.
func (s *Schedule) String() string { return s.text }

// Never says that the schedule is empty or @never: nothing runs by itself.
func (s *Schedule) Never() bool { return s == nil || s.spec == nil && s.every == 0 }

// Location is the time zone in which the fields are read.
func (s *Schedule) Location() *time.Location { return s.loc }

// Next returns the first time after the given one at which the schedule fires,
// in the schedule's zone; the zero time if it never does.
func (s *Schedule) Next(after time.Time) time.Time {
	switch {
	case s.Never():
		return time.Time{}
	case s.every > 0:
		// Whole seconds of the wall clock, as cron has them.
		return after.Round(0).Add(s.every).Truncate(time.Second).In(s.loc)
	}
	return s.next(after.Round(0).In(s.loc))
}

// elapsed says that the schedule goes by the time that passes, and not by
// named times of the day.
func (s *Schedule) elapsed() bool {
	const allHours = 1<<24 - 1
	return s.every > 0 || s.spec != nil && s.spec.Hour&allHours == allHours
}

// next goes through the hours of the calendar, and from each matching time of
// the calendar to the moments at which clocks show it. The library's own Next goes
// through moments instead: it skips what falls into the gap in spring, repeats
// what comes twice in autumn, and loses days whose midnight does not exist.
func (s *Schedule) next(after time.Time) time.Time {
	var best time.Time
	year, month, day := after.Date()
	// What clocks showed earlier than this does not come again: they go back by
	// two hours at most (but for the date line, which last moved so in 1892).
	past := time.Date(year, month, day, after.Hour(), 0, 0, 0, time.UTC).Add(-4 * time.Hour)
	// From the day before: a time that was skipped yesterday may come today.
	for d := -1; d < horizon; d++ {
		date := time.Date(year, month, day+d, 0, 0, 0, 0, time.UTC)
		if !s.dayMatches(date) {
			continue
		}
		for hour := range 24 {
			if !has(s.spec.Hour, hour) {
				continue
			}
			start := date.Add(time.Duration(hour) * time.Hour)
			if start.Before(past) {
				continue
			}
			offset, plain := plainHour(start, s.loc)
			if plain {
				first := start.Add(-offset)
				if !best.IsZero() && !first.Before(best) {
					return best.In(s.loc)
				}
				if !first.Add(time.Hour).After(after) {
					continue
				}
			}
			for minute := range 60 {
				if !has(s.spec.Minute, minute) {
					continue
				}
				for second := range 60 {
					if !has(s.spec.Second, second) {
						continue
					}
					wall := start.Add(time.Duration(minute)*time.Minute + time.Duration(second)*time.Second)
					if plain {
						if at := wall.Add(-offset); at.After(after) && (best.IsZero() || at.Before(best)) {
							return at.In(s.loc) // later ones come later
						}
						continue
					}
					for _, at := range s.moments(wall) {
						if at.After(after) && (best.IsZero() || at.Before(best)) {
							best = at
						}
					}
				}
			}
		}
	}
	if best.IsZero() {
		return best
	}
	return best.In(s.loc)
}

// moments returns when the schedule fires for a time of the calendar (given in
// UTC) that lies near a change of the clock.
func (s *Schedule) moments(wall time.Time) []time.Time {
	at := shown(wall, s.loc)
	if len(at) == 0 {
		if s.elapsed() {
			return nil
		}
		return afterGap(wall, s.loc)
	}
	if s.elapsed() {
		return at
	}
	return at[:1]
}

// dayMatches is cron's rule: where both day fields are given, either is enough.
func (s *Schedule) dayMatches(date time.Time) bool {
	const star = 1 << 63
	if !has(s.spec.Month, int(date.Month())) {
		return false
	}
	dom, dow := has(s.spec.Dom, date.Day()), has(s.spec.Dow, int(date.Weekday()))
	if s.spec.Dom&star != 0 || s.spec.Dow&star != 0 {
		return dom && dow
	}
	return dom || dow
}

func has(set uint64, n int) bool { return set&(1<<uint(n)) != 0 }

// offsetOf is what the zone's clocks are ahead of UTC.
func offsetOf(t time.Time) time.Duration {
	_, seconds := t.Zone()
	return time.Duration(seconds) * time.Second
}

// local reads a time of the calendar, given in UTC, as one of the zone. Near a
// change Go chooses one of the two offsets.
func local(wall time.Time, loc *time.Location) time.Time {
	y, m, d := wall.Date()
	return time.Date(y, m, d, wall.Hour(), wall.Minute(), wall.Second(), 0, loc)
}

// plainHour says whether each time in the hour of the calendar that begins at
// wall comes exactly once, and all with the same offset.
func plainHour(wall time.Time, loc *time.Location) (offset time.Duration, plain bool) {
	t := local(wall, loc)
	offset = offsetOf(t)
	if !wall.Add(-offset).Equal(t) {
		return 0, false
	}
	start, end := t.ZoneBounds()
	if !start.IsZero() && t.Sub(start) < (offset-offsetOf(start.Add(-1).In(loc))).Abs() {
		return 0, false
	}
	if !end.IsZero() && end.Sub(t) < time.Hour+(offset-offsetOf(end.In(loc))).Abs() {
		return 0, false
	}
	return offset, true
}

// shown returns the moments at which the zone's clocks show a time of the
// calendar: none, one or two, in order.
func shown(wall time.Time, loc *time.Location) []time.Time {
	t := local(wall, loc)
	near := []time.Time{t}
	start, end := t.ZoneBounds()
	if !start.IsZero() {
		near = append(near, start.Add(-1).In(loc))
	}
	if !end.IsZero() {
		near = append(near, end.In(loc))
	}
	var out []time.Time
	for _, n := range near {
		at := wall.Add(-offsetOf(n)).In(loc)
		if !at.Add(offsetOf(at)).Equal(wall) {
			continue
		}
		i := 0
		for i < len(out) && out[i].Before(at) {
			i++
		}
		if i == len(out) || !out[i].Equal(at) {
			out = append(out[:i], append([]time.Time{at}, out[i:]...)...)
		}
	}
	return out
}

// afterGap returns when the clocks jump over a time that they do not show;
// nothing where they jump over whole days (Samoa had no 30 December in 2011).
func afterGap(wall time.Time, loc *time.Location) []time.Time {
	t := local(wall, loc)
	jump, end := t.ZoneBounds()
	if t.Add(offsetOf(t)).Before(wall) {
		jump = end
	}
	if offsetOf(jump.In(loc))-offsetOf(jump.Add(-1).In(loc)) >= 24*time.Hour {
		return nil
	}
	return []time.Time{jump}
}

// Offset is what a run of that name is late within its jitter: the same for
// the same name, so that runs keep their distance, and spread over names. It is
// at least 0 and less than jitter.
func Offset(name string, jitter time.Duration) time.Duration {
	if jitter < time.Second {
		return 0
	}
	// FNV-1a and a final mix: names that differ in their last letter are to land
	// far apart.
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	return time.Duration(h%uint64(jitter/time.Second)) * time.Second
}

// fires is whether there is any time at which the schedule fires.
func (s *Schedule) fires() bool {
	return !s.next(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC).In(s.loc)).IsZero()
}

// example is what every error about an expression ends with.
const example = `write it as "minute hour day-of-month month day-of-week", as in "30 3 * * *" for half past three every night, or as @daily, @hourly, @every 6h; @never is for none`

func wrong(text, format string, args ...any) error {
	return fmt.Errorf("schedule %q: %w; %s", text, fmt.Errorf(format, args...), example)
}
