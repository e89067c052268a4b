package nfs

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/disko/backupd/internal/store"
)

const (
	// knownFor is how long a directory is taken to be where it was: as long as
	// Linux's client does at least (acregmin). A key has five, so that a small
	// Get is one or two round trips instead of seven.
	knownFor = 3 * time.Second
	maxKnown = 4096
)

// known has the handles of directories, by their paths below the target. One
// that was removed says so when it is used (ESTALE); only one that was moved
// within the time is not noticed.
type known struct {
	mu   sync.Mutex
	dirs map[string]knownDir
}

type knownDir struct {
	handle handle
	since  time.Time
}

func (k *known) get(rel string, now time.Time) (handle, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d, ok := k.dirs[rel]
	if age := now.Sub(d.since); age < 0 || age > knownFor {
		return "", false
	}
	return d.handle, ok
}

func (k *known) put(rel string, h handle, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dirs == nil || len(k.dirs) >= maxKnown {
		k.dirs = map[string]knownDir{}
	}
	k.dirs[rel] = knownDir{h, now}
}

// walk looks up a path below the target. Symbolic links are not followed: what
// one stands for is the client's to say, and the target's own files are none.
func (s *session) walk(rel string) (n node, err error) {
	if rel == "" {
		n.handle = s.export.dir
		n.attributes, err = s.getattr(n.handle)
		return n, err
	}
	above, name := split(rel)
	dir, err := s.directory(above)
	if err != nil {
		return node{}, err
	}
	return s.lookup(dir, name)
}

// directory returns the handle of a directory below the target.
func (s *session) directory(rel string) (handle, error) {
	if rel == "" {
		return s.export.dir, nil
	}
	now := s.now()
	if h, ok := s.export.known.get(rel, now); ok {
		return h, nil
	}
	n, err := s.walk(rel)
	if err != nil {
		return "", err
	}
	if n.kind != kindDir {
		return "", statNotDir
	}
	s.export.known.put(rel, n.handle, now)
	return n.handle, nil
}

// find looks up an object, and says that there is none where a directory is,
// which is a prefix of keys.
func (s *session) find(key string) (node, error) {
	n, err := s.walk(key)
	if err == nil && n.kind == kindDir {
		err = statNoEnt
	}
	if absent(err) {
		return node{}, s.gone(err)
	}
	return n, err
}

// gone says ErrNoTarget instead of err where the target itself is gone.
func (s *session) gone(err error) error {
	a, gerr := s.getattr(s.export.dir)
	if gerr != nil {
		return gerr // stale, most likely: then it is looked up again
	}
	if a.kind != kindDir {
		return fmt.Errorf("%w: it is no directory any more", store.ErrNoTarget)
	}
	return err
}

// makeDirs makes the directories of a key, each durable once it is answered.
func (s *session) makeDirs(rel string) (handle, error) {
	h, err := s.directory(rel)
	if !absent(err) {
		return h, err
	}
	above, name := split(rel)
	dir, err := s.makeDirs(above)
	if err != nil {
		return "", err
	}
	return s.makeDir(dir, name)
}

func (s *session) makeDir(dir handle, name string) (handle, error) {
	n, err := s.lookup(dir, name)
	if says(err, statNoEnt) {
		n, err = s.mkdir(dir, name, dirMode)
		if says(err, statExist) {
			n, err = s.lookup(dir, name) // another writer was first
		}
	}
	if err == nil && n.kind != kindDir {
		err = errors.New(name + " is not a directory")
	}
	return n.handle, err
}

// split is path.Split without the slash.
func split(key string) (dir, name string) {
	i := strings.LastIndexByte(key, '/')
	return key[:max(i, 0)], key[i+1:]
}
