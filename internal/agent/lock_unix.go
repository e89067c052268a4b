//go:build unix

package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrBusy: another run of the stack is under way.
var ErrBusy = errors.New("another run is under way")

// alone makes sure that no two runs of a stack overlap on this installation,
// whoever began them. What it locks is free again when the process ends.
func (a *Agent) alone() (release func(), err error) {
	if a.StateDir == "" || os.Getenv(envAgent) != "" { // of a worker the agent has the lock
		return func() {}, nil
	}
	dir := filepath.Join(a.StateDir, "locks")
	err = os.MkdirAll(dir, 0o700)
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(filepath.Join(dir, a.Stack), os.O_CREATE|os.O_RDWR, 0o600)
	}
	if err != nil {
		// Without its state backupd is slower, and never wrong: two runs at once are
		// two snapshots.
		if a.said.news("lock", true) {
			a.Log.Warn("nothing keeps two runs from overlapping; give --state-dir a directory that can be written", "error", err)
		}
		return func() {}, nil
	}
	a.said.news("lock", false)
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("stack %s: %w; nothing was done: wait until it has ended (`backupd runs` lists what ended)", a.Stack, ErrBusy)
		}
		return nil, fmt.Errorf("lock stack %s: %w", a.Stack, err)
	}
	return func() { f.Close() }, nil
}
