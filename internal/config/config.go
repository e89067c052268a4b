// Package config makes one typed, validated value of what the user has set: by
// flags, by the environment (BACKUPD_*), in one YAML file, and by labels of the
// service that backupd runs as; in this order, the first that says something counts.
//
// One table (settings.go) has every setting; keys, variables, labels and flags
// have the same names, and the file's schema and the manual are made from it.
// Everything that is wrong is said at once, with its place. A key that is not
// known is an error, with the nearest one that is.
//
// The flags of the commands (targets, keys, ...) may stand in the file as well.
// They keep the meaning that the command gives them: here they are names with
// values (Flags). No package but cmd imports this one; it reads files and
// nothing else.
package config

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/disko/backupd/internal/bytesize"
	"github.com/disko/backupd/internal/schedule"
)

// Config is the agent's configuration, complete and checked.
type Config struct {
	Stack, Origin string // empty: found out from the engine
	Targets       []string
	StateDir      string
	Volumes       string   // mounted, project or host
	Volume        []string // NAME=PATH
	Worker        Worker
	Seed          string // auto, require or off
	SeedFrom      string
	Zone          *time.Location
	Policies      []Policy // at least one
	Notify        []Secret
	NotifyOn      []string
	// NotifyTemplate is a text/template; empty for none.
	NotifyTemplate string
	Ping           Secret
	Listen         string // host:port, or empty for none
	LogFormat      string // auto, text or json
	LogLevel       slog.Level

	file, label map[string][]string
	effective   []Value
}

// Worker limits the containers that read and write volumes; zero is no limit.
type Worker struct {
	CPUs   float64
	Memory int64 // bytes
}

// Policy is what is backed up when, where to and for how long.
type Policy struct {
	Name      string
	Schedule  *schedule.Schedule // never fires where none is set
	Jitter    time.Duration
	Timeout   time.Duration // of a run; 0 is none
	Volumes   []string      // names; empty is all
	Exclude   []string
	Targets   []string
	Tags      []string
	Keep      string // as Sources.Checks["keep"] found it right; empty keeps all
	MaxShrink float64
	Quiesce   string // auto or never
	// FreezeMemory is bytes; 0 for the engine's default. FreezeLimit 0 is for ever.
	FreezeMemory int64
	FreezeLimit  time.Duration
	Pre, Post    []Hook
	Drill        *schedule.Schedule
}

// Hook is a command in a service's container.
type Hook struct {
	Service string
	Command string
	User    string        // empty: the container's
	Timeout time.Duration // 0: the hooks' default
}

func (h Hook) String() string {
	out := h.Service + ": " + h.Command
	if h.User != "" {
		out += " (as " + h.User + ")"
	}
	if h.Timeout > 0 {
		out += fmt.Sprintf(" (at most %s)", h.Timeout)
	}
	return out
}

// Sources are all places that settings come from.
type Sources struct {
	File    string            // the YAML file; empty for none
	Flags   []Flag            // of the program's commands
	Environ []string          // os.Environ(); nil leaves the environment out
	Labels  map[string]string // of the service that backupd runs as
	// Checks of texts that are parsed elsewhere, by setting: keep, target, exclude,
	// tag ... Their errors end in what to do.
	Checks map[string]func(string) error
	// Defaults that depend on the machine, by setting.
	Defaults map[string]string
	// WithoutSecrets leaves notify and ping out, whose files a command that tells
	// nobody need not have.
	WithoutSecrets bool
	// ReadFile reads the file and the files of secrets; nil is os.ReadFile.
	ReadFile func(string) ([]byte, error)
}

// Kinds of places, the strongest first.
const (
	FromFlag        = "flag"
	FromEnvironment = "environment"
	FromFile        = "file"
	FromLabel       = "label"
	FromDefault     = "default"
)

// From says where a value came from.
type From struct {
	Kind  string
	Place string // --target, BACKUPD_TARGET, backupd.yaml:3, label backupd.target; empty for a default
	line  int
}

func (f From) String() string {
	if f.Place == "" {
		return f.Kind
	}
	return f.Place
}

// defaultPolicy is what the one policy is called where none is named.
const defaultPolicy = "default"

// Load reads all sources. Its error is Problems, with everything that is wrong.
func Load(src Sources) (*Config, error) {
	if src.ReadFile == nil {
		src.ReadFile = os.ReadFile
	}
	t := newTable(src.Flags)
	file := newLayer()
	if src.File != "" {
		data, err := src.ReadFile(src.File)
		if err != nil {
			return nil, Problems{{Place: src.File, Text: fmt.Sprintf("cannot be read: %v; name the file with --config or BACKUPD_CONFIG", err)}}
		}
		file = readYAML(t, src.File, data)
	}
	r := &resolver{
		src: src, t: t,
		layers: []*layer{readFlags(t, src.Flags), readEnvironment(t, src.Environ), file, readLabels(t, src.Labels)},
	}
	return r.resolve()
}

