package tree

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// maxMark bounds the text of a mark, which anyone may have put there, in bytes.
const maxMark = 64 << 10

// WriteMark writes the incomplete mark, durably. One that is there stays: it
// tells of the restore that the data was first changed by.
func (d *Dest) WriteMark(text []byte) error {
	const what = "write the mark"
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(d.root.fd, IncompleteMark, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	})
	if errors.Is(err, unix.EEXIST) {
		st, serr := statAt(d.root.fd, IncompleteMark)
		if serr != nil {
			return act(what, IncompleteMark, serr)
		}
		if st.Type != tarstream.File {
			return act(what, IncompleteMark, errType)
		}
		return act(what, IncompleteMark, d.Sync()) // whoever wrote it may not have come so far
	}
	if err != nil {
		return act(what, IncompleteMark, err)
	}
	f := os.NewFile(uintptr(fd), IncompleteMark)
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = unix.Fsync(d.root.fd)
	}
	return act(what, IncompleteMark, err)
}

// HasMark says whether the incomplete mark is there. When in doubt it is.
func (d *Dest) HasMark() bool {
	_, err := statAt(d.root.fd, IncompleteMark)
	return !errors.Is(err, unix.ENOENT)
}

// ReadMark returns the mark's text.
func (d *Dest) ReadMark() ([]byte, error) {
	f, err := d.OpenRead(IncompleteMark)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxMark))
	return b, act("read the mark", IncompleteMark, err)
}

// RemoveMark removes the mark, durably. Sync comes first: what the mark
// speaks of must not be lost after it.
func (d *Dest) RemoveMark() error {
	err := unix.Unlinkat(d.root.fd, IncompleteMark, 0)
	if err == nil {
		err = unix.Fsync(d.root.fd)
	}
	return act("remove the mark", IncompleteMark, err)
}
