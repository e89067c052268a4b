package snapshot

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/tarstream"
	"github.com/disko/backupd/internal/store/storetest"
	"github.com/disko/backupd/internal/testtree"
)

// forge writes a repository by the format's own encoders, with content that no
// backup writes. All of its small files are members of one group, in slot 0.
type forge struct {
	t     *testing.T
	store *storetest.Memory
	repo  *Repository
	run   string
	data  *frameStore
	idx   *frameStore

	group    []byte
	members  uint32
	sections [index.Sections][]forged
	frames   []index.Frame // further lines of the frame table
	// What is changed before it is written.
	editFrames   func([]index.Frame) []index.Frame
	editVolume   func(*Volume)
	editManifest func(*Manifest)
	editObject   func([]byte) []byte // the manifest, encoded
}

type forged struct {
	entry  index.Entry
	header []byte
}

var forgedTime = tarstream.Time{Sec: 1_000_000_000}

func newForge(t *testing.T) *forge {
	t.Helper()
	f := &forge{t: t, store: storetest.NewMemory(), run: newRun()}
	var err error
	if f.repo, err = Ensure(context.Background(), f.store, Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.repo.Close)
	writer := func(key func(string, string, pack.Name) string) *pack.Writer {
		return pack.NewWriter(context.Background(), f.run, 2, func(ctx context.Context, n pack.Name, data []byte) error {
			return f.store.Put(ctx, key("shop", "data", n), data)
		})
	}
	f.data = newFrameStore(writer(packKey), pack.NewEncoder(pack.Fast), nil)
	f.idx = newFrameStore(writer(indexKey), pack.NewEncoder(pack.Dense), nil)
	return f
}

func (f *forge) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// header is an entry's tar header, written by hand where Append refuses to.
func header(h tarstream.Header) []byte {
	if b, err := h.Append(nil); err == nil {
		return b
	}
	b := make([]byte, 512)
	copy(b, h.Path)
	copy(b[100:], fmt.Sprintf("%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00", h.Mode, h.UID, h.GID, h.Size, h.Mtime.Sec))
	b[156] = byte(h.Type)
	copy(b[157:], h.Link)
	copy(b[257:], "ustar\x0000")
	copy(b[329:], "0000000\x000000000\x00")
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00", sum))
	return b
}

var forgedTypes = map[index.Kind]tarstream.Type{
	index.File: tarstream.File, index.Dir: tarstream.Dir, index.Symlink: tarstream.Symlink, index.Link: tarstream.Link, index.Fifo: tarstream.Fifo,
}

// add adds an entry; text is a file's content, or where a link leads.
func (f *forge) add(kind index.Kind, path, text string) *forge {
	h := tarstream.Header{Path: path, Type: forgedTypes[kind], Mode: 0o755, Mtime: forgedTime}
	e := index.Entry{Path: path, Kind: kind, Mtime: forgedTime}
	switch kind {
	case index.File:
		h.Size = int64(len(text))
	case index.Link:
		e.Link = text
		h.Link = text
	case index.Symlink:
		h.Link = text
	}
	return f.addAs(e, h, text)
}

// addAs adds an entry whose index line and header may disagree.
func (f *forge) addAs(e index.Entry, h tarstream.Header, content string) *forge {
	hb := header(h)
	if e.Kind == index.File {
		if e.Size == 0 {
			e.Size = h.Size
		}
		e.Off = uint32(len(f.group))
		f.group = append(append(f.group, hb...), content...)
		f.group = append(f.group, make([]byte, tarstream.Padding(int64(len(content))))...)
		f.members++
		hb = nil
	}
	s := e.Kind.Section()
	f.sections[s] = append(f.sections[s], forged{e, hb})
	return f
}

// raw adds a file to the index alone: where it lies is the case's affair.
func (f *forge) raw(e index.Entry) *forge {
	f.sections[index.Files] = append(f.sections[index.Files], forged{entry: e})
	return f
}

func (f *forge) tree(s index.Section) index.Tree {
	f.t.Helper()
	b := index.NewBuilder(f.idx)
	leaves := index.NewLeaves(b, f.idx)
	if s == index.Nodes {
		leaves.Tar = f.data.storeAll
	}
	last := uint64(0)
	for _, x := range f.sections[s] {
		last = index.Hash(x.entry.Path)
		f.must(leaves.Add(last, x.entry.AppendTo(nil), x.header, nil))
	}
	f.must(leaves.Close(last))
	t, err := b.Close()
	f.must(err)
	return t
}

