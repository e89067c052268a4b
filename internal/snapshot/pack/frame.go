// Package pack turns pieces of a stream into frames and gathers frames into
// packs. A frame is one zstd frame, known by the SHA-256 of its raw bytes; a
// pack is an object of many frames that ends in a skippable frame with their
// table. Frames never depend on one another.
//
// It does not know what the pieces mean, nor where packs are kept.
package pack

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
)

const (
	// MaxFrame is the most raw bytes a frame may hold.
	MaxFrame = 4 << 20
	// maxEncoded bounds a frame's stored size: zstd stores what it cannot
	// shrink in blocks of 128 KiB with 3 bytes each, and adds header and checksum.
	maxEncoded = MaxFrame + MaxFrame/1024 + 64
	// window is the encoders' window. With 1 MiB an encoder takes 1.6 MB
	// instead of 8.7, and groups are no larger than that.
	window = 1 << 20
)

// ErrCorrupt says that stored bytes are not what was written.
var ErrCorrupt = errors.New("damaged")

// ID is a frame's identity: the SHA-256 of its raw bytes.
type ID [sha256.Size]byte

// Sum returns the ID of raw bytes.
func Sum(raw []byte) ID { return sha256.Sum256(raw) }

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Name names a pack: the run that wrote it and its number in that run.
type Name struct {
	Run string
	N   uint32
}

func (n Name) String() string { return n.Run + "-" + strconv.FormatUint(uint64(n.N), 10) }

// ParseName reads what Name.String writes.
func ParseName(s string) (Name, error) {
	run, num, ok := strings.Cut(s, "-")
	n, err := strconv.ParseUint(num, 10, 32)
	if !ok || !ValidRun(run) || err != nil || strconv.FormatUint(n, 10) != num {
		return Name{}, fmt.Errorf("%w: pack name %q", ErrCorrupt, s)
	}
	return Name{Run: run, N: uint32(n)}, nil
}

// ValidRun says whether s has the form of a run id: 16 lower-case hex digits.
func ValidRun(s string) bool {
	if len(s) != 16 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Ref says where a frame is stored and what comes out of it.
type Ref struct {
	ID   ID
	Pack Name
	Off  uint32 // bytes from the pack's start
	Len  uint32 // stored bytes
	Raw  uint32 // bytes after decoding
}

// Check refuses a reference that no writer makes, so that no reader allocates by it.
func (r Ref) Check() error {
	if r.Raw > MaxFrame || r.Len == 0 || r.Len > maxEncoded || uint64(r.Off)+uint64(r.Len) > MaxSize {
		return fmt.Errorf("%w: reference to frame %.12s in pack %s: %d bytes at %d, %d raw", ErrCorrupt, r.ID, r.Pack, r.Len, r.Off, r.Raw)
	}
	return nil
}

// Encoder compresses frames; safe for concurrent use. Its output for the same
// input may differ between versions: nothing may depend on it.
type Encoder struct{ pool sync.Pool }

// Levels of compression.
const (
	Fast  = zstd.SpeedFastest // for data: keeps the pace of a local disk
	Dense = zstd.SpeedDefault // for index pages, which are small and kept long, and for data where the target is slow
)

// NewEncoder returns an Encoder of that level.
func NewEncoder(level zstd.EncoderLevel) *Encoder {
	e := &Encoder{}
	e.pool.New = func() any {
		enc, err := zstd.NewWriter(nil,
			zstd.WithEncoderLevel(level), zstd.WithWindowSize(window),
			zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(true),
			zstd.WithSingleSegment(true), zstd.WithZeroFrames(true)) // no bytes are a frame too
		if err != nil {
			panic(err) // the options are constants
		}
		return enc
	}
	return e
}

// Encode appends raw as one zstd frame to dst.
func (e *Encoder) Encode(dst, raw []byte) []byte {
	enc := e.pool.Get().(*zstd.Encoder)
	dst = enc.EncodeAll(raw, dst)
	e.pool.Put(enc)
	return dst
}

var decoders = sync.Pool{New: func() any {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxMemory(MaxFrame), zstd.WithDecoderMaxWindow(MaxFrame), zstd.WithDecoderLowmem(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return dec
}}

// Decode decodes one stored frame into dst's memory, and checks it against
// ref: its length and its SHA-256.
func Decode(dst, stored []byte, ref Ref) ([]byte, error) {
	if err := ref.Check(); err != nil {
		return nil, err
	}
	if len(stored) != int(ref.Len) {
		return nil, fmt.Errorf("%w: frame %.12s in pack %s: %d bytes instead of %d", ErrCorrupt, ref.ID, ref.Pack, len(stored), ref.Len)
	}
	if cap(dst) < int(ref.Raw) {
		dst = make([]byte, 0, ref.Raw)
	}
	if !oneFrame(stored, uint64(ref.Raw)) {
		return nil, fmt.Errorf("%w: frame %.12s in pack %s: not a zstd frame of %d bytes", ErrCorrupt, ref.ID, ref.Pack, ref.Raw)
	}
	dec := decoders.Get().(*zstd.Decoder)
	raw, err := dec.DecodeAll(stored, dst[:0])
	decoders.Put(dec)
	if err != nil {
		return nil, fmt.Errorf("%w: frame %.12s in pack %s at %d: %w", ErrCorrupt, ref.ID, ref.Pack, ref.Off, err)
	}
	if len(raw) != int(ref.Raw) || Sum(raw) != ref.ID {
		return nil, fmt.Errorf("%w: frame %.12s in pack %s at %d: content does not match its id", ErrCorrupt, ref.ID, ref.Pack, ref.Off)
	}
	return raw, nil
}

// oneFrame says whether stored is one zstd frame of raw bytes, with the header
// that a writer gives it: a decoder would also accept skippable frames and
// others behind the first, and bits and window sizes that change nothing, so
// that damage to them would go unseen.
func oneFrame(stored []byte, raw uint64) bool {
	var h zstd.Header
	if raw == 0 {
		return bytes.Equal(stored, emptyFrame())
	}
	if h.Decode(stored) != nil || h.Skippable || !h.HasCheckSum || !h.SingleSegment || !h.HasFCS || h.FrameContentSize != raw {
		return false
	}
	return stored[4]&0x1b == 0 && frameLen(stored) == len(stored)
}

// emptyFrame is the frame of no bytes.
var emptyFrame = sync.OnceValue(func() []byte { return NewEncoder(Fast).Encode(nil, nil) })

// DecodeDocument decodes a small document stored as one zstd frame, such as a
// manifest; limit is the most it may hold in bytes.
func DecodeDocument(stored []byte, limit uint64) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(stored); err != nil || h.FrameContentSize > limit || !oneFrame(stored, h.FrameContentSize) {
		return nil, fmt.Errorf("%w: not one zstd frame of at most %d bytes", ErrCorrupt, limit)
	}
	dec, err := zstd.NewReader(bytes.NewReader(stored), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(limit), zstd.WithDecoderMaxWindow(limit))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	defer dec.Close()
	var buf bytes.Buffer
	// The decoder's own limit is on one frame and its window only.
	if _, err := buf.ReadFrom(io.LimitReader(dec, int64(limit)+1)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if uint64(buf.Len()) != h.FrameContentSize {
		return nil, fmt.Errorf("%w: document of %d bytes instead of %d", ErrCorrupt, buf.Len(), h.FrameContentSize)
	}
	return buf.Bytes(), nil
}
