package snapshot

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/statefile"
)

// trust remembers what this machine saw of an encrypted repository: whose keys
// it has, where it lay, and how far its lines had come. Whoever can write to the
// target could else exchange the repository for one of their own, or set it back.
// It may be lost; then the next contact is a first one again. docs/security.md
// says what that means.
type trust struct {
	dir, path string // empty: nothing is remembered
	mu        sync.Mutex
}

// trusted is what is remembered of one repository.
type trusted struct {
	Fingerprint string            `json:"fingerprint,omitempty"` // of its keys; empty where only an agent was here
	Generation  int               `json:"generation"`            // of its keys, the highest seen
	Targets     []string          `json:"targets"`               // where it lay
	Sequences   map[string]uint64 `json:"sequences"`             // highest of each stack
}

func newTrust(dir, repository string) *trust {
	if dir == "" {
		return &trust{}
	}
	return &trust{dir: dir, path: filepath.Join(dir, repository+trustSuffix)}
}

const trustSuffix = ".json"

// load reads what is remembered; one that cannot be read is as one that is lost.
func (t *trust) load() (known trusted) {
	if t.path != "" {
		if data, err := os.ReadFile(t.path); err == nil {
			_ = json.Unmarshal(data, &known)
		}
	}
	if known.Sequences == nil {
		known.Sequences = map[string]uint64{}
	}
	return known
}

// save is best effort: a state directory that cannot be written is no reason to fail.
func (t *trust) save(known trusted) {
	data, err := json.Marshal(known)
	if t.path != "" && err == nil {
		_ = statefile.Replace(t.path, data)
	}
}

// check compares keys that opened the repository at a location with what was
// seen before.
func (t *trust) check(keys *sealed.Keys, location string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.load()
	now := keys.Fingerprint()
	switch {
	case known.Fingerprint != "" && now != "" && known.Fingerprint != now:
		return fmt.Errorf("%w: its keys are not those that this machine saw before: somebody exchanged them. If that was you, remove %s and try again", sealed.ErrForged, t.path)
	case keys.Generation < known.Generation:
		return fmt.Errorf("%w: its keys are of generation %d, and this machine saw generation %d: the rotation was taken back. If you know why, remove %s and try again", ErrSetBack, keys.Generation, known.Generation, t.path)
	case len(known.Targets) == 0:
		if err := t.wasOther(location, "another encrypted repository lies there now: the target was exchanged"); err != nil {
			return err
		}
	}
	if (now == "" || known.Fingerprint == now) && known.Generation == keys.Generation && slices.Contains(known.Targets, location) {
		return nil
	}
	if now != "" {
		known.Fingerprint = now
	}
	known.Generation = keys.Generation
	if !slices.Contains(known.Targets, location) {
		known.Targets = append(known.Targets, location)
	}
	t.save(known)
	return nil
}

// wasOther refuses a location where an encrypted repository lay before, and
// that now has what the text says.
func (t *trust) wasOther(location, now string) error {
	if t.dir == "" {
		return nil
	}
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return nil //nolint:nilerr // nothing is remembered
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), trustSuffix)
		if !ok || !validID(id) {
			continue
		}
		other := newTrust(t.dir, id)
		if other.path != t.path && slices.Contains(other.load().Targets, location) {
			return fmt.Errorf("%w: this machine knows encrypted repository %.8s in %s, and %s, or is not mounted. If you know why, remove %s and try again", ErrSetBack, id, location, now, other.path)
		}
	}
	return nil
}

// highest returns the highest sequence number of a stack that was ever seen.
func (t *trust) highest(stack string) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.load().Sequences[stack]
}

// advance notes the sequence number of a snapshot whose signature was checked,
// and returns the highest ever seen.
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
