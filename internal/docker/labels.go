package docker

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// labelPrefix is what all labels for backupd begin with.
const labelPrefix = "backupd."

// Labels on services. Those that run something have the variants .user and .timeout.
const (
	labelQuiesce        = labelPrefix + "quiesce"
	labelQuiesceTimeout = labelPrefix + "quiesce.timeout"
	labelPre            = labelPrefix + "pre"
	labelPost           = labelPrefix + "post"
	labelDump           = labelPrefix + "dump"
	labelDumpFile       = labelPrefix + "dump.file"
	labelDrill          = labelPrefix + "drill"
	// labelWorker is on the containers that backupd makes itself; its value is the
	// id of the container that made it.
	labelWorker = labelPrefix + "worker"
	// labelScratch, labelScratchSince and labelScratchStack are on the containers and
	// volumes of drills; their values are the id of the container that made them,
	// when it had been started (what the engine says, unchanged), and for which stack.
	labelScratch      = labelPrefix + "scratch"
	labelScratchSince = labelPrefix + "scratch.since"
	labelScratchStack = labelPrefix + "scratch.stack"
	// labelExclude stands on volumes.
	labelExclude = labelPrefix + "exclude"
)

// Time-outs where no label says another.
const (
	defaultHookTimeout  = 5 * time.Minute
	defaultDrillTimeout = 10 * time.Minute
)

// Quiesce is how a service is made to stand still.
type Quiesce string

// QuiesceDefault stops a service that has a healthcheck and pauses others, if
// they write to a volume that is backed up. The others are what a label said.
const (
	QuiesceDefault Quiesce = "default"
	QuiesceStop    Quiesce = "stop"
	QuiescePause   Quiesce = "pause"
	QuiesceNone    Quiesce = "none"
)

// Kind is a kind of database.
type Kind string

// The kinds that are recognised and that backupd can dump by itself.
const (
	Postgres Kind = "postgres"
	MySQL    Kind = "mysql" // MariaDB, too
	MariaDB  Kind = "mariadb"
	MongoDB  Kind = "mongodb"
	Redis    Kind = "redis" // Valkey, too
)

// kinds are the words for them in labels.
var kinds = []string{string(Postgres), string(MySQL), string(MariaDB), string(MongoDB), string(Redis)}

// Hook is a command that is run by sh in a container of a service. The zero Hook is none.
type Hook struct {
	Command string
	User    string // empty: the container's own
	Timeout time.Duration
}

// Set says whether there is a hook.
func (h Hook) Set() bool { return h.Command != "" }

// Dump says what is run in a container of a service to have its data written to
// stdout: a built-in Kind, or a Command. The zero Dump is none.
type Dump struct {
	Kind    Kind
	Command string
	User    string        // empty: the container's own
	Timeout time.Duration // zero: as long as it takes
	File    string        // the name of the file in the snapshot
}

// Set says whether there is a dump.
func (d Dump) Set() bool { return d.Kind != "" || d.Command != "" }

// Check says how a drill checks what was restored of a service, whose program runs
// on it: a built-in Kind, or a command. The zero Check is none.
type Check struct {
	Kind Kind
	Hook
}

// Set says whether there is a check.
func (c Check) Set() bool { return c.Kind != "" || c.Command != "" }

// String is the kind, or the command.
func (c Check) String() string { return cmp.Or(string(c.Kind), c.Command) }

// Policy is what the labels of a service ask for.
type Policy struct {
	Quiesce Quiesce
	// StopTimeout is how long the service is given to stop before it is killed;
	// zero: what its container says, else the engine's 10 s.
	StopTimeout time.Duration
	Pre, Post   Hook
	Dump        Dump
	Drill       Check
}

// serviceLabels are all that may stand on a service.
var serviceLabels = []string{
	labelQuiesce, labelQuiesceTimeout,
	labelPre, labelPre + ".user", labelPre + ".timeout",
	labelPost, labelPost + ".user", labelPost + ".timeout",
	labelDump, labelDump + ".user", labelDump + ".timeout", labelDumpFile,
	labelDrill, labelDrill + ".user", labelDrill + ".timeout",
}

