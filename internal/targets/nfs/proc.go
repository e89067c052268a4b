package nfs

import (
	"time"
)

// Procedures of NFS version 3: RFC 1813, section 3.3.
const (
	procGetAttr     = 1
	procLookup      = 3
	procRead        = 6
	procWrite       = 7
	procCreate      = 8
	procMkdir       = 9
	procRemove      = 12
	procRmdir       = 13
	procRename      = 14
	procLink        = 15
	procReadDirPlus = 17
	procFSInfo      = 19
	procCommit      = 21

	maxHandle = 64

	kindFile = 1
	kindDir  = 2
	kindLink = 5

	createGuarded = 1
)

// handle names a file on its server, through renames and restarts.
type handle string

// attributes are those of fattr3 that are of use here.
type attributes struct {
	kind       uint32
	size       uint64 // bytes
	fsid, file uint64
	mtime      time.Time // the server's clock
}

// node is a file and what is known of it.
type node struct {
	handle handle
	attributes
}

// session is a connection to an export. It is used by one operation at a time:
// cutting it is how an operation is cancelled, and hurts no other.
type session struct {
	*client
	export *export
	now    func() time.Time
}

// ask makes one call, and takes the status off its result.
func (s *session) ask(proc uint32, args func(*encoder)) (*decoder, error) {
	d, err := s.call(proc, args)
	if err != nil {
		return nil, err
	}
	return checked(d)
}

func checked(d *decoder) (*decoder, error) {
	st := status(d.u32())
	if d.err != nil {
		return nil, d.err
	}
	if st != 0 {
		return nil, st
	}
	return d, nil
}

func (e *encoder) name(dir handle, name string) {
	e.opaque([]byte(dir))
	e.string(name)
}

// newMode encodes sattr3: a mode, and all else as the server likes.
func (e *encoder) newMode(mode uint32) {
	e.u32(1)
	e.u32(mode)
	for range 5 {
		e.u32(0)
	}
}

func (d *decoder) attributes() (a attributes) {
	a.kind = d.u32()
	d.bytes(4 * 4) // mode, links, owner, group
	a.size = d.u64()
	d.bytes(8 + 8) // used, device
	a.fsid, a.file = d.u64(), d.u64()
	d.bytes(8) // atime
	a.mtime = time.Unix(int64(d.u32()), int64(d.u32()))
	d.bytes(8) // ctime
	return a
}

// maybeAttributes decodes post_op_attr: a server need not tell them.
func (d *decoder) maybeAttributes() (a attributes, ok bool) {
	if d.bool() {
		return d.attributes(), true
	}
	return a, false
}

func (d *decoder) maybeHandle() handle {
	if d.bool() {
		return handle(d.opaque(maxHandle))
	}
	return ""
}

// skipChange passes over wcc_data.
func (d *decoder) skipChange() {
	if d.bool() {
		d.bytes(8 + 8 + 8)
	}
	d.maybeAttributes()
}

// fsinfo asks how large a call may be.
func (s *session) fsinfo() error {
	d, err := s.ask(procFSInfo, func(e *encoder) { e.opaque([]byte(s.export.dir)) })
	if err != nil {
		return err
	}
	d.maybeAttributes()
	rtmax := d.u32()
	d.bytes(4 + 4) // preferred size, multiple
	wtmax := d.u32()
	d.bytes(4 + 4)
	dtpref := d.u32()
	s.export.rtmax, s.export.wtmax, s.export.dirmax = bounded(rtmax), bounded(wtmax), min(max(int(dtpref), 8<<10), 64<<10)
	return d.err
}

// bounded keeps a server's limit between what all can do and what is of use.
func bounded(limit uint32) int { return int(min(max(limit, 4<<10), maxPiece)) }

func (s *session) getattr(h handle) (attributes, error) {
	d, err := s.ask(procGetAttr, func(e *encoder) { e.opaque([]byte(h)) })
	if err != nil {
		return attributes{}, err
	}
	a := d.attributes()
	return a, d.err
}

func (s *session) lookup(dir handle, name string) (node, error) {
	d, err := s.ask(procLookup, func(e *encoder) { e.name(dir, name) })
	if err != nil {
		return node{}, err
	}
	n := node{handle: handle(d.opaque(maxHandle))}
	var ok bool
	if n.attributes, ok = d.maybeAttributes(); d.err != nil {
		return node{}, d.err
	}
	if !ok {
		n.attributes, err = s.getattr(n.handle)
	}
	return n, err
}

// create makes an empty file that was not there. GUARDED refuses one that is,
// as EXCLUSIVE does, but lets the mode be set, and leaves the times alone, in
// which many servers keep an EXCLUSIVE call's verifier.
func (s *session) create(dir handle, name string, mode uint32) (node, error) {
	return s.made(dir, name, procCreate, func(e *encoder) {
		e.name(dir, name)
		e.u32(createGuarded)
		e.newMode(mode)
	})
}

func (s *session) mkdir(dir handle, name string, mode uint32) (node, error) {
	return s.made(dir, name, procMkdir, func(e *encoder) {
		e.name(dir, name)
		e.newMode(mode)
	})
}

func (s *session) made(dir handle, name string, proc uint32, args func(*encoder)) (node, error) {
	d, err := s.ask(proc, args)
	if err != nil {
		return node{}, err
	}
	n := node{handle: d.maybeHandle()}
	var ok bool
	n.attributes, ok = d.maybeAttributes()
	if d.err != nil || ok && n.handle != "" {
		return n, d.err
	}
	return s.lookup(dir, name)
}

func (s *session) remove(dir handle, name string) error {
	_, err := s.ask(procRemove, func(e *encoder) { e.name(dir, name) })
	return err
}

func (s *session) rmdir(dir handle, name string) error {
	_, err := s.ask(procRmdir, func(e *encoder) { e.name(dir, name) })
	return err
}

func (s *session) rename(from handle, name string, to handle, newName string) error {
	_, err := s.ask(procRename, func(e *encoder) {
		e.name(from, name)
		e.name(to, newName)
	})
	return err
}

func (s *session) link(file, dir handle, name string) error {
	_, err := s.ask(procLink, func(e *encoder) {
		e.opaque([]byte(file))
		e.name(dir, name)
	})
	return err
}
