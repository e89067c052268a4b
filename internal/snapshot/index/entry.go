// Package index holds what locates the entries of a volume's tar stream: JSON
// lines in pages of about 64, cut by a hash of the path, content-addressed,
// under levels of pages cut the same way. A region that did not change keeps
// its pages, so a change costs in proportion to itself.
//
// The index only locates: what a file is restored with comes from its tar
// header. Sizes, times and inodes stand here to tell what changed.
package index

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// Kind is the kind of an entry, by the name it has in the index.
type Kind string

// Kinds of entries that are in the stream.
const (
	File    Kind = "file"
	Symlink Kind = "symlink"
	Fifo    Kind = "fifo"
	Char    Kind = "char"
	Block   Kind = "block"
	Link    Kind = "link"
	Dir     Kind = "dir"
)

// Kinds of absent entries: paths that a reader must know about though the
// snapshot does not have them.
const (
	Gone       Kind = "gone"       // a stale member of a kept group bears this name
	Excluded   Kind = "excluded"   // left out by a pattern
	Unreadable Kind = "unreadable" // could not be read
	Mount      Kind = "mount"      // another file system is mounted here
	Socket     Kind = "socket"
	Kept       Kind = "kept" // in an undo snapshot: was not touched by the restore
)

// Section is a part of the stream and the part of the index that locates it.
type Section int

// The sections, in the order of the stream; the last has no part in it.
const (
	// Files are the regular files, by their first path.
	Files Section = iota
	// Nodes are all other entries: directories, symlinks, special files, and
	// the further paths of files with several hard links.
	Nodes
	// Absent is what a reader must know to be missing.
	Absent
	Sections = 3
)

func (s Section) String() string {
	return [...]string{"files", "nodes", "absent"}[s]
}

// Section returns where entries of this kind belong.
func (k Kind) Section() Section {
	switch k {
	case File:
		return Files
	case Dir, Symlink, Link, Fifo, Char, Block:
		return Nodes
	}
	return Absent
}

// KindOf translates a tar type; 0, a socket's, is Socket.
func KindOf(t tarstream.Type) Kind {
	switch t {
	case tarstream.File:
		return File
	case tarstream.Symlink:
		return Symlink
	case tarstream.Fifo:
		return Fifo
	case tarstream.Char:
		return Char
	case tarstream.Block:
		return Block
	case tarstream.Link:
		return Link
	case tarstream.Dir:
		return Dir
	}
	return Socket
}

// LeftOut says that the source had something at this path that the snapshot
// lacks; a restore keeps its hands off it.
func (k Kind) LeftOut() bool {
	switch k {
	case Excluded, Unreadable, Mount, Socket, Kept:
		return true
	}
	return false
}

// Entry is one line of the index.
type Entry struct {
	Path  string
	Kind  Kind
	Size  int64 // bytes; files only
	Mtime tarstream.Time
	Ctime tarstream.Time
	Ino   uint64
	Slot  uint64 // files: which piece of the stream holds it
	Off   uint32 // files: bytes from the slot's start to the entry's header
	Link  string // links: the path that holds the content
	// Racy says that the file was changed so shortly before it was read, or while,
	// that a later change may leave its times as they are, or that its file system's
	// times mean nothing: read it next time.
	Racy bool
	// Sum is, of a racy file in a group, the first half of the SHA-256 of its tar
	// header and content, in hex: if it is the same next time, the file stays where it is.
	Sum string
	// Old lists the slots of earlier groups that still hold a stale member of this path, ascending.
	Old []uint64
}

// ErrCorrupt is pack.ErrCorrupt: a line or page that no writer wrote.
var ErrCorrupt = pack.ErrCorrupt

