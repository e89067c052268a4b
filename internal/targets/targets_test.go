package targets

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNamesOfTargets(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"/backups":         "/backups",
		"/backups/":        "/backups",
		"/a/../b":          "/b",
		"/":                "/",
		"backups":          filepath.Join(wd, "backups"),
		"./backups":        filepath.Join(wd, "backups"),
		".":                wd,
		"file:///backups":  "/backups",
		"file:///":         "/",
		"file:///a b":      "/a b",
		"file:///a%20b":    "/a%20b", // a path, not a URL: nothing is decoded
		"/with:colon":      "/with:colon",
		"/\xff\n":          "/\xff\n",
		" /leading-space":  filepath.Join(wd, " /leading-space"),
		"/trailing-space ": "/trailing-space ",
		"~":                filepath.Join(wd, "~"), // the shell's business
	} {
		l, err := Parse(name)
		if err != nil || l.Scheme != "directory" || l.Path != want {
			t.Errorf("%q is %+v, %v; want %q", name, l, err, want)
		}
	}
}

func TestNamesThatAreNoTargetSayWhatToDo(t *testing.T) {
	for name, hint := range map[string]string{
		"":                  "--target DIR",
		"file://":           "file:///backups",
		"file://host/share": "file:///backups",
		"file://relative":   "file:///backups",
		"s3://bucket":       "directories only",
		"sftp://host/x":     "directories only",
		"FILE:///x":         "directories only",
		"://x":              "directories only",
		"rclone:remote:x":   "directories only",
		"s3:bucket":         "./NAME",
		"file:/backups":     "./NAME",
		"a\x00b":            "NUL",
		"file:///a\x00b":    "NUL",
	} {
		l, err := Parse(name)
		if err == nil || l != (Location{}) {
			t.Errorf("%q is %+v", name, l)
			continue
		}
		if msg := err.Error(); !strings.Contains(msg, hint) || strings.ContainsAny(msg, "\n\x00") {
			t.Errorf("%q: %q does not say %q in one line", name, msg, hint)
		}
		for what, open := range map[string]func() error{
			"open":   func() error { _, err := Open(name); return err },
			"create": func() error { _, err := Create(name); return err },
		} {
			if open() == nil {
				t.Errorf("%s %q: no error", what, name)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "/backups", "file:///backups", "file://x", "s3://bucket/p?x=1", "rclone:r:p", "a\x00", "://", "../.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		l, err := Parse(name)
		if err != nil {
			if l != (Location{}) {
				t.Fatalf("%q: both %+v and %v", name, l, err)
			}
			return
		}
		if l.Scheme != "directory" || !filepath.IsAbs(l.Path) || filepath.Clean(l.Path) != l.Path || strings.IndexByte(l.Path, 0) >= 0 {
			t.Fatalf("%q is %+v", name, l)
		}
		if strings.Contains(l.Path, "://") {
			return // was collapsed or not: such a path is not a name
		}
		if again, err := Parse("file://" + l.Path); err != nil || again != l {
			t.Fatalf("%q is %+v, as a URL %+v, %v", name, l, again, err)
		}
	})
}