// Flags returns what the file and the labels say for flags of the given name, so that
// every command can be set by them.
func (c *Config) Flags() map[string][]string {
	out := map[string][]string{}
	for _, m := range []map[string][]string{c.label, c.file} {
		for name, texts := range m {
			out[name] = slices.Clone(texts)
		}
	}
	return out
}

// resolver lets the layers decide on each setting.
type resolver struct {
	src      Sources
	t        *table
	layers   []*layer
	problems Problems
	c        Config
}

func (r *resolver) wrong(v value, key, format string, args ...any) {
	if strings.HasPrefix(v.from.Place, "BACKUPD_") || v.from.Kind == FromFlag || v.from.Kind == FromLabel {
		key = "" // the place says it
	}
	r.problems = append(r.problems, Problem{Place: v.from.String(), Key: key, Text: fmt.Sprintf(format, args...), line: v.from.line})
}

// find returns what is set for the first of the keys, in the strongest layer.
func (r *resolver) find(key string) (value, bool) {
	for _, l := range r.layers {
		if v, ok := l.values[key]; ok {
			return v, true
		}
	}
	return value{}, false
}

func (r *resolver) resolve() (*Config, error) {
	r.checkSystemZone()
	c := &r.c
	c.Zone = time.Local
	if v, ok := r.find("time-zone"); ok {
		if loc, err := schedule.Zone(v.texts[0]); err == nil {
			c.Zone = loc
		}
	}
	for _, l := range r.layers {
		r.problems = append(r.problems, l.problems...)
		for _, key := range sortedValues(l.values) {
			r.check(key, l.values[key])
		}
	}
	c.Stack, c.Origin = r.one("stack", ""), r.one("origin", "")
	c.StateDir = r.one("state-dir", "")
	c.Volumes, c.Volume = r.one("volumes", ""), r.many("volume", "")
	c.Seed, c.SeedFrom = r.one("seed", ""), r.one("seed-from", "")
	c.Targets = r.many("target", "")
	c.Worker.CPUs, _ = parseNumber(r.one("worker-cpus", ""))
	c.Worker.Memory, _ = bytesize.Parse(r.one("worker-memory", ""))
	c.NotifyOn = r.many("notify-on", "")
	c.NotifyTemplate = r.one("notify-template", "")
	c.LogFormat = r.one("log-format", "")
	_ = c.LogLevel.UnmarshalText([]byte(r.one("log-level", ""))) // checked as one of the four
	if c.Listen = r.one("listen", ""); c.Listen == "off" {
		c.Listen = ""
	}
	if !r.src.WithoutSecrets {
		for _, url := range r.secret("notify") {
			c.Notify = append(c.Notify, NewSecret(url))
		}
		if p := r.secret("ping"); len(p) > 0 {
			c.Ping = NewSecret(p[0])
		}
	}
	r.policies()
	r.problems = dropRepeated(r.problems.sorted())
	if len(r.problems) > 0 {
		return nil, r.problems
	}
	c.file, c.label = flagView(r.layers[2]), flagView(r.layers[3])
	c.effective = r.effective()
	return c, nil
}

// checkSystemZone refuses a TZ that is not known: for Go it would be UTC, and
// every night would be at another hour than its owner thinks.
func (r *resolver) checkSystemZone() {
	for _, line := range r.src.Environ {
		tz, ok := strings.CutPrefix(line, "TZ=")
		tz = strings.TrimPrefix(tz, ":")
		if !ok || tz == "" || strings.HasPrefix(tz, "/") {
			continue
		}
		if _, err := schedule.Zone(tz); err != nil {
			r.problems = append(r.problems, Problem{Place: "TZ", Text: err.Error()})
		}
	}
}

// check checks all values of one setting in one place, also those that another overrides.
func (r *resolver) check(key string, v value) {
	name := key[strings.LastIndex(key, ".")+1:]
	s, _ := r.t.get(name)
	if s.kind == hookList {
		return
	}
	if s.secret && v.from.Kind != FromFile && len(v.texts) == 0 {
		return
	}
	if v.from.Kind == FromEnvironment && r.t.byName[name] >= r.t.own {
		return // a flag of the commands, whose own reading says what is wrong
	}
	inPolicy := key != name
	for _, text := range v.texts {
		if err := s.check(text, r.c.Zone); err != nil {
			r.wrong(v, key, "%s", err)
			continue
		}
		if name == "volume" {
			if v.from.Kind == FromFlag {
				continue // a command may take a name alone, and says itself what is wrong
			}
			if err := checkVolume(text, inPolicy); err != nil {
				r.wrong(v, key, "%s", err)
			}
			continue
		}
		if f := r.src.Checks[name]; f != nil {
			if err := f(text); err != nil {
				r.wrong(v, key, "%s", err)
			}
		}
	}
}

