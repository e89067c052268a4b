package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

// flags are as commands might have them.
var flags = []Flag{
	{Name: "stack", Type: "string"},
	{Name: "s3-region", Type: "string", Help: "region"},
	{Name: "identity", Type: "stringArray"},
	{Name: "s3-lock-days", Type: "int"},
	{Name: "s3-path-style", Type: "bool"},
	{Name: "outage", Type: "duration"},
	{Name: "passphrase", Type: "string", Secret: true},
	{Name: "passphrase-file", Type: "string"},
	{Name: "force", Type: "bool", EnvironmentOnly: true},
}

// given are sources with a file, other files, and an environment.
func given(file string, environ ...string) Sources {
	files := map[string]string{"/etc/backupd.yaml": file, "/run/notify": "smtp://user:pa55@host/?to=a,b\nntfy://topic\n", "/run/empty": "\n"}
	src := Sources{Flags: flags, Environ: environ, ReadFile: func(name string) ([]byte, error) {
		if text, ok := files[name]; ok {
			return []byte(text), nil
		}
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}}
	if file != "" {
		src.File = "/etc/backupd.yaml"
	}
	return src
}

func load(t *testing.T, src Sources) *Config {
	t.Helper()
	c, err := Load(src)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestNothingSaidIsOnePolicyThatNeverRuns(t *testing.T) {
	c := load(t, given(""))
	if len(c.Policies) != 1 || c.Policies[0].Name != "default" || !c.Policies[0].Schedule.Never() || !c.Policies[0].Drill.Never() {
		t.Errorf("%+v", c.Policies)
	}
	if c.Seed != "auto" || c.SeedFrom != "latest" || c.Volumes != "mounted" || c.Listen != "" || c.Policies[0].MaxShrink != 0.5 ||
		c.LogLevel != slog.LevelInfo || !slices.Equal(c.NotifyOn, []string{"failure", "warning", "recovery"}) {
		t.Errorf("%+v", c)
	}
}

func TestAFileSaysEverything(t *testing.T) {
	c := load(t, given(`
stack: 0123           # is text, and no number
target: [/backups, "s3://b/c"]
volume: db=/var/lib/db
time-zone: Europe/Berlin
jitter: 5m
keep: 7 daily, 4 weekly
worker-cpus: 1.5
worker-memory: 2GiB
notify-file: /run/notify
ping: https://hc-ping.com/uuid
listen: off
log-level: debug
pre:
  - {service: app, command: on, user: www, timeout: 1m}
policies:
  nightly:
    schedule: "30 3 * * *"
    timeout: 1d12h
  hourly:
    schedule: "CRON_TZ=UTC @hourly"
    jitter: 0s
    volume: [db, uploads]
    target: /near
    keep: 48 hourly
    exclude: "*.log"
    tag: often
    max-shrink: 12.5%
    drill-schedule: "@weekly"
  manual:
`))
	if c.Stack != "0123" || !slices.Equal(c.Targets, []string{"/backups", "s3://b/c"}) || c.Zone.String() != "Europe/Berlin" || c.Worker.CPUs != 1.5 ||
		c.Worker.Memory != 2<<30 || c.Listen != "" || c.LogLevel != slog.LevelDebug || len(c.Notify) != 2 || c.Notify[0].Reveal() != "smtp://user:pa55@host/?to=a,b" ||
		c.Ping.Reveal() != "https://hc-ping.com/uuid" {
		t.Errorf("%+v", c)
	}
	if len(c.Policies) != 3 {
		t.Fatalf("%+v", c.Policies)
	}
	n, h, m := c.Policies[0], c.Policies[1], c.Policies[2]
	if n.Name != "nightly" || n.Timeout != 36*time.Hour || n.Jitter != 5*time.Minute || n.Keep != "7 daily, 4 weekly" || len(n.Targets) != 2 || n.Volumes != nil ||
		n.Schedule.Location().String() != "Europe/Berlin" || !slices.Equal(n.Pre, []Hook{{"app", "on", "www", time.Minute}}) {
		t.Errorf("%+v", n)
	}
	if h.Name != "hourly" || h.Jitter != 0 || !slices.Equal(h.Volumes, []string{"db", "uploads"}) || !slices.Equal(h.Targets, []string{"/near"}) || h.Keep != "48 hourly" ||
		!slices.Equal(h.Exclude, []string{"*.log"}) || !slices.Equal(h.Tags, []string{"often"}) || h.MaxShrink != 0.125 || h.Drill.Never() || h.Schedule.Location() != time.UTC {
		t.Errorf("%+v", h)
	}
	if m.Name != "manual" || !m.Schedule.Never() {
		t.Errorf("%+v", m)
	}
}

func TestTheStrongestPlaceCounts(t *testing.T) {
	src := given("keep: file\nexclude: file\ntag: file\norigin: file", "BACKUPD_KEEP=environment", "BACKUPD_EXCLUDE=a, b", "BACKUPD_TAG=", "BACKUPD_FORCE=true", "HOME=/")
	src.Flags = append(slices.Clone(flags), Flag{Name: "keep", Type: "string", EnvironmentOnly: true, Given: []string{"flag"}})
	src.Labels = map[string]string{"backupd.keep": "label", "backupd.origin": "label", "backupd.seed": "off", "backupd.quiesce": "none", "other": "x"}
	c := load(t, src)
	p := c.Policies[0]
	if p.Keep != "flag" || !slices.Equal(p.Exclude, []string{"a", "b"}) || !slices.Equal(p.Tags, []string{"file"}) || c.Origin != "file" || c.Seed != "off" {
		t.Errorf("%+v", c)
	}
	from := map[string]string{}
	for _, v := range c.Effective() {
		from[v.Key] = v.Where()
	}
	for key, want := range map[string]string{
		"policies.default.keep": "--keep", "policies.default.exclude": "BACKUPD_EXCLUDE", "policies.default.tag": "backupd.yaml:3",
		"origin": "backupd.yaml:4", "seed": "label backupd.seed", "listen": "default",
	} {
		if from[key] != want {
			t.Errorf("%s comes from %q instead of %q", key, from[key], want)
		}
	}
}

func TestLabelsMakePolicies(t *testing.T) {
	src := given("")
	src.Labels = map[string]string{"backupd.policy.nightly.schedule": "@daily", "backupd.policy.nightly.exclude": "a,b", "backupd.policy.b.keep": "2 daily", "backupd.jitter": "1m"}
	c := load(t, src)
	if len(c.Policies) != 2 || c.Policies[1].Name != "nightly" || c.Policies[1].Schedule.Never() || len(c.Policies[1].Exclude) != 2 || c.Policies[0].Keep != "2 daily" || c.Policies[0].Jitter != time.Minute {
		t.Errorf("%+v", c.Policies)
	}
}

// A clone has the server's file and labels, and one variable turns it quiet.
func TestNeverInTheEnvironmentStopsEveryPolicy(t *testing.T) {
	file := "policies:\n  nightly:\n    schedule: '@daily'\n    drill-schedule: '@weekly'\n"
	if c := load(t, given(file, "BACKUPD_SCHEDULE=0 4 * * *")); c.Policies[0].Schedule.String() != "@daily" {
		t.Errorf("a policy's own schedule is %s", c.Policies[0].Schedule)
	}
	c := load(t, given(file, "BACKUPD_SCHEDULE=@never"))
	if !c.Policies[0].Schedule.Never() || c.Policies[0].Drill.Never() {
		t.Errorf("%+v", c.Policies[0])
	}
}

func TestEveryErrorHasItsPlaceAndAllAreSaidAtOnce(t *testing.T) {
	src := given(`stack: shop
schedul: "@daily"
stack: shop
jitter: 3 minutes
volume: [db]
tag: {a: b}
exclude: []
keep: bad
origin:
notify-file: /run/none
ping-file: /run/empty
listen: 9180
log-level: wran
worker-memory: 1.5g
worker-cpus: -1
max-shrink: half
s3-lock-days: many
s3-path-style: yes
outage: 7d
force: true
policies:
  nightly:
    schedule: 0 3 31 2 *
    volume: [db=/x]
    listen: off
    pre: [{service: a, comand: b}]
  Nightly: {}
  quarterly: {schedule: "*/15 * * * *", jitter: 1h}
  more: [a]
`, "BACKUPD_SHCEDULE=@daily", "BACKUPD_TIME_ZONE=Mars", "TZ=Europe/Brelin")
	src.Labels = map[string]string{"backupd.stakc": "a", "backupd.notify": "x", "backupd.policy.x": "y", "backupd.policy.x.listen": "off", "backupd.s3-region": "eu", "backupd.exclude": "true"}
	src.Checks = map[string]func(string) error{"keep": func(string) error { return errors.New("is no rule, as in 7 daily") }}
	_, err := Load(src)
	var all Problems
	if !errors.As(err, &all) {
		t.Fatal(err)
	}
	wants := []string{
		`backupd.yaml:2: schedul: is not known; did you mean "schedule"?`,
		`backupd.yaml:3: stack: stands here again; it was set in line 1`,
		`backupd.yaml:4: jitter: "3 minutes" is no duration, as in`,
		`backupd.yaml:5: volume: "db": write it as NAME=PATH`,
		`backupd.yaml:6: tag: takes a value and not keys`,
		`backupd.yaml:7: exclude: is an empty list`,
		`backupd.yaml:8: keep: is no rule, as in 7 daily`,
		`backupd.yaml:9: origin: has no value`,
		`backupd.yaml:10: notify-file: read /run/none: file does not exist`,
		`backupd.yaml:11: ping-file: /run/empty is empty`,
		`backupd.yaml:12: listen: "9180" is no address`,
		`backupd.yaml:13: log-level: "wran" is none of debug, info, warn, error; did you mean "warn"?`,
		`backupd.yaml:14: worker-memory: "1.5g" is no size`,
		`backupd.yaml:15: worker-cpus: "-1" is no positive number`,
		`backupd.yaml:16: max-shrink: "half" is no share`,
		`backupd.yaml:17: s3-lock-days: "many" is no whole number`,
		`backupd.yaml:18: s3-path-style: "yes" is neither true nor false`,
		`backupd.yaml:19: outage: "7d" is no duration`,
		`backupd.yaml:20: force: is for the command line or the environment`,
		`backupd.yaml:23: policies.nightly.schedule: schedule "0 3 31 2 *": it can never fire`,
		`backupd.yaml:24: policies.nightly.volume: "db=/x": a policy names volumes only`,
		`backupd.yaml:25: policies.nightly.listen: does not belong into a policy`,
		`backupd.yaml:26: policies.nightly.pre.comand: is not known; did you mean "command"?`,
		`backupd.yaml:26: policies.nightly.pre: a hook needs a service and a command`,
		`backupd.yaml:27: policies: "Nightly" is no name for a policy`,
		`backupd.yaml:28: jitter: 1h0m0s is longer than the 15m0s between two runs of policy quarterly`,
		`backupd.yaml:29: policies.more: must hold lines of the form "key: value"`,
		`BACKUPD_SHCEDULE: is not known; did you mean "BACKUPD_SCHEDULE"?`,
		`BACKUPD_TIME_ZONE: time zone "Mars" is not known`,
		`TZ: time zone "Europe/Brelin" is not known`,
		`label backupd.stakc: is not known; did you mean "stack"?`,
		`label backupd.notify: is a secret`,
		`label backupd.policy.x: must have the form`,
		`label backupd.exclude: stands on volumes`,
		`label backupd.s3-region: cannot be set by a label`,
		`label backupd.policy.x.listen: does not belong into a policy`,
	}
	for _, want := range wants {
		if !slices.ContainsFunc(all, func(p Problem) bool { return strings.HasPrefix(p.String(), want) }) {
			t.Errorf("missing: %s", want)
		}
	}
	if len(all) != len(wants) {
		t.Errorf("%d errors instead of %d:\n%v", len(all), len(wants), err)
	}
	if !slices.IsSortedFunc(all, func(a, b Problem) int { return a.line - b.line }) {
		t.Errorf("not in the order of lines:\n%v", err)
	}
}

func TestWhatIsNoYAMLIsAnErrorWithALineAndAHint(t *testing.T) {
	for file, want := range map[string]string{
		"stack: a\nschedule: @daily\n":           `backupd.yaml:2: is no YAML: put what begins with @ into quotes`,
		"stack: a\nschedule: */5 * * * *\n":      `backupd.yaml:2: is no YAML: put what begins with * into quotes`,
		"stack: a\npolicies:\n\tnightly: {}\n":   `backupd.yaml:3: is no YAML: indent with spaces`,
		"stack: [a\nkeep: b\n":                   `backupd.yaml:`,
		"stack: &x a\norigin: *x\n":              `backupd.yaml:2: origin: aliases (*x) are not read`,
		"stack: a\n<<: {origin: b}\n":            `backupd.yaml:2: merging (<<) is not read`,
		"- stack: a\n":                           `backupd.yaml:1: must hold lines of the form "key: value"`,
		"just words\n":                           `backupd.yaml:1: must hold lines`,
		"stack: a\n---\nstack: b\n":              `backupd.yaml:2: a second document begins here`,
		"? [a]\n: b\n":                           `backupd.yaml:1: a key must be a word`,
		"policies:\n":                            `backupd.yaml:1: policies: has no value`,
		"stack: ''\n":                            `backupd.yaml:1: stack: is empty`,
		"stack: [a, b]\n":                        `backupd.yaml:1: stack: takes one value`,
		"exclude: [[a]]\n":                       `backupd.yaml:1: exclude: takes plain values`,
		"stack: a" + strings.Repeat(" ", 1<<20):  `backupd.yaml: is larger than`,
		"a: &a [x]\nb: [*a, *a, *a, *a, *a, *a]": `backupd.yaml:1: a: is not known`,
	} {
		_, err := Load(given(file))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v instead of %s", file, err, want)
		}
	}
	for _, file := range []string{"# nothing\n", "---\n", "{}\n", "\ufeffstack: a\n", "stack: a\r\nkeep: b\r\n"} {
		load(t, given(file))
	}
}

