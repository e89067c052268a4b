package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/disko/backupd/internal/config"
)

// configOf loads a file of configs/ with the program's flags; secrets are not there.
func configOf(t *testing.T, file string) *config.Config {
	t.Helper()
	a := &app{stdout: io.Discard, stderr: io.Discard}
	root := a.command()
	src := a.sources(root)
	src.File = file
	src.ReadFile = func(name string) ([]byte, error) {
		if name == file {
			return os.ReadFile(name)
		}
		return []byte("ntfy://topic"), nil
	}
	c, err := config.Load(src)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheExampleConfigurationLoads(t *testing.T) {
	c := configOf(t, "../../configs/backupd.yaml")
	if len(c.Policies) != 2 || c.Policies[0].Schedule.Never() || c.Policies[0].Drill.Never() || len(c.Policies[0].Pre) != 1 || len(c.Targets) != 2 || len(c.Notify) != 1 {
		t.Errorf("%+v", c)
	}
	// It is an example of every setting of the agent.
	set := map[string]bool{}
	for _, v := range c.Effective() {
		if v.From == config.FromFile {
			name := v.Key[strings.LastIndex(v.Key, ".")+1:]
			set[strings.TrimSuffix(name, "-file")] = true
		}
	}
	for _, s := range config.Settings() {
		switch s.Name {
		case "tag", "quiesce", "freeze-memory", "freeze-limit": // to be used with a reason
		default:
			if !set[s.Name] {
				t.Errorf("configs/backupd.yaml does not show %s", s.Name)
			}
		}
	}
}

func TestTheSchemaIsMadeFromTheSettings(t *testing.T) {
	var out bytes.Buffer
	if code := run([]string{"config", "--schema"}, &out, io.Discard); code != exitDone {
		t.Fatal(code)
	}
	kept, err := os.ReadFile("../../configs/backupd.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), kept) {
		t.Error("configs/backupd.schema.json is not what the program prints; write it anew with: go run ./cmd/backupd config --schema > configs/backupd.schema.json")
	}
	var schema struct {
		Properties map[string]struct {
			AdditionalProperties struct{ Properties map[string]any }
		}
	}
	if err := json.Unmarshal(kept, &schema); err != nil {
		t.Fatal(err)
	}
	policies := schema.Properties["policies"].AdditionalProperties.Properties
	for _, name := range []string{"target", "schedule", "notify-file", "s3-region", "passphrase-file", "policies"} {
		if _, ok := schema.Properties[name]; !ok {
			t.Errorf("the schema does not know %s", name)
		}
	}
	for _, s := range config.Settings() {
		if _, ok := policies[s.Name]; ok != s.InPolicy() {
			t.Errorf("policies have %s: %v", s.Name, ok)
		}
	}
}

// manualRow is a setting's line in docs/configuration.md.
func manualRow(s config.Setting) string {
	code := func(text string) string {
		if text == "" {
			return ""
		}
		return "`" + text + "`"
	}
	env, label := "BACKUPD_"+envName(s.Name), "backupd."+s.Name
	if s.FileOnly() {
		env = ""
	}
	if s.Secret() {
		env += "`, `" + env + "_FILE"
	}
	if !s.Label() {
		label = ""
	}
	where := ""
	if s.InPolicy() {
		where = "yes"
	}
	example := code(s.Example)
	if s.FileOnly() {
		example = "[below](#hooks)"
	}
	return fmt.Sprintf("| `%s` | %s | %s | %s | %s | %s | %s |", s.Name, s.Help, code(env), code(label), where, code(s.Default), example)
}

func TestTheManualHasEverySetting(t *testing.T) {
	manual, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range config.Settings() {
		if !bytes.Contains(manual, []byte(manualRow(s)+"\n")) {
			t.Errorf("docs/configuration.md lacks the line\n%s", manualRow(s))
		}
	}
	var restart []string
	for _, s := range config.Settings() {
		if s.NeedsRestart() {
			restart = append(restart, "`"+s.Name+"`")
		}
	}
	if list := "the log says so: " + strings.Join(restart, ", ") + "."; !bytes.Contains(manual, []byte(list)) {
		t.Errorf("docs/configuration.md lacks %q", list)
	}
}

// A flag of a command and a setting of the same name are one thing: both take the
// same texts.
func TestFlagsThatAreSettingsTakeTheirValues(t *testing.T) {
	values := map[string]string{}
	for _, s := range config.Settings() {
		values[s.Name] = s.Example
	}
	a := &app{stdout: io.Discard, stderr: io.Discard}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if v, ok := values[f.Name]; ok && cmd.Name() != "config" && f.Value.Type() != "string" {
				if err := f.Value.Set(v); err != nil {
					t.Errorf("%s --%s %s: %v", cmd.CommandPath(), f.Name, v, err)
				}
			}
		})
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(a.command())
}
