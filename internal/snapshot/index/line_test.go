package index

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/tarstream"
)

func testRef(s string) pack.Ref {
	return pack.Ref{ID: pack.Sum([]byte(s)), Pack: pack.Name{Run: "0123456789abcdef", N: 7}, Off: 4096, Len: 100, Raw: 5000}
}

func allBytes() string {
	b := make([]byte, 256)
	for i := range b {
		b[i] = byte(i)
	}
	return string(b)
}

func sampleEntries() []Entry {
	at := tarstream.Time{Sec: 1_700_000_000, Nsec: 123456789}
	old := tarstream.Time{Sec: -1, Nsec: 500_000_000}
	return []Entry{
		{Path: ".", Kind: Dir, Mtime: at, Ctime: at, Ino: 2},
		{Path: "a", Kind: File, Size: 5, Mtime: at, Ctime: at, Ino: 12, Slot: 3, Off: 512},
		{Path: "dir/ü\n\\\"", Kind: File, Size: 1 << 62, Mtime: old, Ctime: at, Ino: math.MaxUint64, Slot: 1 << 60, Off: math.MaxUint32, Racy: true, Old: []uint64{0, 1, 1 << 60}},
		{Path: "l", Kind: Link, Mtime: at, Ctime: at, Ino: 12, Link: "a\xff"},
		{Path: "s", Kind: Symlink, Mtime: tarstream.Time{}, Ctime: at, Ino: 13},
		{Path: "f", Kind: Fifo, Mtime: tarstream.Time{Sec: -1 << 40}, Ctime: at, Ino: 1<<53 + 1},
		{Path: "c", Kind: Char, Mtime: at, Ctime: at, Ino: 1 << 53},
		{Path: "b", Kind: Block, Mtime: at, Ctime: at},
		{Path: "g", Kind: Gone, Old: []uint64{5, 9}},
		{Path: "e", Kind: Excluded},
		{Path: "u", Kind: Unreadable},
		{Path: "m", Kind: Mount},
		{Path: "so", Kind: Socket},
		{Path: "k", Kind: Kept},
		{Path: ".", Kind: Excluded},
	}
}

func TestEntriesAreReadAsTheyWereWritten(t *testing.T) {
	for _, e := range sampleEntries() {
		line := e.AppendTo(nil)
		got, err := ParseEntry(line[:len(line)-1])
		if err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("%s: %v\ngot  %+v\nwant %+v", line, err, got, e)
		}
		if !json.Valid(line) {
			t.Errorf("%s is no JSON", line)
		}
	}
}