func TestAFileThatIsNotThereIsAnError(t *testing.T) {
	src := given("")
	src.File = "/etc/none.yaml"
	if _, err := Load(src); err == nil || !strings.Contains(err.Error(), "/etc/none.yaml: cannot be read") {
		t.Error(err)
	}
}

func TestTheFileSetsFlagsOfCommands(t *testing.T) {
	src := given("s3-region: eu\nidentity: [a, b]\npassphrase: x y\nstack: shop\nexclude: ['*.log']\noutage: 1h\npolicies: {a: {keep: b}}\n", "BACKUPD_S3_REGION=env")
	src.Labels = map[string]string{"backupd.stack": "label", "backupd.origin": "label"}
	want := map[string][]string{
		"s3-region": {"eu"}, "identity": {"a", "b"}, "passphrase": {"x y"}, "stack": {"shop"}, "exclude": {"*.log"}, "outage": {"1h"}, "origin": {"label"},
	}
	if got := load(t, src).Flags(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v instead of %v", got, want)
	}
}

func TestSecretsAreShownNowhere(t *testing.T) {
	const word = "pa55word"
	src := given("passphrase: "+word+"\nping: https://"+word+"\n", "BACKUPD_NOTIFY=smtp://"+word+" ntfy://"+word)
	c := load(t, src)
	effective, err := json.Marshal(c.Effective())
	if err != nil {
		t.Fatal(err)
	}
	whole, err := json.Marshal(struct {
		Ping   Secret
		Notify []Secret
	}{c.Ping, c.Notify})
	if err != nil {
		t.Fatal(err)
	}
	var logged strings.Builder
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "ping", c.Ping, "notify", c.Notify)
	for i, text := range []string{
		string(effective), string(whole), logged.String(), fmt.Sprint(c.Notify), fmt.Sprintf("%+v", c.Ping), fmt.Sprintf("%#v %d %x %q %s", c.Ping, c.Ping, c.Ping, c.Ping, c.Ping),
	} {
		if strings.Contains(text, word) || !strings.Contains(text, mask) {
			t.Errorf("%d: %s", i, text)
		}
	}
	if c.Ping.Reveal() != "https://"+word || len(c.Notify) != 2 {
		t.Error("the values are lost")
	}
}

