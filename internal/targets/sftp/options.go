package sftp

import (
	"fmt"
	"net"
	"net/url"
	"os/user"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	defaultPort        = 22
	defaultConcurrency = 4
	// defaultStall is longer than a disk that spins up or a server that swaps.
	defaultStall = 60 * time.Second
)

// Options name a directory on an SSH server and say how to log in. The zero
// value of each field but Host is its default.
type Options struct {
	User string // the current user
	Host string
	Port int // 22
	// Path is absolute, or relative to the login directory; empty is the login
	// directory itself.
	Path string

	// IdentityFiles are private keys. If any is named, they are all that is
	// offered besides a password; else the agent's keys and the usual files in
	// ~/.ssh are.
	IdentityFiles []string
	// IdentityPassphraseFile holds the passphrase of encrypted IdentityFiles.
	IdentityPassphraseFile string
	PasswordFile           string

	// KnownHostsFile is read for the server's key; ~/.ssh/known_hosts.
	KnownHostsFile string
	// HostKey is the server's public key, "ssh-ed25519 AAAA...", in place of a
	// known_hosts file.
	HostKey string

	// Concurrency is how many operations, each on a connection of its own, run
	// at the same time; 4.
	Concurrency int
	// StallTimeout ends an operation during which nothing was sent or received
	// for so long; 60 s.
	StallTimeout time.Duration
}

// Parse reads sftp://[user@]host[:port]/absolute/path or, below the login
// directory, sftp://host/~/path. What the name does not say is taken from
// defaults. It is a URL: %20 is a space. Settings may follow, as in
// ?identity=/run/secrets/key&host-key=ssh-ed25519%20AAAA...
func Parse(name string, defaults Options) (Options, error) {
	o := defaults
	rest, ok := strings.CutPrefix(name, "sftp://")
	if !ok {
		return Options{}, parseError("does not begin with sftp://")
	}
	rest, query, _ := strings.Cut(rest, "?")
	authority, rawPath, _ := strings.Cut(rest, "/")
	if err := o.setAuthority(authority); err != nil {
		return Options{}, err
	}
	if err := o.setPath(rawPath, strings.Contains(rest, "/")); err != nil {
		return Options{}, err
	}
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		if err := o.setPair(pair); err != nil {
			return Options{}, err
		}
	}
	if err := o.check(); err != nil {
		return Options{}, err
	}
	return o, nil
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// parseError never has the name in it: that may hold a password.
func parseError(format string, args ...any) error {
	return fmt.Errorf("sftp target: "+format+"; write it as sftp://user@host:22/absolute/path, or sftp://user@host/~/path below the login directory", args...)
}

func (o *Options) setAuthority(s string) error {
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		who := s[:i]
		s = s[i+1:]
		if strings.Contains(who, ":") {
			return fmt.Errorf("sftp target: a password in a target's name ends up in logs and process lists: leave it out, put it in a file and name that with SFTP_PASSWORD_FILE or ?password-file=PATH")
		}
		name, err := url.PathUnescape(who)
		if err != nil || name == "" {
			return parseError("the user's name cannot be read")
		}
		o.User = name
	}
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 && i > strings.LastIndexByte(s, ']') {
		host, port = s[:i], s[i+1:]
		n, err := strconv.Atoi(port)
		if err != nil || n < 1 || n > 65535 {
			return parseError("port %q is not a number from 1 to 65535", port)
		}
		o.Port = n
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		host, ok = strings.CutSuffix(inner, "]")
		if !ok || net.ParseIP(host) == nil {
			return parseError("the address in brackets cannot be read")
		}
	} else if strings.Contains(host, ":") {
		return parseError("an IPv6 address stands in brackets, as in sftp://[::1]/path")
	} else if !hostName.MatchString(host) {
		return parseError("no host is named, or its name has characters that none has")
	}
	o.Host = host
	return nil
}

