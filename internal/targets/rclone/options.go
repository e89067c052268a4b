package rclone

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/disko/backupd/internal/store"
)

// defaultStall is longer than a machine that swaps.
const defaultStall = 60 * time.Second

// Options name a remote of rclone's, and the program that reaches it. The zero
// value of each field but Remote is its default.
type Options struct {
	// Remote is remote:path as rclone takes it. Connection strings, as in
	// ":webdav,url='https://host':path", are fine.
	Remote string
	// Binary is the program's path; rclone, as PATH has it.
	Binary string
	// ConfigFile has the remotes; rclone's own choice. It holds secrets.
	ConfigFile string
	// Args are more of rclone's global flags. Those that would hide, skip or
	// rename objects are refused.
	Args []string
	// StallTimeout ends an operation when rclone does not answer for so long;
	// 60 s. It is rclone's own limit for an idle connection, too. While rclone
	// answers but moves nothing, an operation may last ten times as long.
	StallTimeout time.Duration
	// Stderr gets what rclone prints, without secrets; nowhere. It is written to
	// by one goroutine.
	Stderr io.Writer
}

// Parse reads rclone:remote:path. What the name does not say is taken from
// defaults.
func Parse(name string, defaults Options) (Options, error) {
	o := defaults
	var ok bool
	if o.Remote, ok = strings.CutPrefix(name, "rclone:"); !ok {
		return Options{}, parseError("does not begin with rclone:")
	}
	if err := o.check(); err != nil {
		return Options{}, err
	}
	return o, nil
}

// parseError never has the name in it: a connection string may hold a password.
func parseError(format string, args ...any) error {
	return fmt.Errorf("rclone target: "+format+"; write it as rclone:remote:path, where \"rclone listremotes\" prints the remote", args...)
}

// remoteName is what rclone allows (its fs/fspath: fullRemoteRe of 1.76).
var remoteName = regexp.MustCompile(`^[\w\p{L}\p{N}.+@]+(?:[ -]+[\w\p{L}\p{N}.+@-]+)*$`)

func (o *Options) check() error {
	if strings.ContainsAny(o.Remote, "\x00\r\n") {
		return parseError("a remote's name has no NUL or line break")
	}
	r, err := parseRemote(o.Remote)
	if err != nil {
		return err
	}
	if !remoteName.MatchString(strings.TrimPrefix(r.name, ":")) {
		return parseError("no remote is named, or its name has characters that none has")
	}
	if slices.Contains(strings.Split(r.path, "/"), "..") {
		return parseError("a path does not go up by \"..\"")
	}
	for _, a := range o.Args {
		if name, bad := harmfulFlag(a); bad {
			return fmt.Errorf("rclone target: the flag %s would hide, skip or rename objects, or is backupd's own to set; leave it out", name)
		}
	}
	if o.StallTimeout < 0 {
		return fmt.Errorf("rclone target: the stall time-out %s is negative", o.StallTimeout)
	}
	return nil
}

// complete checks the options, fills in defaults and finds the program.
func (o Options) complete() (Options, error) {
	if err := o.check(); err != nil {
		return o, err
	}
	if o.StallTimeout == 0 {
		o.StallTimeout = defaultStall
	}
	if o.Stderr == nil {
		o.Stderr = io.Discard
	}
	if o.Binary == "" {
		o.Binary = "rclone"
	}
	binary, err := exec.LookPath(o.Binary)
	if err != nil {
		return o, fmt.Errorf("%w: the program rclone is needed for %s, and is not there (%w); install it (1.60 or newer), or use an image that has it", store.ErrNoTarget, o.location(), err)
	}
	o.Binary = binary
	if o.ConfigFile != "" {
		f, err := os.Open(o.ConfigFile)
		if err != nil {
			return o, fmt.Errorf("%w: read rclone's configuration: %w", store.ErrAccess, err)
		}
		_ = f.Close() // it was only tried
	}
	return o, nil
}

// remote is a remote's name, taken apart as rclone does.
type remote struct {
	name   string // with a leading colon where it is a backend's
	params string // of a connection string, with the leading comma
	path   string
}

func (r remote) String() string { return r.name + r.params + ":" + r.path }

