package snapshot

import (
	"errors"
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"time"
)

func compile(t testing.TB, list ...string) patterns {
	t.Helper()
	ps, err := parsePatterns(list, []string{"data", "db"})
	if err != nil {
		t.Fatal(err)
	}
	return ps
}

func TestWhatPatternsMatch(t *testing.T) {
	type cases []struct {
		pattern, path string // a slash at the path's end: a directory
		want          bool
	}
	for name, list := range map[string]cases{
		"a name without a slash matches at any depth": {
			{"cache", "cache", true},
			{"cache", "a/b/cache", true},
			{"cache", "cache2", false},
			{"cache", "a/cache/b", false},
			{"*.log", "x.log", true},
			{"*.log", "a/x.log", true},
			{"*.log", ".log", true},
			{"*.log", "x.log.1", false},
		},
		"a slash anchors at the volume's root": {
			{"a/b", "a/b", true},
			{"a/b", "x/a/b", false},
			{"/cache", "cache", true},
			{"/cache", "a/cache", false},
			{"./cache", "cache", true},
			{"./cache", "a/cache", false},
			{"/a/b", "a/b", true},
		},
		"a slash at the end means directories only, and does not anchor": {
			{"cache/", "cache/", true}, {"cache/", "cache", false}, {"cache/", "a/cache/", true}, {"a/cache/", "b/a/cache/", false}, {"/cache/", "a/cache/", false},
		},
		"a star stays within its component": {
			{"a/*", "a/b", true},
			{"a/*", "a/b/c", false},
			{"a/*", "a", false},
			{"*/b", "a/b", true},
			{"*/b", "b", false},
			{"a/*/c", "a/b/c", true},
			{"a/*/c", "a/c", false},
			{"a*c", "abbbc", true},
			{"a*c", "ac", true},
			{"a*c", "a/c", false},
		},
		"two stars are any number of components": {
			{"**/x", "x", true},
			{"**/x", "a/x", true},
			{"**/x", "a/b/x", true},
			{"a/**/x", "a/x", true},
			{"a/**/x", "a/b/c/x", true},
			{"a/**/x", "b/x", false},
			{"**/a/**/x", "a/b/a/x", true},
			{"**/**/x", "x", true},
			{"a/**/b/**/c", "a/b/b/x/c", true},
			{"a/**/b/**/c", "a/c/b", false},
		},
		"two stars at the end are what is below, not the directory": {
			{"a/**", "a/b", true}, {"a/**", "a/b/c", true}, {"a/**", "a/", false}, {"a/**/**", "a/", false}, {"**", "a", true}, {"**", "a/b", true}, {"**/", "a", false}, {"**/", "a/", true},
		},
		"two stars beside other characters are one star": {
			{"a**", "abc", true}, {"x/a**", "x/a/b", false}, {"**.log", "a/x.log", true},
		},
		"question mark and class are one character of a name": {
			{"?", "a", true},
			{"?", "ü", true},
			{"?", "\xff", true},
			{"?", "ab", false},
			{"a?b", "a/b", false},
			{"[a-c]x", "bx", true},
			{"[^a-c]x", "bx", false},
			{"[^a-c]x", "dx", true},
			{"a[/]b", "a/b", false},
		},
		"a backslash makes a character plain": {
			{`\*`, "*", true}, {`\*`, "a", false}, {`a\[b`, "a[b", true}, {`\?`, "x", false},
		},
		"names of any bytes": {
			{"*", "a\nb", true}, {"*.log", "\xff\xfe.log", true}, {"a b", "a b", true}, {" a", "a", false}, {"#x", "#x", true}, {"!x", "!x", true},
		},
		"a volume in front": {
			{"data:*.log", "x.log", true}, {"db:*.log", "x.log", false}, {"other:x", "x", false}, {"other:x", "other:x", true}, {"data:/a", "a", true}, {"data:a:b", "a:b", true},
		},
		"the root itself is never matched": {
			{"*", "./", false}, {"**", "./", false}, {"?", "./", false},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, c := range list {
				if c.pattern == "a[/]b" {
					// The slash splits the pattern before the class is seen.
					if _, err := parsePatterns([]string{c.pattern}, nil); err == nil {
						t.Errorf("%q was accepted", c.pattern)
					}
					continue
				}
				p, dir := strings.CutSuffix(c.path, "/")
				if got := compile(t, c.pattern).match("data", p, dir); got != c.want {
					t.Errorf("%q, %q: %v", c.pattern, c.path, got)
				}
			}
		})
	}
}

