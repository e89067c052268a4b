package snapshot

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAPolicyReadsWhatItPrints(t *testing.T) {
	for text, want := range map[string]string{
		"7 daily, 4 weekly, 6 monthly, 2 yearly": "7 daily, 4 weekly, 6 monthly, 2 yearly",
		" 2 YEARLY,3 last ,24 hourly":            "3 last, 24 hourly, 2 yearly",
		"keep-last 5":                            "5 last",
		"within 30d":                             "within 30d",
		"keep-within 1y6m2w3d12h, 1 daily":       "1 daily, within 1y6m17d12h",
		"within 48h":                             "within 48h",
	} {
		p, err := ParsePolicy(text)
		if err != nil || p.String() != want {
			t.Errorf("%q: %q, %v; want %q", text, p, err, want)
		}
		if again, err := ParsePolicy(p.String()); err != nil || again != p {
			t.Errorf("%q: read again: %+v, %v", p, again, err)
		}
	}
}

func TestAWrongPolicyIsRefusedWithAnExample(t *testing.T) {
	for _, text := range []string{
		"", " ", "7", "daily", "7 dayly", "0 daily", "-1 daily", "7 daily,", "7 daily, 3 daily", "7 daily 4 weekly", "1.5 daily", "within", "within 30",
		"within d", "within 0d", "within 30d30d", "within 1d1y", "999999999 daily", "within 30m5x", "keep last 3",
	} {
		_, err := ParsePolicy(text)
		if !errors.Is(err, ErrUsage) || !strings.Contains(fmt.Sprint(err), "as in") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzPolicy(f *testing.F) {
	for _, text := range []string{"7 daily, 4 weekly", "3 last", "within 1y6m", "keep-last 5", "24 hourly,within 2w", ","} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePolicy(text)
		if err != nil {
			return
		}
		if again, err := ParsePolicy(p.String()); err != nil || again != p {
			t.Errorf("%q is printed as %q, which is read as %+v, %v", text, p, again, err)
		}
	})
}

// line makes snapshots of one stack, as their times say, a day apart where
// nothing is said.
type line struct {
	stack string
	at    time.Time
	list  []Candidate
}

func newLine(stack string) *line {
	return &line{stack: stack, at: time.Date(2026, 1, 1, 2, 0, 0, 0, time.UTC)}
}

// add adds a snapshot and returns its manifest, to be altered.
func (l *line) add(after time.Duration, bytes uint64) *Manifest {
	l.at = l.at.Add(after)
	seq := uint64(len(l.list) + 1)
	id := fmt.Sprintf("%s%0*d", l.stack, 32-len(l.stack), seq)
	m := &Manifest{Stack: l.stack, Sequence: seq, Started: l.at, Trigger: "manual", Volumes: []Volume{{Name: "data", Counts: Counts{Bytes: bytes}}}, id: id}
	if n := len(l.list); n > 0 {
		m.Parent = l.list[n-1].ID
	}
	l.list = append(l.list, Candidate{Listed: Listed{Stack: l.stack, Sequence: seq, ID: id, Manifest: m}})
	return m
}

const aDay = 24 * time.Hour

func (l *line) nights(n int) *line {
	for range n {
		l.add(aDay, 1000)
	}
	return l
}

// keeps are the sequence numbers that a policy keeps.
func keeps(t *testing.T, policy string, list []Candidate, tz *time.Location) []int {
	t.Helper()
	p, err := ParsePolicy(policy)
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for i, d := range p.Keep(list, tz) {
		if d.Snapshot.ID != list[i].ID {
			t.Fatal("decisions are in another order")
		}
		if len(d.Reasons) == 0 {
			t.Errorf("snapshot %d: no reason is given", d.Snapshot.Sequence)
		}
		if d.Keep {
			out = append(out, int(d.Snapshot.Sequence))
		}
	}
	return out
}

func TestPoliciesKeepTheLastOfEachPeriod(t *testing.T) {
	l := newLine("shop").nights(90) // 2026-01-02 to 2026-04-01
	for policy, want := range map[string][]int{
		"1 last":                         {90},
		"3 last":                         {88, 89, 90},
		"3 daily":                        {88, 89, 90},
		"3 weekly":                       {80, 87, 90}, // Sundays, and the last
		"9 monthly":                      {30, 58, 89, 90},
		"2 yearly":                       {90},
		"within 2d":                      {88, 89, 90},
		"2 daily, 2 monthly, within 24h": {89, 90},
	} {
		if got := keeps(t, policy, l.list, time.UTC); !slices.Equal(got, want) {
			t.Errorf("%s keeps %v, want %v", policy, got, want)
		}
	}
}

func TestHoursAndDaysAreThoseOfTheZone(t *testing.T) {
	l := newLine("shop")
	l.at = time.Date(2026, 6, 1, 20, 30, 0, 0, time.UTC)
	for range 4 {
		l.add(time.Hour, 1000) // 21:30, 22:30, 23:30, 0:30
	}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip(err)
	}
	if got := keeps(t, "5 daily", l.list, time.UTC); !slices.Equal(got, []int{3, 4}) {
		t.Errorf("UTC: %v", got)
	}
	if got := keeps(t, "5 daily", l.list, berlin); !slices.Equal(got, []int{1, 4}) {
		t.Errorf("Berlin: %v", got)
	}
	// The hour that comes twice.
	l = newLine("shop")
	l.at = time.Date(2026, 10, 24, 23, 15, 0, 0, time.UTC)
	for range 3 {
		l.add(time.Hour, 1000) // 2:15 summer time, 2:15 winter time, 3:15
	}
	if got := keeps(t, "9 hourly", l.list, berlin); !slices.Equal(got, []int{1, 2, 3}) {
		t.Errorf("the night of the clock change: %v", got)
	}
}

