package schedule

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func parse(t testing.TB, text, zone string) *Schedule {
	t.Helper()
	s, err := Parse(text, zone)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// years are those whose changes of the clock are of different kinds.
var years = []struct {
	zone string
	year int
	odd  string
}{
	{"UTC", 2026, "no change"},
	{"Asia/Kolkata", 2026, "no change, half an hour"},
	{"Europe/Berlin", 2026, "02:00 to 03:00 and back"},
	{"America/New_York", 2026, "02:00 to 03:00 and back"},
	{"Europe/Dublin", 2026, "negative in winter"},
	{"America/Sao_Paulo", 2018, "midnight does not exist, 23:00 comes twice"},
	{"Africa/Cairo", 2024, "midnight does not exist"},
	{"Asia/Beirut", 2024, "midnight does not exist"},
	{"America/Havana", 2026, "00:00 comes twice"},
	{"America/Santiago", 2026, "24:00 to 01:00"},
	{"America/St_Johns", 2010, "00:01 to 01:01, and back over midnight"},
	{"America/Nuuk", 2024, "over midnight of the evening before"},
	{"Australia/Lord_Howe", 2026, "half an hour"},
	{"Antarctica/Troll", 2026, "two hours"},
	{"Africa/Casablanca", 2026, "for Ramadan"},
	{"Pacific/Apia", 2011, "30 December does not exist"},
}

// nights says when a job at hour:minute has to run in the year: in each date, at
// the first moment at which the clock shows that time or has jumped over it. It
// goes through the year step by step and knows nothing of how Next works.
func nights(loc *time.Location, year, hour, minute int) []time.Time {
	step := 15 * time.Minute
	if loc.String() == "America/St_Johns" {
		step = time.Minute
	}
	var out []time.Time
	last := "" // date that had its run
	at := time.Date(year, 1, 1, 0, 0, 0, 0, loc)
	before := at.Add(-step)
	for ; at.Year() == year || at.In(time.UTC).Year() == year; at = at.Add(step) {
		for _, date := range []time.Time{before, at} { // a jump may leave the date
			y, m, d := date.Date()
			due := time.Date(y, m, d, hour, minute, 0, 0, time.UTC)
			if name := due.Format(time.DateOnly); name > last && !wall(at).Before(due) && due.Year() == year {
				if wall(before).Before(due) {
					out = append(out, at)
				}
				last = name
			}
		}
		before = at
	}
	return out
}

// wall is what the clock shows, written as if it were UTC.
func wall(t time.Time) time.Time {
	y, m, d := t.Date()
	return time.Date(y, m, d, t.Hour(), t.Minute(), t.Second(), 0, time.UTC)
}

func TestEveryNightOfAYearHasOneRun(t *testing.T) {
	for _, y := range years {
		t.Run(strings.ReplaceAll(y.zone, "/", "-"), func(t *testing.T) {
			loc := zone(t, y.zone)
			for _, at := range [][2]int{{0, 0}, {0, 30}, {1, 15}, {2, 0}, {2, 30}, {23, 30}} {
				s := parse(t, fmt.Sprintf("%d %d * * *", at[1], at[0]), y.zone)
				want := nights(loc, y.year, at[0], at[1])
				next := s.Next(want[0].Add(-time.Minute))
				for i, w := range want {
					if !next.Equal(w) {
						t.Fatalf("%v (%s): run %d is at %s instead of %s", s, y.odd, i, next, w)
					}
					next = s.Next(next)
				}
				if n := len(want); n < 364 || n > 366 {
					t.Fatalf("%v: the test expects %d nights", s, n)
				}
			}
		})
	}
}

// Whenever the machine was started, the next run is the same one.
func TestNextIsTheSameFromEveryMoment(t *testing.T) {
	for _, y := range years {
		for _, text := range []string{"30 2 * * *", "0 0 * * *", "*/20 1-3 * * *", "15 * * * *", "*/30 * * * *", "0 23 * * 6"} {
			s := parse(t, text, y.zone)
			loc := zone(t, y.zone)
			next := s.Next(time.Date(y.year, 1, 1, 0, 0, 0, 0, loc))
			at := time.Date(y.year, 1, 1, 0, 0, 0, 0, loc)
			for ; at.Year() == y.year; at = at.Add(997 * time.Minute) {
				for !next.After(at) {
					next = s.Next(next)
				}
				if got := s.Next(at); !got.Equal(next) {
					t.Fatalf("%s in %s: after %s comes %s, and not %s", text, y.zone, at, got, next)
				}
			}
		}
	}
}

// A job of every hour, or quarter of one, keeps its distance through the changes.
func TestJobsOfEveryHourGoByTheTimeThatPasses(t *testing.T) {
	for _, y := range years {
		if y.zone == "America/St_Johns" {
			continue // changed a minute past midnight: no whole number of halves
		}
		s := parse(t, "*/30 * * * *", y.zone)
		at := s.Next(time.Date(y.year, 1, 1, 0, 0, 0, 0, zone(t, y.zone)))
		for at.Year() == y.year {
			next := s.Next(at)
			if next.Sub(at) != 30*time.Minute {
				t.Fatalf("%s in %s: %s after %s", s, y.zone, next.Sub(at), at)
			}
			at = next
		}
	}
	s := parse(t, "@hourly", "Europe/Berlin")
	n, end := 0, time.Date(2027, 1, 1, 0, 0, 0, 0, s.Location())
	for at := s.Next(time.Date(2026, 1, 1, 0, 0, 0, 0, s.Location()).Add(-1)); at.Before(end); at = s.Next(at) {
		n++
	}
	if n != 365*24 {
		t.Errorf("%d hourly runs in 2026", n)
	}
}

// What stands in the gap in spring is run once and not once for each time.
func TestTimesThatAreSkippedTogetherRunOnce(t *testing.T) {
	s := parse(t, "*/10 2 * * *", "Europe/Berlin")
	at := time.Date(2026, 3, 28, 12, 0, 0, 0, s.Location())
	var got []string
	for range 3 {
		at = s.Next(at)
		got = append(got, at.Format("02 15:04 MST"))
	}
	if want := "29 03:00 CEST, 30 02:00 CEST, 30 02:10 CEST"; strings.Join(got, ", ") != want {
		t.Errorf("%s instead of %s", strings.Join(got, ", "), want)
	}
}

func TestNext(t *testing.T) {
	for _, c := range []struct{ text, zone, after, want string }{
		{"30 3 * * *", "UTC", "2026-11-26 03:30:00", "2026-11-27 03:30:00"},
		{"30 3 * * *", "UTC", "2026-11-26 03:29:59", "2026-11-26 03:30:00"},
		{"15 30 3 * * *", "UTC", "2026-11-26 03:30:00", "2026-11-26 03:30:15"},
		{"* * * * * *", "UTC", "2026-11-26 03:30:00", "2026-11-26 03:30:01"},
		{"@daily", "UTC", "2026-12-31 00:00:00", "2027-01-01 00:00:00"},
		{"@weekly", "UTC", "2026-11-26 00:00:00", "2026-11-29 00:00:00"},
		{"@monthly", "UTC", "2026-11-26 00:00:00", "2026-12-01 00:00:00"},
		{"@yearly", "UTC", "2026-11-26 00:00:00", "2027-01-01 00:00:00"},
		{"@every 90m", "UTC", "2026-11-26 03:30:00", "2026-11-26 05:00:00"},
		{"0 3 * * 7", "UTC", "2026-11-26 00:00:00", "2026-11-29 03:00:00"},
		{"0 3 * * sun", "UTC", "2026-11-26 00:00:00", "2026-11-29 03:00:00"},
		{"0 3 13 * 5", "UTC", "2026-11-26 00:00:00", "2026-11-27 03:00:00"},
		{"0 3 29 2 *", "UTC", "2026-11-26 00:00:00", "2028-02-29 03:00:00"},
		{"0 3 29 2 *", "UTC", "2096-03-01 00:00:00", "2104-02-29 03:00:00"},
		{"0 3 31 jan,feb,mar *", "UTC", "2026-02-01 00:00:00", "2026-03-31 03:00:00"},
		{"TZ=Asia/Kolkata 30 3 * * *", "UTC", "2026-11-26 00:00:00", "2026-11-26 22:00:00"},
		{"CRON_TZ=America/New_York @daily", "UTC", "2026-11-26 00:00:00", "2026-11-26 05:00:00"},
		{"30 3 * * *", "Asia/Kolkata", "2026-11-26 00:00:00", "2026-11-26 22:00:00"},
	} {
		after, err := time.Parse(time.DateTime, c.after)
		if err != nil {
			t.Fatal(err)
		}
		if got := parse(t, c.text, c.zone).Next(after).UTC().Format(time.DateTime); got != c.want {
			t.Errorf("%s after %s: %s instead of %s", c.text, c.after, got, c.want)
		}
	}
}

func TestNeverNeverFires(t *testing.T) {
	for _, text := range []string{"", "  ", "@never"} {
		s := parse(t, text, "")
		if !s.Never() || !s.Next(time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)).IsZero() {
			t.Errorf("%q fires", text)
		}
	}
	if !(*Schedule)(nil).Never() {
		t.Error("no schedule fires")
	}
}

