package snapshot

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Retention: which snapshots a policy keeps. All in this file is pure.
//
// What holds whatever the policy says: a tag pins; the last good snapshot of a
// line stays; what cannot be read, is incomplete or shrank is not counted and
// stays. Age is never counted from now: after an outage nothing is older than before.

// period is a unit of time of which a policy keeps the last snapshot each.
type period struct {
	name, one string // "daily", "day"
	of        func(time.Time) string
}

var periods = []period{
	{"hourly", "hour", func(t time.Time) string { return t.Format("2006-01-02 15 -0700") }}, // the hour that comes twice in autumn is two
	{"daily", "day", func(t time.Time) string { return t.Format(time.DateOnly) }},
	{"weekly", "week", func(t time.Time) string { y, w := t.ISOWeek(); return fmt.Sprintf("%d-W%02d", y, w) }},
	{"monthly", "month", func(t time.Time) string { return t.Format("2006-01") }},
	{"yearly", "year", func(t time.Time) string { return t.Format("2006") }},
}

// Policy says which snapshots to keep. The zero value keeps everything.
type Policy struct {
	Last   int
	Counts [5]int // by periods: hourly, daily, weekly, monthly, yearly
	Within Span   // counted back from the newest good snapshot
}

// Span is a length of time in the calendar: 3 months are not always 90 days.
type Span struct {
	Years, Months, Days, Hours int
}

const policyExample = `write it as in "7 daily, 4 weekly, 6 monthly, 2 yearly", "3 last" or "within 30d"`

// maxNumber bounds the numbers in a policy: more is a typing error.
const maxNumber = 100000

// ParsePolicy reads a policy: items separated by commas, each "N UNIT" with the
// units last, hourly, daily, weekly, monthly and yearly, or "within SPAN".
func ParsePolicy(text string) (Policy, error) {
	var p Policy
	if strings.TrimSpace(text) == "" {
		return p, fmt.Errorf("%w: the retention policy is empty; %s", ErrUsage, policyExample)
	}
	seen := map[string]bool{}
	for item := range strings.SplitSeq(text, ",") {
		unit, err := p.add(strings.Fields(strings.ToLower(item)))
		if err == nil && seen[unit] {
			err = fmt.Errorf("%s is said twice", unit)
		}
		if err != nil {
			return Policy{}, fmt.Errorf("%w: retention policy %q: %q: %w; %s", ErrUsage, text, strings.TrimSpace(item), err, policyExample)
		}
		seen[unit] = true
	}
	return p, nil
}

// add adds one item and returns its unit.
func (p *Policy) add(words []string) (string, error) {
	if len(words) == 0 {
		return "", errors.New("nothing stands between two commas")
	}
	if words[0] == "keep-last" && len(words) == 2 {
		words = []string{words[1], "last"}
	}
	if words[0] == "keep-within" {
		words[0] = "within"
	}
	if len(words) != 2 {
		return "", errors.New("is not a number and a unit")
	}
	if words[0] == "within" {
		span, err := ParseSpan(words[1])
		p.Within = span
		return "within", err
	}
	n, err := strconv.Atoi(words[0])
	if err != nil || n < 1 || n > maxNumber {
		return "", fmt.Errorf("%q is no number from 1 to %d", words[0], maxNumber)
	}
	if words[1] == "last" {
		p.Last = n
		return "last", nil
	}
	for i, u := range periods {
		if words[1] == u.name {
			p.Counts[i] = n
			return u.name, nil
		}
	}
	return "", fmt.Errorf("there is no unit %q: there are last, hourly, daily, weekly, monthly and yearly", words[1])
}

// ParseSpan reads a span: numbers with units y, m (months), w, d and h, as in 30d or 1y6m.
func ParseSpan(text string) (Span, error) {
	var s Span
	bad := fmt.Errorf("%w: span %q: write it as in 30d, 48h, 6m or 1y6m (y years, m months, w weeks, d days, h hours)", ErrUsage, text)
	rest := text
	order := "ymwdh"
	for rest != "" {
		i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if i <= 0 {
			return Span{}, bad
		}
		n, err := strconv.Atoi(rest[:i])
		at := strings.IndexByte(order, rest[i])
		if err != nil || n < 1 || n > maxNumber || at < 0 {
			return Span{}, bad
		}
		switch rest[i] {
		case 'y':
			s.Years = n
		case 'm':
			s.Months = n
		case 'w':
			s.Days += 7 * n
		case 'd':
			s.Days += n
		case 'h':
			s.Hours = n
		}
		order, rest = order[at+1:], rest[i+1:]
	}
	if s == (Span{}) {
		return Span{}, bad
	}
	return s, nil
}

func (s Span) String() string {
	var b strings.Builder
	for _, u := range []struct {
		n    int
		unit string
	}{{s.Years, "y"}, {s.Months, "m"}, {s.Days, "d"}, {s.Hours, "h"}} {
		if u.n > 0 {
			fmt.Fprintf(&b, "%d%s", u.n, u.unit)
		}
	}
	return b.String()
}

// before is the moment that lies a span before t.
func (s Span) before(t time.Time) time.Time {
	return t.AddDate(-s.Years, -s.Months, -s.Days).Add(-time.Duration(s.Hours) * time.Hour)
}

// IsZero says whether the policy keeps everything.
func (p Policy) IsZero() bool { return p == Policy{} }

// String is the policy as ParsePolicy reads it.
func (p Policy) String() string {
	var items []string
	if p.Last > 0 {
		items = append(items, fmt.Sprintf("%d last", p.Last))
	}
	for i, n := range p.Counts {
		if n > 0 {
			items = append(items, fmt.Sprintf("%d %s", n, periods[i].name))
		}
	}
	if p.Within != (Span{}) {
		items = append(items, "within "+p.Within.String())
	}
	return strings.Join(items, ", ")
}

