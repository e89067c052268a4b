package nfs

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/disko/backupd/internal/store"
)

// The services beside NFS itself: the portmapper (RFC 1833, section 3, which
// calls it version 2) and MOUNT (RFC 1813, appendix I).
var (
	portmapProgram = program{"portmapper", 100000, 2}
	mountProgram   = program{"MOUNT", 100005, 3}
	nfsProgram     = program{"NFS", 100003, 3}
)

const (
	portmapGetPort = 3
	mountMnt       = 1
	mountExport    = 5

	portmapperPort = 111
	protocolTCP    = 6
	maxPath        = 1024 // MNTPATHLEN
	maxName        = 255
	maxExports     = 4096
)

// export is a mounted directory: what an operation needs to begin.
type export struct {
	port int // of NFS
	dir  handle
	rtmax, wtmax,
	dirmax int // bytes of a call
	known known
}

// mount finds the directory that the options name, which is an export or lies
// below one.
func mount(ctx context.Context, o Options) (*export, error) {
	var x export
	var err error
	if x.port, err = servicePort(ctx, o, nfsProgram, o.Port, "in the target's name, as in nfs://host:2049/path"); err != nil {
		return nil, err
	}
	mountPort, err := servicePort(ctx, o, mountProgram, o.MountPort, "by ?mountport=N")
	if err != nil {
		return nil, err
	}
	var m mounted
	err = visit(ctx, o, mountPort, mountProgram, func(c *client) error {
		m, err = mountNearest(c, o)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = visit(ctx, o, x.port, nfsProgram, func(c *client) error {
		s := &session{client: c, export: &x, now: o.Now}
		x.dir = m.handle
		if err := s.fsinfo(); err != nil {
			return fmt.Errorf("ask %s what it can do: %w", o.Host, err)
		}
		x.dir, err = s.descend(o, m)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &x, nil
}

// descend goes from what was mounted to the directory that the options name.
func (s *session) descend(o Options, m mounted) (handle, error) {
	n := node{handle: m.handle, attributes: attributes{kind: kindDir}}
	at := m.path
	for name := range strings.SplitSeq(strings.Trim(strings.TrimPrefix(o.Path, m.path), "/"), "/") {
		var err error
		if name == "" {
			n.attributes, err = s.getattr(n.handle)
		} else {
			at = path.Join(at, name)
			n, err = s.lookup(n.handle, name)
		}
		switch {
		case absent(err):
			return "", fmt.Errorf("%w: there is no directory %s on %s; check the path, or whether its disk is mounted there", store.ErrNoTarget, at, o.Host)
		case err != nil:
			return "", fmt.Errorf("look up %s: %w", at, err)
		case n.kind == kindLink:
			return "", fmt.Errorf("%w: %s on %s is a symbolic link; name the directory that it leads to", store.ErrNoTarget, at, o.Host)
		case n.kind != kindDir:
			return "", fmt.Errorf("%w: %s on %s is not a directory", store.ErrNoTarget, at, o.Host)
		}
		// It is there, and we must not have it: an export of its own, most
		// likely, and what we see is the empty directory it is mounted on.
		if refusal, ok := m.refused[at]; ok {
			return "", m.explainRefusal(o, at, refusal)
		}
	}
	return n.handle, nil
}

// visit makes calls on a connection of their own.
func visit(ctx context.Context, o Options, port int, p program, f func(*client) error) error {
	w, err := dial(ctx, o, port)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { w.cut(ctx.Err()) })
	err = f(newClient(w, p, o.caller()))
	stop()
	broken := w.why()
	w.cut(errDone)
	if err != nil && broken != nil {
		return fmt.Errorf("the connection to %s at %s broke: %w", p.name, o.address(port), broken)
	}
	return err
}

var errDone = errors.New("it is not needed any more")

// servicePort is the port that was named, or else the portmapper's answer.
func servicePort(ctx context.Context, o Options, p program, named int, how string) (port int, err error) {
	if named != 0 {
		return named, nil
	}
	err = visit(ctx, o, portmapperPort, portmapProgram, func(c *client) error {
		d, err := c.call(portmapGetPort, func(e *encoder) {
			e.u32(p.number)
			e.u32(p.version)
			e.u32(protocolTCP)
			e.u32(0)
		})
		if err == nil {
			port = int(d.u32())
			err = d.err
		}
		return err
	})
	switch {
	case err != nil:
		return 0, fmt.Errorf("ask the portmapper for the port of %s, which may be named %s: %w", p.name, how, err)
	case port == 0:
		return 0, fmt.Errorf("the portmapper of %s knows no %s version %d over TCP: it does not run, or is switched off; enable it, or mount the directory and name the mount point", o.Host, p.name, p.version)
	case port > 65535:
		return 0, fmt.Errorf("the portmapper of %s says that %s is at port %d", o.Host, p.name, port)
	}
	return port, nil
}

// mounted is a directory that the server let us mount.
type mounted struct {
	handle
	path    string
	refused map[string]status // directories below it that it did not
	exports []string
	// reserved says that we called from a port that is root's.
	reserved bool
}

// mountNearest mounts the directory that the options name, or the nearest one
// above it that the server mounts: some mount only exports, and some say
// "permission denied" of what is not there.
func mountNearest(c *client, o Options) (m mounted, err error) {
	m = mounted{path: o.Path, refused: map[string]status{}, reserved: c.reserved()}
	if o.Export != "" {
		m.path = path.Clean(o.Export)
	}
	for {
		m.handle, err = mnt(c, m.path)
		var refusal status
		if !errors.As(err, &refusal) {
			return m, err
		}
		if m.exports == nil {
			if m.exports, err = listExports(c); err != nil {
				return m, err
			}
		}
		if says(refusal, statPerm, statAcces) {
			m.refused[m.path] = refusal
		}
		if slices.Contains(m.exports, m.path) || m.path == "/" || o.Export != "" {
			return m, m.explainRefusal(o, m.path, refusal)
		}
		m.path = path.Dir(m.path)
	}
}

func (m mounted) explainRefusal(o Options, p string, refusal status) error {
	list := "it tells of no exports"
	if len(m.exports) > 0 {
		list = "its exports are " + strings.Join(m.exports, ", ")
	}
	switch refusal {
	case statPerm, statAcces:
		if p == "/" { // as far as we came
			p = o.Path
		}
		hint := ""
		if i := slices.IndexFunc(m.exports, func(e string) bool { return e != p && within(p, e) }); i >= 0 {
			hint = fmt.Sprintf("; or, if %s is no export but a plain directory in %s, say so by ?export=%s", p, m.exports[i], m.exports[i])
		}
		if !m.reserved {
			hint += "; it may also take no calls from ports above 1023, and backupd could not have another: export with \"insecure\", or run backupd as root"
		}
		return fmt.Errorf("%w: %s does not export %s to this machine (%w); %s; check the path, or add this machine to that export's clients%s", store.ErrAccess, o.Host, p, refusal, list, hint)
	case statNoEnt, statNotDir, statInval, statNameTooLong:
		return fmt.Errorf("%w: %s exports no %s (%w); %s; check the path, and whether its disk is mounted there", store.ErrNoTarget, o.Host, o.Path, refusal, list)
	}
	return fmt.Errorf("mount %s of %s: %w", p, o.Host, refusal)
}

// within says that a path is an export or lies below it.
func within(p, export string) bool {
	return p == export || export == "/" || strings.HasPrefix(p, export+"/")
}

func mnt(c *client, dir string) (handle, error) {
	d, err := c.call(mountMnt, func(e *encoder) { e.string(dir) })
	if err != nil {
		return "", err
	}
	if s := status(d.u32()); s != 0 && d.err == nil {
		return "", s
	}
	h := handle(d.opaque(maxHandle))
	n := d.u32()
	plain := n == 0 // a server that lists none takes any
	for ; n > 0 && d.err == nil; n-- {
		flavor := d.u32()
		plain = plain || flavor == authUnix
	}
	if d.err != nil {
		return "", d.err
	}
	if !plain {
		return "", fmt.Errorf("%w: the server exports %s to Kerberos users only, and backupd does not speak Kerberos; export with sec=sys", store.ErrAccess, dir)
	}
	return h, nil
}

// listExports returns what the server says that it exports; some say nothing.
func listExports(c *client) ([]string, error) {
	d, err := c.call(mountExport, nil)
	if err != nil {
		if c.why() == nil {
			return nil, nil // it has no such call
		}
		return nil, err
	}
	var all []string
	for d.bool() && len(all) < maxExports {
		all = append(all, path.Clean("/"+string(d.opaque(maxPath))))
		for d.bool() { // the clients it is for
			d.opaque(maxName)
		}
	}
	return all, d.err
}
