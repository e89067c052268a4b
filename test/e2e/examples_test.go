package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/teststack"
)

// example is what Compose makes of a file of configs/.
type example struct {
	Name     string
	Services map[string]struct {
		Image       string
		Build       any
		Environment map[string]*string
		ReadOnly    bool                                  `json:"read_only"`
		CapDrop     []string                              `json:"cap_drop"`
		CapAdd      []string                              `json:"cap_add"`
		DependsOn   map[string]struct{ Condition string } `json:"depends_on"`
		Volumes     []struct {
			Type, Source, Target string
			ReadOnly             bool `json:"read_only"`
		}
		Ports []struct {
			HostIP string `json:"host_ip"`
		}
	}
	Volumes map[string]any
}

// settings are an .env with all that the examples ask for.
const settings = "DB_PASSWORD=secret\nBACKUPD_PASSPHRASE=secret\nBACKUPD_TARGET=/backups\n"

func examples(t *testing.T) map[string]example {
	t.Helper()
	root, err := teststack.Root()
	if err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(root, "configs", "*.yaml"))
	if err != nil || len(names) < 7 {
		t.Fatalf("examples: %v %v", names, err)
	}
	out := map[string]example{}
	for _, name := range names {
		if filepath.Base(name) == "backupd.yaml" {
			continue // of backupd itself; cmd/backupd tests it
		}
		p := teststack.NewProject(t, "backupd-example", read(t, name))
		p.Write(".env", settings)
		// With the file's own project name, and every profile. Secrets of a Swarm
		// are its own, and nothing looks for them here.
		text, err := teststack.Try(t, p.Dir, "compose", "--profile", "*", "config", "--format", "json")
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(name), err)
			continue
		}
		var e example
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			t.Fatal(err)
		}
		out[filepath.Base(name)] = e
	}
	return out
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestExamplesAreValidAndReadAsAMapOfTheStack(t *testing.T) {
	teststack.Engine(t)
	purposes := []string{"application", "server", "db", "cache", "backup", "backup-mounted", "engine"}
	for name, e := range examples(t) {
		t.Run(name, func(t *testing.T) {
			swarm, host := name == "stack.swarm.yaml", name == "compose.host.yaml"
			for service, s := range e.Services {
				if !slices.Contains(purposes, service) {
					t.Errorf("service %s is not named after what it does: %v", service, purposes)
				}
				if s.Build != nil || s.Image == "" {
					t.Errorf("service %s is built; whoever clones the example pulls it", service)
				}
				for _, p := range s.Ports {
					if p.HostIP != "127.0.0.1" {
						t.Errorf("service %s listens on %q", service, p.HostIP)
					}
				}
			}
			backup, ok := e.Services["backup"]
			if !ok {
				t.Fatal("there is no service backup")
			}
			if backup.Image != "backupd:latest" {
				t.Errorf("it runs %s", backup.Image)
			}
			if !backup.ReadOnly || !slices.Equal(backup.CapDrop, []string{"ALL"}) {
				t.Errorf("it runs with read_only %v and cap_drop %v", backup.ReadOnly, backup.CapDrop)
			}
			if caps := backup.CapAdd; !slices.Equal(caps, capabilities) && !slices.Equal(caps, []string{"DAC_READ_SEARCH"}) {
				t.Errorf("cap_add %v is neither of the lists that were tested", caps)
			}
			// A clone takes no snapshots of its own accord.
			if s := backup.Environment["BACKUPD_SCHEDULE"]; !swarm && !host && (s == nil || *s != "") {
				t.Error("it has a schedule where .env sets none")
			}
			saved := map[string]bool{}
			state := ""
			for _, v := range backup.Volumes {
				if strings.HasPrefix(v.Target, "/volumes/") {
					saved[v.Source] = true
					if v.ReadOnly {
						t.Errorf("%s is read-only: nothing can be restored into it", v.Target)
					}
				}
				if v.Target == "/var/lib/backupd" && v.Type == "volume" {
					state = v.Source
				}
			}
			if state == "" {
				t.Error("its state is in no named volume")
			}
			if len(saved) == 0 && !host {
				t.Error("it backs up nothing")
			}
			for service, s := range e.Services {
				if strings.HasPrefix(service, "backup") || swarm {
					continue
				}
				for _, v := range s.Volumes {
					if v.Type == "volume" && saved[v.Source] && s.DependsOn["backup"].Condition != "service_healthy" {
						t.Errorf("service %s may start before volume %s is seeded: %v", service, v.Source, s.DependsOn)
					}
				}
			}
		})
	}
}

// Every file is found from the list of examples, and the list has no other.
func TestExamplesAreListed(t *testing.T) {
	root, err := teststack.Root()
	if err != nil {
		t.Fatal(err)
	}
	list := read(t, filepath.Join(root, "configs/README.md"))
	names, err := filepath.Glob(filepath.Join(root, "configs", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if base := filepath.Base(name); !strings.Contains(list, "("+base+")") {
			t.Errorf("configs/README.md does not name %s", base)
		}
	}
	if got := strings.Count(list, ".yaml)"); got != len(names) {
		t.Errorf("configs/README.md names %d files, and there are %d", got, len(names))
	}
}