func TestNothingIsForgottenBecauseOfAnOutage(t *testing.T) {
	l := newLine("shop").nights(10)
	want := keeps(t, "7 daily, within 5d", l.list, time.UTC)
	// Nothing asks for the present time: a year without backups changes nothing.
	if got := keeps(t, "7 daily, within 5d", l.list, time.UTC); !slices.Equal(got, want) {
		t.Errorf("%v, then %v", want, got)
	}
	// And the first one after it pushes out one, not all.
	l.add(400*aDay, 1000)
	if got := keeps(t, "7 daily", l.list, time.UTC); !slices.Equal(got, []int{5, 6, 7, 8, 9, 10, 11}) {
		t.Errorf("after the outage %v are kept", got)
	}
}

func TestAClockThatIsOffDoesNotDecideWhatIsNewest(t *testing.T) {
	l := newLine("shop").nights(5)
	l.list[1].Manifest.Started = l.at.AddDate(1, 0, 0) // the second says it is of next year
	if got := keeps(t, "1 last", l.list, time.UTC); !slices.Equal(got, []int{5}) {
		t.Errorf("%v is the last", got)
	}
	if got := keeps(t, "within 2d", l.list, time.UTC); !slices.Equal(got, []int{2, 3, 4, 5}) {
		t.Errorf("within 2d: %v", got)
	}
}

func TestATagPins(t *testing.T) {
	l := newLine("shop").nights(5)
	l.list[1].Manifest.Tags = []string{"before-upgrade"}
	if got := keeps(t, "1 last", l.list, time.UTC); !slices.Equal(got, []int{2, 5}) {
		t.Errorf("%v", got)
	}
}

func TestWhatShrankIsKeptAndDoesNotCount(t *testing.T) {
	l := newLine("shop").nights(3)
	l.add(aDay, 400) // the database was emptied
	if got := keeps(t, "1 last", l.list, time.UTC); !slices.Equal(got, []int{3, 4}) {
		t.Errorf("the last good one is 3, and %v are kept", got)
	}
	// Its parent is gone: then it is compared with what there is before it.
	if got := keeps(t, "1 last", slices.Delete(slices.Clone(l.list), 2, 3), time.UTC); !slices.Equal(got, []int{2, 4}) {
		t.Errorf("without its parent: %v", got)
	}
	l.add(aDay, 400) // as its parent: this is how it is now
	if got := keeps(t, "1 last", l.list, time.UTC); !slices.Equal(got, []int{4, 5}) {
		t.Errorf("a day later: %v", got)
	}
}

func TestShrinkingIsSeenInAVolumeThatMatters(t *testing.T) {
	sizes := func(id string, bytes ...uint64) *Manifest {
		m := &Manifest{id: id}
		for i, n := range bytes {
			m.Volumes = append(m.Volumes, Volume{Name: fmt.Sprint("v", i), Counts: Counts{Bytes: n}})
		}
		return m
	}
	parent := sizes("parent", 800, 150, 20)
	for _, c := range []struct {
		m    *Manifest
		want string
	}{
		{sizes("m", 800, 150, 20), ""},
		{sizes("m", 500, 80, 20), ""},
		{sizes("m", 800, 70, 20), "volume v1 shrank from 150 to 70"},
		{sizes("m", 800), "volume v1 shrank from 150 to 0"},
		{sizes("m", 800, 150, 0), ""}, // a cache
		{sizes("m", 300, 75, 0), "shrank from 970 to 375"},
		{nil, ""},
	} {
		got := Shrunk(c.m, parent, DefaultShrink)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	if Shrunk(parent, nil, DefaultShrink) != "" || Shrunk(sizes("m", 0), sizes("p", 0), DefaultShrink) != "" {
		t.Error("what has no parent, or an empty one, shrank")
	}
}

func TestTheLastGoodSnapshotStays(t *testing.T) {
	l := newLine("shop").nights(4)
	l.list[3].Incomplete = "a pack is missing"
	l.list[2].Manifest, l.list[2].Err = nil, errors.New("flipped bit")
	if got := keeps(t, "1 last", l.list, time.UTC); !slices.Equal(got, []int{2, 3, 4}) {
		t.Errorf("%v", got)
	}
}

func TestStacksAndClonesAreCountedApart(t *testing.T) {
	l := newLine("shop").nights(3)
	for i := range 5 {
		m := l.add(aDay, 10) // a clone's, and much smaller
		m.Seeded, m.Origin = "x", []string{"laptop", "desk"}[i%2]
	}
	other := newLine("shop-2").nights(2) // whose name begins alike
	if got := keeps(t, "1 last", append(l.list, other.list...), time.UTC); !slices.Equal(got, []int{3, 7, 8, 2}) {
		t.Errorf("%v are kept: of the server, of each clone, and of the other stack", got)
	}
	l.list[7].Manifest.Trigger = "schedule" // it took up the line
	if got := keeps(t, "1 last", l.list, time.UTC); !slices.Equal(got, []int{3, 6, 7, 8}) {
		t.Errorf("%v are kept when a clone leads, whose size is not the line's", got)
	}
}
