package tree

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// lostFound is made by mkfs, and belongs to the file system.
const lostFound = "lost+found"

// Remove removes an entry, and with a directory all that is below it; of the
// root only what is below. What keep says yes to stays, and so do the
// directories that it lies in, what is mounted below the root, lost+found in
// the root, and the incomplete mark. Nothing there is fine.
func (d *Dest) Remove(p string, keep func(path string) bool) error {
	if err := tarstream.CheckPath(p); err != nil {
		return err
	}
	if keep == nil {
		keep = func(string) bool { return false }
	}
	_, err := d.remove(p, keep)
	return err
}

// remove holds no descriptor while it goes down: the depth is not ours to bound.
func (d *Dest) remove(p string, keep func(string) bool) (gone bool, err error) {
	if p == lostFound || p == IncompleteMark || keep(p) {
		return false, nil
	}
	isDir, stays, err := d.lookBeforeRemove(p)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil || stays {
		return false, err
	}
	flags := 0
	if isDir {
		flags = unix.AT_REMOVEDIR
		names, err := d.ReadDirNames(p)
		if err != nil {
			return false, err
		}
		prefix := p + "/"
		if p == "." {
			prefix = ""
		}
		empty := p != "."
		for _, n := range names {
			gone, err := d.remove(prefix+n, keep)
			if err != nil {
				return false, err
			}
			empty = empty && gone
		}
		if !empty {
			return false, nil
		}
		d.changed(p)
	}
	up, name, err := d.entry(p)
	if err != nil {
		return false, err
	}
	defer d.release(up)
	switch err = unix.Unlinkat(up.fd, name, flags); {
	case errors.Is(err, unix.ENOENT):
		return true, nil
	case errors.Is(err, unix.EBUSY): // a mount point that its stat did not show
		return false, nil
	}
	return err == nil, act("remove", p, err)
}

// lookBeforeRemove says whether an entry is a directory, and whether it stays because
// something is mounted there: rmdir would find out only after all below was gone.
func (d *Dest) lookBeforeRemove(p string) (isDir, stays bool, err error) {
	up, name, err := d.entry(p)
	if err != nil {
		return false, false, err
	}
	defer d.release(up)
	st, err := statAt(up.fd, name)
	if err != nil {
		return false, false, act("stat", p, err)
	}
	if st.MountRoot && p != "." {
		return false, true, nil
	}
	if st.Type != tarstream.Dir {
		return false, false, nil
	}
	// Kernels before 5.8 do not tell mount points, only their devices.
	over, err := statFd(up.fd)
	return true, over.Dev != st.Dev, act("stat", p, err)
}
