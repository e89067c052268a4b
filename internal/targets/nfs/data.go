package nfs

import (
	"errors"
	"fmt"
	"math"

	"github.com/disko/backupd/internal/store"
)

const (
	// maxPiece bounds a READ or WRITE. Linux's server goes to 1 MiB, too.
	maxPiece = 1 << 20
	// inFlight is how many READs or WRITEs of an operation are under way. ADR 12
	// has what it is worth.
	inFlight = 4

	unstable = 0
	fileSync = 2
	// rewrites is how often data is sent anew because the server lost it.
	rewrites = 3
)

// verifier changes when a server may have lost what it had not committed.
type verifier [8]byte

func (d *decoder) verifier() (v verifier) {
	copy(v[:], d.bytes(len(v)))
	return v
}

// write writes data to an empty file, and returns when the server says that it
// is on stable storage.
func (s *session) write(file handle, data []byte) error {
	for range rewrites {
		stable, err := s.writeOnce(file, data)
		if stable || err != nil {
			return err
		}
	}
	return fmt.Errorf("the server lost what was written %d times, as if it had restarted in between", rewrites)
}

func (s *session) writeOnce(file handle, data []byte) (stable bool, err error) {
	how := uint32(unstable)
	if len(data) <= s.export.wtmax {
		how = fileSync // one call instead of two
	}
	stable = true
	var first verifier
	restarted, answers := false, 0
	ask := func(e *encoder, p piece) {
		e.opaque([]byte(file))
		e.u64(p.off)
		e.u32(uint32(p.n))
		e.u32(how)
		e.opaque(data[p.off : p.off+uint64(p.n)])
	}
	err = s.pieces(procWrite, uint64(len(data)), s.export.wtmax, ask, func(p piece, d *decoder) (int, error) {
		d, err := checked(d)
		if err != nil {
			return 0, err
		}
		d.skipChange()
		n, committed, v := d.u32(), d.u32(), d.verifier()
		switch {
		case d.err != nil:
			return 0, d.err
		case n == 0 || int64(n) > int64(p.n):
			return 0, fmt.Errorf("%w: it wrote %d of %d bytes", errGarbled, n, p.n)
		}
		if answers++; answers == 1 {
			first = v
		}
		restarted = restarted || v != first
		stable = stable && committed == fileSync
		return int(n), nil
	})
	if err != nil || stable {
		return stable, err
	}
	v, err := s.commit(file)
	return !restarted && v == first, err
}

func (s *session) commit(file handle) (v verifier, err error) {
	d, err := s.ask(procCommit, func(e *encoder) {
		e.opaque([]byte(file))
		e.u64(0)
		e.u32(0) // all of it
	})
	if err != nil {
		return v, err
	}
	d.skipChange()
	v = d.verifier()
	return v, d.err
}

// read returns n bytes from offset off of a regular file; all that follow
// where n < 0.
func (s *session) read(f node, off, n int64) ([]byte, error) {
	if f.size > math.MaxInt64 {
		return nil, fmt.Errorf("%w: a file of %d bytes", errGarbled, f.size)
	}
	size := int64(f.size)
	if n < 0 {
		n = max(size-off, 0)
	}
	if off < 0 || off > size || n > size-off || n > math.MaxInt {
		return nil, fmt.Errorf("%w: has %d bytes, wanted %d from %d", store.ErrShort, size, n, off)
	}
	data := make([]byte, n)
	ask := func(e *encoder, p piece) {
		e.opaque([]byte(f.handle))
		e.u64(uint64(off) + p.off)
		e.u32(uint32(p.n))
	}
	err := s.pieces(procRead, uint64(n), s.export.rtmax, ask, func(p piece, d *decoder) (int, error) {
		d, err := checked(d)
		if err != nil {
			return 0, err
		}
		d.maybeAttributes()
		count, end := d.u32(), d.bool()
		b := d.opaque(p.n)
		switch {
		case d.err != nil:
			return 0, d.err
		case int(count) != len(b):
			return 0, fmt.Errorf("%w: %d bytes are said to be %d", errGarbled, len(b), count)
		case end && len(b) < p.n:
			return 0, fmt.Errorf("%w: it was cut while it was read", store.ErrShort)
		case len(b) == 0:
			return 0, errors.New("the server read nothing, and does not say why")
		}
		return copy(data[p.off:], b), nil
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}
