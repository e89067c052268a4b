// Package storetest has stores for tests: one that lives in memory, and one
// that fails where it is told to. They keep the contract of package store, and
// hold no knowledge of what is stored in them.
package storetest

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/disko/backupd/internal/store"
)

// Memory is a store.Writer in memory. Safe for concurrent use.
type Memory struct {
	// Clock is the target's clock; time.Now where nil.
	Clock func() time.Time

	mu      sync.RWMutex
	objects map[string][]byte // never changed in place: clones share them
	put     map[string]time.Time
}

var (
	_ store.Writer = (*Memory)(nil)
	_ store.Clock  = (*Memory)(nil)
)

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{objects: map[string][]byte{}, put: map[string]time.Time{}}
}

// Now implements store.Clock.
func (m *Memory) Now(context.Context) (time.Time, error) { return m.now(), nil }

func (m *Memory) now() time.Time {
	if m.Clock == nil {
		return time.Now()
	}
	return m.Clock()
}

// Modified implements store.Clock.
func (m *Memory) Modified(ctx context.Context, key string) (time.Time, error) {
	if err := check(ctx, "stat", key); err != nil {
		return time.Time{}, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if _, ok := m.objects[key]; !ok {
		return time.Time{}, fmt.Errorf("stat %s: %w", key, store.ErrNotExist)
	}
	return m.put[key], nil
}

// HostClock implements store.Clock.
func (m *Memory) HostClock() bool { return false }

// Location implements store.Reader.
func (m *Memory) Location() string { return "memory" }

// Put implements store.Putter. It keeps a copy of data.
func (m *Memory) Put(ctx context.Context, key string, data []byte) error {
	if err := check(ctx, "write", key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, taken := m.objects[key]; taken {
		return fmt.Errorf("write %s: %w", key, store.ErrExist)
	}
	m.objects[key], m.put[key] = slices.Clone(data), m.now()
	return nil
}

// Get implements store.Getter.
func (m *Memory) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	if err := check(ctx, "read", key); err != nil {
		return nil, err
	}
	m.mu.RLock()
	data, ok := m.objects[key]
	m.mu.RUnlock()
	if !ok {
		return nil, fmt.Errorf("read %s: %w", key, store.ErrNotExist)
	}
	size := int64(len(data))
	if n < 0 {
		n = max(size-off, 0)
	}
	if off < 0 || off > size || n > size-off {
		return nil, fmt.Errorf("read %s: %w: has %d bytes, wanted %d from %d", key, store.ErrShort, size, n, off)
	}
	return append(make([]byte, 0, n), data[off:off+n]...), nil
}

// Stat implements store.Getter.
func (m *Memory) Stat(ctx context.Context, key string) (store.Info, error) {
	if err := check(ctx, "stat", key); err != nil {
		return store.Info{}, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	data, ok := m.objects[key]
	if !ok {
		return store.Info{}, fmt.Errorf("stat %s: %w", key, store.ErrNotExist)
	}
	return store.Info{Key: key, Size: int64(len(data))}, nil
}

// List implements store.Lister. It yields what there was when it began.
func (m *Memory) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		if prefix != "" && !strings.HasSuffix(prefix, "/") {
			yield(store.Info{}, fmt.Errorf("list %q: a prefix ends in a slash", prefix))
			return
		}
		m.mu.RLock()
		var all []store.Info
		for key, data := range m.objects {
			if strings.HasPrefix(key, prefix) {
				all = append(all, store.Info{Key: key, Size: int64(len(data))})
			}
		}
		m.mu.RUnlock()
		slices.SortFunc(all, func(a, b store.Info) int { return strings.Compare(a.Key, b.Key) })
		if len(all) == 0 && ctx.Err() != nil {
			yield(store.Info{}, ctx.Err())
			return
		}
		for _, info := range all {
			if err := ctx.Err(); err != nil {
				yield(store.Info{}, fmt.Errorf("list %q: %w", prefix, err))
				return
			}
			if !yield(info, nil) {
				return
			}
		}
	}
}

// Delete implements store.Deleter.
func (m *Memory) Delete(ctx context.Context, key string) error {
	if err := check(ctx, "delete", key); err != nil {
		return err
	}
	m.Remove(key)
	return nil
}

func check(ctx context.Context, act, key string) error {
	if err := store.CheckKey(key); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s %s: %w", act, key, err)
	}
	return nil
}

// Keys returns the keys of all objects, sorted.
func (m *Memory) Keys() []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Sorted(maps.Keys(m.objects))
}

// Bytes returns a copy of an object's content; nil where there is none.
func (m *Memory) Bytes(key string) []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	data, ok := m.objects[key]
	if !ok {
		return nil
	}
	return append([]byte{}, data...)
}

// SetBytes puts an object there, over what is there: what no target does, and
// decay and attackers do. It keeps a copy of data.
func (m *Memory) SetBytes(key string, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[key], m.put[key] = append([]byte{}, data...), m.now()
}

// Remove removes an object if it is there.
func (m *Memory) Remove(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
}

// Clone returns a store of its own with the same objects, at the price of a
// map: content is shared until it is set anew.
func (m *Memory) Clone() *Memory {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return &Memory{Clock: m.Clock, objects: maps.Clone(m.objects), put: maps.Clone(m.put)}
}
