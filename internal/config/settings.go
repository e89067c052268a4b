package config

import (
	"regexp"
	"slices"
	"strings"
)

// kind says how a setting's text is read and written.
type kind int

const (
	text         kind = iota
	list              // several texts: in environment and labels with commas between
	words             // several texts that may hold commas: spaces or new lines between
	enum              // one of values
	enums             // several of values
	duration          // 90s, 2h30m, 7d
	flagDuration      // as flags have it, without days
	size              // 512m, 2GiB
	number            // a positive decimal
	share             // 50%
	cronExpr          // schedule.Parse
	zone              // a time zone
	address           // host:port, or off
	toggle            // true or false
	integer           // a whole number
	hookList          // what to run in services; in the file only
)

// Setting is one line of the table that everything here is made of: the file's
// keys, the environment's names, labels, flags, the schema and the manual.
type Setting struct {
	Name    string // key in the file; --NAME, BACKUPD_NAME, backupd.NAME
	Help    string
	Default string
	Example string

	kind    kind
	values  []string // of enum and enums
	policy  bool     // may stand in a policy; at the top it is every policy's default
	only    bool     // in a policy it means something else, and is not inherited
	secret  bool     // is never shown, and may come from NAME-file
	restart bool     // a reload does not change it
}

// settings are those that the program has beyond the flags of its commands.
var settings = []Setting{
	{Name: "stack", Help: "name of the stack; without it, the Compose project's, from the engine", Example: "shop", restart: true},
	{Name: "origin", Help: "name of this installation; without it, the engine's id", Example: "server-1", restart: true},
	{Name: "target", kind: list, policy: true, Help: "where snapshots go", Example: "s3://backups/shop"},
	{Name: "state-dir", Help: "where caches, ledger, journal and history are kept", Example: "/var/lib/backupd", restart: true},

	{Name: "volumes", kind: enum, values: []string{"mounted", "project", "host"}, Default: "mounted", Help: "which volumes: those mounted below /volumes, all of the Compose project, or all of the machine", Example: "project", restart: true},
	{Name: "volume", kind: list, policy: true, only: true, Help: "NAME=PATH of a volume, where it is not below /volumes; in a policy: the names of the volumes it is for (default: all)", Example: "db=/volumes/db"},
	{Name: "exclude", kind: list, policy: true, Help: "patterns of what to leave out", Example: "*.log"},
	{Name: "worker-cpus", kind: number, Help: "most processors that a worker container may use", Example: "1.5"},
	{Name: "worker-memory", kind: size, Help: "most memory that a worker container may use", Example: "512m"},

	{Name: "seed", kind: enum, values: []string{"auto", "require", "off"}, Default: "auto", Help: "fill fresh volumes at start: auto (where there is a snapshot), require (no snapshot is an error), off", Example: "require", restart: true},
	{Name: "seed-from", Default: "latest", Help: "the snapshot to fill them from: latest, an id, a tag or origin:NAME", Example: "golden", restart: true},

	{Name: "time-zone", kind: zone, Help: "zone in which schedules are read; without it, TZ", Example: "Europe/Berlin"},
	{Name: "schedule", kind: cronExpr, policy: true, Default: "@never", Help: "when to back up", Example: "30 3 * * *"},
	{Name: "jitter", kind: duration, policy: true, Default: "0s", Help: "most that a run starts late, so that not all machines start at once", Example: "20m"},
	{Name: "timeout", kind: duration, policy: true, Default: "0s", Help: "how long a run may take; 0s is for ever", Example: "6h"},
	{Name: "keep", policy: true, Help: "which snapshots to keep; without it, all", Example: "7 daily, 4 weekly, 6 monthly"},
	{Name: "max-shrink", kind: share, policy: true, Default: "50%", Help: "a snapshot that shrank by more than this is no good one, and an alarm", Example: "30%"},
	{Name: "tag", kind: list, policy: true, Help: "names for the snapshots", Example: "nightly"},
	{Name: "quiesce", kind: enum, values: []string{"auto", "never"}, policy: true, Default: "auto", Help: "auto: services stand still as their labels say; never: nothing is stopped, paused or run in them", Example: "never"},
	{Name: "freeze-memory", kind: size, policy: true, Help: "memory for what changed, while services stand still (48m without it): more of it, and they stand still for less long", Example: "1g"},
	{Name: "freeze-limit", kind: duration, policy: true, Default: "5m", Help: "most that services may stand still; then they go on, and the backup fails; 0s is for ever", Example: "30s"},
	{Name: "pre", kind: hookList, policy: true, Help: "what to run in services before the backup", Example: "in the file only"},
	{Name: "post", kind: hookList, policy: true, Help: "what to run in services after it, whatever came of it", Example: "in the file only"},
	{Name: "drill-schedule", kind: cronExpr, policy: true, Default: "@never", Help: "when to restore a snapshot into scratch volumes and check it", Example: "0 5 * * sun"},

	{Name: "notify", kind: words, secret: true, Help: "URLs to tell, as shoutrrr has them", Example: "ntfy://ntfy.sh/topic"},
	{Name: "notify-on", kind: enums, values: []string{"failure", "warning", "recovery", "success"}, Default: "failure,warning,recovery", Help: "what to tell", Example: "failure,recovery"},
	{Name: "notify-template", Help: "a Go template for the text of messages, over Level, Title, Text, Stack and Run", Example: "{{.Level}}: {{.Text}}"},
	{Name: "ping", secret: true, Help: "URL to ping at start, success and failure, as healthchecks.io has it", Example: "https://hc-ping.com/UUID"},
	{Name: "listen", kind: address, Default: "off", Help: "address of /metrics, /healthz and /readyz, or off", Example: "0.0.0.0:9180", restart: true},
	{Name: "log-format", kind: enum, values: []string{"auto", "text", "json"}, Default: "auto", Help: "auto is text on a terminal and JSON elsewhere", Example: "json", restart: true},
	{Name: "log-level", kind: enum, values: []string{"debug", "info", "warn", "error"}, Default: "info", Help: "the least that is logged", Example: "debug"},
}

