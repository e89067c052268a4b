package host

import (
	"context"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/compose"
)

func TestFlagsOfThisSideDoNotReachTheContainer(t *testing.T) {
	names := []string{"--compose-file", "-f", "--project-name", "-p"}
	for in, want := range map[string]string{
		"restore":                          "restore",
		"restore -f a.yaml --force":        "restore --force",
		"restore -fa.yaml 4f2a":            "restore 4f2a",
		"restore --compose-file=a.yaml x":  "restore x",
		"-p shop restore --project-name y": "restore",
		"restore --force -f":               "restore --force",
		"restore -- -f a":                  "restore -- -f a",
		"restore --forceful --plain":       "restore --forceful --plain",
	} {
		if got := Strip(strings.Fields(in), names...); !reflect.DeepEqual(got, strings.Fields(want)) {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestServicesThatTheBackupServiceNeedsAreMissed(t *testing.T) {
	depends := map[string]string{"engine": "service_started", "db": "service_healthy", "schema": "service_completed_successfully"}
	for want, states := range map[string]map[string]string{
		"db engine schema": {"backup": "running"},
		"engine":           {"db": "running", "engine": "exited", "schema": "exited"},
		"schema":           {"db": "running", "engine": "running", "schema": "running"},
		"":                 {"db": "running", "engine": "running", "schema": "exited"},
	} {
		if got := strings.Join(missing(depends, states), " "); got != want {
			t.Errorf("of %v it misses %q, want %q", states, got, want)
		}
	}
}

func TestInitAsksBeforeItWrites(t *testing.T) {
	const text = "services:\n  db:\n    image: x\n    volumes: ['data:/d']\nvolumes:\n  data:\n"
	t.Chdir(t.TempDir())
	if err := os.WriteFile("compose.yaml", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var shown, asked int
	var told []string
	o := InitOptions{
		Image:  "backupd",
		Diff:   func(string, []byte, []byte) error { shown++; return nil },
		Notice: func(s string) { told = append(told, s) },
	}
	read := func() string {
		b, err := os.ReadFile("compose.yaml")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if err := Init(t.Context(), o); !errors.Is(err, ErrDeclined) || read() != text {
		t.Errorf("with nobody to ask: %v", err)
	}
	o.Ask = func(string) (bool, error) { asked++; return false, nil }
	if err := Init(t.Context(), o); !errors.Is(err, ErrDeclined) || read() != text {
		t.Errorf("no: %v", err)
	}
	o.Ask = func(string) (bool, error) { asked++; return true, nil }
	if err := Init(t.Context(), o); err != nil || read() == text || shown != 3 || asked != 2 {
		t.Errorf("yes: %v; shown %d times, asked %d times", err, shown, asked)
	}
	t.Setenv("BACKUPD_TARGET", "/backups")
	told = nil
	if err := Init(t.Context(), o); err != nil || shown != 3 || len(told) != 1 || !strings.Contains(told[0], "nothing to do") {
		t.Errorf("again: %v, %q", err, told)
	}
}

func TestAProjectWithoutABackupServiceIsNotRun(t *testing.T) {
	t.Chdir(t.TempDir())
	o := Options{Notice: func(string) {}}
	if _, err := Run(context.Background(), o); err == nil || errors.Is(err, compose.ErrNoFile) {
		t.Errorf("without a command: %v", err)
	}
	o.Args = []string{"restore"}
	if _, err := Run(context.Background(), o); !errors.Is(err, compose.ErrNoFile) {
		t.Errorf("without a file: %v", err)
	}
	if err := os.WriteFile("compose.yaml", []byte("services: {app: {image: x}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(context.Background(), o); !errors.Is(err, compose.ErrNoBackup) {
		t.Errorf("without a service: %v", err)
	}
}
