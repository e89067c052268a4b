package tree

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// File is a regular file of a source, open for reading.
type File struct {
	fd int
}

// Open opens a regular file and returns its stat at that moment.
func (n *Node) Open() (*File, Stat, error) {
	fd, err := n.up.use()
	if err != nil {
		return nil, Stat{}, err
	}
	defer n.up.unuse()
	// Not blocking, lest a FIFO that took the file's place stops the run.
	f, err := openNoAtime(fd, n.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		err = ErrReplaced
	}
	if err != nil {
		return nil, Stat{}, err
	}
	st, err := statFd(f)
	if err == nil && st.Type != tarstream.File {
		err = ErrReplaced
	}
	if err != nil {
		unix.Close(f)
		return nil, Stat{}, err
	}
	return &File{fd: f}, st, nil
}

// Stat returns the file's stat now.
func (f *File) Stat() (Stat, error) { return statFd(f.fd) }

// Xattrs returns the file's extended attributes, sorted.
func (f *File) Xattrs() ([]tarstream.Xattr, error) { return FdXattrs(f.fd) }

// Close closes the file.
func (f *File) Close() error { return unix.Close(f.fd) }

// ReadAt reads into p from off until p is full or the file ends; io.EOF in
// that case only.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := ignoringEINTR(func() (int, error) { return unix.Pread(f.fd, p[done:], off+int64(done)) })
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, io.EOF
		}
		done += n
	}
	return done, nil
}

// Extents returns where the file's data is, if it has holes; nil if it has
// none or the file system cannot tell.
func (f *File) Extents(size int64) ([]tarstream.Extent, error) {
	ext := []tarstream.Extent{}
	for pos := int64(0); pos < size; {
		data, err := unix.Seek(f.fd, pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole up to the end
		}
		if err != nil {
			if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
				return nil, nil
			}
			return nil, fmt.Errorf("seek data: %w", err)
		}
		if data >= size {
			break
		}
		hole, err := unix.Seek(f.fd, data, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("seek hole: %w", err)
		}
		hole = min(hole, size)
		if n := len(ext); n > 0 && ext[n-1].Offset+ext[n-1].Length == data {
			ext[n-1].Length = hole - ext[n-1].Offset
		} else {
			ext = append(ext, tarstream.Extent{Offset: data, Length: hole - data})
		}
		pos = hole
	}
	if len(ext) == 1 && ext[0].Offset == 0 && ext[0].Length == size {
		return nil, nil
	}
	return ext, nil
}

// Header returns the tar header of an entry that is not a regular file: with
// its link text and extended attributes.
func (n *Node) Header() (tarstream.Header, error) {
	h := n.Stat.Header(n.Path)
	if n.self != nil {
		fd, err := n.self.use()
		if err != nil {
			return h, err
		}
		defer n.self.unuse()
		h.Xattrs, err = FdXattrs(fd)
		return h, err
	}
	fd, err := n.up.use()
	if err != nil {
		return h, err
	}
	defer n.up.unuse()
	if h.Type == tarstream.Symlink {
		buf := make([]byte, unix.PathMax)
		k, err := unix.Readlinkat(fd, n.name, buf)
		if err != nil {
			return h, err
		}
		h.Link = string(buf[:k])
	}
	h.Xattrs, err = LXattrs(fd, n.name)
	return h, err
}

// HasMark says whether the tree's root bears the mark of an unfinished restore.
func (s *Source) HasMark() bool {
	_, err := statAt(s.root.fd, IncompleteMark)
	return err == nil
}
