package snapshot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/disko/backupd/internal/snapshot/tarstream"
	"github.com/disko/backupd/internal/snapshot/tree"
)

// content is what was read of a small file.
type content struct {
	header tarstream.Header
	stat   tree.Stat
	data   []byte // what the extents hold, for a sparse file
	dirty  bool   // was written to at every try
	gone   bool   // there is no such file any more
	grown  bool   // too large by now to be read whole
	err    error
	buf    *[]byte // data's memory, to be given back
}

// tries is how often a small file is read again when it changed meanwhile.
const tries = 3

// readSmall reads a file of at most limit bytes, as it is at one moment if
// its writers leave it one.
func readSmall(n *tree.Node, limit int64, buf *[]byte) (c content) {
	c.buf = buf
	f, st, err := n.Open()
	if err != nil {
		c.err, c.gone = err, errors.Is(err, fs.ErrNotExist)
		return c
	}
	defer f.Close()
	if n.Stat.Nlink > 1 && st.Ino != n.Stat.Ino {
		c.err = tree.ErrReplaced // other paths of the old file count on its content
		return c
	}
	for range tries {
		if st.Size > limit {
			c.grown = true
			return c
		}
		if err := c.read(n.Path, f, st); err != nil {
			c.err = err
			return c
		}
		after, err := f.Stat()
		if err != nil {
			c.err = err
			return c
		}
		c.stat = st
		c.dirty = !after.Same(&st)
		if !c.dirty {
			return c
		}
		st = after
	}
	return c
}

func (c *content) read(path string, f *tree.File, st tree.Stat) error {
	c.header = st.Header(path)
	var err error
	if c.header.Xattrs, err = f.Xattrs(); err != nil {
		return err
	}
	if err := sparse(&c.header, f, st); err != nil {
		return err
	}
	if n := int(c.header.DataSize()); cap(*c.buf) < n {
		*c.buf = make([]byte, max(n, smallBuffer))
	}
	c.data = (*c.buf)[:0]
	extents := c.header.Sparse
	if extents == nil {
		extents = []tarstream.Extent{{Length: st.Size}}
	}
	for i, e := range extents {
		at := len(c.data)
		n, err := f.ReadAt((*c.buf)[at:at+int(e.Length)], e.Offset)
		c.data = (*c.buf)[:at+n]
		if errors.Is(err, io.EOF) {
			truncated(&c.header, i, int64(n))
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sparse gives a header the extents of a file with holes.
func sparse(h *tarstream.Header, f *tree.File, st tree.Stat) error {
	if st.Blocks*512 >= st.Size {
		return nil
	}
	ext, err := f.Extents(st.Size)
	if err != nil {
		return err
	}
	h.Sparse = tarstream.MergeExtents(ext, tarstream.MaxExtents)
	if ext != nil && h.Sparse == nil {
		h.Sparse = []tarstream.Extent{}
	}
	return nil
}

// truncated makes a header true of a file that ended n bytes into extent i,
// because it was cut while it was read.
func truncated(h *tarstream.Header, i int, n int64) {
	if h.Sparse == nil {
		h.Size = n
		return
	}
	e := h.Sparse[i]
	e.Length = n
	h.Size = e.Offset + n
	h.Sparse = h.Sparse[:i]
	if n > 0 {
		h.Sparse = append(h.Sparse, e)
	}
}

// extentReader reads the data of a file, extent by extent.
type extentReader struct {
	f       *tree.File
	header  *tarstream.Header
	extents []tarstream.Extent
	i       int
	pos     int64 // in extent i
	done    func(n int)
}

func newExtentReader(f *tree.File, h *tarstream.Header, done func(n int)) *extentReader {
	r := &extentReader{f: f, header: h, extents: h.Sparse, done: done}
	if h.Sparse == nil {
		r.extents = []tarstream.Extent{{Length: h.Size}}
	}
	return r
}

// Read ends where the file ends, if that is earlier than the header says; it
// then corrects the header.
func (r *extentReader) Read(p []byte) (int, error) {
	for r.i < len(r.extents) && r.pos == r.extents[r.i].Length {
		r.i, r.pos = r.i+1, 0
	}
	if r.i == len(r.extents) {
		return 0, io.EOF
	}
	e := r.extents[r.i]
	n, err := r.f.ReadAt(p[:min(int64(len(p)), e.Length-r.pos)], e.Offset+r.pos)
	r.pos += int64(n)
	r.done(n)
	if errors.Is(err, io.EOF) {
		truncated(r.header, r.i, r.pos)
		r.i, r.pos = len(r.extents), 0
		r.extents = nil
		r.i = 0
		if n > 0 {
			return n, nil
		}
		return 0, io.EOF
	}
	if err != nil {
		return n, fmt.Errorf("read at %d: %w", e.Offset+r.pos, err)
	}
	return n, nil
}
