// Package store is the contract between the engine and the places where
// snapshots live. It holds no code that talks to any of them: a target
// implements Store, the engine asks for as little of it as it needs.
//
// Invariants every target keeps, and targetstest checks:
//   - an object is written whole, once, and is never overwritten;
//   - an object is visible only when it is complete;
//   - Put returns only when the object is durable.
package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"
)

// Sentinels that callers ask for with errors.Is. A target wraps them with the
// act and the key.
var (
	// ErrNotExist: there is no object of that key.
	ErrNotExist = errors.New("no such object")
	// ErrExist: Put found an object of that key, and left it as it was.
	ErrExist = errors.New("object exists")
	// ErrNoTarget: the place itself is absent (a directory, a bucket).
	ErrNoTarget = errors.New("no such target")
	// ErrNoSpace: the target is full, or a quota is.
	ErrNoSpace = errors.New("no space left")
	// ErrAccess: the target refuses this access.
	ErrAccess = errors.New("access denied")
	// ErrShort: the object ends before the range that was asked for.
	ErrShort = errors.New("object is shorter than expected")
	// ErrNoClock: the target cannot tell when an object was put.
	ErrNoClock = errors.New("the target has no clock")
)

// Info is what a listing tells about an object.
type Info struct {
	Key  string
	Size int64 // bytes
}

// Getter reads objects.
type Getter interface {
	// Get returns n bytes from offset off; n < 0 means all up to the object's
	// end. It returns exactly that many bytes or an error: ErrNotExist, or
	// ErrShort where the object ends earlier. The caller owns the slice.
	Get(ctx context.Context, key string, off, n int64) ([]byte, error)
	// Stat returns an object's size, or ErrNotExist.
	Stat(ctx context.Context, key string) (Info, error)
}

// Lister lists objects.
type Lister interface {
	// List yields every object whose key begins with prefix, which is empty or
	// ends in a slash, at any depth, in no particular order. A prefix that
	// matches nothing yields nothing. After an error it yields no more.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]
}

// Putter adds objects.
type Putter interface {
	// Put creates an object. It is durable and visible once Put returns nil,
	// and never visible in part. ErrExist where the key is taken: the object
	// that is there stays. After any other error the object may or may not exist.
	Put(ctx context.Context, key string, data []byte) error
}

// Deleter removes objects.
type Deleter interface {
	// Delete removes an object; an absent one is no error.
	Delete(ctx context.Context, key string) error
}

// Retainer is a target that locks objects against deletion for a time; a
// target that does not may lack it.
type Retainer interface {
	// Retain locks an object that is there anew, as if it were put now.
	Retain(ctx context.Context, key string) error
}

// Clock is a target that tells the time. Prune waits by it: the clocks of those
// who write may be off by anything. A decorator may lack what it stands before:
// then it says ErrNoClock.
type Clock interface {
	// Now is the present time by the target's clock.
	Now(ctx context.Context) (time.Time, error)
	// Modified is when an object was put, by the same clock; ErrNotExist where
	// there is none. It may be cut to whole seconds.
	Modified(ctx context.Context, key string) (time.Time, error)
	// HostClock says that the clock is this machine's, or may be that of any
	// client: it jumps when somebody sets it.
	HostClock() bool
}

// Locker is a target that can tell that an object is locked.
type Locker interface {
	// LockedUntil is when an object may be deleted at the earliest; the zero
	// time where it is not locked.
	LockedUntil(ctx context.Context, key string) (time.Time, error)
}

// Near is a target of which a piece costs hardly more to read than its bytes: one
// behind no network that it knows of. A target that is not may lack it.
type Near interface{ Near() bool }

// IsNear says whether a target is near.
func IsNear(r Getter) bool {
	n, ok := r.(Near)
	return ok && n.Near()
}

// Reader is what restoring, listing and verifying need.
type Reader interface {
	Getter
	Lister
	// Location is the target as the user wrote it, for messages; no secrets.
	Location() string
}

// Writer is what a backup needs. Delete is used only for a run's own intents
// and for withdrawing its own manifest; a target that refuses it is good enough.
type Writer interface {
	Reader
	Putter
	Deleter
}

// CheckKey refuses keys that could leave the target or clash with its
// temporaries: a key is one or more components of [A-Za-z0-9._-], none of
// which starts with a dot, joined by slashes, 512 bytes at most.
func CheckKey(key string) error {
	if key == "" || len(key) > 512 {
		return fmt.Errorf("object key %q: must have 1 to 512 bytes", key)
	}
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part[0] == '.' {
			return fmt.Errorf("object key %q: empty component, or one that starts with a dot", key)
		}
		for i := 0; i < len(part); i++ {
			c := part[i]
			if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-' {
				continue
			}
			return fmt.Errorf("object key %q: byte %q is not allowed", key, c)
		}
	}
	return nil
}
