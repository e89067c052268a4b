package schedule

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// Longest expression and shortest interval that make sense.
const (
	maxText  = 1000
	minEvery = time.Second
)

// field is one place of an expression.
type field struct {
	name   string
	option cron.ParseOption
	bits   func(*cron.SpecSchedule) uint64
	values string
}

var fields = [...]field{
	{"second", cron.Second, func(s *cron.SpecSchedule) uint64 { return s.Second }, "0 to 59"},
	{"minute", cron.Minute, func(s *cron.SpecSchedule) uint64 { return s.Minute }, "0 to 59"},
	{"hour", cron.Hour, func(s *cron.SpecSchedule) uint64 { return s.Hour }, "0 to 23"},
	{"day of month", cron.Dom, func(s *cron.SpecSchedule) uint64 { return s.Dom }, "1 to 31"},
	{"month", cron.Month, func(s *cron.SpecSchedule) uint64 { return s.Month }, "1 to 12 or jan to dec"},
	{"day of week", cron.Dow, func(s *cron.SpecSchedule) uint64 { return s.Dow }, "0 (Sunday) to 6 or sun to sat"},
}

// items are what may stand between the commas of a field. The library also takes
// empty ones, and signs.
var items = regexp.MustCompile(`^(\*|\?|[0-9]{1,4}|[A-Za-z]{3})(-([0-9]{1,4}|[A-Za-z]{3}))?(/[0-9]{1,4})?$`)

// Parse reads an expression: five fields, or six with seconds in front; @daily
// (@midnight), @hourly, @weekly, @monthly, @yearly; @every 6h; @never or nothing
// for a schedule that never fires. CRON_TZ=ZONE or TZ=ZONE in front of it names a time
// zone; else zone does, and if that is empty, TZ or the system.
//
// Errors say which place is wrong and give an example. An expression that can
// never fire, such as 31 February, is an error.
func Parse(text, zone string) (*Schedule, error) {
	rest := strings.TrimSpace(text)
	if len(rest) > maxText {
		return nil, fmt.Errorf("schedule of %d characters: too long; %s", len(rest), example)
	}
	for _, prefix := range []string{"CRON_TZ=", "TZ="} {
		if after, ok := strings.CutPrefix(rest, prefix); ok {
			zone, rest, _ = strings.Cut(after, " ")
			rest = strings.TrimSpace(rest)
			if zone == "" || rest == "" {
				return nil, wrong(text, `%s is followed by a zone and the schedule, as in "CRON_TZ=Europe/Berlin 30 3 * * *"`, prefix)
			}
			break
		}
	}
	loc, err := Zone(zone)
	if err != nil {
		return nil, fmt.Errorf("schedule %q: %w", text, err)
	}
	s := &Schedule{text: strings.TrimSpace(text), loc: loc}
	switch {
	case rest == "" || rest == "@never":
		return s, nil
	case strings.HasPrefix(rest, "@every"):
		return s, s.parseEvery(strings.TrimSpace(strings.TrimPrefix(rest, "@every")))
	case strings.HasPrefix(rest, "@"):
		parsed, err := cron.NewParser(cron.Minute | cron.Descriptor).Parse(rest)
		if err != nil {
			return nil, wrong(text, "%q is not known", rest)
		}
		s.spec = parsed.(*cron.SpecSchedule) //nolint:forcetypeassert // all descriptors but @every are
		return s, nil
	}
	if err := s.parseFields(strings.Fields(rest)); err != nil {
		return nil, err
	}
	if !s.fires() {
		return nil, wrong(text, "it can never fire: there is no such day (%s %s, %s %s)", fields[3].name, place(rest, 3), fields[4].name, place(rest, 4))
	}
	return s, nil
}

// Zone reads the name of a time zone; an empty one is the system's, or TZ.
func Zone(name string) (*time.Location, error) {
	if name == "" || name == "Local" {
		return time.Local, nil
	}
	// LoadLocation refuses what would leave its directory; the rest keeps absolute
	// nonsense out of messages.
	loc, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("time zone %q is not known; name one as in Europe/Berlin, America/New_York or UTC", name)
	}
	return loc, nil
}

func (s *Schedule) parseEvery(text string) error {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return wrong(s.text, "the interval %q is no duration, as in 90m or 6h", text)
	case d < minEvery:
		return wrong(s.text, "the interval %s is shorter than %s", text, minEvery)
	case d > horizon*24*time.Hour:
		return wrong(s.text, "the interval %s is longer than nine years", text)
	}
	s.every = d.Truncate(time.Second)
	return nil
}

func (s *Schedule) parseFields(texts []string) error {
	if len(texts) != 5 && len(texts) != 6 {
		return wrong(s.text, "it has %d fields, not 5 (or 6 with seconds in front)", len(texts))
	}
	s.spec = &cron.SpecSchedule{}
	all := fields[len(fields)-len(texts):]
	sets := make([]uint64, 0, len(fields))
	if len(texts) == 5 {
		sets = append(sets, 1) // second 0
	}
	for i, f := range all {
		set, err := parseField(f, texts[i])
		if err != nil {
			return wrong(s.text, "field %d, %s, is %q: %w", i+1, f.name, texts[i], err)
		}
		sets = append(sets, set)
	}
	s.spec.Second, s.spec.Minute, s.spec.Hour, s.spec.Dom, s.spec.Month, s.spec.Dow = sets[0], sets[1], sets[2], sets[3], sets[4], sets[5]
	return nil
}

// parseField reads one field by itself, so that an error can name it.
func parseField(f field, text string) (uint64, error) {
	list := strings.Split(text, ",")
	for i, item := range list {
		if !items.MatchString(item) {
			return 0, fmt.Errorf("%q is no number, range (1-5), step (*/2) or *", item)
		}
		if f.option == cron.Dow && item == "7" { // Sunday, in many a crontab
			list[i] = "0"
		}
	}
	parsed, err := cron.NewParser(f.option).Parse(strings.Join(list, ","))
	if err != nil {
		return 0, fmt.Errorf("%w (it takes %s)", err, f.values)
	}
	return f.bits(parsed.(*cron.SpecSchedule)), nil //nolint:forcetypeassert // fields are never descriptors here
}

// place returns one of the five fields of an expression, for a message.
func place(text string, n int) string {
	texts := strings.Fields(text)
	return texts[n-1+len(texts)-5]
}
