package sealed

import (
	"errors"
	"fmt"
	"io"

	"filippo.io/age"

	"github.com/disko/backupd/internal/snapshot/pack"
)

// An age file is a header, a nonce of 16 bytes and chunks of 64 KiB, each with
// 16 bytes more (age-encryption.org/v1). A header for one recipient of one
// kind always has one length, so sizes are known without reading.
const (
	chunkSize    = 64 << 10
	encChunkSize = chunkSize + tagSize
	tagSize      = 16
)

// overhead returns the length of header and nonce of every object for a recipient.
func overhead(r age.Recipient) (int64, error) {
	data, err := encrypt(nil, nil, r)
	return int64(len(data)) - tagSize, err
}

// encrypt appends data as an age file to dst.
func encrypt(dst, data []byte, r age.Recipient) ([]byte, error) {
	out := appender(dst)
	w, err := age.Encrypt(&out, r)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	return out, nil
}

// appender is a slice to write to. Unlike bytes.Buffer it does not double what
// is nearly large enough: packs are 16 MiB, more or less.
type appender []byte

func (a *appender) Write(p []byte) (int, error) {
	*a = append(*a, p...)
	return len(p), nil
}

func (s *Reader) sealedSize(plain int64) int64 {
	return s.overhead + plain + tagSize*max(1, (plain+chunkSize-1)/chunkSize)
}

// plainSize is what sealedSize has for its argument; negative where there is no such.
func (s *Reader) plainSize(size int64) int64 {
	body := size - s.overhead
	plain := body - tagSize*max(1, (body+encChunkSize-1)/encChunkSize)
	if plain < 0 || s.sealedSize(plain) != size {
		return -1
	}
	return plain
}

// spans are pieces of an object that were read.
type spans []span

type span struct {
	off  int64
	data []byte
}

// has says whether a span holds what lies between two offsets.
func (x span) has(off, end int64) bool { return off >= x.off && end <= x.off+int64(len(x.data)) }

// ReadAt implements io.ReaderAt for what lies in one of the pieces.
func (s spans) ReadAt(p []byte, off int64) (int, error) {
	for _, x := range s {
		if off >= x.off && off < x.off+int64(len(x.data)) {
			n := copy(p, x.data[off-x.off:])
			if n < len(p) {
				return n, io.ErrUnexpectedEOF
			}
			return n, nil
		}
	}
	return 0, io.EOF
}

// decrypt opens an object of which pieces were read, and returns n bytes from off.
func decrypt(src spans, size, off, n int64, ids ...age.Identity) ([]byte, error) {
	r, plain, err := age.DecryptReaderAt(headFirst{src}, size, ids...)
	if err != nil {
		return nil, corrupt(err)
	}
	if off+n > plain {
		return nil, corrupt(io.ErrUnexpectedEOF)
	}
	out := make([]byte, n)
	if _, err := r.ReadAt(out, off); err != nil && !errors.Is(err, io.EOF) {
		return nil, corrupt(err)
	}
	return out, nil
}

// headFirst lets age read on behind the header, into what was not read: its
// parser buffers.
type headFirst struct{ spans }

func (h headFirst) ReadAt(p []byte, off int64) (int, error) {
	n, err := h.spans.ReadAt(p, off)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

func corrupt(err error) error {
	if nomatch := (*age.NoIdentityMatchError)(nil); errors.As(err, &nomatch) {
		return fmt.Errorf("%w: encrypted to another key than this repository's", ErrForged)
	}
	return fmt.Errorf("%w: cannot be decrypted: %w", pack.ErrCorrupt, err)
}
