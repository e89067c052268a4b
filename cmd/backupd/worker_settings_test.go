package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/disko/backupd/internal/agent"
	"github.com/disko/backupd/internal/worker"
)

// settle has the app read the settings of a command that does nothing.
func settle(t *testing.T, a *app, args ...string) {
	t.Helper()
	a.stdout, a.stderr, a.closers = &bytes.Buffer{}, &bytes.Buffer{}, &closers{}
	root := a.command()
	root.AddCommand(&cobra.Command{Use: "nothing", RunE: a.runs(func(context.Context, []string) error { return nil })})
	root.SetArgs(append([]string{"nothing"}, args...))
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestWorkersGetSettingsAsTheyCountAndSecretsByTheirContent(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	config := file("backupd.yaml", "s3-region: from-the-file\nschedule: '@daily'\npassphrase-file: "+file("phrase", "a, b \n")+"\n")
	one, two := file("one", "AGE-SECRET-KEY-1\n"), file("two", "AGE-SECRET-KEY-2\n")
	t.Setenv("BACKUPD_CONFIG", config)
	t.Setenv("BACKUPD_OUTAGE", "3m")
	t.Setenv("BACKUPD_IDENTITY", one+","+two)
	t.Setenv("BACKUPD_NOTIFY", "ntfy://secret")
	t.Setenv("AWS_SECRET_ACCESS_KEY_FILE", file("aws", "key"))
	for _, name := range agent.SDKFiles { // the machine's
		t.Setenv(name, "")
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file("credentials", "[default]"))
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(dir, "absent"))
	a := &app{}
	settle(t, a, "--s3-endpoint", "https://s3.example", "--recipient", "age1x", "--target", "/backups", "--stack", "shop")
	env, files, err := a.workerSettings()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(env)
	want := []string{"BACKUPD_OUTAGE=3m0s", "BACKUPD_RECIPIENT=age1x", "BACKUPD_S3_ENDPOINT=https://s3.example", "BACKUPD_S3_REGION=from-the-file"}
	if !slices.Equal(env, want) {
		t.Errorf("a worker gets %q, want %q", env, want)
	}
	var got []string
	for _, f := range files {
		got = append(got, f.Env+"="+string(f.Content))
	}
	slices.Sort(got)
	if wanted := []string{
		"AWS_SHARED_CREDENTIALS_FILE=[default]",
		"BACKUPD_IDENTITY=AGE-SECRET-KEY-1\n", "BACKUPD_IDENTITY=AGE-SECRET-KEY-2\n", "BACKUPD_PASSPHRASE_FILE=a, b \n", "BACKUPD_S3_SECRET_ACCESS_KEY_FILE=key",
	}; !slices.Equal(got, wanted) {
		t.Errorf("a worker gets files %q, want %q", got, wanted)
	}
}

func TestAWorkerReadsTheFilesOfItsRequest(t *testing.T) {
	t.Setenv("BACKUPD_IDENTITY", "")
	t.Setenv("BACKUPD_PASSPHRASE_FILE", "")
	if err := receive([]worker.File{{Env: "BACKUPD_IDENTITY", Content: []byte("one")}, {Env: "BACKUPD_PASSPHRASE_FILE", Content: []byte("phrase\n")}, {Env: "BACKUPD_IDENTITY", Content: []byte("two")}}); err != nil {
		t.Fatal(err)
	}
	var read []string
	for _, name := range append(strings.Split(os.Getenv("BACKUPD_IDENTITY"), ","), os.Getenv("BACKUPD_PASSPHRASE_FILE")) {
		for range 2 { // as often as it is asked for
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			read = append(read, string(text))
		}
	}
	if want := []string{"one", "one", "two", "two", "phrase\n", "phrase\n"}; !slices.Equal(read, want) {
		t.Errorf("read %q", read)
	}
}