// AppendTo writes the entry's line, its newline included.
func (e *Entry) AppendTo(dst []byte) []byte {
	dst = append(dst, `{"path":"`...)
	dst = appendEscaped(dst, e.Path)
	dst = append(dst, `","type":"`...)
	dst = append(dst, e.Kind...)
	dst = append(dst, '"')
	if e.Kind.Section() != Absent {
		if e.Kind == File {
			dst = append(dst, `,"size":`...)
			dst = appendUint(dst, uint64(e.Size))
		}
		dst = append(dst, `,"mtime":"`...)
		dst = tarstream.AppendTime(dst, e.Mtime)
		dst = append(dst, `","ctime":"`...)
		dst = tarstream.AppendTime(dst, e.Ctime)
		dst = append(dst, `","ino":`...)
		dst = appendUint(dst, e.Ino)
	}
	switch e.Kind {
	case File:
		dst = append(dst, `,"slot":`...)
		dst = appendUint(dst, e.Slot)
		dst = append(dst, `,"off":`...)
		dst = strconv.AppendUint(dst, uint64(e.Off), 10)
	case Link:
		dst = append(dst, `,"link":"`...)
		dst = appendEscaped(dst, e.Link)
		dst = append(dst, '"')
	}
	if e.Racy {
		dst = append(dst, `,"racy":"`...)
		dst = append(dst, e.Sum...)
		dst = append(dst, '"')
	}
	for i, s := range e.Old {
		if i == 0 {
			dst = append(dst, `,"old":[`...)
		} else {
			dst = append(dst, ',')
		}
		dst = appendUint(dst, s)
	}
	if len(e.Old) > 0 {
		dst = append(dst, ']')
	}
	return append(dst, '}', '\n')
}

// appendUint writes a number, as a string where it is over 2^53: jq rounds those.
func appendUint(dst []byte, n uint64) []byte {
	if n <= 1<<53 {
		return strconv.AppendUint(dst, n, 10)
	}
	dst = append(dst, '"')
	dst = strconv.AppendUint(dst, n, 10)
	return append(dst, '"')
}

// ParseEntry reads the line that AppendTo writes, without its newline, and
// refuses any other.
func ParseEntry(line []byte) (Entry, error) {
	s := scanner{rest: line}
	var e Entry
	s.lit(`{"path":"`)
	e.Path = s.path()
	s.lit(`,"type":"`)
	e.Kind = s.kind()
	if e.Kind.Section() != Absent {
		if e.Kind == File {
			s.lit(`,"size":`)
			e.Size = s.int64()
		}
		s.lit(`,"mtime":"`)
		e.Mtime = s.time()
		s.lit(`,"ctime":"`)
		e.Ctime = s.time()
		s.lit(`,"ino":`)
		e.Ino = s.uint()
	}
	switch e.Kind {
	case File:
		s.lit(`,"slot":`)
		e.Slot = s.uint()
		s.lit(`,"off":`)
		e.Off = s.uint32()
	case Link:
		s.lit(`,"link":"`)
		e.Link = s.path()
		s.check(tarstream.CheckPath(e.Link))
	}
	if e.Racy = s.opt(`,"racy":"`); e.Racy {
		e.Sum = s.sum()
	}
	if s.opt(`,"old":[`) {
		for {
			e.Old = append(e.Old, s.uint())
			if n := len(e.Old); n > 1 && e.Old[n-1] <= e.Old[n-2] {
				s.fail("old slots out of order")
			}
			if !s.opt(",") {
				break
			}
		}
		s.lit("]")
	}
	s.lit("}")
	if len(s.rest) > 0 {
		s.fail("trailing bytes")
	}
	if e.Path != Root || e.Kind != Dir {
		s.check(tarstream.CheckPath(e.Path))
		if e.Path == Root && !e.Kind.LeftOut() {
			s.fail("the root is no directory")
		}
	}
	if s.err != nil {
		return Entry{}, fmt.Errorf("%w: index line %.300q: %w", ErrCorrupt, line, s.err)
	}
	return e, nil
}

// scanner reads the fixed forms of the index's lines; after an error it reads nothing.
type scanner struct {
	rest []byte
	err  error
}

func (s *scanner) fail(what string) { s.check(errors.New(what)) }

