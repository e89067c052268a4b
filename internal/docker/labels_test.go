package docker

import (
	"strings"
	"testing"
	"time"
)

func TestLabelsAreReadWithTheirDefaults(t *testing.T) {
	for _, c := range []struct {
		name   string
		labels map[string]string
		want   Policy
	}{
		{"none", map[string]string{"com.example": "x"}, Policy{Quiesce: QuiesceDefault}},
		{"everything", map[string]string{
			"backupd.quiesce": "stop", "backupd.quiesce.timeout": "90s",
			"backupd.pre": "flush --all", "backupd.pre.user": "app:app",
			"backupd.post": "resume", "backupd.post.timeout": "10s",
			"backupd.dump": "postgres", "backupd.dump.user": "70", "backupd.dump.timeout": "1h", "backupd.dump.file": "all.sql",
			"backupd.drill": "pg_amcheck --all",
		}, Policy{
			Quiesce: QuiesceStop, StopTimeout: 90 * time.Second,
			Pre:   Hook{"flush --all", "app:app", defaultHookTimeout},
			Post:  Hook{"resume", "", 10 * time.Second},
			Dump:  Dump{Kind: Postgres, User: "70", Timeout: time.Hour, File: "all.sql"},
			Drill: Check{Hook: Hook{"pg_amcheck --all", "", defaultDrillTimeout}},
		}},
		{"a command dumps", map[string]string{"backupd.dump": "tool export -"}, Policy{Quiesce: QuiesceDefault, Dump: Dump{Command: "tool export -", File: "dump"}}},
		{"one word is a command", map[string]string{"backupd.dump": "pg_dumpall"}, Policy{Quiesce: QuiesceDefault, Dump: Dump{Command: "pg_dumpall", File: "dump"}}},
		{"other names of kinds", map[string]string{"backupd.dump": "valkey"}, Policy{Quiesce: QuiesceDefault, Dump: Dump{Kind: Redis, File: "dump.rdb"}}},
		{"a worker's own label", map[string]string{"backupd.worker": "run"}, Policy{Quiesce: QuiesceDefault}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParsePolicy("db", c.labels)
			if err != nil || got != c.want {
				t.Errorf("got %+v, %v\nwant %+v", got, err, c.want)
			}
		})
	}
}

func TestWrongLabelsAreRefusedAllAtOnce(t *testing.T) {
	_, err := Policies(&Stack{Services: []Service{
		{Name: "db", Labels: map[string]string{
			"backupd.quiese": "stop", "backupd.zzzzzzzzzzzz": "1", "backupd.quiesce.timeout": "soon",
			"backupd.pre.user": "app", "backupd.post": " ", "backupd.dump": "postgre", "backupd.dump.file": "../x", "backupd.exclude": "true",
		}},
		{Name: "web", Labels: map[string]string{"backupd.quiesce": "halt", "backupd.dump": "", "backupd.drill": "x", "backupd.drill.timeout": "-1s", "backupd.drill.user": "a b"}},
		{Name: "cache", Labels: map[string]string{"backupd.quiesce": "pause", "backupd.quiesce.timeout": "1s"}},
		{Name: "backup", Labels: map[string]string{"backupd.schedule": "@daily"}, Containers: []Container{{ID: "own"}}},
		{Name: "another", Labels: map[string]string{"backupd.schedule": "@daily"}, Containers: []Container{{ID: "x", Labels: map[string]string{labelTitle: "backupd"}}}},
	}}, []string{"own"})
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	for _, want := range []string{
		"service db: label backupd.quiese is not known; do you mean backupd.quiesce?",
		"service db: label backupd.zzzzzzzzzzzz is not known; known are backupd.quiesce, ",
		`service db: label backupd.quiesce.timeout is "soon"; give a duration`,
		"service db: label backupd.pre.user needs backupd.pre beside it",
		"service db: label backupd.post is empty",
		`service db: label backupd.dump is "postgre"; do you mean postgres?`,
		`service db: label backupd.dump.file is "../x"`,
		"service db: label backupd.exclude stands on volumes",
		`service web: label backupd.quiesce is "halt"; give stop, pause, none or default`,
		"service web: label backupd.dump is empty; give postgres, mysql, mariadb, mongodb or redis, or a command",
		`service web: label backupd.drill.timeout is "-1s"`,
		`service web: label backupd.drill.user is "a b"`,
		"service cache: label backupd.quiesce.timeout is how long a service is given to stop, but backupd.quiesce=pause",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("missing: %s", want)
		}
	}
	if len(lines) != 13 {
		t.Errorf("%d errors:\n%v", len(lines), err)
	}
}

func TestVolumesAreExcludedByLabel(t *testing.T) {
	for value, want := range map[string]bool{"true": true, "1": true, "false": false} {
		if got, err := Excluded(Volume{Name: "v", Labels: map[string]string{"backupd.exclude": value}}); got != want || err != nil {
			t.Errorf("%s: got %v, %v", value, got, err)
		}
	}
	for label, value := range map[string]string{"backupd.exclude": "yes please", "backupd.quiesce": "none"} {
		if _, err := Excluded(Volume{Name: "v", Labels: map[string]string{label: value}}); err == nil {
			t.Errorf("%s=%s is taken", label, value)
		}
	}
}

// FuzzParsePolicy: whatever the labels are, the policy can be acted upon or is refused.
func FuzzParsePolicy(f *testing.F) {
	f.Add("backupd.quiesce", "stop", "backupd.quiesce.timeout", "10s")
	f.Add("backupd.dump", "mysql", "backupd.dump.file", "x.sql")
	f.Add("backupd.pre", "true", "backupd.pre.user", "0")
	f.Add("backupd.dmp", "", "", "\x00")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		p, err := ParsePolicy("s", map[string]string{k1: v1, k2: v2})
		if err != nil {
			if !strings.Contains(err.Error(), "service s: label backupd.") {
				t.Errorf("an error that does not name its place: %v", err)
			}
			return
		}
		if p.Dump.Set() && (p.Dump.File == "" || strings.Contains(p.Dump.File, "/")) {
			t.Errorf("a dump into file %q", p.Dump.File)
		}
		for _, h := range []Hook{p.Pre, p.Post, p.Drill.Hook} {
			if h.Set() && h.Timeout <= 0 {
				t.Errorf("a hook without a time-out: %+v", h)
			}
		}
	})
}