func TestAWrongExpressionIsAnErrorWithItsPlaceAndAnExample(t *testing.T) {
	for text, place := range map[string]string{
		"61 3 * * *":                `field 1, minute, is "61": end of range (61) above maximum (59)`,
		"0 24 * * *":                `field 2, hour, is "24"`,
		"0 3 0 * *":                 `field 3, day of month, is "0"`,
		"0 3 * 13 *":                `field 4, month, is "13"`,
		"0 3 * * 8":                 `field 5, day of week, is "8"`,
		"0 3 * * 5-7":               "0 (Sunday) to 6",
		"60 0 3 * * *":              `field 1, second, is "60"`,
		"0 3 * *":                   "it has 4 fields, not 5",
		"0 3 * * * * *":             "it has 7 fields",
		"every night":               "it has 2 fields",
		"0 3 31 2 *":                "it can never fire: there is no such day (day of month 31, month 2)",
		"0 0 3 31 2,4 *":            "it can never fire: there is no such day (day of month 31, month 2,4)",
		"0 3 30 feb *":              "never fire",
		"0 , * * *":                 `field 2, hour, is ","`,
		"1,,2 3 * * *":              `field 1, minute, is "1,,2"`,
		"0 3-1 * * *":               "beyond end of range",
		"*/0 3 * * *":               "step of range should be a positive number",
		"+5 3 * * *":                `"+5" is no number`,
		"@nightly":                  `"@nightly" is not known`,
		"@every 0s":                 "the interval 0s is shorter",
		"@every -5m":                "shorter",
		"@every night":              `the interval "night" is no duration`,
		"@every 999999h":            "longer than nine years",
		"TZ=Europe/Berlin":          "is followed by a zone and the schedule",
		"CRON_TZ= 0 3 * * *":        "is followed by a zone and the schedule",
		"TZ=Mars/Crater 0 3 * * *":  `time zone "Mars/Crater" is not known`,
		"TZ=../etc/passwd @daily":   "is not known",
		strings.Repeat("1,", 1000):  "too long",
		"0 3 * * * # every night":   "fields, not 5",
		"0 3 * * mon-fri\n0 4 * * ": "fields, not 5",
	} {
		s, err := Parse(text, "UTC")
		if err == nil {
			t.Errorf("%q parses; it fires at %s", text, s.Next(time.Now()))
			continue
		}
		if !strings.Contains(err.Error(), place) || !strings.Contains(err.Error(), "as in ") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestJitterIsBoundedTheSameForANameAndSpread(t *testing.T) {
	const jitter = 30 * time.Minute
	quarters := map[time.Duration]int{}
	for i := range 400 {
		name := fmt.Sprintf("stack%d/nightly", i)
		o := Offset(name, jitter)
		if o < 0 || o >= jitter || o != Offset(name, jitter) {
			t.Fatalf("%s: %s", name, o)
		}
		quarters[o/(jitter/4)]++
	}
	for q, n := range quarters {
		if n < 60 || n > 140 {
			t.Errorf("quarter %d has %d of 400", q, n)
		}
	}
	if Offset("a", 0) != 0 {
		t.Error("an offset without jitter")
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"30 3 * * *", "*/5 0-23/2 1,15 jan-mar mon", "0 0 3 ? * sun", "@daily", "@every 1h30m", "@never", "", "TZ=UTC @hourly",
		"CRON_TZ=Europe/Berlin 30 2 * * *", "TZ=America/Sao_Paulo 0 0 * * *", "0 3 31 2 *", "TZ=", "@every", "* * * * * *", "99999999999999999999 * * * *",
	} {
		f.Add(seed, "Europe/Berlin")
	}
	f.Fuzz(func(t *testing.T, text, zone string) {
		s, err := Parse(text, zone)
		if err != nil {
			return
		}
		at := time.Date(2026, 3, 28, 12, 0, 0, 0, time.UTC)
		next := s.Next(at)
		if next.IsZero() != s.Never() {
			t.Fatalf("%q: never is %v, and the next run %s", text, s.Never(), next)
		}
		if !s.Never() && !next.After(at) {
			t.Fatalf("%q: %s is not after %s", text, next, at)
		}
		again, err := Parse(s.String(), zone)
		if err != nil || !again.Next(at).Equal(next) {
			t.Fatalf("%q parsed again: %v", text, err)
		}
	})
}
