// Package tarstream writes and reads the tar headers of a volume's stream:
// POSIX pax, deterministic, one canonical encoding per header, so that the
// same file always has the same bytes and anything else is refused as damage.
// It knows headers and padding only; content, frames and files are others' work.
package tarstream

// Type is the kind of an entry.
type Type byte

// The kinds of entries, by their tar type flags.
const (
	File    Type = '0'
	Link    Type = '1' // hard link
	Symlink Type = '2'
	Char    Type = '3'
	Block   Type = '4'
	Dir     Type = '5'
	Fifo    Type = '6'
)

// Time is a point in time, before 1970 too: Sec seconds since the epoch
// (may be negative) plus Nsec nanoseconds, 0 <= Nsec < 1e9.
type Time struct {
	Sec  int64
	Nsec int32
}

// Xattr is one extended attribute; the name in full ("user.comment").
type Xattr struct {
	Name  string
	Value []byte
}

// Extent is a run of data in a sparse file, in bytes.
type Extent struct {
	Offset, Length int64
}

// Header describes one entry of the stream.
type Header struct {
	// Path is relative to the volume's root, raw bytes of any encoding, no
	// leading "./", no trailing slash, no empty, "." or ".." component, no NUL.
	// The root itself is ".".
	Path  string
	Type  Type
	Link  string // Symlink: the text; Link: the path of the entry that holds the content
	Mode  uint32 // 07777: permissions, set-uid, set-gid, sticky
	UID   uint32
	GID   uint32
	Size  int64 // bytes of a File, holes included; 0 for all others
	Mtime Time
	Major uint32 // of Char and Block
	Minor uint32
	// Xattrs are sorted by name, no name twice.
	Xattrs []Xattr
	// Sparse is nil for a file without holes. Otherwise it lists the data of
	// the file: ascending, not adjacent, no empty extent, within Size. A file that is one hole has
	// a non-nil empty list.
	Sparse []Extent
}