// A variable overrides a secret of the file, whichever way each is given.
func TestTheStrongerPlaceOfASecretCounts(t *testing.T) {
	c := load(t, given("notify-file: /run/none\n", "BACKUPD_NOTIFY=ntfy://a"))
	if len(c.Notify) != 1 || c.Notify[0].Reveal() != "ntfy://a" {
		t.Errorf("%d", len(c.Notify))
	}
	if _, err := Load(given("", "BACKUPD_NOTIFY=ntfy://a", "BACKUPD_NOTIFY_FILE=/run/notify")); err == nil || !strings.Contains(err.Error(), "give one") {
		t.Error(err)
	}
}

func TestAReloadSaysWhatChangedAndABadOneKeepsTheOld(t *testing.T) {
	file := "schedule: '@daily'\nlisten: 127.0.0.1:1\nping: https://a\npolicies: {a: {}, b: {}}\n"
	src := given("x")
	src.ReadFile = func(string) ([]byte, error) { return []byte(file), nil }
	live, err := Open(src)
	if err != nil {
		t.Fatal(err)
	}
	old := live.Current()
	file = "schedul: '@hourly'\n"
	if _, err := live.Reload(); err == nil || live.Current() != old {
		t.Errorf("%v", err)
	}
	file = "schedule: '@hourly'\nlisten: 127.0.0.1:2\nping: https://b\npolicies: {a: {}}\n"
	changes, err := live.Reload()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range changes {
		if !strings.HasPrefix(c.Key, "policies.b.") {
			got = append(got, fmt.Sprintf("%s %s>%s %v", c.Key, c.Old, c.New, c.Restart))
		}
	}
	want := []string{"listen 127.0.0.1:1>127.0.0.1:2 true", "policies.a.schedule @daily>@hourly false", "ping ******>****** false"}
	if !slices.Equal(got, want) || len(changes) < 10 {
		t.Errorf("%q", got)
	}
	if now := live.Current(); now == old || len(now.Policies) != 1 {
		t.Error("the new one does not count")
	}
	if changes, err := live.Reload(); err != nil || len(changes) > 0 {
		t.Errorf("%v, %v", changes, err)
	}
}