func (f *forge) frameTree(frames []index.Frame) index.Tree {
	f.t.Helper()
	b := index.NewBuilder(f.idx)
	leaves := index.NewLeaves(b, f.idx)
	last := uint64(0)
	for i := range frames {
		last = frames[i].Hash()
		f.must(leaves.Add(last, frames[i].AppendTo(nil), nil, nil))
	}
	f.must(leaves.Close(last))
	t, err := b.Close()
	f.must(err)
	return t
}

// commit writes all, and its manifest.
func (f *forge) commit() {
	f.t.Helper()
	v := Volume{Name: "data", NextSlot: 100}
	refs, err := f.data.storeAll(f.group)
	f.must(err)
	var frames []index.Frame
	for i, r := range refs {
		frames = append(frames, index.Frame{Slot: 0, Ref: r})
		if i == 0 {
			frames[0].Members = f.members
		}
	}
	frames = append(frames, f.frames...)
	if f.editFrames != nil {
		frames = f.editFrames(frames)
	}
	v.Files, v.Nodes, v.Absent, v.Frames = f.tree(index.Files), f.tree(index.Nodes), f.tree(index.Absent), f.frameTree(frames)
	for _, s := range f.sections[:index.Absent] {
		for _, x := range s {
			v.Counts.Entries++
			if x.entry.Kind == index.File {
				v.Counts.Files++
				v.Counts.Bytes += uint64(x.entry.Size)
			}
		}
	}
	sizes, err := f.data.w.Flush()
	f.must(err)
	if len(sizes) > 0 {
		v.Packs = []PackRange{{Run: f.run, Sizes: sizes}}
	}
	sizes, err = f.idx.w.Flush()
	f.must(err)
	v.Index = []PackRange{{Run: f.run, Sizes: sizes}}
	f.must(errors.Join(f.data.w.Close(), f.idx.w.Close()))
	if f.editVolume != nil {
		f.editVolume(&v)
	}
	m := &Manifest{Format: FormatVersion, Repository: f.repo.ID, Stack: "shop", Sequence: 1, Run: f.run, Started: time.Unix(1e9, 0).UTC(), Finished: time.Unix(1e9, 0).UTC(), Trigger: "manual", Volumes: []Volume{v}}
	if f.editManifest != nil {
		f.editManifest(m)
	}
	data, id, err := m.encode(pack.NewEncoder(pack.Dense))
	f.must(err)
	if f.editObject != nil {
		data = f.editObject(data)
	}
	f.store.SetBytes(snapshotKey("shop", 1, id), data)
}

// rle is a zstd frame of n zeros in a few bytes; claim, where not negative, is
// the content size that its header says.
func rle(n, claim int64) []byte {
	b := []byte{0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x60} // a window of 4 MiB
	if claim >= 0 {
		b[4] = 0xC0
		b = binary.LittleEndian.AppendUint64(b, uint64(claim))
	}
	for n > 0 {
		k := min(n, 128<<10)
		n -= k
		h := uint32(1<<1) | uint32(k)<<3
		if n == 0 {
			h |= 1
		}
		b = append(b, byte(h), byte(h>>8), byte(h>>16), 0)
	}
	return b
}

// scene is a volume, and what lies around it and must not change.
type scene struct {
	root, volume string
	before       string
}

// newScene makes a volume; a used one holds entries of the names that attacks use.
func newScene(t *testing.T, used bool) *scene {
	t.Helper()
	s := &scene{root: filepath.Join(t.TempDir(), "root")}
	s.volume = filepath.Join(s.root, "inner", "volume")
	outside := filepath.Join(s.root, "outside")
	err := errors.Join(os.MkdirAll(s.volume, 0o755), os.Mkdir(outside, 0o755), os.WriteFile(outside+"/secret", []byte("secret"), 0o600))
	if used {
		err = errors.Join(err, os.Symlink(outside, s.volume+"/a"), os.WriteFile(s.volume+"/b", []byte("b"), 0o600), os.Mkdir(s.volume+"/c", 0o700))
	}
	if err != nil {
		t.Fatal(err)
	}
	s.before = filepath.Join(t.TempDir(), "before")
	testtree.Clone(t, s.root, s.before)
	return s
}

