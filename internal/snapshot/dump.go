package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// Dump is a stream of unknown length that becomes a volume with one file: what
// a database writes of itself, say. It is never kept on a disk.
type Dump struct {
	Volume string // its name in the snapshot
	Path   string // of the file, relative to the volume's root
	// Open starts the dump. ctx ends what it returns. An error of that, of a
	// read or of Close fails the backup: half a dump is none.
	Open func(ctx context.Context) (io.ReadCloser, error)
}

// ErrDump: a dump failed. No snapshot was taken.
var ErrDump = errors.New("the dump failed")

func (d *Dump) check() error {
	if err := CheckName("volume", d.Volume); err != nil {
		return err
	}
	if d.Path == "" || d.Path != path.Clean(d.Path) || !index.Below(d.Path, index.Root) || strings.ContainsRune(d.Path, 0) || path.IsAbs(d.Path) || d.Path == ".." || strings.HasPrefix(d.Path, "../") {
		return fmt.Errorf("%w: dump %s: path %q: name a file inside the volume", ErrUsage, d.Volume, d.Path)
	}
	if d.Open == nil {
		return fmt.Errorf("%w: dump %s: nothing to read it from", ErrUsage, d.Volume)
	}
	return nil
}

// dumps takes all dumps, one after the other.
func (b *backupRun) dumps(ctx context.Context) error {
	for i := range b.o.Dumps {
		d := &b.o.Dumps[i]
		j := b.begin(ctx, Source{Name: d.Volume}, nil)
		err := j.openParent(ctx)
		if err == nil {
			err = j.dump(ctx, d)
		}
		if err == nil {
			err = j.settle(ctx)
		}
		if err != nil {
			return j.fail(err)
		}
	}
	return nil
}

// dump makes a pass of a dump. What the parent has of it serves dedup.
func (j *volumeJob) dump(ctx context.Context, d *Dump) error {
	p := j.v.newPass(ctx, j.base)
	now := j.b.r.now()
	if err := p.dump(d, tarstream.Time{Sec: now.Unix(), Nsec: int32(now.Nanosecond())}); err != nil {
		return p.fail(err)
	}
	j.pass = p
	return nil
}

func (p *pass) dump(d *Dump, now tarstream.Time) error {
	h := tarstream.Header{Path: d.Path, Type: tarstream.File, Mode: 0o600, Mtime: now}
	slot := p.stream.open()
	if p.base != nil && len(p.base.slots) > 0 { // it has one: the last dump
		if err := p.stream.window.open(p.stream.ctx, p.base, p.base.slots[0].slot); err != nil {
			slot.release()
			return err
		}
	}
	err := p.stream.dump(slot, d, &h, p.v.read)
	if err == nil {
		err = p.stream.headed(slot, &h)
	}
	if err != nil {
		slot.release()
		return err
	}
	if err := p.stream.drain(false); err != nil {
		return err
	}
	for _, dir := range d.parents() {
		dh := tarstream.Header{Path: dir, Type: tarstream.Dir, Mode: 0o700, Mtime: now}
		header, err := dh.Append(nil)
		if err == nil {
			err = p.add(&index.Entry{Path: dir, Kind: index.Dir, Mtime: now, Ctime: now}, header, &item{path: dir})
		}
		if err != nil {
			return fmt.Errorf("store directory %q: %w", dir, err)
		}
		p.v.counts.Entries++
	}
	p.v.counts.Entries++
	p.v.counts.Files++
	p.v.counts.Bytes += uint64(h.Size)
	p.v.progress.Files.Add(1)
	return p.add(&index.Entry{Path: d.Path, Kind: index.File, Size: h.Size, Mtime: now, Ctime: now, Slot: slot.slot}, nil, &item{path: d.Path})
}

// parents are the directories on the way to the file, the root first.
func (d *Dump) parents() []string {
	dirs := []string{index.Root}
	for i, c := range []byte(d.Path) {
		if c == '/' {
			dirs = append(dirs, d.Path[:i])
		}
	}
	return dirs
}

// dump cuts what a dump writes into frames, and counts it in the header.
func (s *stream) dump(j *slotJob, d *Dump, h *tarstream.Header, done func(n int)) error {
	r, err := d.Open(s.ctx)
	if err != nil {
		return fmt.Errorf("%w: start it: %w", ErrDump, err)
	}
	counted := &dumpReader{r: r, header: h, done: done}
	err = s.chunks(j, counted, h)
	if counted.err != nil && counted.err != io.EOF { //nolint:errorlint // an end that is wrapped is none
		err = fmt.Errorf("%w after %d bytes: %w", ErrDump, h.Size, counted.err)
	}
	if cerr := r.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("%w after %d bytes: %w", ErrDump, h.Size, cerr)
	}
	return err
}

// dumpReader counts what comes, and remembers how it ended: whoever reads it may
// take any end for a good one.
type dumpReader struct {
	r      io.Reader
	header *tarstream.Header
	done   func(n int)
	err    error
}

func (r *dumpReader) Read(p []byte) (n int, err error) {
	if r.err == nil {
		n, r.err = r.r.Read(p)
		r.header.Size += int64(n)
		r.done(n)
	}
	return n, r.err
}