func TestGoldenEntry(t *testing.T) {
	e := sampleEntries()[2]
	want := `{"path":"dir/\\0303\\0274\\0012\\0134\\0042","type":"file","size":"4611686018427387904","mtime":"-0.5","ctime":"1700000000.123456789","ino":"18446744073709551615","slot":"1152921504606846976","off":4294967295,"racy":"","old":[0,1,"1152921504606846976"]}` + "\n"
	if got := string(e.AppendTo(nil)); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

func TestLinesThatNoWriterWritesAreRefused(t *testing.T) {
	good := sampleEntries()[1]
	line := string(bytes.TrimSpace(good.AppendTo(nil)))
	swap := func(from, to string) string {
		if !strings.Contains(line, from) {
			t.Fatalf("%q is not in %q", from, line)
		}
		return strings.Replace(line, from, to, 1)
	}
	for name, bad := range map[string]string{
		"empty":               "",
		"cut":                 line[:len(line)-1],
		"trailing":            line + "x",
		"space":               swap(`,"type"`, `, "type"`),
		"unknown type":        swap(`"file"`, `"door"`),
		"absolute path":       swap(`"a"`, `"/a"`),
		"path out":            swap(`"a"`, `"../a"`),
		"NUL":                 swap(`"a"`, `"a\\0000"`),
		"raw byte":            swap(`"a"`, "\"a\xff\""),
		"needless escape":     swap(`"a"`, `"\\0141"`),
		"escape out of range": swap(`"a"`, `"\\0777"`),
		"cut escape":          swap(`"a"`, `"\\01"`),
		"escape of JSON":      swap(`"a"`, `"\u0001"`),
		"root as a file":      swap(`"a"`, `"."`),
		"negative size":       swap(`"size":5`, `"size":-5`),
		"leading zero":        swap(`"size":5`, `"size":05`),
		"float":               swap(`"size":5`, `"size":5.0`),
		"huge size":           swap(`"size":5`, `"size":"9223372036854775808"`),
		"over 64 bits":        swap(`"ino":12`, `"ino":"18446744073709551616"`),
		"many digits":         swap(`"ino":12`, `"ino":"`+strings.Repeat("9", 100)+`"`),
		"number in quotes":    swap(`"ino":12`, `"ino":"12"`),
		"large not in quotes": swap(`"ino":12`, `"ino":9007199254740993`),
		"offset too large":    swap(`"off":512`, `"off":4294967296`),
		"not racy":            swap(`}`, `,"racy":false}`),
		"no old":              swap(`}`, `,"old":[]}`),
		"old unsorted":        swap(`}`, `,"old":[2,1]}`),
		"old twice":           swap(`}`, `,"old":[1,1]}`),
		"time with zeros":     swap(`1700000000.123456789`, `1700000000.1234567890`),
		"time ends in zero":   swap(`1700000000.123456789`, `1700000000.10`),
		"time without digits": swap(`1700000000.123456789`, ``),
		"time of a dot":       swap(`1700000000.123456789`, `1.`),
		"minus zero":          swap(`1700000000.123456789`, `-0`),
		"time with plus":      swap(`1700000000.123456789`, `+1`),
		"time with zero":      swap(`1700000000.123456789`, `01`),
	} {
		if e, err := ParseEntry([]byte(bad)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %q gives %+v, %v", name, bad, e, err)
		}
	}
}

func TestTimesRoundTripOnBothSidesOf1970(t *testing.T) {
	want := map[tarstream.Time]string{
		{}:                           "0",
		{Sec: 1}:                     "1",
		{Sec: -1}:                    "-1",
		{Nsec: 1}:                    "0.000000001",
		{Sec: -1, Nsec: 1}:           "-0.999999999",
		{Sec: -1, Nsec: 999999999}:   "-0.000000001",
		{Sec: -2, Nsec: 750_000_000}: "-1.25",
		{Sec: 5, Nsec: 100}:          "5.0000001",
		{Sec: 1 << 58}:               "288230376151711744",
		{Sec: -1 << 58, Nsec: 1}:     "-288230376151711743.999999999",
	}
	for v, s := range want {
		if got := string(tarstream.AppendTime(nil, v)); got != s {
			t.Errorf("%v is written %s, want %s", v, got, s)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		v := tarstream.Time{Sec: r.Int64N(1<<58) - 1<<57, Nsec: r.Int32N(1e9)}
		if r.IntN(2) == 0 {
			v = tarstream.Time{Sec: r.Int64N(7) - 3, Nsec: int32(math.Pow10(r.IntN(9))) * r.Int32N(10)}
		}
		got, ok := parseTime(tarstream.AppendTime(nil, v))
		if !ok || got != v {
			t.Fatalf("%v is read as %v, %v", v, got, ok)
		}
	}
}

func TestPathsOfAllBytesRoundTripAndPrintfReadsThem(t *testing.T) {
	for i := range 256 {
		p := "a" + string([]byte{byte(i)}) + "b"
		if got, err := unescape(appendEscaped(nil, p)); err != nil || got != p {
			t.Errorf("%q is read as %q, %v", p, got, err)
		}
	}
	all := allBytes()
	var fromJSON string
	if err := json.Unmarshal([]byte(`"`+string(appendEscaped(nil, all))+`"`), &fromJSON); err != nil || fromJSON != Escape(all) {
		t.Errorf("JSON gives %q, Escape %q, %v", fromJSON, Escape(all), err)
	}
	for _, sh := range []string{"sh", "dash", "bash", "busybox"} {
		path, err := exec.LookPath(sh)
		if err != nil {
			continue
		}
		args := []string{"-c", `printf %b "$1"`, "sh", Escape(all)}
		if sh == "busybox" {
			args = append([]string{"sh"}, args...)
		}
		out, err := exec.Command(path, args...).Output()
		if err != nil || string(out) != all {
			t.Errorf("%s: %v, printf gives %q", sh, err, out)
		}
	}
}

// randomPath returns short paths of few bytes, so that many share beginnings.
func randomPath(r *rand.Rand) string {
	const alphabet = "ab.-\x01\xff0 ~\\"
	parts := make([]string, 1+r.IntN(3))
	for i := range parts {
		for {
			b := make([]byte, 1+r.IntN(3))
			for j := range b {
				b[j] = alphabet[r.IntN(len(alphabet))]
			}
			if parts[i] = string(b); parts[i] != "." && parts[i] != ".." {
				break
			}
		}
	}
	return strings.Join(parts, "/")
}

func sign(n int) int { return max(-1, min(1, n)) }

func TestPathsAreOrderedAsTheirComponents(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	split := func(p string) []string {
		if p == Root {
			return nil
		}
		return strings.Split(p, "/")
	}
	for range 30_000 {
		a, b := randomPath(r), randomPath(r)
		if r.IntN(50) == 0 {
			a = Root
		}
		want := slices.Compare(split(a), split(b))
		if got := sign(ComparePaths(a, b)); got != want {
			t.Fatalf("%q and %q: %d, want %d", a, b, got, want)
		}
		if got := sign(ComparePaths(b, a)); got != -want {
			t.Fatalf("%q and %q: not antisymmetric", a, b)
		}
		if Below(a, b) != (len(split(a)) > len(split(b)) && slices.Equal(split(a)[:len(split(b))], split(b))) {
			t.Fatalf("%q below %q: %v", a, b, Below(a, b))
		}
	}
}

func FuzzEntry(f *testing.F) {
	for _, e := range sampleEntries() {
		f.Add(bytes.TrimSuffix(e.AppendTo(nil), []byte("\n")))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := ParseEntry(line)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if got := e.AppendTo(nil); string(got) != string(line)+"\n" {
			t.Fatalf("%q was accepted, and is written as %q", line, got)
		}
	})
}

func FuzzFrame(f *testing.F) {
	for _, fr := range []Frame{{Ref: testRef("a")}, {Slot: 1 << 60, Ref: testRef("b"), Members: 200}} {
		f.Add(bytes.TrimSuffix(fr.AppendTo(nil), []byte("\n")))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		fr, err := ParseFrame(line)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if got := fr.AppendTo(nil); string(got) != string(line)+"\n" {
			t.Fatalf("%q was accepted, and is written as %q", line, got)
		}
	})
}