func (s *scene) wantUntouchedOutside(t *testing.T) {
	t.Helper()
	testtree.Compare(t, s.before, s.root, testtree.Options{Ignore: func(p string) bool { return p == "inner/volume" }})
}

// An index of paths so long that its levels never end is an error, and no endless run.
func TestAnIndexOfTooLongPathsIsNotWritten(t *testing.T) {
	f := newForge(t)
	b := index.NewBuilder(f.idx)
	leaves := index.NewLeaves(b, f.idx)
	err := promptly(t, func() error {
		for i := range 600 {
			e := index.Entry{Path: fmt.Sprintf("%04d%s", i, strings.Repeat("x", 1<<20)), Kind: index.File}
			if err := leaves.Add(uint64(i), e.AppendTo(nil), nil, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil || len(err.Error()) > 1000 {
		t.Errorf("%.300v", err)
	}
}

// bounded calls do, and fails if that takes much memory in all, or does not end.
func bounded(t *testing.T, what string, do func() error) error {
	t.Helper()
	const most = 512 << 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := promptly(t, do)
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > most {
		t.Errorf("%s took %d MiB of memory", what, n>>20)
	}
	return err
}

// attack restores the forged snapshot into an empty volume and over a used
// one, exports and verifies it, and takes a snapshot after it.
func (f *forge) attack(t *testing.T) (fresh, used error) {
	t.Helper()
	ctx := context.Background()
	var m *Manifest
	err := bounded(t, "reading the manifest", func() (err error) {
		m, err = f.repo.Find(ctx, "shop", "latest")
		return err
	})
	// A backup on top of it must end, whether it can use it or not.
	defer func() {
		s := newScene(t, true)
		err := bounded(t, "a backup", func() error {
			_, err := f.repo.Backup(ctx, f.store, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: s.volume}}})
			return err
		})
		t.Logf("backup: %v", err)
	}()
	list, lerr := f.repo.List(ctx, "")
	if lerr != nil {
		t.Errorf("list: %v", lerr)
	}
	var v *Verified
	verr := bounded(t, "verifying", func() (err error) {
		v, err = f.repo.Verify(ctx, list, true, nil)
		return err
	})
	if verr == nil && len(v.Damage) == 0 {
		t.Error("verify finds nothing wrong")
	}
	if err != nil {
		return err, err
	}
	eerr := bounded(t, "an export", func() error { return f.repo.Export(ctx, m, "data", io.Discard, func(Warning) {}, nil) })
	t.Logf("export: %v", eerr)
	s := newScene(t, false)
	fresh = bounded(t, "a restore", func() error {
		_, err := f.repo.Restore(ctx, m, RestoreOptions{Volume: "data", Path: s.volume})
		return err
	})
	s.wantUntouchedOutside(t)
	s = newScene(t, true)
	used = bounded(t, "a restore over data", func() error {
		_, err := f.repo.Restore(ctx, m, RestoreOptions{Volume: "data", Path: s.volume, Force: true})
		return err
	})
	s.wantUntouchedOutside(t)
	return fresh, used
}

func ref(f *forge, raw []byte) pack.Ref {
	f.t.Helper()
	r, err := f.data.store(raw)
	f.must(err)
	return r
}

// frame stores bytes as they are as a frame that claims to be raw.
func (f *forge) frame(s *frameStore, stored, raw []byte) pack.Ref {
	f.t.Helper()
	r, err := s.w.Add(pack.Sum(raw), len(raw), stored)
	f.must(err)
	return r
}

const root = index.Root

func TestHostileRepositoriesAreRefused(t *testing.T) {
	outside := func(f *forge) string { return filepath.Join(f.t.TempDir(), "outside") }
	long := strings.Repeat("a/", 400<<10) + "a"
	for _, c := range []struct {
		name  string
		write func(f *forge)
		// other: it is refused by the file system, not as damage
		other bool
	}{
		// Names.
		{name: "a path with ..", write: func(f *forge) { f.add(index.Dir, root, "").add(index.File, "../evil", "x") }},
		{name: "a path with .. inside", write: func(f *forge) { f.add(index.Dir, root, "").add(index.File, "c/../../evil", "x") }},
		{name: "an absolute path", write: func(f *forge) { f.add(index.Dir, root, "").add(index.File, outside(f), "x") }},
		{name: "a directory of ..", write: func(f *forge) { f.add(index.Dir, root, "").add(index.Dir, "..", "") }},
		{name: "an absolute symlink path", write: func(f *forge) { f.add(index.Dir, root, "").add(index.Symlink, outside(f), "x") }},
		{name: "a path with NUL", write: func(f *forge) { f.add(index.Dir, root, "").add(index.File, "a\x00b", "x") }},
		{name: "an empty component", write: func(f *forge) { f.add(index.Dir, root, "").add(index.File, "c//b", "x") }},
		{name: "a path of a megabyte", other: true, write: func(f *forge) { f.add(index.Dir, root, "").add(index.File, long, "x") }},
		{name: "a root that is a symlink", write: func(f *forge) { f.add(index.Symlink, root, "/tmp") }},
		// Ways out.
		{name: "a file through a symlink", other: true, write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.Symlink, "a", "../../outside").add(index.File, "a/evil", "x")
		}},
		{name: "a symlink in place of a directory", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.Dir, "a", "").add(index.Symlink, "a", "../../outside").add(index.File, "a/evil", "x")
		}},
		{name: "a fifo through a symlink", other: true, write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.Symlink, "a", "../../outside").add(index.Fifo, "a/evil", "")
		}},
		{name: "a directory through a symlink", other: true, write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.Symlink, "a", "../../outside").add(index.Dir, "a/evil", "")
		}},
		{name: "a hard link out by ..", write: func(f *forge) { f.add(index.Dir, root, "").add(index.Link, "l", "../../outside/secret") }},
		{name: "a hard link out, absolute", write: func(f *forge) { f.add(index.Dir, root, "").add(index.Link, "l", "/etc/passwd") }},
		{name: "a hard link out through a symlink", other: true, write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.Symlink, "a", "../../outside").add(index.Link, "l", "a/secret")
		}},
		{name: "a hard link to itself", write: func(f *forge) { f.add(index.Dir, root, "").add(index.Link, "l", "l") }},
		{name: "a hard link to nothing", other: true, write: func(f *forge) { f.add(index.Dir, root, "").add(index.Link, "l", "none") }},
		{name: "a hard link to a directory", other: true, write: func(f *forge) { f.add(index.Dir, root, "").add(index.Dir, "d", "").add(index.Link, "l", "d") }},
		{name: "a file without its directory", other: true, write: func(f *forge) { f.add(index.Dir, root, "").add(index.File, "none/x", "x") }},
		{name: "a file below a file", other: true, write: func(f *forge) { f.add(index.Dir, root, "").add(index.File, "x", "x").add(index.File, "x/y", "y") }},
		// One path twice.
		{name: "a path twice in a section", write: func(f *forge) { f.add(index.Dir, root, "").add(index.File, "x", "1").add(index.File, "x", "2") }},
		{name: "a path in two sections", other: true, write: func(f *forge) { f.add(index.Dir, root, "").add(index.File, "x", "1").add(index.Symlink, "x", "2") }},
		{name: "paths out of order", write: func(f *forge) { f.add(index.Dir, root, "").add(index.File, "y", "1").add(index.File, "x", "2") }},
		{name: "an entry in another section", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "1")
			f.sections[index.Nodes] = append(f.sections[index.Nodes], f.sections[index.Files]...)
			f.sections[index.Files] = nil
		}},
		// Headers that disagree with the index.
		{name: "a header of another path", write: func(f *forge) {
			f.add(index.Dir, root, "").addAs(index.Entry{Path: "x", Kind: index.File, Mtime: forgedTime}, tarstream.Header{Path: "y", Type: tarstream.File, Mtime: forgedTime, Size: 1}, "1")
		}},
		{name: "a header of another size", write: func(f *forge) {
			f.add(index.Dir, root, "").addAs(index.Entry{Path: "x", Kind: index.File, Mtime: forgedTime, Size: 2}, tarstream.Header{Path: "x", Type: tarstream.File, Mtime: forgedTime, Size: 1}, "1")
		}},
		{name: "a header of another time", write: func(f *forge) {
			f.add(index.Dir, root, "").addAs(index.Entry{Path: "x", Kind: index.File}, tarstream.Header{Path: "x", Type: tarstream.File, Mtime: forgedTime, Size: 1}, "1")
		}},
		{name: "a header of another type", write: func(f *forge) {
			f.add(index.Dir, root, "").addAs(index.Entry{Path: "x", Kind: index.File, Mtime: forgedTime}, tarstream.Header{Path: "x", Type: tarstream.Symlink, Mtime: forgedTime, Link: "/etc"}, "")
		}},
		{name: "a header of another link", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "b", "b").addAs(index.Entry{Path: "x", Kind: index.Link, Link: "b", Mtime: forgedTime}, tarstream.Header{Path: "x", Type: tarstream.Link, Mtime: forgedTime, Link: "../b"}, "")
		}},
		{name: "a node's header of another path", write: func(f *forge) {
			f.add(index.Dir, root, "").addAs(index.Entry{Path: "x", Kind: index.Symlink, Mtime: forgedTime}, tarstream.Header{Path: "../x", Type: tarstream.Symlink, Mtime: forgedTime, Link: "y"}, "")
		}},
		{name: "too many headers", write: func(f *forge) {
			f.add(index.Dir, root, "")
			f.sections[index.Nodes][0].header = append(f.sections[index.Nodes][0].header, header(tarstream.Header{Path: "x", Type: tarstream.Fifo})...)
		}},
		{name: "no headers", write: func(f *forge) {
			f.add(index.Dir, root, "")
			f.sections[index.Nodes][0].header = nil
		}},
		{name: "content beyond its group", write: func(f *forge) {
			f.add(index.Dir, root, "").addAs(index.Entry{Path: "x", Kind: index.File, Mtime: forgedTime}, tarstream.Header{Path: "x", Type: tarstream.File, Mtime: forgedTime, Size: 1 << 40}, "short")
		}},
		{name: "an offset beyond its group", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			f.sections[index.Files][0].entry.Off = math.MaxUint32
		}},
		{name: "an offset into content", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			f.sections[index.Files][0].entry.Off = 512
		}},
		// Frames that inflate.
		{name: "a frame that inflates without end", write: func(f *forge) {
			f.add(index.Dir, root, "").raw(index.Entry{Path: "x", Kind: index.File, Slot: 5})
			f.frames = []index.Frame{{Slot: 5, Members: 1, Ref: f.frame(f.data, rle(8<<30, -1), make([]byte, pack.MaxFrame))}}
		}},
		{name: "a frame that inflates beyond what its header says", write: func(f *forge) {
			f.add(index.Dir, root, "").raw(index.Entry{Path: "x", Kind: index.File, Slot: 5})
			f.frames = []index.Frame{{Slot: 5, Members: 1, Ref: f.frame(f.data, rle(8<<30, pack.MaxFrame), make([]byte, pack.MaxFrame))}}
		}},
		{name: "a frame whose header says exabytes", write: func(f *forge) {
			f.add(index.Dir, root, "").raw(index.Entry{Path: "x", Kind: index.File, Slot: 5})
			f.frames = []index.Frame{{Slot: 5, Members: 1, Ref: f.frame(f.data, rle(1<<20, math.MaxInt64), make([]byte, pack.MaxFrame))}}
		}},
		{name: "an index page that inflates without end", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			page := f.frame(f.idx, rle(8<<30, -1), make([]byte, pack.MaxFrame))
			f.editVolume = func(v *Volume) { v.Files.Root.Page = page }
		}},
		{name: "headers that inflate without end", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			tar := f.frame(f.data, rle(8<<30, -1), make([]byte, pack.MaxFrame))
			f.editVolume = func(v *Volume) { v.Nodes.Root.Tar = []pack.Ref{tar} }
		}},
		{name: "a manifest that inflates without end", write: func(f *forge) {
			f.add(index.Dir, root, "")
			f.editObject = func([]byte) []byte { return rle(8<<30, -1) }
		}},
		{name: "a manifest whose header says exabytes", write: func(f *forge) {
			f.add(index.Dir, root, "")
			f.editObject = func([]byte) []byte { return rle(1<<20, math.MaxInt64) }
		}},
		// References to where nothing is.
		{name: "a frame outside its pack", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			f.editFrames = func(l []index.Frame) []index.Frame { l[0].Off = 1 << 20; return l }
		}},
		{name: "a frame across its pack's end", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			f.editFrames = func(l []index.Frame) []index.Frame { l[0].Len += 4000; return l }
		}},
		{name: "a frame at the end of the numbers", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			f.editFrames = func(l []index.Frame) []index.Frame { l[0].Off = math.MaxUint32; return l }
		}},
		{name: "a frame in a pack that the manifest does not name", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			f.editFrames = func(l []index.Frame) []index.Frame { l[0].Pack.N = 7; return l }
		}},
		{name: "a page outside its pack", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			f.editVolume = func(v *Volume) { v.Files.Root.Page.Off = 1 << 24 }
		}},
		{name: "a pack that is not there", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			f.editVolume = func(v *Volume) { v.Packs = append(v.Packs, PackRange{Run: newRun(), Sizes: []uint32{1000}}) }
		}},
		{name: "a pack that is said to be larger", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			f.editVolume = func(v *Volume) { v.Packs[0].Sizes[0] = pack.TargetSize }
		}},
		{name: "a slot that is not there", write: func(f *forge) {
			f.add(index.Dir, root, "").raw(index.Entry{Path: "x", Kind: index.File, Slot: 50, Size: 1})
		}},
		{name: "a slot at the end of the numbers", write: func(f *forge) {
			f.add(index.Dir, root, "").raw(index.Entry{Path: "x", Kind: index.File, Slot: math.MaxUint64, Size: 1})
		}},
		// Numbers that ask for terabytes.
		{name: "a frame of 4 GiB", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			f.editFrames = func(l []index.Frame) []index.Frame { l[0].Raw = math.MaxUint32; return l }
		}},
		{name: "a large file without its content", write: func(f *forge) {
			const size = 1 << 50
			h := tarstream.Header{Path: "x", Type: tarstream.File, Mtime: forgedTime, Size: size}
			f.add(index.Dir, root, "").raw(index.Entry{Path: "x", Kind: index.File, Slot: 5, Size: size, Mtime: forgedTime})
			f.frames = []index.Frame{{Slot: 5, Ref: ref(f, header(h))}, {Slot: 5, Ref: ref(f, make([]byte, 1<<20))}}
		}},
		{name: "a large file with too much content", write: func(f *forge) {
			h := tarstream.Header{Path: "x", Type: tarstream.File, Mtime: forgedTime, Size: 1000}
			f.add(index.Dir, root, "").raw(index.Entry{Path: "x", Kind: index.File, Slot: 5, Size: 1000, Mtime: forgedTime})
			f.frames = []index.Frame{{Slot: 5, Ref: ref(f, header(h))}}
			zeros := ref(f, make([]byte, pack.MaxFrame))
			for range 1000 {
				f.frames = append(f.frames, index.Frame{Slot: 5, Ref: zeros})
			}
		}},
		{name: "a group of endless frames", write: func(f *forge) {
			f.add(index.Dir, root, "").raw(index.Entry{Path: "x", Kind: index.File, Slot: 5, Size: 1, Mtime: forgedTime})
			zeros := ref(f, make([]byte, pack.MaxFrame))
			f.frames = []index.Frame{{Slot: 5, Members: 1, Ref: zeros}}
			for range 5000 {
				f.frames = append(f.frames, index.Frame{Slot: 5, Ref: zeros})
			}
		}},
		{name: "a header that goes on for terabytes", write: func(f *forge) {
			h := header(tarstream.Header{Path: "x", Type: tarstream.File, Mtime: forgedTime, Size: 1000, Xattrs: []tarstream.Xattr{{Name: "user.x", Value: make([]byte, 1<<20)}}})
			f.add(index.Dir, root, "").raw(index.Entry{Path: "x", Kind: index.File, Slot: 5, Size: 1000, Mtime: forgedTime})
			copy(h[124:], "77777777777\x00") // the records' length
			f.frames = []index.Frame{{Slot: 5, Ref: ref(f, h)}}
			for range 100 {
				f.frames = append(f.frames, index.Frame{Slot: 5, Ref: ref(f, make([]byte, pack.MaxFrame))})
			}
		}},
		{name: "an index of 2^63 lines", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			f.editVolume = func(v *Volume) { v.Files.Root.N = 1 << 63 }
		}},
		{name: "an index of another level", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			f.editVolume = func(v *Volume) { v.Files.Level = 8 }
		}},
		{name: "an index of level 1000000", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			f.editVolume = func(v *Volume) { v.Files.Level = 1_000_000 }
		}},
		{name: "a pack of 4 GiB", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			f.editVolume = func(v *Volume) { v.Packs[0].Sizes[0] = math.MaxUint32 }
		}},
		{name: "packs beyond the numbers", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			f.editVolume = func(v *Volume) { v.Packs[0].First = math.MaxUint32 - 1; v.Packs[0].Sizes = []uint32{1, 1, 1, 1} }
		}},
		{name: "more packs than there are", write: func(f *forge) {
			f.add(index.Dir, root, "").add(index.File, "x", "x")
			f.editVolume = func(v *Volume) { v.Packs[0].Sizes = append(v.Packs[0].Sizes, make([]uint32, 100_000)...) }
		}},
		// Manifests from elsewhere.
		{name: "a manifest of another repository", write: func(f *forge) {
			f.add(index.Dir, root, "")
			f.editManifest = func(m *Manifest) { m.Repository = randomID() }
		}},
		{name: "a manifest of another stack", write: func(f *forge) {
			f.add(index.Dir, root, "")
			f.editManifest = func(m *Manifest) { m.Stack = "other" }
		}},
		{name: "a manifest of another sequence", write: func(f *forge) {
			f.add(index.Dir, root, "")
			f.editManifest = func(m *Manifest) { m.Sequence = 7 }
		}},
		{name: "a manifest of another id", write: func(f *forge) {
			f.add(index.Dir, root, "")
			other, _, err := (&Manifest{Format: FormatVersion, Repository: f.repo.ID, Stack: "shop", Sequence: 1, Run: newRun()}).encode(pack.NewEncoder(pack.Dense))
			f.must(err)
			f.editObject = func([]byte) []byte { return other }
		}},
		{name: "a manifest whose stack leaves its place", write: func(f *forge) {
			f.add(index.Dir, root, "")
			f.editManifest = func(m *Manifest) { m.Stack = "../shop" }
		}},
		{name: "a volume whose name leaves its place", write: func(f *forge) {
			f.add(index.Dir, root, "")
			f.editVolume = func(v *Volume) { v.Name = "../../x" }
		}},
		{name: "a volume twice", write: func(f *forge) {
			f.add(index.Dir, root, "")
			f.editManifest = func(m *Manifest) { m.Volumes = append(m.Volumes, m.Volumes[0]) }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newForge(t)
			c.write(f)
			f.commit()
			fresh, used := f.attack(t)
			for where, err := range map[string]error{"into an empty volume": fresh, "over data": used} {
				switch {
				case err == nil:
					t.Errorf("%s: it was restored", where)
				case !c.other && !errors.Is(err, ErrDamaged):
					t.Errorf("%s: %.300v, want ErrDamaged", where, err)
				case len(err.Error()) > 1000:
					t.Errorf("%s: a message of %d bytes: %.200v...", where, len(err.Error()), err)
				default:
					t.Logf("%s: %.300v", where, err)
				}
			}
		})
	}
}