func TestDurationsAndSizes(t *testing.T) {
	for text, want := range map[string]time.Duration{"90s": 90 * time.Second, "7d": 168 * time.Hour, "1d12h": 36 * time.Hour, "0": 0} {
		if got, err := parseDuration(text); err != nil || got != want {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "d", "-1h", "1d-2h", "1.5d", "99999999d", "9000000h", "1w", "65535d2562047h"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("%s: %s", text, got)
		}
	}
}

// FuzzFile: a file is an error with a place, or a configuration that can be used.
func FuzzFile(f *testing.F) {
	for _, seed := range []string{
		"", "stack: a\n", "schedule: '@daily'\n", "schedule: @daily\n", "policies: {a: {schedule: '0 3 * * *', volume: [b]}}\n", "pre: [{service: a, command: b, timeout: 1m}]\n",
		"a: &a [*a]\n", "<<: *x\n", "? [a]\n: b\n", "\t", "---\n---\n", "notify-file: /run/notify\n", "jitter: 1d\ntimeout: 99999d\n", "policies:\n  a:\n", "stack: !!binary aGk=\n",
		"worker-memory: 9223372036854775807t\n", "tag: [a, ~]\n", "{stack: [", "max-shrink: NaN%\nworker-cpus: Inf\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, file string) {
		c, err := Load(given(file))
		if err != nil {
			var all Problems
			if !errors.As(err, &all) || len(all) == 0 || all[0].Place == "" || all[0].Text == "" {
				t.Fatalf("no problem with a place: %v", err)
			}
			return
		}
		if len(c.Policies) == 0 || !slices.Contains([]string{"auto", "require", "off"}, c.Seed) || c.Zone == nil {
			t.Fatalf("%+v", c)
		}
		for _, p := range c.Policies {
			if !policyName.MatchString(p.Name) || p.Schedule == nil || p.Drill == nil || p.Jitter < 0 || p.Timeout < 0 || !(p.MaxShrink >= 0 && p.MaxShrink <= 1) {
				t.Fatalf("%+v", p)
			}
			for _, h := range append(p.Pre, p.Post...) {
				if h.Service == "" || h.Command == "" || h.Timeout < 0 {
					t.Fatalf("%+v", h)
				}
			}
		}
		if c.Worker.Memory < 0 || !(c.Worker.CPUs >= 0) {
			t.Fatalf("%+v", c.Worker)
		}
	})
}
