package targets

import (
	"context"
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
		l, err := parse(name, Options{})
		if err != nil || l.kind != "directory" || l.path != want {
			t.Errorf("%q is %s %q, %v; want %q", name, l.kind, l.path, err, want)
		}
	}
}

func TestEveryKindOfTargetHasItsName(t *testing.T) {
	for name, want := range map[string]string{
		"s3://bucket/prefix":        "s3",
		"nfs://host/export/path":    "nfs",
		"sftp://user@host/path":     "sftp",
		"rclone:remote:path":        "rclone",
		"rclone::memory:bucket":     "rclone",
		"s3://b-u.cket?region=eu-1": "s3",
	} {
		l, err := parse(name, Options{})
		if err != nil || l.kind != want {
			t.Errorf("%q is %q, %v; want %q", name, l.kind, err, want)
		}
	}
}

func TestAWrongNameTellsNoSecret(t *testing.T) {
	for _, name := range []string{
		"s3://key:hunter2@bucket/prefix", "s3://bucket?secret=hunter2", "sftp://user:hunter2@host/path", "nfs://user:hunter2@host/path",
		"ftp://user:hunter2@host/path", "webdav:hunter2", "rclone::webdav,pass=hunter2", "https://hunter2",
	} {
		if err := Check(name, Options{}); err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", name, err)
		}
		if strings.Contains(shown("rclone::webdav,pass=hunter2:x")+shown("s3://b?x=hunter2"), "hunter2") {
			t.Error("a location for messages has a secret")
		}
	}
}

func TestNamesThatAreNoTargetSayWhatToDo(t *testing.T) {
	for name, hint := range map[string]string{
		"":                  "--target DIR",
		"file://":           "file:///backups",
		"file://host/share": "file:///backups",
		"file://relative":   "file:///backups",
		"ftp://host/x":      "sftp://user@host/path",
		"FILE:///x":         "no such kind",
		"://x":              "no such kind",
		"s3://":             "s3://",
		"nfs://host":        "nfs://",
		"rclone:":           "rclone:remote:path",
		"s3:bucket":         "./NAME",
		"file:/backups":     "./NAME",
		"a\x00b":            "NUL",
		"file:///a\x00b":    "NUL",
	} {
		err := Check(name, Options{})
		if err == nil {
			t.Errorf("%q is no error", name)
			continue
		}
		if msg := err.Error(); !strings.Contains(msg, hint) || strings.ContainsAny(msg, "\n\x00") {
			t.Errorf("%q: %q does not say %q in one line", name, msg, hint)
		}
		for what, open := range map[string]func() error{
			"open":   func() error { _, err := Open(context.Background(), name, Options{}); return err },
			"create": func() error { _, err := Create(context.Background(), name, Options{}); return err },
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
		l, err := parse(name, Options{})
		if err != nil || l.kind != "directory" {
			return
		}
		if !filepath.IsAbs(l.path) || filepath.Clean(l.path) != l.path || strings.IndexByte(l.path, 0) >= 0 {
			t.Fatalf("%q is %q", name, l.path)
		}
		if strings.Contains(l.path, "://") {
			return // was collapsed or not: such a path is not a name
		}
		if again, err := parse("file://"+l.path, Options{}); err != nil || again.path != l.path {
			t.Fatalf("%q is %q, as a URL %q, %v", name, l.path, again.path, err)
		}
	})
}
