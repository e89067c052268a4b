package pack

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

const (
	// TargetSize is when a pack is closed: large enough that a target's
	// latency does not count, small enough to be held in memory.
	TargetSize = 16 << 20
	// MaxSize is the most a pack may hold, its table included.
	MaxSize = TargetSize + maxEncoded + tableMax
	// tableMax bounds the table: 110 bytes a line, frames of 100 bytes or more.
	tableMax    = 24 << 20
	firstBuffer = 512 << 10
	tableSlack  = 256 << 10 // for the table of an ordinary pack
	// maxFrames in one pack keeps the table bounded where frames are tiny.
	maxFrames = 64 << 10
	// skippable is the magic number of the table's zstd skippable frame (RFC 8878, 3.1.2).
	skippable = 0x184D2A50
	// frameEmpty says how small an empty frame is at the least: magic, header, block, checksum.
	frameEmpty = 13
)

// TableEntry is one frame in a pack's table.
type TableEntry struct {
	ID  string `json:"id"`
	Len uint32 `json:"len"`
	Raw uint32 `json:"raw"`
}

// Writer gathers frames into packs and hands each full pack to put, several
// at once. Its memory is bounded by the number of packs under way. Safe for
// concurrent use.
type Writer struct {
	// Size is when a pack is closed, in bytes: TargetSize, or set to less
	// before the first Add.
	Size int

	run  string
	put  func(ctx context.Context, name Name, data []byte) error
	ctx  context.Context //nolint:containedctx // of the uploads' group; ends at the first failure
	g    *errgroup.Group
	free chan []byte // buffers of packs that were put; its capacity bounds them
	late atomic.Bool // the last full pack had to wait until another was put

	mu     sync.Mutex
	buf    []byte
	table  []TableEntry
	sizes  []uint32
	stored int64
	held   int64 // memory of buffers, as far as they grew here
}

// NewWriter returns a Writer whose packs are named after run. At most
// inFlight packs are being put at a time, beside the one that grows. put must
// not keep data.
func NewWriter(ctx context.Context, run string, inFlight int, put func(ctx context.Context, name Name, data []byte) error) *Writer {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(inFlight)
	w := &Writer{Size: TargetSize, run: run, put: put, ctx: ctx, g: g, free: make(chan []byte, inFlight+1)}
	for range inFlight + 1 {
		w.free <- nil
	}
	return w
}

// Add stores an encoded frame and says where it will be. The frame is durable
// after Flush, not before.
func (w *Writer) Add(id ID, raw int, frame []byte) (Ref, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.buf) > 0 && (len(w.buf)+len(frame) > w.Size || len(w.table) >= maxFrames) {
		w.seal()
	}
	// A buffer is taken only where a frame will go into it: Flush waits for
	// every buffer, and only those with frames come back.
	if err := context.Cause(w.ctx); err != nil {
		return Ref{}, err
	}
	if w.buf == nil {
		select {
		case b := <-w.free:
			w.buf = b[:0]
		case <-w.ctx.Done():
			return Ref{}, context.Cause(w.ctx)
		}
	}
	ref := Ref{ID: id, Pack: Name{w.run, uint32(len(w.sizes))}, Off: uint32(len(w.buf)), Len: uint32(len(frame)), Raw: uint32(raw)}
	if need := len(w.buf) + len(frame); need > cap(w.buf) {
		// A small run stays small; a large one needs a whole pack's memory at once.
		grown := make([]byte, len(w.buf), max(need, firstBuffer))
		if len(w.buf) > 0 {
			grown = make([]byte, len(w.buf), max(need, w.Size)+tableSlack)
		}
		copy(grown, w.buf)
		w.held += int64(cap(grown) - cap(w.buf))
		w.buf = grown
	}
	w.buf = append(w.buf, frame...)
	w.table = append(w.table, TableEntry{id.String(), ref.Len, ref.Raw})
	return ref, nil
}

// seal closes the growing pack and puts it in the background.
func (w *Writer) seal() {
	name := Name{w.run, uint32(len(w.sizes))}
	data := appendTable(w.buf, w.table)
	w.sizes = append(w.sizes, uint32(len(data)))
	w.stored += int64(len(data))
	w.buf, w.table = nil, w.table[:0]
	put := func() error {
		defer func() { w.free <- data }()
		if err := w.ctx.Err(); err != nil {
			return context.Cause(w.ctx)
		}
		return w.put(w.ctx, name, data)
	}
	late := !w.g.TryGo(put)
	w.late.Store(late)
	if late {
		w.g.Go(put)
	}
}

// Flush puts what is left, waits for every pack, and returns the packs' sizes
// in bytes, by their number. The Writer may be used further unless it failed.
func (w *Writer) Flush() (sizes []uint32, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.buf) > 0 {
		w.seal()
	}
	// Every buffer is back when every pack was put.
	bufs := make([][]byte, cap(w.free))
	for i := range bufs {
		bufs[i] = <-w.free
	}
	for _, b := range bufs {
		w.free <- b
	}
	if w.ctx.Err() != nil {
		return nil, context.Cause(w.ctx)
	}
	return w.sizes, nil
}

