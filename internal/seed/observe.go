package seed

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Volume is a volume of the stack: its name in snapshots, and where it is mounted.
type Volume struct {
	Name string `json:"name"`
	Path string `json:"path"`
}

// Identity tells one incarnation of a volume from the next of the same name, by its root
// directory. Device numbers have no part in it: overlay, NFS and btrfs get new
// ones at every mount. Where a file system has no birth times, Born is 0, and
// the inode must do.
type Identity struct {
	Inode uint64 `json:"inode,string"`
	Born  int64  `json:"born,string"` // nanoseconds since 1970
}

// Kind is the kind of an entry.
type Kind string

// Kinds of entries.
const (
	File    Kind = "file"
	Dir     Kind = "dir"
	Symlink Kind = "symlink"
	Other   Kind = "other" // sockets, pipes and devices
)

// Entry is what lies in a volume, or in a volume of a snapshot: there Inode and Born are 0.
type Entry struct {
	Path  string // from the volume's root
	Kind  Kind
	Inode uint64
	Born  int64 // nanoseconds since 1970, 0 where unknown; so is Mtime
	Mtime int64
	Size  int64 // bytes, of files; -1 where it is not known
}

// Mark is what the mark of an unfinished restore says. One that cannot be understood is all zero.
type Mark struct {
	Snapshot string `json:"snapshot"`
	Volume   string `json:"volume"`
	Fresh    bool   `json:"fresh"` // the volume held nothing else when the restore began
}

// Observation is what was seen of a volume, at one moment.
type Observation struct {
	Volume
	Identity Identity
	Mtime    int64 // of the root
	// Plain says that this is the engine's own directory for a volume: no bind
	// mount, no options, no other driver.
	Plain    bool
	ReadOnly bool
	// Mounted is a path in the volume where something else is mounted; empty if there is none.
	Mounted string
	// Entries are all of it but placeholders, lost+found and the mark; directories before what is in them.
	Entries []Entry
	// More says that there are more entries than are looked at.
	More bool
	// Placeholders are files in the root whose purpose is that there is a file.
	Placeholders []string
	Mark         *Mark
	// Busy says that another process holds the lock on the root that seeding takes.
	Busy bool
	// Unreadable is why not all of it could be seen; empty if it could.
	Unreadable string
}

// Empty says that the volume holds nothing: an owner and a mode are nothing.
func (o *Observation) Empty() bool {
	return len(o.Entries) == 0 && !o.More && o.Mark == nil && o.Unreadable == ""
}

// maxEntries bounds how many entries of a volume are looked at: an image that
// has more in a directory is not known, and the ledger keeps the list.
const maxEntries = 200_000

// placeholders lie in directories that are in version control, so that they are there.
var placeholders = map[string]bool{".gitkeep": true, ".gitignore": true, ".keep": true}

// tempPrefix begins the names of files on their way to their place in a restore.
const tempPrefix = ".backupd-tmp-"

func (e *Entry) temporary() bool {
	return e.Kind != Dir && strings.HasPrefix(e.Path[strings.LastIndexByte(e.Path, '/')+1:], tempPrefix)
}

// entryText is an entry as it stands in the ledger.
type entryText struct {
	Path  string `json:"path"`
	Kind  Kind   `json:"kind"`
	Inode uint64 `json:"inode,string"`
	Born  int64  `json:"born,string"`
	Mtime int64  `json:"mtime,string"`
	Size  int64  `json:"size"`
}

// MarshalJSON implements json.Marshaler. A path that JSON cannot hold is quoted as Go does.
func (e Entry) MarshalJSON() ([]byte, error) {
	t := entryText(e)
	if !utf8.ValidString(t.Path) || strings.HasPrefix(t.Path, `"`) || strings.ContainsRune(t.Path, utf8.RuneError) {
		t.Path = strconv.QuoteToASCII(t.Path)
	}
	return json.Marshal(t)
}

// UnmarshalJSON implements json.Unmarshaler.
func (e *Entry) UnmarshalJSON(b []byte) error {
	var t entryText
	if err := strict(b, &t); err != nil {
		return err
	}
	if strings.HasPrefix(t.Path, `"`) {
		p, err := strconv.Unquote(t.Path)
		if err != nil {
			return fmt.Errorf("path %s: %w", t.Path, err)
		}
		t.Path = p
	}
	switch t.Kind {
	case File, Dir, Symlink, Other:
	default:
		return fmt.Errorf("entry %q: no such kind: %q", t.Path, t.Kind)
	}
	if t.Path == "" {
		return fmt.Errorf("an entry has no path")
	}
	*e = Entry(t)
	return nil
}

func clockTime(ns int64) string { return time.Unix(0, ns).UTC().Format("2006-01-02 15:04:05") }

func (a Identity) compare(b Identity) int {
	return cmp.Or(cmp.Compare(a.Inode, b.Inode), cmp.Compare(a.Born, b.Born))
}
