package notify

import (
	"encoding/json"
	"os"
	"sync"
	"time"

	"github.com/disko/backupd/internal/statefile"
)

// repeatAfter is when a condition that lasts is told again.
const repeatAfter = 24 * time.Hour

// memory remembers what was told, so that a target that is down for a week is
// not told every minute, nor anew after each restart. It may be lost.
type memory struct {
	path string
	mu   sync.Mutex
	told map[string]told
}

type told struct {
	What string    `json:"what"`
	At   time.Time `json:"at"`
}

func openMemory(path string) *memory {
	m := &memory{path: path, told: map[string]told{}}
	if path != "" {
		if data, err := os.ReadFile(path); err == nil {
			_ = json.Unmarshal(data, &m.told)
		}
	}
	if m.told == nil {
		m.told = map[string]told{}
	}
	return m
}

// again says whether a condition is to be told now, and notes that it is. A clock
// that was set back does not silence it.
func (m *memory) again(key, what string, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	last, ok := m.told[key]
	if ok && last.What == what && !now.Before(last.At) && now.Sub(last.At) < repeatAfter-time.Hour {
		return false // an hour's grace: a nightly run is a little early at times
	}
	m.told[key] = told{what, now}
	m.save()
	return true
}

// forget ends a condition, and says whether it was told.
func (m *memory) forget(key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.told[key]
	if ok {
		delete(m.told, key)
		m.save()
	}
	return ok
}

// save is best effort: without it something is told twice.
func (m *memory) save() {
	if m.path == "" {
		return
	}
	data, err := json.Marshal(m.told)
	if err == nil {
		_ = statefile.Replace(m.path, data)
	}
}