// Rest waits for every pack that is being put and gives up their memory, for a
// Writer that is not used for a while. A pack that only began to grow stays open.
func (w *Writer) Rest() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.buf) > firstBuffer {
		w.seal()
	}
	out := cap(w.free)
	if w.buf != nil {
		out--
	}
	for k := range out {
		select {
		case <-w.free:
		case <-w.ctx.Done(): // and whoever puts may not know it yet
			for range k {
				w.free <- nil
			}
			return context.Cause(w.ctx)
		}
	}
	for range out {
		w.free <- nil
	}
	w.held = int64(cap(w.buf))
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	return nil
}

// Held is about how much memory the Writer has, in bytes.
func (w *Writer) Held() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held
}

// Close flushes, and ends the Writer's goroutines.
func (w *Writer) Close() error {
	_, ferr := w.Flush()
	if err := w.g.Wait(); err != nil {
		return err // the first failure, rather than the cancellation it caused
	}
	return ferr
}

// Run is the run that the packs are named after.
func (w *Writer) Run() string { return w.run }

// Late says that packs are put more slowly than they are filled: the last one
// that was full had to wait until another was put.
func (w *Writer) Late() bool { return w.late.Load() }

// Stored is how many bytes were put or are being put.
func (w *Writer) Stored() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stored
}

func appendTable(buf []byte, table []TableEntry) []byte {
	start := len(buf)
	buf = binary.LittleEndian.AppendUint32(buf, skippable)
	buf = binary.LittleEndian.AppendUint32(buf, 0)
	for _, e := range table {
		buf = appendLine(buf, e)
	}
	binary.LittleEndian.PutUint32(buf[start+4:], uint32(len(buf)-start-8))
	return buf
}

func appendLine(buf []byte, e TableEntry) []byte {
	return fmt.Appendf(buf, `{"id":"%s","len":%d,"raw":%d}`+"\n", e.ID, e.Len, e.Raw)
}

// Parse splits a whole pack into references to its frames, checking that
// table and frames cover every byte of it. It does not decode them.
func Parse(name Name, data []byte) ([]Ref, error) {
	damaged := func(what string) error { return fmt.Errorf("%w: pack %s: %s", ErrCorrupt, name, what) }
	// The frames' lengths are known from the table only, and the table's place
	// from the frames only: zstd frame sizes are found by walking their blocks.
	pos := 0
	for {
		if len(data)-pos < 8 {
			return nil, damaged("ends before its table")
		}
		if binary.LittleEndian.Uint32(data[pos:]) == skippable {
			break
		}
		n := frameLen(data[pos:])
		if n <= 0 {
			return nil, damaged(fmt.Sprintf("no zstd frame at byte %d", pos))
		}
		pos += n
	}
	body := data[pos+8:]
	if uint64(binary.LittleEndian.Uint32(data[pos+4:])) != uint64(len(body)) {
		return nil, damaged("length of its table")
	}
	var refs []Ref
	off := 0
	for len(body) > 0 {
		line, rest, _ := bytes.Cut(body, []byte{'\n'})
		var e TableEntry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, damaged("its table: " + err.Error())
		}
		// JSON has many ways to say the same; only one is not damage.
		if n := len(line) + 1; n > len(body) || !bytes.Equal(appendLine(nil, e), body[:n]) {
			return nil, damaged("its table: not the line that a writer writes")
		}
		body = rest
		ref := Ref{Pack: name, Off: uint32(off), Len: e.Len, Raw: e.Raw}
		if len(e.ID) != 2*len(ref.ID) {
			return nil, damaged("its table: bad id")
		}
		if _, err := hex.Decode(ref.ID[:], []byte(e.ID)); err != nil || ref.ID.String() != e.ID {
			return nil, damaged("its table: bad id")
		}
		if err := ref.Check(); err != nil {
			return nil, err
		}
		if off+int(e.Len) > pos || frameLen(data[off:pos]) != int(e.Len) {
			return nil, damaged("its table does not fit its frames")
		}
		refs = append(refs, ref)
		off += int(e.Len)
	}
	if off != pos {
		return nil, damaged("its table does not cover its frames")
	}
	return refs, nil
}

// frameLen returns the length of the zstd frame at the start of data, or 0
// where there is none (RFC 8878, 3.1.1).
func frameLen(data []byte) int {
	if len(data) < frameEmpty-4 || binary.LittleEndian.Uint32(data) != 0xFD2FB528 {
		return 0
	}
	fhd := data[4]
	pos := 5
	single := fhd&0x20 != 0
	if !single {
		pos++
	}
	pos += [4]int{0, 1, 2, 4}[fhd&3]
	switch fhd >> 6 {
	case 0:
		if single {
			pos++
		}
	case 1:
		pos += 2
	case 2:
		pos += 4
	case 3:
		pos += 8
	}
	for {
		if pos+3 > len(data) {
			return 0
		}
		h := uint32(data[pos]) | uint32(data[pos+1])<<8 | uint32(data[pos+2])<<16
		pos += 3
		size := int(h >> 3)
		switch h >> 1 & 3 {
		case 1:
			size = 1 // a run of one byte
		case 3:
			return 0
		}
		pos += size
		if h&1 != 0 {
			break
		}
	}
	if fhd&4 != 0 {
		pos += 4
	}
	if pos > len(data) {
		return 0
	}
	return pos
}