// Settings returns the table.
func Settings() []Setting { return slices.Clone(settings) }

// Repeatable says that a flag for the setting may be given several times.
func (s Setting) Repeatable() bool { return s.kind == list }

// Label says whether a label of the agent's service can be the setting: not where
// the same label says something about services or volumes, nor for secrets.
func (s Setting) Label() bool {
	return !s.FileOnly() && !s.secret && s.Name != volumeLabel && !slices.Contains(serviceLabels, s.Name)
}

// FileOnly says that the setting has no flag, variable or label.
func (s Setting) FileOnly() bool { return s.kind == hookList }

// InPolicy says that the setting may stand in a policy.
func (s Setting) InPolicy() bool { return s.policy }

// Secret says that the value is not to be shown.
func (s Setting) Secret() bool { return s.secret }

// NeedsRestart says that a reload does not change it.
func (s Setting) NeedsRestart() bool { return s.restart }

// Values are the choices, where there are some.
func (s Setting) Values() []string { return slices.Clone(s.values) }

// Flag is a flag of the program's commands, which the file may set as well: it has
// the meaning that the command gives it, and nothing is known of it here but this.
type Flag struct {
	Name   string
	Help   string
	Type   string // string, stringArray, bool, int, int64, duration
	Secret bool
	// EnvironmentOnly: it may not stand in the file or in labels, but its
	// variable is no unknown one.
	EnvironmentOnly bool
	// Given are the values of a flag that stood on the command line; nil if none did.
	Given []string
}

// setting makes a line of the table of a flag.
func (f Flag) setting() Setting {
	s := Setting{Name: f.Name, Help: f.Help, secret: f.Secret}
	switch f.Type {
	case "stringArray":
		s.kind = list
	case "bool":
		s.kind = toggle
	case "int", "int64":
		s.kind = integer
	case "duration":
		s.kind = flagDuration
	}
	return s
}

// table is what is known to one call of Load.
type table struct {
	settings []Setting // own ones, their files, and flags
	byName   map[string]int
	own      int // of settings that are not merely flags
	foreign  map[string]bool
}

func newTable(flags []Flag) *table {
	t := &table{byName: map[string]int{}, foreign: map[string]bool{}}
	add := func(s Setting) {
		t.byName[s.Name] = len(t.settings)
		t.settings = append(t.settings, s)
	}
	for _, s := range settings {
		add(s)
		if s.secret {
			add(Setting{Name: s.Name + "-file", Help: "file that holds " + s.Name, Example: "/run/secrets/" + s.Name})
		}
	}
	t.own = len(t.settings)
	for _, f := range flags {
		_, known := t.byName[f.Name]
		switch {
		case known:
		case f.EnvironmentOnly:
			t.foreign[f.Name] = true
		default:
			add(f.setting())
		}
	}
	return t
}

func (t *table) get(name string) (Setting, bool) {
	i, ok := t.byName[name]
	if !ok {
		return Setting{}, false
	}
	return t.settings[i], true
}

// names are the keys that may stand at the top of the file, or in a policy.
func (t *table) names(policy bool) []string {
	var out []string
	for _, s := range t.settings {
		if !policy || s.policy {
			out = append(out, s.Name)
		}
	}
	if !policy {
		out = append(out, "policies")
	}
	return out
}

func envName(name string) string {
	return "BACKUPD_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// policyName is what a policy may be called: it stands in file names and metrics.
var policyName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
