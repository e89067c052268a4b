package sftp

import (
	"path"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestNamesOfTargets(t *testing.T) {
	for name, want := range map[string]Options{
		"sftp://host/backups":                   {Host: "host", Path: "/backups"},
		"sftp://me@host:2222/a/b/":              {User: "me", Host: "host", Port: 2222, Path: "/a/b"},
		"sftp://host/":                          {Host: "host", Path: "/"},
		"sftp://host/~":                         {Host: "host", Path: "."},
		"sftp://host/~/":                        {Host: "host", Path: "."},
		"sftp://host/~/a/../b":                  {Host: "host", Path: "b"},
		"sftp://[::1]:22/x":                     {Host: "::1", Port: 22, Path: "/x"},
		"sftp://dom%5Cme%40corp@host/x":         {User: `dom\me@corp`, Host: "host", Path: "/x"},
		"sftp://me@corp@host/x":                 {User: "me@corp", Host: "host", Path: "/x"},
		"sftp://host/a%20b/c?concurrency=2":     {Host: "host", Path: "/a b/c", Concurrency: 2},
		"sftp://host/x?identity=/a&identity=/b": {Host: "host", Path: "/x", IdentityFiles: []string{"/a", "/b"}},
		"sftp://host/x?stall-timeout=5s&known-hosts=/k&password-file=/p": {
			Host: "host", Path: "/x", StallTimeout: 5 * time.Second, KnownHostsFile: "/k", PasswordFile: "/p",
		},
		"sftp://host//x": {Host: "host", Path: "/x"},
	} {
		got, err := Parse(name, Options{})
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s is %+v, %v; want %+v", name, got, err, want)
		}
	}
	got, err := Parse("sftp://host/x", Options{User: "u", Port: 1, Path: "/y", IdentityFiles: []string{"/i"}})
	if want := (Options{User: "u", Host: "host", Port: 1, Path: "/x", IdentityFiles: []string{"/i"}}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("with defaults %+v, %v", got, err)
	}
}

func TestNamesThatAreNoTargetSayWhyAndTellNoSecret(t *testing.T) {
	for name, hint := range map[string]string{
		"sftp://me:hunter2@host/x":          "PASSWORD_FILE",
		"sftp://:hunter2@host/x":            "PASSWORD_FILE",
		"sftp://me:@host/x":                 "PASSWORD_FILE",
		"sftp://me:hunter2@:/x":             "PASSWORD_FILE",
		"sftp://":                           "host",
		"sftp:///x":                         "host",
		"sftp://host":                       "path",
		"sftp://host:0/x":                   "port",
		"sftp://host:ssh/x":                 "port",
		"sftp://::1/x":                      "brackets",
		"sftp://[::1/x":                     "brackets",
		"sftp://host/~other/x":              "home",
		"sftp://host/~/../x":                "login directory",
		"sftp://host/%zz":                   "%25",
		"sftp://host/a#b":                   "%23",
		"sftp://host/a%00":                  "NUL",
		"sftp://host/x?password=hunter2":    `no setting "password"`,
		"sftp://host/x?concurrency=0":       "positive",
		"sftp://host/x?concurrency=1000":    "64",
		"sftp://host/x?stall-timeout=1":     "duration",
		"sftp://host/x?host-key=hunter2":    "pinned",
		"sftp://host/x?identity=":           "no value",
		"sftp://*/x":                        "host",
		"ssh://host/x":                      "sftp://",
		"sftp://ho\nst/x":                   "host",
		"sftp://host/x?stall-timeout=-5s":   "duration",
		"sftp://me:hunter2%zz@ho st/x?y=%z": "PASSWORD_FILE",
	} {
		o, err := Parse(name, Options{})
		if err == nil {
			t.Errorf("%q is %+v", name, o)
			continue
		}
		if msg := err.Error(); !strings.Contains(msg, hint) || strings.Contains(msg, "hunter2") || strings.ContainsAny(msg, "\n\x00") {
			t.Errorf("%q: %q does not say %q in one line", name, msg, hint)
		}
	}
}

func TestALocationNamesTheTargetAgain(t *testing.T) {
	for _, name := range []string{"sftp://me@host/x", "sftp://me@host:2222/a%20b/%23", "sftp://me@host/~", "sftp://me@host/~/x/y", "sftp://me@[::1]/x", "sftp://me@[::1]:23/x", "sftp://a%20b@host/"} {
		o, err := Parse(name, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if o, err = o.complete(); err != nil {
			t.Fatal(err)
		}
		if got := o.location(); got != name {
			t.Errorf("%s is called %s", name, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "sftp://", "sftp://host/x", "sftp://me@host:22/~/x?identity=/a", "sftp://[::1]/a%20b", "sftp://u:p@h/x", "sftp://h/~/..", "sftp://h//",
		"sftp://h/x?host-key=ssh-ed25519%20AAAA+/==&concurrency=3",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		o, err := Parse(name, Options{})
		if err != nil {
			if !reflect.DeepEqual(o, Options{}) {
				t.Fatalf("%q: both %+v and %v", name, o, err)
			}
			return
		}
		if o.User == "" {
			o.User = "me"
		}
		if o, err = o.complete(); err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		if path.Clean(o.Path) != o.Path || o.Path == ".." || strings.HasPrefix(o.Path, "../") {
			t.Fatalf("%q leads to %q", name, o.Path)
		}
		again, err := Parse(o.location(), Options{})
		if err != nil {
			t.Fatalf("%q is called %q: %v", name, o.location(), err)
		}
		if again, err = again.complete(); err != nil || again.User != o.User || again.address() != o.address() || again.Path != o.Path {
			t.Fatalf("%q is called %q: %+v, %v", name, o.location(), again, err)
		}
	})
}