// Candidate is a snapshot that a policy decides on.
type Candidate struct {
	Listed
	// Incomplete is what it lacks; empty where all of it is there.
	Incomplete string
}

// Decision says what becomes of a snapshot, and why.
type Decision struct {
	Snapshot Listed   `json:"-"`
	Keep     bool     `json:"keep"`
	Good     bool     `json:"good"` // counts as one that can be relied on
	Reasons  []string `json:"reasons"`
}

// DefaultShrink is the share of its parent's bytes that a snapshot may lose
// and still be called good.
const DefaultShrink = 0.5

// Shrunk says whether a snapshot lost more than a share of its parent's bytes,
// in all or in a volume that held a good part of them, and tells it in a few
// words; "" where it did not. Whoever empties a database by mistake backs the
// emptiness up: that is no snapshot to rely on.
func Shrunk(m, parent *Manifest, share float64) string {
	if m == nil || parent == nil {
		return ""
	}
	was, is := parent.bytes(), m.bytes()
	less := func(was, is uint64) bool { return float64(is) < (1-share)*float64(was) }
	if less(was, is) {
		return fmt.Sprintf("shrank from %d to %d bytes against snapshot %.8s", was, is, parent.id)
	}
	for i := range parent.Volumes {
		v := &parent.Volumes[i]
		now := uint64(0)
		if u := m.Volume(v.Name); u != nil {
			now = u.Counts.Bytes
		}
		// A small cache beside a large database comes and goes.
		if v.Counts.Bytes >= was/10 && less(v.Counts.Bytes, now) {
			return fmt.Sprintf("volume %s shrank from %d to %d bytes against snapshot %.8s", v.Name, v.Counts.Bytes, now, parent.id)
		}
	}
	return ""
}

func (m *Manifest) bytes() (n uint64) {
	for i := range m.Volumes {
		n += m.Volumes[i].Counts.Bytes
	}
	return n
}

// line is what a snapshot is counted with: those of its stack that lead, or,
// for a clone's own, those of that clone.
func (m *Manifest) line() string {
	if m.Seeded != "" && m.Trigger != "schedule" {
		return m.Stack + "\x00" + m.Origin
	}
	return m.Stack
}

// Keep decides on snapshots, which may be of several stacks; each stack, and
// in it each clone, is decided on by itself. The decisions are in the order of
// the candidates. Periods are those of the zone tz.
func (p Policy) Keep(list []Candidate, tz *time.Location) []Decision {
	out := make([]Decision, len(list))
	lines := map[string][]int{}
	var order []string
	for i, c := range list {
		out[i] = Decision{Snapshot: c.Listed, Reasons: []string{}}
		if c.Err != nil || c.Manifest == nil {
			out[i].keep("cannot be read, so nobody knows what it is")
			continue
		}
		line := c.Manifest.line()
		if lines[line] == nil {
			order = append(order, line)
		}
		lines[line] = append(lines[line], i)
	}
	for _, line := range order {
		p.decide(list, lines[line], out, tz)
	}
	return out
}

func (d *Decision) keep(why string) {
	d.Keep = true
	d.Reasons = append(d.Reasons, why)
}

// decide decides on the snapshots of one line; is are their places.
func (p Policy) decide(list []Candidate, is []int, out []Decision, tz *time.Location) {
	// By sequence: clocks may be off.
	is = slices.Clone(is)
	slices.SortStableFunc(is, func(a, b int) int {
		return cmp.Or(cmp.Compare(list[a].Sequence, list[b].Sequence), cmp.Compare(list[a].ID, list[b].ID))
	})
	byID := map[string]*Manifest{}
	for _, i := range is {
		byID[list[i].ID] = list[i].Manifest
	}
	var good []int // ascending
	var before *Manifest
	for _, i := range is {
		m, d := list[i].Manifest, &out[i]
		parent := byID[m.Parent]
		if parent == nil {
			parent = before // the nearest that there still is
		}
		switch why := Shrunk(m, parent, DefaultShrink); {
		case list[i].Incomplete != "":
			d.keep("is incomplete, and does not count: " + list[i].Incomplete)
		case why != "":
			d.keep(why + ", and does not count")
		default:
			d.Good = true
			good = append(good, i)
			before = m
		}
		for _, tag := range m.Tags {
			d.keep("tag " + tag)
		}
	}
	slices.Reverse(good) // the newest first
	if p.IsZero() {
		for _, i := range good {
			out[i].keep("there is no policy")
		}
	}
	if len(good) == 0 {
		return
	}
	for k, i := range good[:min(p.Last, len(good))] {
		out[i].keep(fmt.Sprintf("last %d of %d", k+1, p.Last))
	}
	for u, n := range p.Counts {
		seen := map[string]bool{}
		for _, i := range good {
			of := periods[u].of(list[i].Manifest.Started.In(tz))
			if len(seen) == n {
				break
			}
			if !seen[of] {
				seen[of] = true
				out[i].keep(fmt.Sprintf("%s %d of %d: last of %s %s", periods[u].name, len(seen), n, periods[u].one, of))
			}
		}
	}
	if newest := list[good[0]].Manifest.Started.In(tz); p.Within != (Span{}) {
		since := p.Within.before(newest)
		for _, i := range good {
			if !list[i].Manifest.Started.Before(since) {
				out[i].keep("within " + p.Within.String() + " of the newest good one")
			}
		}
	}
	if d := &out[good[0]]; !d.Keep {
		d.keep("is the last good one")
	}
	for _, i := range good {
		if d := &out[i]; !d.Keep {
			d.Reasons = append(d.Reasons, "no rule keeps it")
		}
	}
}
