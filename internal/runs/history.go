package runs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/disko/backupd/internal/statefile"
)

const (
	// fileName is the history's file in its directory.
	fileName = "history.jsonl"
	lockName = "lock"
	// maxSize is when the older half of the file is dropped: some 10,000 runs,
	// which is years of nights.
	maxSize = 4 << 20
)

// History is the runs of one installation, in a directory of its state. Several
// processes may use it at once. What cannot be written (the disk is full, there is
// no directory) is remembered for as long as the process lives, and written when
// that is possible again.
type History struct {
	dir string

	mu      sync.Mutex
	pending []Run       // not written yet
	seen    fs.FileInfo // of the file when it was read last
	list    []Run       // what it had
}

// maxPending bounds what is remembered of what cannot be written.
const maxPending = 1000

// Open returns the history in dir, which is made when something is added; empty
// for one that ends with the process.
func Open(dir string) *History { return &History{dir: dir} }

// Add appends a run. It is on the disk when Add returns nil, unless there is no directory.
func (h *History) Add(r Run) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pending = append(h.pending, r)
	if n := len(h.pending) - maxPending; n > 0 {
		h.pending = slices.Delete(h.pending, 0, n)
	}
	if h.dir == "" {
		return nil
	}
	for len(h.pending) > 0 {
		if err := h.add(h.pending[0]); err != nil {
			return fmt.Errorf("note the run in %s: %w; it is remembered until backupd ends: make room there, or make it writable", h.dir, err)
		}
		h.pending = h.pending[1:]
	}
	return nil
}

func (h *History) add(r Run) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return err
	}
	unlock, err := lock(filepath.Join(h.dir, lockName))
	if err != nil {
		return err
	}
	defer unlock()
	if err := h.shorten(); err != nil {
		return err
	}
	f, err := os.OpenFile(h.path(), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	// A record that a crash cut short has no end of line: ours begins on the next.
	size, serr := f.Seek(0, io.SeekEnd)
	if serr == nil && size > 0 {
		last := []byte{0}
		if _, err := f.ReadAt(last, size-1); err == nil && last[0] != '\n' {
			line = append([]byte{'\n'}, line...)
		}
	}
	_, err = f.Write(append(line, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err != nil && serr == nil {
		_ = f.Truncate(size) // it is written again later, whole
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func (h *History) path() string { return filepath.Join(h.dir, fileName) }

// shorten drops the older half of a file that has grown large.
func (h *History) shorten() error {
	st, err := os.Stat(h.path())
	if errors.Is(err, fs.ErrNotExist) || err == nil && st.Size() < maxSize {
		return nil
	}
	if err != nil {
		return err
	}
	data, err := os.ReadFile(h.path())
	if err != nil {
		return err
	}
	half := data[len(data)/2:]
	half = half[bytes.IndexByte(half, '\n')+1:]
	return statefile.Replace(h.path(), half)
}

// All returns the runs, the oldest first. A history that is not there is empty.
// With an error it returns what this process remembers.
func (h *History) All() ([]Run, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	list, err := h.written()
	return slices.Concat(list, h.pending), err
}

// written reads the file, if it is not as it was when it was read last: an agent
// asks every half minute, for years.
func (h *History) written() ([]Run, error) {
	if h.dir == "" {
		return nil, nil
	}
	st, err := os.Stat(h.path())
	if errors.Is(err, fs.ErrNotExist) {
		h.seen, h.list = nil, nil
		return nil, nil
	}
	if err == nil && h.seen != nil && os.SameFile(st, h.seen) && st.Size() == h.seen.Size() && st.ModTime().Equal(h.seen.ModTime()) {
		return h.list, nil
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(h.path())
	}
	if err != nil {
		return nil, fmt.Errorf("read the history of runs: %w", err)
	}
	var out []Run
	for line := range bytes.SplitSeq(data, []byte{'\n'}) {
		var r Run
		// What a newer version adds is passed over; what a crash cut is left out.
		if json.Unmarshal(line, &r) == nil && r.ID != "" && r.Kind != "" {
			out = append(out, r)
		}
	}
	h.seen, h.list = st, out
	return out, nil
}

// Last returns the newest run of a kind and a policy that fits; fits may be nil.
func (h *History) Last(kind Kind, policy string, fits func(*Run) bool) (Run, bool, error) {
	all, err := h.All()
	if err != nil {
		return Run{}, false, err
	}
	for _, r := range slices.Backward(all) {
		if r.Kind == kind && r.Policy == policy && (fits == nil || fits(&r)) {
			return r, true, nil
		}
	}
	return Run{}, false, nil
}

// Since returns the runs that ended at t or later, the oldest first.
func (h *History) Since(t time.Time) ([]Run, error) {
	all, err := h.All()
	return slices.DeleteFunc(all, func(r Run) bool { return r.Finished.Before(t) }), err
}