func checkVolume(text string, inPolicy bool) error {
	name, path, ok := strings.Cut(text, "=")
	switch {
	case inPolicy && ok:
		return fmt.Errorf("%q: a policy names volumes only; say at the top where they are", text)
	case !inPolicy && (!ok || name == "" || path == ""):
		return fmt.Errorf("%q: write it as NAME=PATH, as in db=/volumes/db", text)
	}
	return nil
}

// many returns the values of a setting, of a policy if one is named.
func (r *resolver) many(name, policy string) []string {
	v, _ := r.value(name, policy)
	return slices.Clone(v.texts)
}

func (r *resolver) one(name, policy string) string {
	v, _ := r.value(name, policy)
	if len(v.texts) == 0 {
		return ""
	}
	return v.texts[0]
}

// value decides on a setting. What a policy says itself is stronger than what is
// said for all, but that a flag or variable says @never counts for all.
func (r *resolver) value(name, policy string) (value, bool) {
	s, _ := r.t.get(name)
	top, set := r.find(name)
	if policy != "" {
		if set && s.kind == cronExpr && (top.from.Kind == FromFlag || top.from.Kind == FromEnvironment) && top.texts[0] == "@never" {
			return top, true
		}
		if v, ok := r.find(policyKey(policy, name)); ok {
			return v, true
		}
		if s.only {
			return value{from: From{Kind: FromDefault}}, false
		}
	}
	if set {
		return top, true
	}
	v := value{from: From{Kind: FromDefault}}
	if d, ok := r.src.Defaults[name]; ok {
		v.texts = []string{d}
	} else if s.Default != "" {
		v.texts = s.split(s.Default)
	}
	return v, false
}

// secret returns the values of a secret, its own or its file's: of two, the one
// from the stronger place.
func (r *resolver) secret(name string) []string {
	s, _ := r.t.get(name)
	for _, l := range r.layers {
		own, here := l.values[name]
		file, filed := l.values[name+"-file"]
		switch {
		case here && filed:
			r.wrong(file, name+"-file", "%s and %s-file are both given; give one", name, name)
			return nil
		case here:
			return own.texts
		case filed:
			text, err := secretText(r.src.ReadFile, file.texts[0])
			if err != nil {
				r.wrong(file, name+"-file", "%s", err)
				return nil
			}
			if s.kind == words {
				return strings.Fields(text)
			}
			return []string{text}
		}
	}
	return nil
}

func (r *resolver) policies() {
	var names []string
	for _, l := range r.layers {
		for _, p := range l.policies {
			if !slices.Contains(names, p) {
				names = append(names, p)
			}
		}
	}
	if len(names) == 0 {
		names = []string{defaultPolicy}
	}
	for _, name := range names {
		p := Policy{
			Name: name, Volumes: r.many("volume", name), Exclude: r.many("exclude", name), Targets: r.many("target", name),
			Tags: r.many("tag", name), Keep: r.one("keep", name), Quiesce: r.one("quiesce", name),
		}
		p.Schedule, p.Drill = r.schedule("schedule", name), r.schedule("drill-schedule", name)
		p.Jitter, _ = parseDuration(r.one("jitter", name)) // checked, as all here
		p.Timeout, _ = parseDuration(r.one("timeout", name))
		p.FreezeMemory, _ = bytesize.Parse(r.one("freeze-memory", name))
		p.FreezeLimit, _ = parseDuration(r.one("freeze-limit", name))
		p.MaxShrink, _ = parseShare(r.one("max-shrink", name))
		pre, _ := r.value("pre", name)
		post, _ := r.value("post", name)
		p.Pre, p.Post = slices.Clone(pre.hooks), slices.Clone(post.hooks)
		r.checkJitter(p)
		r.c.Policies = append(r.c.Policies, p)
	}
}

func (r *resolver) schedule(name, policy string) *schedule.Schedule {
	s, err := schedule.Parse(r.one(name, policy), zoneName(r.c.Zone))
	if err != nil { // said by check
		s, _ = schedule.Parse("@never", "")
	}
	return s
}

// checkJitter refuses a jitter that is longer than the time between two runs.
func (r *resolver) checkJitter(p Policy) {
	if p.Schedule.Never() || p.Jitter == 0 {
		return
	}
	first := p.Schedule.Next(time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC))
	if between := p.Schedule.Next(first).Sub(first); p.Jitter > between {
		v, _ := r.value("jitter", p.Name)
		r.wrong(v, "jitter", "%s is longer than the %s between two runs of policy %s (%s)", p.Jitter, between, p.Name, p.Schedule)
	}
}

// flagView is what a layer says for flags, at the top.
func flagView(l *layer) map[string][]string {
	out := map[string][]string{}
	for key, v := range l.values {
		if !strings.HasPrefix(key, "policies.") && v.hooks == nil {
			out[key] = v.texts
		}
	}
	return out
}

func sortedValues(m map[string]value) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// dropRepeated leaves one of problems that are the same.
func dropRepeated(p Problems) Problems {
	var out Problems
	for _, one := range p {
		if !slices.Contains(out, one) {
			out = append(out, one)
		}
	}
	return out
}