// Policies reads the labels of all services of a stack, by their name, but for
// those that run backupd: own are the ids of known ones, and labels on them are
// settings. The error has everything that is wrong with any of them.
func Policies(s *Stack, own []string) (map[string]Policy, error) {
	out := map[string]Policy{}
	var errs []error
	for i := range s.Services {
		if s.Services[i].owned(own) {
			continue
		}
		p, err := ParsePolicy(s.Services[i].Name, s.Services[i].Labels)
		if err != nil {
			errs = append(errs, err)
		}
		out[s.Services[i].Name] = p
	}
	return out, errors.Join(errs...)
}

// ParsePolicy reads the labels of a service. A label of backupd's that is
// unknown or says nothing that can be done is an error that names the service
// and the label; all errors are returned at once.
func ParsePolicy(service string, labels map[string]string) (Policy, error) {
	r := labelReader{service: service, labels: labels}
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		if !strings.HasPrefix(name, labelPrefix) || slices.Contains(serviceLabels, name) || name == labelWorker {
			continue
		}
		if name == labelExclude {
			r.fail(name, "stands on volumes; on a service, %s=none leaves it running", labelQuiesce)
			continue
		}
		r.fail(name, "is not known; %s", meant(name, serviceLabels))
	}
	p := Policy{
		Quiesce:     r.quiesce(),
		StopTimeout: r.duration(labelQuiesceTimeout, 0),
		Pre:         r.hook(labelPre, defaultHookTimeout),
		Post:        r.hook(labelPost, defaultHookTimeout),
		Drill:       r.drill(),
		Dump:        r.dump(),
	}
	if p.StopTimeout > 0 && (p.Quiesce == QuiescePause || p.Quiesce == QuiesceNone) {
		r.fail(labelQuiesceTimeout, "is how long a service is given to stop, but %s=%s", labelQuiesce, p.Quiesce)
	}
	return p, errors.Join(r.errs...)
}

// Excluded says whether a volume's labels keep it out of backups.
func Excluded(v Volume) (bool, error) {
	if _, scratch := v.Labels[labelScratch]; scratch {
		return true, nil
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(v.Labels)) {
		if strings.HasPrefix(name, labelPrefix) && name != labelExclude {
			errs = append(errs, fmt.Errorf("volume %s: label %s is not known; volumes have %s only", v.Name, name, labelExclude))
		}
	}
	value, ok := v.Labels[labelExclude]
	if !ok {
		return false, errors.Join(errs...)
	}
	exclude, err := strconv.ParseBool(strings.TrimSpace(value))
	if err != nil {
		errs = append(errs, fmt.Errorf("volume %s: label %s=%q: give true or false", v.Name, labelExclude, value))
	}
	return exclude, errors.Join(errs...)
}

// labelReader reads a service's labels and collects what is wrong with them.
type labelReader struct {
	service string
	labels  map[string]string
	errs    []error
}

func (r *labelReader) fail(label, format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf("service %s: label %s %s", r.service, label, fmt.Sprintf(format, args...)))
}

func (r *labelReader) quiesce() Quiesce {
	value, ok := r.labels[labelQuiesce]
	if !ok {
		return QuiesceDefault
	}
	q := Quiesce(value)
	switch q {
	case QuiesceDefault, QuiesceStop, QuiescePause, QuiesceNone:
		return q
	}
	r.fail(labelQuiesce, "is %q; give stop, pause, none or default", value)
	return QuiesceDefault
}

func (r *labelReader) duration(label string, def time.Duration) time.Duration {
	value, ok := r.labels[label]
	if !ok {
		return def
	}
	d, err := time.ParseDuration(value)
	if err != nil || d <= 0 {
		r.fail(label, "is %q; give a duration such as 90s or 5m", value)
		return def
	}
	return d
}

func (r *labelReader) hook(label string, timeout time.Duration) Hook {
	command, ok := r.labels[label]
	if !ok || strings.TrimSpace(command) == "" {
		if ok {
			r.fail(label, "is empty; give a command for sh, or leave it out")
		}
		r.orphans(label, ".user", ".timeout")
		return Hook{}
	}
	return Hook{Command: command, User: r.user(label), Timeout: r.duration(label+".timeout", timeout)}
}

