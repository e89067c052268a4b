package seed

import (
	"strings"
	"testing"
	"time"
)

// Times of a story, in seconds: the image was made, then the volume, then our
// container, then the engine copied, then we started, then the services ran.
const (
	imageMade = 100
	volMade   = 1000
	created   = 1010
	copied    = 1020
	startedAt = 1030
	running   = 1040
)

func ns(sec int64) int64 { return sec * int64(time.Second) }

var storyWindow = Window{Created: time.Unix(created, 0), Started: time.Unix(startedAt, 0)}

func entry(path string, kind Kind, born, mtime int64) Entry {
	e := Entry{Path: path, Kind: kind, Inode: 100 + uint64(len(path)), Born: ns(born), Mtime: ns(mtime)}
	if kind == File {
		e.Size = 5
	}
	return e
}

func plainVol(name string, entries ...Entry) *Observation {
	return &Observation{
		Volume: Volume{name, "/volumes/" + name}, Identity: Identity{Inode: 7, Born: ns(volMade)}, Mtime: ns(copied),
		Plain: true, Entries: entries,
	}
}

// imageOf is what the engine copies in.
func imageOf() []Entry {
	return []Entry{entry("conf", Dir, copied, copied), entry("conf/default", File, copied, imageMade), entry("link", Symlink, copied, imageMade)}
}

func dataOf() []Entry { return []Entry{entry("ibdata1", File, running, running)} }

func record(v Verdict, snapshot string, listing ...Entry) map[string]Record {
	return map[string]Record{"db": {Identity: Identity{Inode: 7, Born: ns(volMade)}, Verdict: v, Snapshot: snapshot, Listing: listing, Why: "was there"}}
}

func change(o *Observation, f func(*Observation)) *Observation {
	f(o)
	return o
}

