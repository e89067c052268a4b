package snapshot

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/store"
)

// A repository's keys lie on the target, locked once for each way to open them
// (a lock), each with a note that tells whose it is, encrypted to the repository.

const (
	keysPrefix = "keys/"
	noteSuffix = ".meta"
	// rotationsPrefix begins the keys of objects that say which keys are in force.
	rotationsPrefix = "rotations/"
)

// lockKey is the key of a lock. It begins like the repository's id, so that
// what a killed first backup left behind is known for what it is.
func lockKey(repository, name string) string { return keysPrefix + repository[:8] + "-" + name }

// isLockKey says whether a key has the form of a lock's or its note's.
func isLockKey(key string) bool {
	name, ok := strings.CutPrefix(strings.TrimSuffix(key, noteSuffix), keysPrefix)
	return ok && len(name) == 17 && name[8] == '-' && pack.ValidRun(name[:8]+name[9:])
}

// KeyInfo tells of one of a repository's locked keys.
type KeyInfo struct {
	Name       string    `json:"name"`
	Kind       string    `json:"kind"`                 // passphrase or recipients; unknown without its note
	Recipients []string  `json:"recipients,omitempty"` // texts of the recipients
	Created    time.Time `json:"created,omitzero"`
	Generation int       `json:"generation,omitempty"` // of the keys in it
}

// lockNote is the content of a lock's note.
type lockNote struct {
	KeyInfo
	SHA256 string `json:"sha256"` // of the lock, which most readers cannot open
}

// write locks keys and puts the lock, its note first: a lock without one would
// be a riddle to `key list`.
func (l lock) write(ctx context.Context, st store.Writer, keys *sealed.Keys, now time.Time) error {
	data, err := keys.Lock(l.recipients...)
	if err != nil {
		return err
	}
	var b [4]byte
	rand.Read(b[:])
	l.meta.Name = hex.EncodeToString(b[:])
	l.meta.Created, l.meta.Generation = now, keys.Generation
	note, err := json.Marshal(lockNote{l.meta, sumOf(data)})
	if err != nil {
		return err
	}
	if note, err = keys.Seal(note); err != nil {
		return err
	}
	key := lockKey(keys.Repository, l.meta.Name)
	if err := st.Put(ctx, key+noteSuffix, note); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	if err := st.Put(ctx, key, data); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	return nil
}

func sumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// listedLock is what a listing has of a lock.
type listedLock struct {
	name string
	size int64 // -1: there is a note only
	note bool
}

// listLocks lists the locks of one repository.
func listLocks(ctx context.Context, st store.Lister, repository string) ([]listedLock, error) {
	var list []listedLock
	at := map[string]int{}
	for info, err := range st.List(ctx, keysPrefix) {
		if err != nil {
			return nil, fmt.Errorf("list keys: %w", err)
		}
		name, ours := strings.CutPrefix(info.Key, lockKey(repository, ""))
		if !ours || !isLockKey(info.Key) {
			continue
		}
		name, note := strings.CutSuffix(name, noteSuffix)
		i, seen := at[name]
		if !seen {
			i = len(list)
			at[name] = i
			list = append(list, listedLock{name: name, size: -1})
		}
		if note {
			list[i].note = true
		} else {
			list[i].size = info.Size
		}
	}
	return list, nil
}

// readLock reads a lock, of a size that some writer may have given it.
func readLock(ctx context.Context, st store.Getter, repository string, l listedLock) ([]byte, error) {
	if l.size > sealed.MaxLocked {
		return nil, fmt.Errorf("%w: has %d bytes", ErrDamaged, l.size)
	}
	return st.Get(ctx, lockKey(repository, l.name), 0, l.size)
}

// inForce says which keys count: those of the last rotation that was completed.
type inForce struct {
	generation int
	digest     string // of the keys; empty for those that the repository was made with
}

func (f inForce) fits(k *sealed.Keys) bool {
	return k.Generation == f.generation && (f.digest == "" || f.digest == k.Digest())
}

