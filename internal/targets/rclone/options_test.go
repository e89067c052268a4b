package rclone

import (
	"strings"
	"testing"
)

func TestNamesOfTargets(t *testing.T) {
	for name, location := range map[string]string{
		"rclone:remote:path/to":    "",
		"rclone:remote:":           "",
		"rclone:my remote-1:a b":   "",
		"rclone:remote:/abs/path":  "",
		"rclone:remote:with:colon": "",
		"rclone::local:/backups":   "",
		"rclone::webdav,url='https://me:hunter2@host:8080/x',pass=hunter2:path": "rclone::webdav,...:path",
		`rclone:remote,user="a""b:c":path`:                                      "rclone:remote,...:path",
		"rclone:remote,read_only:path":                                          "rclone:remote,...:path",
	} {
		o, err := Parse(name, Options{})
		if err != nil || o.Remote != strings.TrimPrefix(name, "rclone:") {
			t.Errorf("%q is %+v, %v", name, o, err)
			continue
		}
		if location == "" {
			location = name
		}
		if got := o.location(); got != location {
			t.Errorf("%q is called %q, want %q", name, got, location)
		}
	}
}

func TestNamesThatAreNoTargetSayWhyAndTellNoSecret(t *testing.T) {
	for name, hint := range map[string]string{
		"remote:path":                         "rclone:",
		"rclone:":                             "directory",
		"rclone:/backups":                     "directory",
		"rclone:./backups":                    "directory",
		"rclone:backups":                      "directory",
		"rclone::":                            "directory",
		"rclone:::x":                          "no remote",
		"rclone:re*mote:x":                    "no remote",
		"rclone:-remote:x":                    "no remote",
		"rclone:remote:a/../../b":             `".."`,
		"rclone:remote:a\nb":                  "line break",
		"rclone:remote,pass='hunter2:x":       "no end",
		"rclone:remote,pass=hunter2":          "no end",
		"rclone::webdav,pass='hunter2'x/../y": "no end",
	} {
		o, err := Parse(name, Options{})
		if err == nil {
			t.Errorf("%q is %+v", name, o)
			continue
		}
		if msg := err.Error(); !strings.Contains(msg, hint) || strings.Contains(msg, "hunter2") || strings.Contains(msg, "\n") {
			t.Errorf("%q: %q does not say %q in one line", name, msg, hint)
		}
	}
}

func TestSecretsAreTakenOutOfWhatRcloneSays(t *testing.T) {
	o := Options{Remote: ":webdav,url='https://host',pass=hunter2:x"}
	for _, said := range []string{
		"failed to make Fs :webdav,url='https://host',pass=hunter2:x: boom",
		`Get "https://me:hunter2@host/path": refused`,
		`Put "https://account.blob.host/c/x?sig=hunter2&se=2026": refused`,
		`{"access_token":"hunter2"}`,
		"Authorization: Bearer hunter2",
		"secret_access_key = hunter2",
	} {
		got := redact(said, o.secrets())
		if strings.Contains(got, "hunter2") {
			t.Errorf("%q is %q", said, got)
		}
	}
	if said := "object a/b: corrupted on transfer: sizes differ 1 vs 2"; redact(said, o.secrets()) != said {
		t.Errorf("%q", redact(said, o.secrets()))
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "rclone:", "rclone:r:p", "rclone::local:/x", "rclone:r,a='b:c''d',e:p", `rclone:r,a="b":`, "rclone:r,a=':", "x:y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		o, err := Parse(name, Options{})
		if err != nil {
			if o.Remote != "" {
				t.Fatalf("%q: both %+v and %v", name, o, err)
			}
			return
		}
		r, err := parseRemote(o.Remote)
		if err != nil || r.String() != o.Remote || "rclone:"+r.String() != name {
			t.Fatalf("%q is %+v, %v", name, r, err)
		}
		if up, ok := r.parent(); ok && len(up.path) >= len(r.path) {
			t.Fatalf("%q is below %q", r, up)
		}
		o.location()
		o.secrets()
	})
}
