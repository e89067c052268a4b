package tree

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// fileSystems lists those whose stats can be trusted, and whether their times
// come from this kernel's clock. tmpfs is missing on purpose: a write through a
// mapping touches no time there. So are FUSE and SMB: what they report is up to the other side.
var fileSystems = map[int64]struct {
	name     string
	ownClock bool
}{
	unix.EXT4_SUPER_MAGIC:      {"ext4", true},
	unix.XFS_SUPER_MAGIC:       {"xfs", true},
	unix.BTRFS_SUPER_MAGIC:     {"btrfs", true},
	unix.OVERLAYFS_SUPER_MAGIC: {"overlay", true},
	unix.F2FS_SUPER_MAGIC:      {"f2fs", true},
	0x2fc12fc1:                 {"zfs", true},
	0xca451a4e:                 {"bcachefs", true},
	unix.NFS_SUPER_MAGIC:       {"nfs", false},
}

// Trust flushes the file system's writes, so that pages written through a
// mapping have their times set, and says how far stats are to be trusted for
// a walk that begins now.
func (s *Source) Trust() Trust {
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(s.root.fd, &sfs); err != nil {
		return Trust{FS: "unknown"}
	}
	known, ok := fileSystems[int64(uint32(sfs.Type))] // signed, and of 32 bits on 32-bit machines
	if !ok {
		return Trust{FS: "other"}
	}
	t := Trust{FS: known.name, ownClock: known.ownClock}
	// The time is taken before the flush: what is written after it is racy.
	var ts unix.Timespec
	if known.ownClock && unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &ts) == nil {
		t.now = tarstream.Time{Sec: int64(ts.Sec), Nsec: int32(ts.Nsec)}
	}
	t.Stats = unix.Syncfs(s.root.fd) == nil
	return t
}

// Identity returns the identity of the source's root.
func (s *Source) Identity() (Identity, error) {
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(s.root.fd, &sfs); err != nil {
		return Identity{}, err
	}
	return Identity{FSID: sfs.Fsid.Val, Ino: s.root.stat.Ino, Btime: fmt.Sprintf("%d.%09d", s.root.stat.Btime.Sec, s.root.stat.Btime.Nsec)}, nil
}