// rotation is the content of rotations/<generation>.
type rotation struct {
	Keys string `json:"keys"` // their digest
}

// encode returns the one form that a rotation has.
func (r rotation) encode() []byte { return fmt.Appendf(nil, `{"keys":"%s"}`+"\n", r.Keys) }

var errRotated = fmt.Errorf("%w: the keys were rotated, and what is written with the former ones counts no more; give the new key (`backupd key agent` prints an agent's)", ErrKey)

// currentKeys reads which keys are in force. Agents can, who open no lock.
func currentKeys(ctx context.Context, st store.Reader) (now inForce, err error) {
	now.generation = 1
	for info, err := range st.List(ctx, rotationsPrefix) {
		if err != nil {
			return now, fmt.Errorf("look for newer keys: %w", err)
		}
		n, err := strconv.Atoi(strings.TrimPrefix(info.Key, rotationsPrefix))
		if err == nil && n > now.generation {
			now.generation = n
		}
	}
	if now.generation == 1 {
		return now, nil
	}
	key := rotationsPrefix + strconv.Itoa(now.generation)
	data, err := st.Get(ctx, key, 0, -1)
	if err != nil {
		return now, fmt.Errorf("look for newer keys: %w", err)
	}
	var r rotation
	if err := strictJSON(data, &r); err != nil || !validID(r.Keys) || !bytes.Equal(data, r.encode()) {
		return now, fmt.Errorf("%w: %s cannot be read; bring it back from another copy of the repository", ErrDamaged, key)
	}
	now.digest = r.Keys
	return now, nil
}

// stillInForce makes sure that the keys were not rotated since they were read.
func (r *Repository) stillInForce(ctx context.Context) error {
	if r.keys == nil {
		return nil
	}
	now, err := currentKeys(ctx, r.store)
	if err == nil && !now.fits(r.keys) {
		err = errRotated
	}
	return err
}

// unlockAny opens the keys in force with what fits one of their locks.
func unlockAny(ctx context.Context, st store.Reader, repository string, now inForce, ids []age.Identity) (*sealed.Keys, error) {
	locks, err := listLocks(ctx, st, repository)
	if err != nil {
		return nil, err
	}
	var found, former, later *sealed.Keys
	var bad error
	tried := 0
	for _, l := range locks {
		if l.size < 0 {
			continue
		}
		data, err := readLock(ctx, st, repository, l)
		if errors.Is(err, store.ErrNotExist) {
			continue // removed since it was listed
		}
		if err != nil {
			return nil, fmt.Errorf("read key %s: %w", l.name, err)
		}
		tried++
		k, err := sealed.Unlock(data, ids...)
		switch {
		case errors.Is(err, sealed.ErrWrongKey):
		case err != nil:
			bad = fmt.Errorf("key %s: %w", l.name, err)
		case k.Repository != repository:
			bad = fmt.Errorf("key %s: %w: it is for another repository", l.name, sealed.ErrForged)
		case !now.fits(k) && k.Generation < now.generation:
			former = k
		case !now.fits(k):
			later = k
		case found != nil && (found.Digest() != k.Digest() || found.Fingerprint() != k.Fingerprint()):
			return nil, fmt.Errorf("%w: two locks hold different keys, one of them %s: somebody put it there. Remove it with the target's own tools if it is not yours", sealed.ErrForged, l.name)
		default:
			found = k
		}
	}
	switch {
	case found != nil:
		return found, nil
	case bad != nil:
		return nil, bad
	case former != nil:
		return nil, errRotated
	case later != nil:
		return nil, fmt.Errorf("%w: this opens only keys of a rotation that did not end; give the former --passphrase or --identity, and run `backupd key rotate` again", ErrKey)
	case tried == 0:
		return nil, fmt.Errorf("%w: the repository has no keys any more below %s; bring its objects back from a copy, without them nothing can be read", ErrDamaged, keysPrefix)
	}
	return nil, fmt.Errorf("%w: %w (of %d); look for a typing error, or give another --passphrase or --identity", ErrKey, sealed.ErrWrongKey, tried)
}