func (s *scanner) check(err error) {
	if s.err == nil && err != nil {
		s.err = err
		s.rest = nil
	}
}

func (s *scanner) opt(lit string) bool {
	if len(s.rest) >= len(lit) && string(s.rest[:len(lit)]) == lit {
		s.rest = s.rest[len(lit):]
		return true
	}
	return false
}

func (s *scanner) lit(lit string) {
	if !s.opt(lit) {
		s.fail("expected " + lit)
	}
}

// str reads up to the closing quote. Escapes never contain one.
func (s *scanner) str() []byte {
	i := bytes.IndexByte(s.rest, '"')
	if i < 0 {
		s.fail("open string")
		return nil
	}
	b := s.rest[:i]
	s.rest = s.rest[i+1:]
	return b
}

// sum is nothing, or 32 hex digits.
func (s *scanner) sum() string {
	b := s.str()
	if len(b) != 0 && (len(b) != 32 || !pack.ValidRun(string(b[:16])) || !pack.ValidRun(string(b[16:]))) {
		s.fail("bad sum")
	}
	return string(b)
}

func (s *scanner) path() string {
	p, err := unescape(s.str())
	s.check(err)
	return p
}

func (s *scanner) kind() Kind {
	b := s.str()
	for _, k := range [...]Kind{File, Dir, Symlink, Link, Gone, Excluded, Unreadable, Mount, Socket, Kept, Fifo, Char, Block} {
		if string(b) == string(k) {
			return k
		}
	}
	s.fail("unknown type")
	return Gone
}

func (s *scanner) uint() uint64 {
	quoted := s.opt(`"`)
	i := 0
	var n uint64
	for ; i < len(s.rest) && s.rest[i] >= '0' && s.rest[i] <= '9'; i++ {
		d := uint64(s.rest[i] - '0')
		if i >= 20 || n > (1<<64-1-d)/10 {
			s.fail("number too large")
			return 0
		}
		n = n*10 + d
	}
	if i == 0 || i > 1 && s.rest[0] == '0' || quoted != (n > 1<<53) {
		s.fail("bad number")
		return 0
	}
	s.rest = s.rest[i:]
	if quoted {
		s.lit(`"`)
	}
	return n
}

func (s *scanner) int64() int64 {
	n := s.uint()
	if n > 1<<63-1 {
		s.fail("number too large")
	}
	return int64(n)
}

func (s *scanner) uint32() uint32 {
	n := s.uint()
	if n > 1<<32-1 {
		s.fail("number too large")
	}
	return uint32(n)
}

func (s *scanner) time() tarstream.Time {
	t, ok := parseTime(s.str())
	if !ok {
		s.fail("bad time")
	}
	return t
}

func parseTime(b []byte) (tarstream.Time, bool) {
	whole, frac, dot := bytes.Cut(b, []byte("."))
	neg := len(whole) > 0 && whole[0] == '-'
	digits := whole
	if neg {
		digits = whole[1:]
	}
	var sec int64
	if len(digits) == 0 || len(digits) > 18 || digits[0] == '0' && len(digits) > 1 {
		return tarstream.Time{}, false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return tarstream.Time{}, false
		}
		sec = sec*10 + int64(c-'0')
	}
	var nsec int32
	if dot {
		if len(frac) == 0 || len(frac) > 9 || frac[len(frac)-1] == '0' {
			return tarstream.Time{}, false
		}
		for i := range 9 {
			nsec *= 10
			if i < len(frac) {
				if frac[i] < '0' || frac[i] > '9' {
					return tarstream.Time{}, false
				}
				nsec += int32(frac[i] - '0')
			}
		}
	}
	if neg {
		if sec == 0 && nsec == 0 {
			return tarstream.Time{}, false
		}
		sec = -sec
		if nsec > 0 {
			sec, nsec = sec-1, 1e9-nsec
		}
	}
	return tarstream.Time{Sec: sec, Nsec: nsec}, true
}