// A frame table can name terabytes in five small pages. A restore stops where the
// file has its size.
func TestARestoreStopsAtALargeFileWhoseFramesNeverEnd(t *testing.T) {
	f := newForge(t)
	h := tarstream.Header{Path: "x", Type: tarstream.File, Mtime: forgedTime, Size: 1000}
	f.add(index.Dir, root, "").raw(index.Entry{Path: "x", Kind: index.File, Slot: 5, Size: 1000, Mtime: forgedTime})
	frames := f.endless(index.Frame{Slot: 5, Ref: ref(f, header(h))})
	f.editVolume = func(v *Volume) { v.Frames = frames }
	f.commit()
	ctx := context.Background()
	m, err := f.repo.Find(ctx, "shop", "latest")
	if err != nil {
		t.Fatal(err)
	}
	for _, used := range []bool{false, true} {
		s := newScene(t, used)
		err := bounded(t, "a restore", func() error {
			_, err := f.repo.Restore(ctx, m, RestoreOptions{Volume: "data", Path: s.volume, Force: true})
			return err
		})
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%v, want ErrDamaged", err)
		}
		s.wantUntouchedOutside(t)
	}
	err = bounded(t, "an export", func() error { return f.repo.Export(ctx, m, "data", io.Discard, func(Warning) {}, nil) })
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("export: %v, want ErrDamaged", err)
	}
}

