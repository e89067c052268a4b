package tree

import (
	"errors"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// Symlink makes a symlink. With replace it takes the place of what is there.
func (d *Dest) Symlink(h *tarstream.Header, replace bool) error {
	if h.Type != tarstream.Symlink {
		return act("make symlink", h.Path, errType)
	}
	return d.node(h, replace, func(up *handle, name string) error { return unix.Symlinkat(h.Link, up.fd, name) })
}

// Special makes a FIFO or a device node. With replace it takes the place of what is there.
// A DeviceError: nobody may make this device here.
func (d *Dest) Special(h *tarstream.Header, replace bool) error {
	var kind uint32
	switch h.Type {
	case tarstream.Fifo:
		kind = unix.S_IFIFO
	case tarstream.Char:
		kind = unix.S_IFCHR
	case tarstream.Block:
		kind = unix.S_IFBLK
	default:
		return act("make special file", h.Path, errType)
	}
	dev := int(unix.Mkdev(h.Major, h.Minor))
	return d.node(h, replace, func(up *handle, name string) error {
		// For nobody else until it has its owner: a device may be opened at once.
		err := unix.Mknodat(up.fd, name, kind|0o600, dev)
		if errors.Is(err, unix.EPERM) && kind != unix.S_IFIFO && inUserNamespace() {
			return &DeviceError{Path: h.Path, Err: err}
		}
		return err
	})
}

// inUserNamespace says whether root is root of a user namespace only. In the
// first one all ids are mapped to themselves.
var inUserNamespace = sync.OnceValue(func() bool {
	ids, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(ids)), " ") != "0 0 4294967295"
})

// node makes an entry without content, with its metadata.
func (d *Dest) node(h *tarstream.Header, replace bool, create func(up *handle, name string) error) error {
	up, name, err := d.newEntry(h.Path)
	if err != nil {
		return err
	}
	defer d.release(up)
	as := name
	if replace {
		as = tempName()
	}
	if err := create(up, as); err != nil {
		return act("create", h.Path, err)
	}
	soft, err := d.newNodeMeta(up, as, h)
	if err == nil && replace {
		err = act("put in place", h.Path, unix.Renameat(up.fd, as, up.fd, name))
	}
	if err != nil {
		unix.Unlinkat(up.fd, as, 0)
		return err
	}
	return soft
}

func (d *Dest) newNodeMeta(up *handle, as string, h *tarstream.Header) (soft, err error) {
	r, st, err := pin(up, as)
	if err != nil {
		return nil, act("open", h.Path, err)
	}
	defer unix.Close(r.fd)
	// What was just made has one name; a link to something older does not.
	if st.Type != h.Type || st.Nlink != 1 {
		return nil, act("set metadata", h.Path, errSwapped)
	}
	return d.setMeta(r, h, st, up.defaultACL)
}

// pin opens an entry of whatever type, so that all further calls reach this
// one, and not what its name may lead to by then.
func pin(up *handle, name string) (ref, Stat, error) {
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(up.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return ref{}, Stat{}, err
	}
	st, err := statFd(fd)
	if err != nil {
		unix.Close(fd)
		return ref{}, Stat{}, err
	}
	return ref{fd, true}, st, nil
}

// Link makes a hard link to the entry at h.Link, which must be no directory;
// a symlink there is linked itself. With replace it takes the place of what
// is there. Metadata is the holder's.
func (d *Dest) Link(h *tarstream.Header, replace bool) error {
	if h.Link == IncompleteMark {
		return act("link to", h.Link, errMark)
	}
	from, holder, err := d.entry(h.Link)
	if err != nil {
		return err
	}
	defer d.release(from)
	up, name, err := d.newEntry(h.Path)
	if err != nil {
		return err
	}
	defer d.release(up)
	if !replace {
		return act("link", h.Path, unix.Linkat(from.fd, holder, up.fd, name, 0))
	}
	temp := tempName()
	if err := unix.Linkat(from.fd, holder, up.fd, temp, 0); err != nil {
		return act("link", h.Path, err)
	}
	err = unix.Renameat(up.fd, temp, up.fd, name)
	// Also after success: rename does nothing where both names are of one file.
	unix.Unlinkat(up.fd, temp, 0)
	return act("put in place", h.Path, err)
}

// SetMeta sets owner, mode, attributes and times of an entry, a directory
// too, where they differ; attributes that the header lacks are removed. have,
// if known, is the entry's earlier stat: another entry at its path is an error.
func (d *Dest) SetMeta(h *tarstream.Header, have *Stat) error {
	up, name, err := d.entry(h.Path)
	if err != nil {
		return err
	}
	defer d.release(up)
	r, st, err := pin(up, name)
	if err != nil {
		return act("open", h.Path, err)
	}
	defer unix.Close(r.fd)
	if have != nil && (have.Ino != st.Ino || have.Dev != st.Dev) {
		return act("set metadata", h.Path, errSwapped)
	}
	if st.Type != h.Type {
		return act("set metadata", h.Path, errType)
	}
	if st.Type == tarstream.Dir {
		defer d.changed(h.Path)
	}
	soft, err := d.setMeta(r, h, st, true)
	if err != nil {
		return err
	}
	return soft
}
