package snapshot

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/disko/backupd/internal/snapshot/sealed"
)

// trust remembers what this machine saw of an encrypted repository: whose keys
// it has, and how far its lines had come. Whoever can write to the target could
// else exchange the repository for one of their own, or set it back. It may be
// lost; then the next contact is a first one again. docs/security.md says what
// that means.
type trust struct {
	path string
	mu   sync.Mutex
}

type trusted struct {
	Fingerprint string            `json:"fingerprint"`
	Sequences   map[string]uint64 `json:"sequences"` // highest seen, by stack
}

func newTrust(dir, repository string) *trust {
	if dir == "" {
		return &trust{}
	}
	return &trust{path: filepath.Join(dir, repository+".json")}
}

func (t *trust) load() (known trusted) {
	known.Sequences = map[string]uint64{}
	if t.path == "" {
		return known
	}
	if data, err := os.ReadFile(t.path); err == nil {
		_ = json.Unmarshal(data, &known)
	}
	if known.Sequences == nil {
		known.Sequences = map[string]uint64{}
	}
	return known
}

// save is best effort: a state directory that cannot be written is no reason to fail.
func (t *trust) save(known trusted) {
	data, err := json.Marshal(known)
	if t.path == "" || err != nil || os.MkdirAll(filepath.Dir(t.path), 0o700) != nil {
		return
	}
	f, err := os.CreateTemp(filepath.Dir(t.path), ".tmp-")
	if err != nil {
		return
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), t.path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
}

// check compares keys with those seen before.
func (t *trust) check(keys *sealed.Keys) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.load()
	now := keys.Fingerprint()
	if known.Fingerprint != "" && known.Fingerprint != now {
		return fmt.Errorf("%w: its keys are not those that this machine saw before: somebody exchanged them. If that was you, remove %s and try again", sealed.ErrForged, t.path)
	}
	if known.Fingerprint == "" {
		known.Fingerprint = now
		t.save(known)
	}
	return nil
}

// advance notes a stack's highest sequence number and returns the highest ever seen.
func (t *trust) advance(stack string, seq uint64) uint64 {
	if t.path == "" {
		return seq
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.load()
	if seq <= known.Sequences[stack] {
		return known.Sequences[stack]
	}
	known.Sequences[stack] = seq
	t.save(known)
	return seq
}