func TestWhatIsBelowAMatchedDirectoryIsMatchedByTheTree(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"cache", "a/cache/b/c", true},
		{"cache/", "a/cache/b/c", true},
		{"cache/", "a/cache", false},
		{"/a", "a/b", true},
		{"/a", "b/a/c", false},
		{"a/*", "a/b/c/d", true},
		{"a/**", "a", false},
		{"*.log", "x.log/y", true},
		{"x", "y/z", false},
	} {
		if got := compile(t, c.pattern).matchTree("data", c.path, false); got != c.want {
			t.Errorf("%q, %q: %v", c.pattern, c.path, got)
		}
	}
	if !compile(t, "nothing", "b").matchTree("data", "a/b/c", false) {
		t.Error("the second of two patterns is not asked")
	}
	if compile(t).matchTree("data", "a", false) {
		t.Error("no pattern matches")
	}
}

func TestPatternsThatCanMatchNothingAreRefused(t *testing.T) {
	for _, s := range []string{"", "/", "./", "//", "a//b", ".", "..", "../a", "a/..", "a/./b", "//a", "[", "[a", "a/[b", "[]", "[a-]", `\`, `a\`, "data:", "data:/", "[-]"} {
		if _, err := parsePatterns([]string{s}, []string{"data"}); !errors.Is(err, ErrUsage) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// slowMatch says what a pattern means, by trying everything.
func slowMatch(pat, name []string) bool {
	switch {
	case len(pat) == 0:
		return len(name) == 0
	case pat[0] != "**":
		if len(name) == 0 {
			return false
		}
		ok, _ := path.Match(pat[0], name[0])
		return ok && slowMatch(pat[1:], name[1:])
	case len(pat) == 1:
		return len(name) > 0
	}
	for i := range len(name) + 1 {
		if slowMatch(pat[1:], name[i:]) {
			return true
		}
	}
	return false
}

func TestMatchingWithoutTryingEverythingIsTheSame(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	pick := func(from []string, most int) []string {
		out := make([]string, 1+r.IntN(most))
		for i := range out {
			out[i] = from[r.IntN(len(from))]
		}
		return out
	}
	for range 300_000 {
		pat, name := pick([]string{"a", "b", "*", "**", "**", "?a"}, 6), pick([]string{"a", "b", "aa"}, 7)
		if got, want := matchParts(pat, name), slowMatch(pat, name); got != want {
			t.Fatalf("%v, %v: %v, want %v", pat, name, got, want)
		}
	}
}

func TestNoPatternTakesExponentialTime(t *testing.T) {
	began := time.Now()
	ps := compile(t, strings.Repeat("**/a/", 200)+"b", strings.Repeat("*a", 100)+"b", strings.Repeat("a/*a*a*a*a*/**/", 50)+"b")
	name := strings.Repeat(strings.Repeat("a", 40)+"/", 99) + strings.Repeat("a", 255)
	deep := strings.Repeat("a/", 2000) + "a"
	if ps.match("data", name, false) || ps.match("data", deep, false) || ps.matchTree("data", deep[:600]+"a", true) {
		t.Error("matched")
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
}

func FuzzPattern(f *testing.F) {
	for _, s := range []string{"*.log", "cache/**", "/a/b/", "data:x", "**/a/**/b", "[a-z]?", `\*`, "a**b"} {
		f.Add(s, "a/b/x.log", true)
		f.Add(s, "cache/\xff\n", false)
	}
	f.Fuzz(func(t *testing.T, s, name string, dir bool) {
		if len(s) > 200 || len(name) > 200 {
			return
		}
		ps, err := parsePatterns([]string{s}, []string{"data"})
		if err != nil {
			if !errors.Is(err, ErrUsage) {
				t.Fatal(err)
			}
			return
		}
		got := ps.match("data", name, dir)
		if got && !ps.matchTree("data", name, dir) {
			t.Fatalf("%q matches %q, but not its tree", s, name)
		}
		if got && !ps.matchTree("data", name+"/below", false) && dir {
			t.Fatalf("%q matches the directory %q, but nothing below it", s, name)
		}
		if p := ps[0]; p.anchored && !p.dirOnly && name != "." && len(name) < 30 && strings.Count(s, "**") < 6 && slowMatch(p.parts, strings.Split(name, "/")) != got {
			t.Fatalf("%q, %q: %v", s, name, got)
		}
	})
}