// user reads a user, whom the engine would look up: a name or id, and maybe a group.
func (r *labelReader) user(label string) string {
	user, ok := r.labels[label+".user"]
	if ok && (user == "" || strings.ContainsAny(user, " \t\n")) {
		r.fail(label+".user", "is %q; give a user's name or id, or USER:GROUP", user)
	}
	return user
}

// orphans are variants of a label that is not there.
func (r *labelReader) orphans(label string, variants ...string) {
	for _, v := range variants {
		if _, ok := r.labels[label+v]; ok {
			r.fail(label+v, "needs %s beside it", label)
		}
	}
}

// drillKinds are the words for built-in checks.
var drillKinds = []string{string(Postgres), string(MySQL), string(MariaDB), string(MongoDB), string(Redis)}

func (r *labelReader) drill() Check {
	c := Check{Hook: r.hook(labelDrill, defaultDrillTimeout)}
	word := strings.TrimSpace(c.Command)
	switch {
	case word == "":
		return c
	case slices.Contains(drillKinds, word):
		c.Kind = Kind(word)
	case word == "postgresql":
		c.Kind = Postgres
	case word == "valkey":
		c.Kind = Redis
	case word == "mongo":
		c.Kind = MongoDB
	default:
		if near, distance := nearest(word, drillKinds); distance <= 2 && !strings.ContainsAny(word, " /") {
			r.fail(labelDrill, "is %q; do you mean %s?", word, near)
		}
		return c
	}
	c.Command = ""
	return c
}

func (r *labelReader) dump() Dump {
	value, ok := r.labels[labelDump]
	word := strings.TrimSpace(value)
	if !ok || word == "" {
		if ok {
			r.fail(labelDump, "is empty; give %s, or a command that writes to stdout", oneOf(kinds))
		}
		r.orphans(labelDump, ".user", ".timeout", ".file")
		return Dump{}
	}
	d := Dump{User: r.user(labelDump), Timeout: r.duration(labelDump+".timeout", 0)}
	switch {
	case slices.Contains(kinds, word):
		d.Kind = Kind(word)
	case word == "postgresql":
		d.Kind = Postgres
	case word == "mongo":
		d.Kind = MongoDB
	case word == "valkey":
		d.Kind = Redis
	default:
		// One word that is nearly a kind would be run as a command that is not there.
		if near, distance := nearest(word, kinds); distance <= 2 && !strings.ContainsAny(word, " /") {
			r.fail(labelDump, "is %q; do you mean %s?", word, near)
		}
		d.Command = value
	}
	d.File = d.defaultFile()
	if file, ok := r.labels[labelDumpFile]; ok {
		if file == "" || file == "." || file == ".." || path.Base(file) != file || strings.ContainsAny(file, "\\\x00") {
			r.fail(labelDumpFile, "is %q; give the name of a file, without a directory", file)
		}
		d.File = file
	}
	return d
}

func (d Dump) defaultFile() string {
	switch d.Kind {
	case Postgres, MySQL, MariaDB:
		return "dump.sql"
	case MongoDB:
		return "dump.archive"
	case Redis:
		return "dump.rdb"
	}
	return "dump"
}

// meant names the known word that is nearest to one that is not known, or all
// if none is near.
func meant(word string, known []string) string {
	if near, distance := nearest(word, known); distance <= max(2, len(word)/4) {
		return "do you mean " + near + "?"
	}
	return "known are " + strings.Join(known, ", ")
}

func nearest(word string, known []string) (string, int) {
	best := slices.MinFunc(known, func(a, b string) int { return cmp.Compare(editDistance(word, a), editDistance(word, b)) })
	return best, editDistance(word, best)
}

// editDistance is how many letters must be put in, left out or replaced to make one word the other.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for k := range row {
		row[k] = k
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for k := range len(b) {
			replaced := diagonal
			if a[i] != b[k] {
				replaced++
			}
			diagonal = row[k+1]
			row[k+1] = min(replaced, row[k+1]+1, row[k]+1)
		}
	}
	return row[len(b)]
}

func oneOf(words []string) string {
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}
