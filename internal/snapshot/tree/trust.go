package tree

import "github.com/disko/backupd/internal/snapshot/tarstream"

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