func sampleChildren() []Child {
	return []Child{
		{First: ".", N: 1, Page: testRef("a")},
		{First: string(appendEscaped(nil, "dir/<&>\n")), N: 64, Page: testRef("b"), Tar: []pack.Ref{testRef("c")}},
		{First: "18446744073709551615", N: 1 << 60, Page: testRef("d"), Tar: []pack.Ref{testRef("e"), testRef("f")}},
	}
}

func FuzzChild(f *testing.F) {
	for _, c := range sampleChildren() {
		f.Add(bytes.TrimSuffix(c.appendTo(nil), []byte("\n")))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		c, err := parseChild(line)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if got := c.appendTo(nil); string(got) != string(line)+"\n" {
			t.Fatalf("%q was accepted, and is written as %q", line, got)
		}
	})
}

func TestTreesSurviveJSONWithEveryFirstPath(t *testing.T) {
	trees := []Tree{{}}
	for level, c := range sampleChildren() {
		trees = append(trees, Tree{Level: level, Root: c})
	}
	for _, tree := range trees {
		for _, indent := range []string{"", "  "} {
			var buf bytes.Buffer
			enc := json.NewEncoder(&buf)
			enc.SetEscapeHTML(false)
			enc.SetIndent("", indent)
			if err := enc.Encode(struct{ T Tree }{tree}); err != nil {
				t.Fatal(err)
			}
			var got struct{ T Tree }
			if err := json.Unmarshal(buf.Bytes(), &got); err != nil || !reflect.DeepEqual(got.T, tree) {
				t.Errorf("%s: %v\ngot  %+v\nwant %+v", buf.Bytes(), err, got.T, tree)
			}
		}
	}
}

func FuzzTree(f *testing.F) {
	f.Add([]byte("null"))
	for level, c := range sampleChildren() {
		b, err := Tree{Level: level, Root: c}.MarshalJSON()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"level":9}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var tree, again Tree
		if json.Unmarshal(b, &tree) != nil {
			return
		}
		if tree.Level > maxLevel {
			t.Fatalf("level %d was accepted", tree.Level)
		}
		line, err := tree.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		if err := again.UnmarshalJSON(line); err != nil || !reflect.DeepEqual(again, tree) {
			t.Fatalf("%s: %v", line, err)
		}
	})
}

func TestEveryKindHasOneSection(t *testing.T) {
	for _, k := range []Kind{File, Symlink, Fifo, Char, Block, Link, Dir, Gone, Excluded, Unreadable, Mount, Socket, Kept} {
		s := k.Section()
		if (k == File) != (s == Files) || k.LeftOut() && s != Absent || s.String() == "" {
			t.Errorf("%s is in section %s", k, s)
		}
	}
	for _, typ := range []tarstream.Type{tarstream.File, tarstream.Link, tarstream.Symlink, tarstream.Char, tarstream.Block, tarstream.Dir, tarstream.Fifo} {
		if KindOf(typ).Section() == Absent {
			t.Errorf("type %c is absent", typ)
		}
	}
	if KindOf(0) != Socket {
		t.Error("what tar does not know is no socket")
	}
}