// endless is a frame table whose lines after the first are the same page, over
// and over: 64^4 lines in five pages.
func (f *forge) endless(first index.Frame) index.Tree {
	f.t.Helper()
	page := func(lines []byte) pack.Ref {
		r, err := f.idx.store(lines)
		f.must(err)
		return r
	}
	zeros := ref(f, make([]byte, pack.MaxFrame))
	line := (&index.Frame{Slot: first.Slot, Ref: zeros}).AppendTo(nil)
	child := func(n uint64, p pack.Ref) []byte {
		b, err := index.Tree{Root: index.Child{First: fmt.Sprint(first.Slot), N: n, Page: p}}.MarshalJSON()
		f.must(err)
		return append(bytes.Replace(b, []byte(`"level":0,`), nil, 1), '\n')
	}
	one, n := child(1, page(first.AppendTo(nil))), uint64(64)
	many := child(n, page(bytes.Repeat(line, 64)))
	for range 3 {
		p := page(bytes.Repeat(many, 64))
		n *= 64
		many = child(n, p)
		one = child(1, page(one))
	}
	top := page(append(one, many...))
	return index.Tree{Level: 4, Root: index.Child{First: fmt.Sprint(first.Slot), N: n + 1, Page: top}}
}

// What stands in the way of a directory goes, and not what it leads to.
func TestARestoreReplacesASymlinkOutByADirectory(t *testing.T) {
	f := newForge(t)
	f.add(index.Dir, root, "").add(index.Dir, "a", "").add(index.File, "a/secret", "restored")
	f.commit()
	ctx := context.Background()
	m, err := f.repo.Find(ctx, "shop", "latest")
	if err != nil {
		t.Fatal(err)
	}
	s := newScene(t, true)
	if _, err := f.repo.Restore(ctx, m, RestoreOptions{Volume: "data", Path: s.volume, Force: true}); err != nil {
		t.Fatal(err)
	}
	s.wantUntouchedOutside(t)
	if st, err := os.Lstat(s.volume + "/a"); err != nil || !st.IsDir() {
		t.Errorf("%v, %v", st, err)
	}
	if data, err := os.ReadFile(s.volume + "/a/secret"); err != nil || string(data) != "restored" {
		t.Errorf("%q, %v", data, err)
	}
}

