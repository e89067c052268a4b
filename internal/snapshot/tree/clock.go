package tree

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// racyMargin is how old, in seconds, a change must be for a stat to be
// trusted: file systems keep times in steps of up to two seconds.
const racyMargin = 3

// Trust says whether, and for which times, an unchanged stat means unchanged
// content on a source's file system.
type Trust struct {
	// Stats is false where content may change and leave every time as it was:
	// then everything is read.
	Stats bool
	// FS is the file system's type, for messages and the manifest.
	FS string
	// ownClock: the kernel that stamps the files is the one we ask for the time.
	ownClock bool
	now      tarstream.Time // lower bound of the file system's clock
}

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

// Settled is a Trust that believes every stat, for tests whose trees are
// younger than any margin.
func Settled() Trust { return Trust{Stats: true, ownClock: true, now: tarstream.Time{Sec: 1 << 40}} }

// Racy says that the entry was changed so recently that another change may
// carry the same times. Not safe for concurrent use.
func (t *Trust) Racy(st *Stat) bool {
	if !t.ownClock && after(st.Ctime, t.now) {
		// The server's clock is only known by what it stamped.
		t.now = st.Ctime
	}
	limit := tarstream.Time{Sec: t.now.Sec - racyMargin, Nsec: t.now.Nsec}
	return !after(limit, st.Ctime) || !after(limit, st.Mtime) && st.Mtime.Sec <= t.now.Sec+racyMargin
}

func after(a, b tarstream.Time) bool {
	return a.Sec > b.Sec || a.Sec == b.Sec && a.Nsec > b.Nsec
}

// Identity tells one incarnation of a volume from another that has its name.
type Identity struct {
	FSID  [2]int32 `json:"fsid"`
	Ino   uint64   `json:"ino,string"`
	Btime string   `json:"btime"` // seconds and nanoseconds since 1970; "0.000000000" where there is none
}

// Identity returns the identity of the source's root.
func (s *Source) Identity() (Identity, error) {
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(s.root.fd, &sfs); err != nil {
		return Identity{}, err
	}
	return Identity{FSID: sfs.Fsid.Val, Ino: s.root.stat.Ino, Btime: fmt.Sprintf("%d.%09d", s.root.stat.Btime.Sec, s.root.stat.Btime.Nsec)}, nil
}