func TestOneVolume(t *testing.T) {
	half := &Mark{Snapshot: "aaaa", Volume: "db", Fresh: true}
	other := record(Done, "aaaa")
	r := other["db"]
	r.Identity.Born++
	other["db"] = r
	cases := []struct {
		name    string
		o       *Observation
		records map[string]Record
		named   bool
		started []string
		window  Window
		want    Action
		why     string
		data    bool
		wipe    int
		check   int
	}{
		{name: "empty", o: plainVol("db"), want: Seed, why: "is empty"},
		{name: "empty, no birth times", o: change(plainVol("db"), func(o *Observation) { o.Identity.Born = 0 }), want: Seed},
		{name: "empty bind mount", o: change(plainVol("db"), func(o *Observation) { o.Plain = false }), want: Seed},
		{name: "placeholder only", o: change(plainVol("db"), func(o *Observation) { o.Placeholders = []string{".gitkeep"} }), want: Seed},
		{name: "image copied in", o: plainVol("db", imageOf()...), want: Seed, why: "copied", wipe: 3},
		{name: "data", o: plainVol("db", dataOf()...), want: Leave, why: "after this container had started", data: true},
		{name: "one file among the image's", o: plainVol("db", append(imageOf(), entry("conf/mine", File, running, running))...), want: Leave, why: `"conf/mine"`, data: true},
		{name: "a file of the image was changed in place", o: plainVol("db", entry("f", File, copied, running)), want: Leave, why: "changed in the volume", data: true},
		{name: "written between creation and start", o: plainVol("db", entry("f", File, copied, copied)), want: Leave, why: "changed in the volume", data: true},
		{name: "a directory was changed since", o: plainVol("db", entry("d", Dir, copied, running)), want: Leave, why: `"d" was changed`, data: true},
		{name: "the root was changed since", o: change(plainVol("db", imageOf()...), func(o *Observation) { o.Mtime = ns(running) }), want: Leave, why: "root was changed", data: true},
		{name: "down, up: there before us", o: plainVol("db", entry("f", File, volMade, imageMade)), want: Leave, why: "before this container", data: true},
		{name: "image copied into a bind mount", o: change(plainVol("db", imageOf()...), func(o *Observation) { o.Plain = false }), want: Leave, why: "plain volume", data: true},
		{name: "image copied in, no birth times", o: change(plainVol("db", imageOf()...), func(o *Observation) { o.Identity.Born = 0 }), want: Leave, why: "does not tell", data: true},
		{name: "an entry without birth", o: plainVol("db", entry("f", File, 0, imageMade)), want: Leave, why: `"f"`, data: true},
		{name: "image copied in, no window", o: plainVol("db", imageOf()...), window: Window{Created: time.Unix(1, 0)}, want: Leave, why: "not known when", data: true},
		{name: "another's window", o: plainVol("db", imageOf()...), window: Window{Created: time.Unix(9, 0), Started: time.Unix(8, 0)}, want: Leave, data: true},
		{name: "too much", o: change(plainVol("db", imageOf()...), func(o *Observation) { o.More = true }), want: Leave, why: "more than", data: true},
		{name: "something mounted in it", o: change(plainVol("db", imageOf()...), func(o *Observation) { o.Mounted = "sub" }), want: Leave, why: "mounted in it", data: true},
		{name: "unreadable", o: change(plainVol("db"), func(o *Observation) { o.Unreadable = "permission denied" }), want: Doubt, data: true},
		{name: "locked", o: change(plainVol("db"), func(o *Observation) { o.Busy = true }), want: Doubt, why: "in use", data: true},

		{name: "kept", o: plainVol("db"), records: record(Kept, ""), want: Leave, why: "was there"},
		{name: "kept, with data", o: plainVol("db", dataOf()...), records: record(Kept, ""), want: Leave, data: true},
		{name: "kept, with an image's copy", o: plainVol("db", imageOf()...), records: record(Kept, ""), want: Leave, data: true},
		{name: "kept and empty, named", o: plainVol("db"), records: record(Kept, ""), named: true, want: Seed},
		{name: "kept with data, named", o: plainVol("db", dataOf()...), records: record(Kept, ""), named: true, want: Leave, data: true},
		{name: "done", o: plainVol("db", dataOf()...), records: record(Done, "aaaa"), want: Leave, why: "was seeded"},
		{name: "done and emptied", o: plainVol("db"), records: record(Done, "aaaa"), want: Leave, why: "was seeded"},
		{name: "done with data, named", o: plainVol("db", dataOf()...), records: record(Done, "aaaa"), named: true, want: Leave, data: true},
		{name: "done and unreadable", o: change(plainVol("db"), func(o *Observation) { o.Unreadable = "x" }), records: record(Done, "aaaa"), want: Leave},
		{name: "the name is remembered, the volume is new", o: plainVol("db"), records: other, want: Seed, why: "another volume"},
		{name: "the name is remembered, the volume has data", o: plainVol("db", dataOf()...), records: other, want: Leave, why: "another volume", data: true},

		{name: "pending, empty", o: plainVol("db"), records: record(Pending, ""), want: Seed},
		{name: "pending, as listed, another window", o: plainVol("db", imageOf()...), records: record(Pending, "", imageOf()...), window: Window{}, want: Seed, wipe: 3},
		{name: "pending, less than listed", o: plainVol("db", imageOf()[:1]...), records: record(Pending, "", imageOf()...), want: Seed, wipe: 1},
		{name: "pending, written to", o: plainVol("db", append(imageOf(), dataOf()...)...), records: record(Pending, "", imageOf()...), want: Doubt, why: `"ibdata1"`, data: true},
		{name: "pending, a listed file changed", o: plainVol("db", entry("f", File, copied, running)), records: record(Pending, "", entry("f", File, copied, imageMade)), want: Doubt, why: `"f"`, data: true},
		{name: "pending, a listed file made anew", o: plainVol("db", entry("f", File, running, imageMade)), records: record(Pending, "", entry("f", File, copied, imageMade)), want: Doubt, why: `"f"`, data: true},
		{name: "pending, begun, half", o: change(plainVol("db", dataOf()...), func(o *Observation) { o.Mark = half }), records: record(Pending, "aaaa"), want: Resume, check: 1},
		{name: "pending, begun, in the middle of the wipe", o: change(plainVol("db", imageOf()...), func(o *Observation) { o.Mark = half }), records: record(Pending, "aaaa", imageOf()...), want: Resume, wipe: 3},
		{name: "pending, begun, complete", o: plainVol("db", dataOf()...), records: record(Pending, "aaaa"), want: Resume, check: 1},
		{name: "pending, half of another snapshot", o: change(plainVol("db", dataOf()...), func(o *Observation) { o.Mark = half }), records: record(Pending, "bbbb"), want: Doubt},

		{name: "half, no ledger", o: change(plainVol("db", dataOf()...), func(o *Observation) { o.Mark = half }), want: Resume, check: 1},
		{name: "half, no ledger, in the middle of the wipe", o: change(plainVol("db", append(imageOf(), dataOf()...)...), func(o *Observation) { o.Mark = half }), want: Resume, wipe: 3, check: 1},
		{name: "half over data", o: change(plainVol("db", dataOf()...), func(o *Observation) { o.Mark = &Mark{Snapshot: "aaaa", Volume: "db"} }), want: Doubt},
		{name: "half of another volume", o: change(plainVol("db"), func(o *Observation) { o.Mark = &Mark{Snapshot: "aaaa", Volume: "uploads", Fresh: true} }), want: Doubt},
		{name: "a mark that says nothing", o: change(plainVol("db"), func(o *Observation) { o.Mark = &Mark{} }), want: Doubt},
		{name: "kept, then half a restore by hand", o: change(plainVol("db"), func(o *Observation) { o.Mark = half }), records: record(Kept, ""), want: Doubt},

		{name: "vetoed", o: plainVol("db"), started: []string{"shop-db-1"}, want: Doubt, why: "shop-db-1 has started"},
		{name: "vetoed, image copied in", o: plainVol("db", imageOf()...), started: []string{"a", "b"}, want: Doubt, why: "a, b"},
		{name: "vetoed, pending", o: plainVol("db"), records: record(Pending, ""), started: []string{"a"}, want: Doubt},
		{name: "vetoed, half", o: change(plainVol("db"), func(o *Observation) { o.Mark = half }), started: []string{"a"}, want: Doubt},
		{name: "vetoed, named and empty", o: plainVol("db"), named: true, started: []string{"a"}, want: Seed},
		{name: "vetoed, named and copied in", o: plainVol("db", imageOf()...), named: true, started: []string{"a"}, want: Doubt},
		{name: "no veto where nothing would be done", o: plainVol("db"), records: record(Done, "aaaa"), started: []string{"a"}, want: Leave},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			k := Case{Volumes: []*Observation{c.o}, Records: c.records, Window: storyWindow, Command: "backupd", Started: map[string][]string{"db": c.started}}
			if c.window != (Window{}) || strings.Contains(c.name, "another window") {
				k.Window = c.window
			}
			if c.named {
				k.Named = []string{"db"}
			}
			d := Decide(k)[0]
			if d.Action != c.want || !strings.Contains(d.Why, c.why) || d.Data != c.data {
				t.Errorf("%s, because it %s, data=%v; want %s, %q, %v", d.Action, d.Why, d.Data, c.want, c.why, c.data)
			}
			if len(d.Wipe) != c.wipe || len(d.Check) != c.check {
				t.Errorf("wipes %d and checks %d entries, want %d and %d", len(d.Wipe), len(d.Check), c.wipe, c.check)
			}
			if d.Half != (c.o.Mark != nil) {
				t.Errorf("half=%v", d.Half)
			}
			if d.Action == Doubt && d.Help == "" {
				t.Error("no help")
			}
		})
	}
}

