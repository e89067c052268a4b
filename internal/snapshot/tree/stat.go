// Package tree reads and writes the trees of files that volumes are: walking,
// stat, opening for backup on one side; creating, securely below one root, for restore on the other.
// It knows files and tar headers, neither frames nor indexes nor targets.
package tree

import "github.com/disko/backupd/internal/snapshot/tarstream"

// Stat is what the kernel says of one entry.
type Stat struct {
	Type      tarstream.Type // 0 for a socket
	Mode      uint32         // 07777
	UID, GID  uint32
	Size      int64 // bytes
	Blocks    int64 // units of 512 bytes
	Nlink     uint32
	Ino       uint64
	Dev       uint64 // of the file system, major<<32|minor
	Major     uint32 // of a device node
	Minor     uint32
	Mtime     tarstream.Time
	Ctime     tarstream.Time
	Btime     tarstream.Time // zero where the file system has none
	MountRoot bool           // a file system is mounted here
	// MountKnown says that the kernel tells MountRoot (5.8 and later). A device
	// number of its own is no sign of it: overlay and btrfs give such to what lies in one mount.
	MountKnown bool
}

// Same says that two stats show the same state of the same entry: nothing
// was written to it, nor was its metadata changed, between them.
func (s *Stat) Same(o *Stat) bool {
	return s.Type == o.Type && s.Ino == o.Ino && s.Size == o.Size && s.Mtime == o.Mtime && s.Ctime == o.Ctime
}

// Header is the tar header of an entry with this stat; link text and xattrs are the caller's.
func (s *Stat) Header(path string) tarstream.Header {
	h := tarstream.Header{
		Path: path, Type: s.Type, Mode: s.Mode, UID: s.UID, GID: s.GID, Mtime: s.Mtime,
	}
	switch s.Type {
	case tarstream.File:
		h.Size = s.Size
	case tarstream.Char, tarstream.Block:
		h.Major, h.Minor = s.Major, s.Minor
	}
	return h
}