func (o *Options) setPath(raw string, given bool) error {
	if strings.Contains(raw, "#") {
		return parseError("a # in a path is written %%23")
	}
	p, err := url.PathUnescape(raw)
	if err != nil {
		return parseError("the path has a %% that two hexadecimal digits do not follow; a %% itself is written %%25")
	}
	if strings.ContainsAny(p, "\x00\r\n") {
		return parseError("the path has a NUL or a line break")
	}
	home, below, _ := strings.Cut(p, "/")
	switch {
	case !given || p == "" && o.Path != "":
		if o.Path == "" {
			return parseError("no path is named; for the login directory itself that is /~")
		}
	case home == "~":
		o.Path = path.Clean(strings.TrimLeft(below, "/"))
		if o.Path == ".." || strings.HasPrefix(o.Path, "../") {
			return parseError("the path leads out of the login directory; name it from /")
		}
	case strings.HasPrefix(home, "~"):
		return parseError("another user's home is not looked up; name the path from /")
	default:
		o.Path = path.Clean("/" + p)
	}
	return nil
}

func (o *Options) setPair(pair string) error {
	key, raw, _ := strings.Cut(pair, "=")
	// A "+" stays one: keys are base64.
	value, err := url.PathUnescape(raw)
	if err != nil || value == "" {
		return parseError("setting %q has no value, or one that cannot be read", key)
	}
	switch key {
	case "identity":
		o.IdentityFiles = append(o.IdentityFiles[:len(o.IdentityFiles):len(o.IdentityFiles)], value)
	case "identity-passphrase-file":
		o.IdentityPassphraseFile = value
	case "password-file":
		o.PasswordFile = value
	case "known-hosts":
		o.KnownHostsFile = value
	case "host-key":
		o.HostKey = value
	case "concurrency":
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 {
			return parseError("concurrency=%q is not a positive number", value)
		}
		o.Concurrency = n
	case "stall-timeout":
		d, err := time.ParseDuration(value)
		if err != nil || d <= 0 {
			return parseError("stall-timeout=%q is not a duration like 60s", value)
		}
		o.StallTimeout = d
	default:
		// Not its value: it may be a secret.
		return parseError("there is no setting %q; there are identity, identity-passphrase-file, password-file, known-hosts, host-key, concurrency and stall-timeout", key)
	}
	return nil
}

func (o *Options) check() error {
	switch {
	case o.Host == "":
		return parseError("no host is named")
	case o.Port < 0 || o.Port > 65535:
		return parseError("port %d is not a number from 1 to 65535", o.Port)
	case o.Concurrency < 0 || o.Concurrency > 64:
		return parseError("concurrency %d is not a number from 1 to 64", o.Concurrency)
	case o.StallTimeout < 0:
		return parseError("stall-timeout %s is negative", o.StallTimeout)
	}
	if o.HostKey != "" {
		if _, err := pinnedKey(o.HostKey); err != nil {
			return err
		}
	}
	return nil
}

// complete checks the options and fills in defaults.
func (o Options) complete() (Options, error) {
	if err := o.check(); err != nil {
		return o, err
	}
	if o.Port == 0 {
		o.Port = defaultPort
	}
	if o.Concurrency == 0 {
		o.Concurrency = defaultConcurrency
	}
	if o.StallTimeout == 0 {
		o.StallTimeout = defaultStall
	}
	if o.Path == "" {
		o.Path = "."
	}
	if o.User == "" {
		u, err := user.Current()
		if err != nil || u.Username == "" {
			return o, fmt.Errorf("sftp target: no user is named, and the current one has no name; write it as sftp://user@%s/", o.Host)
		}
		o.User = u.Username
	}
	return o, nil
}

// address is host:port, with brackets where they are needed.
func (o Options) address() string { return net.JoinHostPort(o.Host, strconv.Itoa(o.Port)) }

// location is the target's name without its settings.
func (o Options) location() string {
	u := url.URL{Scheme: "sftp", Host: o.Host, User: url.User(o.User), Path: o.Path}
	if strings.Contains(o.Host, ":") {
		u.Host = "[" + o.Host + "]"
	}
	if o.Port != defaultPort {
		u.Host = o.address()
	}
	switch {
	case o.Path == ".":
		u.Path = "/~"
	case !strings.HasPrefix(o.Path, "/"):
		u.Path = "/~/" + o.Path
	}
	return u.String()
}
