package nfs

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"
	"time"
)

const (
	defaultConcurrency = 4
	// defaultStall is longer than a disk that spins up or a server that restarts.
	defaultStall = 60 * time.Second
)

// Options name a directory on an NFS server and say who writes there. The zero
// value of each field but Host and Path is its default.
type Options struct {
	Host string
	// Port is that of NFS, MountPort that of the MOUNT service; 0 asks the
	// server's portmapper at port 111.
	Port, MountPort int
	// Path is absolute: an export, or a directory at any depth below one.
	Path string
	// Export is where the export ends, for servers that refuse to mount what is
	// below one; empty asks the server.
	Export string

	// UID and GID are whom the server takes us for; nil is the process's own.
	UID, GID *uint32

	// Concurrency is how many operations, each on a connection of its own, run
	// at the same time; 4.
	Concurrency int
	// StallTimeout ends an operation during which no byte was sent or received
	// for so long; 60 s.
	StallTimeout time.Duration

	// Now is the clock by which idle connections age; time.Now.
	Now func() time.Time
}

// Parse reads nfs://host[:port]/export/path, where settings may follow, as in
// ?mountport=N&uid=N&gid=N&version=3&export=/export&concurrency=4&stall-timeout=60s,
// and the path may be absent if defaults have one. It is a URL: %20 is a space.
// What the name does not say is taken from defaults.
func Parse(name string, defaults Options) (Options, error) {
	o := defaults
	u, err := url.Parse(name)
	switch {
	case err != nil:
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // without the name, which may have a secret by mistake
		}
		return Options{}, parseError("it cannot be read: %w", err)
	case u.Scheme != "nfs" || u.Opaque != "":
		return Options{}, parseError("does not begin with nfs://")
	case u.User != nil:
		return Options{}, parseError("NFS has no login: leave out what stands before the @, and name the user by ?uid=N&gid=N")
	case u.Fragment != "" || strings.HasSuffix(name, "#"):
		return Options{}, parseError("a # in a path is written %%23")
	}
	o.Host = u.Hostname()
	if p := u.Port(); p != "" {
		if o.Port, err = port("port", p); err != nil {
			return Options{}, err
		}
	}
	if u.Path != "" {
		o.Path = path.Clean(u.Path)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Options{}, parseError("its settings cannot be read: %w", err)
	}
	for key, values := range query {
		if len(values) != 1 {
			return Options{}, parseError("setting %q stands there twice", key)
		}
		if err := o.set(key, values[0]); err != nil {
			return Options{}, err
		}
	}
	return o, o.check()
}

func parseError(format string, args ...any) error {
	return fmt.Errorf("nfs target: "+format+"; write it as nfs://nas.example/export/backups, with settings as in nfs://nas.example:2049/export/backups?mountport=20048&uid=1000&gid=1000", args...)
}

func (o *Options) set(key, value string) (err error) {
	switch key {
	case "mountport":
		o.MountPort, err = port(key, value)
	case "uid":
		o.UID, err = id(key, value)
	case "gid":
		o.GID, err = id(key, value)
	case "export":
		o.Export = path.Clean(value)
	case "version":
		if value != "3" {
			err = parseError("version=%s: backupd itself speaks version 3 only; leave the setting out, or mount the directory with version %s and name the mount point as a target", value, value)
		}
	case "concurrency":
		o.Concurrency, err = strconv.Atoi(value)
		if err != nil || o.Concurrency < 1 {
			err = parseError("concurrency=%s is not a number from 1 to 64", value)
		}
	case "stall-timeout":
		o.StallTimeout, err = time.ParseDuration(value)
		if err != nil || o.StallTimeout <= 0 {
			err = parseError("stall-timeout=%s is not a duration like 60s", value)
		}
	default:
		err = parseError("there is no setting %q; there are mountport, export, uid, gid, version, concurrency and stall-timeout", key)
	}
	return err
}

func port(key, value string) (int, error) {
	n, err := strconv.ParseUint(value, 10, 16)
	if err != nil || n == 0 {
		return 0, parseError("%s %q is not a number from 1 to 65535", key, value)
	}
	return int(n), nil
}

func id(key, value string) (*uint32, error) {
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return nil, parseError("%s=%s is not a number; a name is looked up with: id NAME", key, value)
	}
	return new(uint32(n)), nil
}

func (o *Options) check() error {
	switch {
	case !validHost(o.Host):
		return parseError("no host is named, or its name has characters that none has")
	case !strings.HasPrefix(o.Path, "/"):
		return parseError("no export's path is named, or it does not begin with a slash")
	case strings.ContainsAny(o.Path, "\x00\r\n") || len(o.Path) > maxPath:
		return parseError("the path has a NUL or a line break, or more than %d bytes", maxPath)
	case o.Export != "" && (!strings.HasPrefix(o.Export, "/") || !within(path.Clean(o.Path), path.Clean(o.Export))):
		return parseError("export=%s does not begin the path %s", o.Export, o.Path)
	case o.Port < 0 || o.Port > 65535 || o.MountPort < 0 || o.MountPort > 65535:
		return parseError("a port is not a number from 1 to 65535")
	case o.Concurrency < 0 || o.Concurrency > 64:
		return parseError("concurrency %d is not a number from 1 to 64", o.Concurrency)
	case o.StallTimeout < 0:
		return parseError("stall-timeout %s is negative", o.StallTimeout)
	}
	return nil
}

func validHost(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	ok := host != ""
	for _, c := range []byte(host) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_')
	}
	return ok
}

// complete checks the options and fills in defaults.
func (o Options) complete() (Options, error) {
	if err := o.check(); err != nil {
		return o, err
	}
	o.Path = path.Clean(o.Path)
	if o.Concurrency == 0 {
		o.Concurrency = defaultConcurrency
	}
	if o.StallTimeout == 0 {
		o.StallTimeout = defaultStall
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o, nil
}

// caller is what the options and the process say about who writes.
func (o Options) caller() caller {
	c := caller{uid: uint32(os.Getuid()), gid: uint32(os.Getgid())}
	if o.UID == nil && o.GID == nil {
		groups, err := os.Getgroups()
		if err == nil { // else the group itself must do
			for _, g := range groups[:min(len(groups), maxGroups)] {
				c.groups = append(c.groups, uint32(g))
			}
		}
	}
	if o.UID != nil {
		c.uid = *o.UID
	}
	if o.GID != nil {
		c.gid = *o.GID
	}
	return c
}

func (o Options) address(port int) string { return net.JoinHostPort(o.Host, strconv.Itoa(port)) }

// location is the target's name without its settings.
func (o Options) location() string {
	u := url.URL{Scheme: "nfs", Host: o.Host, Path: o.Path}
	if strings.Contains(o.Host, ":") {
		u.Host = "[" + o.Host + "]"
	}
	if o.Port != 0 {
		u.Host = o.address(o.Port)
	}
	return u.String()
}
