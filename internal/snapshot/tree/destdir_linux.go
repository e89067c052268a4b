package tree

import (
	"container/list"
	"errors"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

const (
	// maxHandles bounds the directories that are kept open; those in use come on top.
	maxHandles = 256
	// maxPiece is how much of a path one call is given: the kernel takes 4095 bytes.
	maxPiece = 3900
	// nearby is how many directories above the wanted one are looked up in the cache.
	nearby = 16
)

// handle is an open directory.
type handle struct {
	path string
	ref
	// What differs for files that are made here:
	defaultACL bool                  // they inherit an ACL, and other permissions with it
	born       atomic.Pointer[owner] // who they belong to at first; nil until one was made

	// Guarded by Dest.mu:
	users   int
	idle    *list.Element // in Dest.idle while users is 0
	dropped bool          // not in Dest.open any more: the last user closes it
}

type owner struct{ uid, gid uint32 }

func newHandle(p string, fd int, opath bool) *handle {
	h := &handle{path: p, ref: ref{fd, opath}}
	h.lookForACL()
	return h
}

// lookForACL is asked once a directory, so that a file in it without an ACL costs nothing.
func (h *handle) lookForACL() {
	_, err := h.getxattr(aclDefault, nil)
	h.defaultACL = err == nil
}

// dir returns the open directory of that path; release it.
func (d *Dest) dir(p string) (*handle, error) {
	if p == "." {
		return d.root, nil
	}
	d.mu.Lock()
	if h := d.open[p]; h != nil {
		d.use(h)
		d.mu.Unlock()
		return h, nil
	}
	from, rest := d.root, p
	for i, n := len(p), 0; n < nearby; n++ {
		if i = strings.LastIndexByte(p[:i], '/'); i < 0 {
			break
		}
		if h := d.open[p[:i]]; h != nil {
			d.use(h)
			from, rest = h, p[i+1:]
			break
		}
	}
	gone := d.gone
	d.mu.Unlock()
	fd, opath, err := d.openBelow(from.fd, rest)
	d.release(from)
	if err != nil {
		return nil, act("open directory", p, err)
	}
	h := newHandle(p, fd, opath)
	h.users = 1
	d.mu.Lock()
	defer d.mu.Unlock()
	if other := d.open[p]; other != nil { // another goroutine was faster
		unix.Close(fd)
		d.use(other)
		return other, nil
	}
	if gone != d.gone {
		h.dropped = true // this one may have been removed while we opened it
		return h, nil
	}
	d.open[p] = h
	for len(d.open) > maxHandles && d.idle.Len() > 0 {
		old := d.idle.Back().Value.(*handle)
		d.drop(old)
	}
	return h, nil
}

// use notes one more user; d.mu is held.
func (d *Dest) use(h *handle) {
	if h.idle != nil {
		d.idle.Remove(h.idle)
		h.idle = nil
	}
	h.users++
}

func (d *Dest) release(h *handle) {
	if h == d.root {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if h.users--; h.users > 0 {
		return
	}
	if h.dropped {
		unix.Close(h.fd)
		return
	}
	h.idle = d.idle.PushFront(h)
}

// drop takes a handle out of the cache; d.mu is held.
func (d *Dest) drop(h *handle) {
	delete(d.open, h.path)
	h.dropped = true
	if h.idle != nil {
		d.idle.Remove(h.idle)
		h.idle = nil
		unix.Close(h.fd)
	}
}

// changed forgets what is known of a directory: another may get its name, or
// new files in it another owner or ACL.
func (d *Dest) changed(p string) {
	if p == "." {
		d.root.born.Store(nil)
		d.root.lookForACL()
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gone++
	if h := d.open[p]; h != nil {
		d.drop(h)
	}
}

// openBelow opens a directory below another, in as many steps as the path's
// length asks for. opath says that we may enter it but not list it.
func (d *Dest) openBelow(from int, rel string) (fd int, opath bool, err error) {
	fd = from
	for rest := rel; ; {
		var piece string
		piece, rest = d.cut(rest)
		var next int
		flags := unix.O_PATH
		if rest == "" {
			flags = unix.O_RDONLY
		}
		next, err = d.openPiece(fd, piece, flags)
		if errors.Is(err, unix.EACCES) && rest == "" {
			opath = true
			next, err = d.openPiece(fd, piece, unix.O_PATH)
		}
		if fd != from {
			unix.Close(fd)
		}
		if err != nil {
			return -1, false, err
		}
		if fd = next; rest == "" {
			return fd, opath, nil
		}
	}
}

// cut takes the part off a path that one call opens.
func (d *Dest) cut(p string) (piece, rest string) {
	i := -1
	if d.walks {
		i = strings.IndexByte(p, '/')
	} else if len(p) > maxPiece {
		i = strings.LastIndexByte(p[:maxPiece+1], '/')
	}
	if i < 0 {
		return p, ""
	}
	return p[:i], p[i+1:]
}

func (d *Dest) openPiece(fd int, piece string, flags int) (int, error) {
	flags |= unix.O_DIRECTORY | unix.O_NOFOLLOW
	if !d.walks {
		return openBeneath(fd, piece, flags)
	}
	return ignoringEINTR(func() (int, error) { return unix.Openat(fd, piece, flags|unix.O_CLOEXEC, 0) })
}

// openBeneath opens a path that goes through no symlink and never up. Mount
// points are entered: a volume may have them.
func openBeneath(fd int, rel string, flags int) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags) | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for tries := 0; ; tries++ {
		got, err := ignoringEINTR(func() (int, error) { return unix.Openat2(fd, rel, &how) })
		// EAGAIN: something was renamed during the look-up.
		if !errors.Is(err, unix.EAGAIN) || tries == 100 {
			return got, err
		}
	}
}

// Mkdir makes a directory that only we can enter, until FinishDir; one that is there is fine.
func (d *Dest) Mkdir(p string) (created bool, err error) {
	if p == "." {
		return false, nil
	}
	up, name, err := d.newEntry(p)
	if err != nil {
		return false, err
	}
	defer d.release(up)
	err = unix.Mkdirat(up.fd, name, 0o700)
	if errors.Is(err, unix.EEXIST) {
		st, serr := statAt(up.fd, name)
		if serr == nil && st.Type == tarstream.Dir {
			return false, nil
		}
	}
	return err == nil, act("make directory", p, err)
}

// FinishDir gives a directory, the root too, its metadata, when nothing more
// will be put into it: attributes that the header lacks are removed.
func (d *Dest) FinishDir(h *tarstream.Header) error {
	up, name, err := d.entry(h.Path)
	if err != nil {
		return err
	}
	defer d.release(up)
	// Not through the cache: each directory is finished once.
	r := ref{}
	r.fd, r.opath, err = d.openBelow(up.fd, name)
	if err != nil {
		return act("open directory", h.Path, err)
	}
	defer unix.Close(r.fd)
	st, err := statFd(r.fd)
	if err != nil {
		return act("stat", h.Path, err)
	}
	defer d.changed(h.Path)
	soft, err := d.setMeta(r, h, st, true)
	if err != nil {
		return err
	}
	return soft
}