// A symlink out of the volume is content like any other, and nothing goes through it.
func TestASymlinkOutOfTheVolumeIsRestoredAsOne(t *testing.T) {
	f := newForge(t)
	f.add(index.Dir, root, "").add(index.Symlink, "a", "../../outside").add(index.File, "b", "b").add(index.Symlink, "s", "../../outside/secret").add(index.Link, "t", "s")
	f.commit()
	ctx := context.Background()
	m, err := f.repo.Find(ctx, "shop", "latest")
	if err != nil {
		t.Fatal(err)
	}
	for _, used := range []bool{false, true} {
		s := newScene(t, used)
		if _, err := f.repo.Restore(ctx, m, RestoreOptions{Volume: "data", Path: s.volume, Force: true}); err != nil {
			t.Fatal(err)
		}
		s.wantUntouchedOutside(t)
		if to, err := os.Readlink(s.volume + "/a"); err != nil || to != "../../outside" {
			t.Errorf("%q, %v", to, err)
		}
	}
}

// Entries with long paths must not add up to gigabytes of memory.
func TestLongPathsStayBoundedInMemory(t *testing.T) {
	f := newForge(t)
	f.add(index.Dir, root, "")
	long := strings.Repeat("x", 100<<10)
	for i := range 5000 {
		f.raw(index.Entry{Path: fmt.Sprintf("%04d%s", i, long), Kind: index.File, Size: 1})
	}
	f.commit()
	f.sections = [index.Sections][]forged{} // half a gigabyte of paths
	runtime.GC()
	ctx := context.Background()
	m, err := f.repo.Find(ctx, "shop", "latest")
	if err != nil {
		t.Fatal(err)
	}
	var peak uint64
	err = promptly(t, func() error {
		return f.repo.reader(m, m.Volume("data")).files(ctx, func(*index.Entry) bool {
			var ms runtime.MemStats
			runtime.ReadMemStats(&ms)
			peak = max(peak, ms.HeapAlloc)
			return true
		}, func(*index.Entry, *tarstream.Header) (fileSink, error) { return nil, nil })
	})
	if err == nil || len(err.Error()) > 4000 {
		t.Errorf("%.300v", err)
	}
	if peak > 256<<20 {
		t.Errorf("%d MiB of memory were in use", peak>>20)
	}
}