// parseRemote finds the colon that ends the name: one that stands in a quoted
// parameter does not. A doubled quote inside quotes is one.
func parseRemote(s string) (remote, error) {
	start := 0
	if strings.HasPrefix(s, ":") {
		start = 1
	}
	end := strings.IndexAny(s[start:], ",:/")
	if end < 0 || s[start+end] == '/' {
		return remote{}, parseError("a path without a remote is an ordinary directory: name that as the target, without rclone")
	}
	end += start
	r := remote{name: s[:end]}
	var quote byte
	for i := end; i < len(s); i++ {
		switch c := s[i]; {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case (c == '\'' || c == '"') && s[i-1] == '=':
			quote = c
		case (c == '\'' || c == '"') && i >= 2 && s[i-1] == c:
			quote = c // the second of a doubled one: still inside
		case c == ':':
			r.params, r.path = s[end:i], s[i+1:]
			return r, nil
		}
	}
	return remote{}, parseError("the connection string has no end; values with a colon or comma stand in quotes")
}

// parent is the remote one level up; false at its top.
func (r remote) parent() (remote, bool) {
	path := strings.TrimRight(r.path, "/")
	if path == "" {
		return remote{}, false
	}
	i := strings.LastIndexByte(path, '/')
	switch {
	case i < 0:
		r.path = ""
	case i == 0:
		r.path = "/"
	default:
		r.path = path[:i]
	}
	return r, true
}

// location is the target's name without the parameters of a connection
// string, which hold passwords.
func (o Options) location() string {
	r, err := parseRemote(o.Remote)
	if err != nil {
		return "rclone:..."
	}
	if r.params != "" {
		r.params = ",..."
	}
	return "rclone:" + r.String()
}

// harmfulFlags would make a listing lie, an upload do nothing, or the control
// connection impossible. A trailing star stands for any ending.
var harmfulFlags = []string{
	"dry-run", "interactive", "immutable", "ignore-existing", "ignore-size", "ignore-times", "size-only", "update", "no-check-dest",
	"backup-dir", "suffix*", "compare-dest", "copy-dest", "max-transfer", "max-duration", "max-delete*", "cutoff-mode",
	"exclude*", "include*", "filter*", "files-from*", "min-age", "max-age", "min-size", "max-size", "max-depth", "hash-filter*", "metadata-*",
	"rc*", "log-file*", "log-format", "log-level", "quiet", "use-json-log", "syslog*", "daemon*", "metadata", "M", "n", "i", "q", "u",
}

// harmfulFlag says whether an argument is one of them, and its name.
func harmfulFlag(arg string) (string, bool) {
	name, _, _ := strings.Cut(arg, "=")
	if !strings.HasPrefix(name, "-") {
		return "", false // a flag's value
	}
	return name, harmfulName(strings.TrimLeft(name, "-"))
}

func harmfulName(name string) bool {
	return slices.ContainsFunc(harmfulFlags, func(f string) bool {
		begin, any := strings.CutSuffix(f, "*")
		return name == begin || any && strings.HasPrefix(name, begin)
	})
}

// environment is ours without the variables that stand for such flags, and
// with the remote under a name of our own. So neither the process list nor an
// address nor rclone's log has the parameters of a connection string.
func (o Options) environment(user, password string) ([]string, error) {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		flag, ok := strings.CutPrefix(name, "RCLONE_")
		if ok && harmfulName(strings.ToLower(strings.ReplaceAll(flag, "_", "-"))) {
			continue
		}
		env = append(env, kv)
	}
	r, err := parseRemote(o.Remote)
	if err != nil {
		return nil, err
	}
	env = append(env, "RCLONE_RC_USER="+user, "RCLONE_RC_PASS="+password)
	env = append(env, alias(targetFs, r)...)
	if up, ok := r.parent(); ok {
		env = append(env, alias(parentFs, up)...)
	}
	if o.ConfigFile != "" {
		env = append(env, "RCLONE_CONFIG="+o.ConfigFile)
	}
	return env, nil
}

// Remotes of the child's.
const (
	targetFs = "backupdtarget:"
	parentFs = "backupdparent:"
)

func alias(fs string, r remote) []string {
	name := "RCLONE_CONFIG_" + strings.ToUpper(strings.TrimSuffix(fs, ":"))
	return []string{name + "_TYPE=alias", name + "_REMOTE=" + r.String()}
}

// secrets are what must not stand in an error: the values of a connection
// string's parameters.
func (o Options) secrets() []string {
	r, err := parseRemote(o.Remote)
	if err != nil || r.params == "" {
		return nil
	}
	all := []string{r.params}
	for p := range strings.SplitSeq(r.params, ",") {
		if _, value, ok := strings.Cut(p, "="); ok {
			all = append(all, strings.Trim(value, `'"`))
		}
	}
	return slices.DeleteFunc(all, func(s string) bool { return len(s) < 4 })
}

var errClosed = errors.New("the target was closed")
