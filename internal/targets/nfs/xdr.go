package nfs

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// encoder writes XDR (RFC 4506): big-endian, in multiples of four bytes.
type encoder struct{ b []byte }

func (e *encoder) u32(v uint32) { e.b = binary.BigEndian.AppendUint32(e.b, v) }
func (e *encoder) u64(v uint64) { e.b = binary.BigEndian.AppendUint64(e.b, v) }

func (e *encoder) opaque(v []byte) {
	e.u32(uint32(len(v)))
	e.b = append(e.b, v...)
	e.b = append(e.b, make([]byte, -len(v)&3)...)
}

func (e *encoder) string(v string) { e.opaque([]byte(v)) }

// decoder reads XDR. The first error stays, and what is read after it is zero.
type decoder struct {
	b   []byte
	err error
}

var errGarbled = errors.New("the server's answer cannot be read")

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: "+format, append([]any{errGarbled}, args...)...)
	}
}

// bytes returns the next n bytes. They are valid until the next answer is read.
func (d *decoder) bytes(n int) []byte {
	if d.err == nil && n > len(d.b) {
		d.fail("it ends %d bytes early", n-len(d.b))
	}
	if d.err != nil {
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) u32() uint32 {
	if b := d.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if b := d.bytes(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) bool() bool {
	v := d.u32()
	if v > 1 {
		d.fail("a truth value is %d", v)
	}
	return v == 1 && d.err == nil
}

// opaque returns up to limit bytes, as bytes does.
func (d *decoder) opaque(limit int) []byte {
	n := d.u32()
	if uint64(n) > uint64(limit) {
		d.fail("a field has %d bytes, of %d at most", n, limit)
		return nil
	}
	v := d.bytes(int(n))
	d.bytes(-int(n) & 3)
	return v
}