func TestAStackIsSeededAsAWhole(t *testing.T) {
	cases := []struct {
		name    string
		db      *Observation
		uploads *Observation
		records map[string]Record
		named   []string
		want    [2]Action
	}{
		{"both fresh", plainVol("db", imageOf()...), plainVol("uploads"), nil, nil, [2]Action{Seed, Seed}},
		{"one has data", plainVol("db", dataOf()...), plainVol("uploads"), nil, nil, [2]Action{Leave, Leave}},
		{"one has data, the other is named", plainVol("db", dataOf()...), plainVol("uploads"), nil, []string{"uploads"}, [2]Action{Leave, Seed}},
		{"one has data, the other an image's copy", plainVol("db", dataOf()...), plainVol("uploads", imageOf()...), nil, nil, [2]Action{Leave, Leave}},
		{"one is ours", plainVol("db", dataOf()...), plainVol("uploads"), record(Done, "aaaa"), nil, [2]Action{Leave, Seed}},
		{"one is kept and empty", plainVol("db"), plainVol("uploads"), record(Kept, ""), nil, [2]Action{Leave, Seed}},
		{"one is kept and has data", plainVol("db", dataOf()...), plainVol("uploads"), record(Kept, ""), nil, [2]Action{Leave, Leave}},
		{"one was written to while pending", plainVol("db", dataOf()...), plainVol("uploads"), record(Pending, ""), nil, [2]Action{Doubt, Leave}},
		{
			"one has data, of the other there is half", plainVol("db", dataOf()...),
			change(plainVol("uploads"), func(o *Observation) { o.Mark = &Mark{"aaaa", "uploads", true} }), nil, nil,
			[2]Action{Leave, Resume}, // half a restore must not stay
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			all := Decide(Case{Volumes: []*Observation{c.db, c.uploads}, Records: c.records, Window: storyWindow, Named: c.named, Command: "backupd"})
			if got := [2]Action{all[0].Action, all[1].Action}; got != c.want {
				t.Errorf("%v, want %v: it %s; it %s", got, c.want, all[0].Why, all[1].Why)
			}
			if c.want == [2]Action{Leave, Leave} && !strings.Contains(all[1].Why, "volume db holds data") {
				t.Errorf("the reason is missing: %s", all[1].Why)
			}
		})
	}
}

func TestHelpIsACommandThatWorksForWhatLiesThere(t *testing.T) {
	all := Decide(Case{
		Volumes: []*Observation{plainVol("db", dataOf()...), plainVol("empty"), plainVol("image", imageOf()...)}, Window: storyWindow, Command: "docker compose exec backup backupd",
	})
	for i, want := range []string{
		"docker compose exec backup backupd restore --volume db=/volumes/db --force",
		"docker compose exec backup backupd seed --volume empty=/volumes/empty",
		"docker compose exec backup backupd restore --volume image=/volumes/image --force",
	} {
		if all[i].Help != want {
			t.Errorf("%s: %s", all[i].Name, all[i].Help)
		}
	}
}

func TestTimesOfCoarseFileSystemsAreTheSame(t *testing.T) {
	const ns = 1234567891
	for have, want := range map[int64]bool{ns: true, 1234567000: true, 1000000000: true, 1234567892: false, 2000000000: false, 0: false} {
		if sameTime(have, ns) != want {
			t.Errorf("%d and %d: %v", have, ns, !want)
		}
	}
}
