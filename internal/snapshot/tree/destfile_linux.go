package tree

import (
	"crypto/rand"
	"encoding/hex"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// tempPrefix begins the names of entries on their way to their place.
const tempPrefix = ".backupd-tmp-"

func tempName() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return tempPrefix + hex.EncodeToString(b[:])
}

// DestFile is a regular file that is being written. End it with Finish or Abort.
type DestFile struct {
	d    *Dest
	h    tarstream.Header
	up   *handle
	name string // its place
	temp string // the name it has until then; empty if that is its own
	fd   int    // -1 once closed
	have Stat   // what is known of it: owner and mode
}

// CreateFile begins a regular file. With replace it has a temporary name
// until Finish, and what is in its place stays until then; without, there
// must be nothing. Of the header Size and Sparse are the caller's business.
func (d *Dest) CreateFile(h *tarstream.Header, replace bool) (*DestFile, error) {
	up, name, err := d.newEntry(h.Path)
	if err != nil {
		return nil, err
	}
	f := &DestFile{d: d, h: *h, up: up, name: name}
	if replace {
		f.temp = tempName()
	}
	perm := d.mode(h) & 0o777
	f.fd, err = ignoringEINTR(func() (int, error) {
		return unix.Openat(up.fd, f.linked(), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, perm)
	})
	if err != nil {
		d.release(up)
		return nil, act("create", h.Path, err)
	}
	// A new file's mode follows from the mask, or else from the directory's ACL.
	f.have = Stat{Mode: perm &^ d.umask, Mtime: unknownTime}
	if up.defaultACL {
		f.have.Mode = unknownMode
	}
	if d.o.NoOwner {
		return f, nil
	}
	// Its owner is ours as a rule; but set-gid directories, mount options and
	// file servers have their own. One look at the first file of a directory tells.
	born := up.born.Load()
	if born == nil {
		st, err := statFd(f.fd)
		if err != nil {
			f.Abort()
			return nil, act("stat", h.Path, err)
		}
		born = &owner{st.UID, st.GID}
		up.born.Store(born)
	}
	f.have.UID, f.have.GID = born.uid, born.gid
	return f, nil
}

// linked is the name that the file has now.
func (f *DestFile) linked() string {
	if f.temp != "" {
		return f.temp
	}
	return f.name
}

// WriteAt writes all of p at off. Safe for concurrent use.
func (f *DestFile) WriteAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		k, err := ignoringEINTR(func() (int, error) { return unix.Pwrite(f.fd, p[n:], off+int64(n)) })
		if err != nil {
			return n, act("write", f.h.Path, err)
		}
		n += k
	}
	return n, nil
}

// Truncate sets the file's size; what was not written up to it is a hole.
func (f *DestFile) Truncate(size int64) error {
	_, err := ignoringEINTR(func() (int, error) { return 0, unix.Ftruncate(f.fd, size) })
	return act("truncate", f.h.Path, err)
}

// Abort drops the file. After Finish it does nothing.
func (f *DestFile) Abort() {
	if f.up == nil {
		return
	}
	if f.fd >= 0 {
		unix.Close(f.fd)
	}
	unix.Unlinkat(f.up.fd, f.linked(), 0)
	f.end()
}

func (f *DestFile) end() {
	f.fd = -1
	f.d.release(f.up)
	f.up = nil
}

// Finish gives the file its metadata and its name. After an error there is no
// file, except after an *XattrError.
func (f *DestFile) Finish() error {
	soft, err := f.d.setMeta(ref{fd: f.fd}, &f.h, f.have, f.up.defaultACL)
	if err != nil {
		f.Abort()
		return err
	}
	err = unix.Close(f.fd)
	f.fd = -1
	if err != nil && !errors.Is(err, unix.EINTR) { // network file systems say here that they are full
		f.Abort()
		return act("close", f.h.Path, err)
	}
	if f.temp != "" {
		if err := unix.Renameat(f.up.fd, f.temp, f.up.fd, f.name); err != nil {
			f.Abort()
			return act("put in place", f.h.Path, err)
		}
	}
	f.end()
	return soft
}

// WriteSmall writes a regular file whose content is at hand.
func (d *Dest) WriteSmall(h *tarstream.Header, content []byte, replace bool) error {
	f, err := d.CreateFile(h, replace)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(content, 0); err != nil {
		f.Abort()
		return err
	}
	return f.Finish()
}
