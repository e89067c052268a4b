package tree

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

const (
	setIDs = 0o6000
	// unknownMode differs from every mode.
	unknownMode = 1 << 31
)

// unknownTime differs from every time.
var unknownTime = tarstream.Time{Nsec: -1}

// errNotCarried: see carried.
var errNotCarried = errors.New("describes the machine that it was made on, and is not restored")

// ref is an open entry. With opath it was opened with O_PATH, as only that
// opens what cannot be read (symlinks, devices, FIFOs that would block):
// the calls on descriptors then refuse it, and its name in /proc is used,
// which leads to that very entry whatever its path is now.
type ref struct {
	fd    int
	opath bool
}

func (r ref) proc() string { return "/proc/self/fd/" + strconv.Itoa(r.fd) }

func (r ref) chown(uid, gid uint32) error {
	return unix.Fchownat(r.fd, "", int(uid), int(gid), unix.AT_EMPTY_PATH)
}

func (r ref) chmod(mode uint32) error {
	if r.opath {
		return unix.Chmod(r.proc(), mode)
	}
	return unix.Fchmod(r.fd, mode)
}

// utimes sets the modification time, and the access time to the same: the
// snapshot does not have it.
func (r ref) utimes(t tarstream.Time) error {
	mtime, err := unix.TimeToTimespec(time.Unix(t.Sec, int64(t.Nsec)))
	if err != nil {
		return err // 32-bit machines end in 2038
	}
	ts := [2]unix.Timespec{mtime, mtime}
	if !r.opath {
		return utimensatFd(r.fd, &ts)
	}
	err = unix.UtimesNanoAt(r.fd, "", ts[:], unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // before 5.8
		err = unix.UtimesNanoAt(unix.AT_FDCWD, r.proc(), ts[:], 0)
	}
	return err
}

func (r ref) listxattr(buf []byte) (int, error) {
	if r.opath {
		return unix.Listxattr(r.proc(), buf)
	}
	return unix.Flistxattr(r.fd, buf)
}

func (r ref) getxattr(name string, buf []byte) (int, error) {
	if r.opath {
		return unix.Getxattr(r.proc(), name, buf)
	}
	return unix.Fgetxattr(r.fd, name, buf)
}

func (r ref) setxattr(name string, value []byte) error {
	if r.opath {
		return unix.Setxattr(r.proc(), name, value, 0)
	}
	return unix.Fsetxattr(r.fd, name, value, 0)
}

func (r ref) removexattr(name string) error {
	if r.opath {
		return unix.Removexattr(r.proc(), name)
	}
	return unix.Fremovexattr(r.fd, name)
}

// mode is a header's mode as it is set here.
func (d *Dest) mode(h *tarstream.Header) uint32 {
	if d.o.NoOwner {
		return h.Mode &^ setIDs
	}
	return h.Mode
}

// setMeta gives an entry the header's owner, mode, attributes and times, in
// this order, as each may undo what comes after it: chown clears set-uid and
// capabilities. What it has already, by have, is left alone. With exact,
// attributes that the header lacks are removed; otherwise there are none.
// soft is the error of attributes, or of a set-gid bit, only.
func (d *Dest) setMeta(r ref, h *tarstream.Header, have Stat, exact bool) (soft, err error) {
	mode := d.mode(h)
	if !d.o.NoOwner && (have.UID != h.UID || have.GID != h.GID) {
		if err := r.chown(h.UID, h.GID); err != nil {
			return nil, &OwnerError{h.Path, h.UID, h.GID, err}
		}
		if (mode|have.Mode)&setIDs != 0 {
			have.Mode = unknownMode
		}
	}
	if have.Mode != mode && h.Type != tarstream.Symlink {
		if err := r.chmod(mode); err != nil {
			return nil, act("set mode", h.Path, err)
		}
	}
	if exact || len(h.Xattrs) > 0 {
		if soft, err = d.setXattrs(r, h, exact); err != nil {
			return nil, err
		}
	}
	if have.Mtime != h.Mtime {
		if err := r.utimes(h.Mtime); err != nil {
			return nil, act("set time", h.Path, err)
		}
	}
	if have.Mode != mode && mode&unix.S_ISGID != 0 && h.Type != tarstream.Symlink {
		var st unix.Stat_t
		if err := unix.Fstat(r.fd, &st); err != nil {
			return nil, act("read mode", h.Path, err)
		}
		if got := st.Mode & 0o7777; got != mode {
			soft = errors.Join(soft, &ModeError{h.Path, mode, got})
		}
	}
	return soft, nil
}

func (d *Dest) setXattrs(r ref, h *tarstream.Header, exact bool) (soft, err error) {
	x := xattrSetter{r: r, h: h, mode: d.mode(h)}
	wanted := func(name string) bool { return carried(name) && !(d.o.NoOwner && name == capability) }
	if exact {
		var stack [512]byte
		names, err := listXattrs(stack[:], r.listxattr)
		if err != nil {
			return nil, act("list attributes", h.Path, err)
		}
		for b := range bytes.SplitSeq(names, []byte{0}) {
			name := string(b)
			in := slices.ContainsFunc(h.Xattrs, func(x tarstream.Xattr) bool { return x.Name == name })
			if !carried(name) || in && wanted(name) {
				continue
			}
			x.do(name, func() error {
				err := r.removexattr(name)
				if errors.Is(err, unix.ENODATA) {
					err = nil
				}
				return err
			})
		}
	}
	for _, a := range h.Xattrs {
		if !carried(a.Name) {
			x.do(a.Name, func() error { return errNotCarried })
			continue
		}
		if !wanted(a.Name) {
			continue
		}
		if exact {
			if is, err := getXattr(a.Name, r.getxattr); err == nil && bytes.Equal(is, a.Value) {
				continue
			}
		}
		x.do(a.Name, func() error { return r.setxattr(a.Name, a.Value) })
	}
	return x.end()
}

// xattrSetter collects what could not be done, and lifts a mode that forbids
// us to write: for user.* the kernel asks for the permission to write, of a plain
// user who may well own a read-only file.
type xattrSetter struct {
	r      ref
	h      *tarstream.Header
	mode   uint32
	lifted bool
	failed []error
}

func (x *xattrSetter) do(name string, change func() error) {
	err := change()
	if errors.Is(err, unix.EACCES) && !x.lifted && x.h.Type != tarstream.Symlink && x.r.chmod(x.mode|0o600) == nil {
		x.lifted = true
		err = change()
	}
	if err != nil {
		x.failed = append(x.failed, &XattrError{x.h.Path, name, err})
	}
}

func (x *xattrSetter) end() (soft, err error) {
	if x.lifted {
		if err := x.r.chmod(x.mode); err != nil {
			return nil, act("set mode", x.h.Path, err)
		}
	}
	if len(x.failed) == 1 {
		return x.failed[0], nil
	}
	return errors.Join(x.failed...), nil
}
