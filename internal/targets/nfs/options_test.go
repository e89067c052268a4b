package nfs

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestANameIsReadAsItIsWritten(t *testing.T) {
	one, many := new(uint32(0)), new(uint32(4294967294))
	for name, want := range map[string]Options{
		"nfs://nas/export":                          {Host: "nas", Path: "/export"},
		"nfs://nas/":                                {Host: "nas", Path: "/"},
		"nfs://nas":                                 {Host: "nas", Path: "/default"},
		"nfs://nas/export/a%20b/./c//":              {Host: "nas", Path: "/export/a b/c"},
		"nfs://nas:2050/e?mountport=20048":          {Host: "nas", Port: 2050, MountPort: 20048, Path: "/e"},
		"nfs://[::1]:2049/e?version=3":              {Host: "::1", Port: 2049, Path: "/e"},
		"nfs://nas/e?uid=0&gid=4294967294":          {Host: "nas", Path: "/e", UID: one, GID: many},
		"nfs://nas/e/f?export=/e/":                  {Host: "nas", Path: "/e/f", Export: "/e"},
		"nfs://nas/e?concurrency=8":                 {Host: "nas", Path: "/e", Concurrency: 8},
		"nfs://nas/e?stall-timeout=90s&mountport=1": {Host: "nas", Path: "/e", StallTimeout: 90 * time.Second, MountPort: 1},
	} {
		got, err := Parse(name, Options{Path: "/default"})
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, want)
		}
	}
}

func TestANameThatIsWrongIsRefusedWithAnExample(t *testing.T) {
	for name, part := range map[string]string{
		"nfs:nas/export":                         "nfs://",
		"nfs:/export":                            "no host",
		"nfs:///export":                          "no host",
		"nfs://nas":                              "no export's path",
		"http://nas/export":                      "nfs://",
		"/export":                                "nfs://",
		"nfs://me:secret@nas/export":             "no login",
		"nfs://nas/export#1":                     "%23",
		"nfs://nas/a%zz":                         "cannot be read",
		"nfs://nas/a%00b":                        "NUL",
		"nfs://nas:0/e":                          "1 to 65535",
		"nfs://nas:70000/e":                      "1 to 65535",
		"nfs://nas/e?mountport=x":                "1 to 65535",
		"nfs://nas/e?uid=backup":                 "id NAME",
		"nfs://nas/e?uid=-1":                     "uid",
		"nfs://nas/e?gid=4294967296":             "gid",
		"nfs://nas/e?version=4":                  "mount the directory",
		"nfs://nas/e?vers=3":                     `"vers"`,
		"nfs://nas/e?uid=1&uid=2":                "twice",
		"nfs://nas/e?concurrency=0":              "1 to 64",
		"nfs://nas/e?concurrency=65":             "1 to 64",
		"nfs://nas/e?stall-timeout=0s":           "60s",
		"nfs://nas/e?stall-timeout=5":            "60s",
		"nfs://nas/e?export=/f":                  "does not begin",
		"nfs://nas/export?export=/exp":           "does not begin",
		"nfs://nas/" + strings.Repeat("x", 2000): "1024",
	} {
		_, err := Parse(name, Options{})
		if err == nil || !strings.Contains(err.Error(), part) || !strings.Contains(err.Error(), "nfs://nas.example/export/backups") {
			t.Errorf("%s: %v; want %q in it, and an example", name, err, part)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error tells it: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"nfs://nas/export", "nfs://[::1]:2049/a%20b?uid=1&gid=2&version=3", "nfs://nas:1/e?mountport=2&export=/e&concurrency=3&stall-timeout=4s", "nfs://u@nas/x#y", "nfs://nas/%23%3f"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		o, err := Parse(name, Options{})
		if err != nil {
			return
		}
		again, err := Parse(o.location(), Options{MountPort: o.MountPort, Export: o.Export, UID: o.UID, GID: o.GID, Concurrency: o.Concurrency, StallTimeout: o.StallTimeout})
		if err != nil || !reflect.DeepEqual(again, o) {
			t.Errorf("%q is %+v; its location %q is %+v, %v", name, o, o.location(), again, err)
		}
	})
}
