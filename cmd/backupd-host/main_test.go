package main

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

func TestCommandsArePassedOnWithAllButOurOwnFlags(t *testing.T) {
	c := &command{}
	rest, err := c.take(strings.Fields("latest --force -f a.yaml -p shop --include x --service saver --env-file e -f b.yaml"))
	if err != nil || !reflect.DeepEqual(rest, strings.Fields("latest --force --include x")) {
		t.Errorf("passed on %q, %v", rest, err)
	}
	if p := c.project; !reflect.DeepEqual(p.Files, []string{"a.yaml", "b.yaml"}) || p.Name != "shop" || p.Service != "saver" || !reflect.DeepEqual(p.EnvFiles, []string{"e"}) {
		t.Errorf("project %+v", p)
	}
	if _, err := c.take([]string{"-f"}); err == nil {
		t.Error("a flag without its value was taken")
	}
}

func TestWithoutAProjectItSaysSoWithTheCodeOfWrongUsage(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, args := range [][]string{{"restore"}, {"init"}, {"nothing"}} {
		var out, errs strings.Builder
		if code := run(t.Context(), args, nil, &out, &errs); code != exitUsage || !strings.HasPrefix(errs.String(), "backupd: ") {
			t.Errorf("%v exited with %d: %s", args, code, errs.String())
		}
	}
	if err := os.WriteFile("compose.yaml", []byte("services: {app: {image: x}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs strings.Builder
	if code := run(t.Context(), []string{"restore"}, nil, &out, &errs); code != exitUsage || !strings.Contains(errs.String(), "backupd init") {
		t.Errorf("without a service it exited with %d: %s", code, errs.String())
	}
	if code := run(t.Context(), []string{"--help"}, nil, &out, &errs); code != 0 || !strings.Contains(out.String(), "restore") {
		t.Errorf("help exited with %d: %s", code, out.String())
	}
}
