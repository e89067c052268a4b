package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/store"
)

// Credentials open an encrypted repository, or make one. A nil pointer means
// that nothing is to be encrypted.
type Credentials struct {
	// Passphrase opens keys that are locked with it, and locks those of a new repository.
	Passphrase string
	// Identities open keys that are locked to them.
	Identities []age.Identity
	// Recipients are whom a new repository's keys are locked to, and their texts.
	Recipients     []age.Recipient
	RecipientNames []string
	// Agent is an agent's key, which writes and reads nothing.
	Agent *sealed.Keys
	// PostQuantum gives a new repository a hybrid key pair.
	PostQuantum bool
}

// Questions about keys that callers ask with errors.Is.
var (
	// ErrKey: the key is missing, wrong, or given for a repository that has none.
	ErrKey = errors.New("no fitting key")
)

const keysPrefix = "keys/"

// metaSuffix ends the keys of objects that tell whom a key is for, encrypted to the repository.
const metaSuffix = ".meta"

// opensWith lists the identities to try.
func (c *Credentials) opensWith() ([]age.Identity, error) {
	ids := slices.Clone(c.Identities)
	if c.Passphrase != "" {
		id, err := sealed.PassphraseIdentity(c.Passphrase)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// unlock returns the keys of the repository with that marker; nil where it is not encrypted.
func (c *Credentials) unlock(ctx context.Context, st store.Reader, m *marker) (*sealed.Keys, error) {
	switch {
	case m.Encryption == nil && c == nil:
		return nil, nil
	case m.Encryption == nil:
		return nil, fmt.Errorf("%w: a key is given, and this repository is not encrypted: nothing was written there; name another target for an encrypted one, or leave the key out", ErrKey)
	case c == nil:
		return nil, fmt.Errorf("%w: the repository is encrypted; give --passphrase, --identity or --agent-key (or BACKUPD_PASSPHRASE_FILE and the like)", ErrKey)
	}
	if c.Agent != nil && c.Agent.Repository != m.ID {
		return nil, fmt.Errorf("%w: the agent key is for repository %.8s, and this is %.8s; give the key that belongs to this target", ErrKey, c.Agent.Repository, m.ID)
	}
	ids, err := c.opensWith()
	if err != nil {
		return nil, err
	}
	if len(ids) == 0 {
		if c.Agent == nil {
			return nil, fmt.Errorf("%w: a recipient alone opens nothing; give also --passphrase, --identity or --agent-key", ErrKey)
		}
		return c.Agent, notRotated(ctx, st, c.Agent)
	}
	keys, err := unlockAny(ctx, st, m.ID, ids)
	if err == nil && c.Agent != nil && !keys.Same(c.Agent) {
		err = fmt.Errorf("%w: agent key and identity are of different repositories", ErrKey)
	}
	return keys, err
}

// rotationsPrefix begins the keys of empty notes that tell an agent, which
// cannot open the keys, that they were changed.
const rotationsPrefix = "rotations/"

func notRotated(ctx context.Context, st store.Lister, agent *sealed.Keys) error {
	for info, err := range st.List(ctx, rotationsPrefix) {
		if err != nil {
			return fmt.Errorf("look for newer keys: %w", err)
		}
		if n, err := strconv.Atoi(strings.TrimPrefix(info.Key, rotationsPrefix)); err == nil && n > agent.Generation {
			return fmt.Errorf("%w: the keys were rotated, and readers take nothing any more from this agent key; give the new one, that `backupd key rotate` printed (`backupd key agent` prints it again)", ErrKey)
		}
	}
	return nil
}

// unlockAny opens the newest of the keys that one of the identities fits.
func unlockAny(ctx context.Context, st store.Reader, repository string, ids []age.Identity) (*sealed.Keys, error) {
	var best *sealed.Keys
	var bad error
	n := 0
	for name, err := range keyNames(ctx, st) {
		if err != nil {
			return nil, err
		}
		data, err := st.Get(ctx, keysPrefix+name, 0, -1)
		if errors.Is(err, store.ErrNotExist) {
			continue // removed since it was listed
		}
		if err != nil {
			return nil, fmt.Errorf("read key %s: %w", name, err)
		}
		n++
		k, err := sealed.Unlock(data, ids...)
		switch {
		case errors.Is(err, sealed.ErrWrongKey):
		case err != nil:
			bad = fmt.Errorf("key %s: %w", name, err)
		case k.Repository == repository && (best == nil || k.Generation > best.Generation):
			best = k
		}
	}
	switch {
	case best != nil:
		return best, nil
	case bad != nil:
		return nil, bad
	case n == 0:
		return nil, fmt.Errorf("%w: the repository has no keys any more: %s is empty; bring its objects back from a copy, without them nothing can be read", ErrDamaged, keysPrefix)
	}
	return nil, fmt.Errorf("%w: %w (of %d); look for a typing error, or give another --passphrase or --identity", ErrKey, sealed.ErrWrongKey, n)
}

// keyNames yields the names of the repository's locked keys.
func keyNames(ctx context.Context, st store.Lister) func(yield func(string, error) bool) {
	return func(yield func(string, error) bool) {
		for info, err := range st.List(ctx, keysPrefix) {
			name := strings.TrimPrefix(info.Key, keysPrefix)
			if err == nil && (strings.HasSuffix(name, metaSuffix) || strings.Contains(name, "/")) {
				continue
			}
			if !yield(name, err) || err != nil {
				return
			}
		}
	}
}

// create makes keys for a new repository and writes them, locked; nil where it
// is not to be encrypted. They must be openable again with what was given.
func (c *Credentials) create(ctx context.Context, st store.Writer, m *marker) (*sealed.Keys, error) {
	if c == nil {
		return nil, nil
	}
	if c.Agent != nil {
		return nil, fmt.Errorf("%w: the target is empty, and an agent key is for a repository that exists (%.8s); check the target's name, or run `backupd init`", ErrKey, c.Agent.Repository)
	}
	if c.Passphrase == "" && len(c.Identities) == 0 {
		return nil, fmt.Errorf("%w: with a recipient alone nothing could be read again from here; run `backupd init --recipient ...` once, which prints the agent key that backups need", ErrKey)
	}
	keys, err := sealed.Generate(m.ID, c.PostQuantum)
	if err != nil {
		return nil, err
	}
	return keys, c.lockNew(ctx, st, m, keys)
}

// lockNew writes new keys for all that the credentials name.
func (c *Credentials) lockNew(ctx context.Context, st store.Writer, m *marker, keys *sealed.Keys) error {
	over, err := sealed.Overhead(keys)
	if err != nil {
		return err
	}
	m.Encryption = &encryption{Scheme: "age", Overhead: over}
	locks, err := c.locks()
	if err != nil {
		return err
	}
	for _, l := range locks {
		if err := l.write(ctx, st, keys, m.Created); err != nil {
			return err
		}
	}
	return nil
}

// lock is one way to open keys.
type lock struct {
	recipients []age.Recipient
	meta       KeyInfo
}

// KeyInfo tells of one of a repository's locked keys.
type KeyInfo struct {
	Name       string    `json:"name"`
	Kind       string    `json:"kind"`                 // passphrase or recipients; unknown without its note
	Recipients []string  `json:"recipients,omitempty"` // texts of the recipients
	Created    time.Time `json:"created,omitzero"`
	Generation int       `json:"generation,omitempty"` // of the keys in it
}

// locks are the ways to open that the credentials name: a passphrase is one of
// its own, since age encrypts to nothing else beside it.
func (c *Credentials) locks() ([]lock, error) {
	var all []lock
	if c.Passphrase != "" {
		r, err := sealed.PassphraseRecipient(c.Passphrase)
		if err != nil {
			return nil, err
		}
		all = append(all, lock{[]age.Recipient{r}, KeyInfo{Kind: "passphrase"}})
	}
	for i, r := range c.Recipients {
		all = append(all, lock{[]age.Recipient{r}, KeyInfo{Kind: "recipients", Recipients: c.RecipientNames[i : i+1]}})
	}
	if c.Passphrase == "" && len(c.Recipients) == 0 {
		for _, id := range c.Identities {
			if r, name, ok := sealed.RecipientOf(id); ok {
				all = append(all, lock{[]age.Recipient{r}, KeyInfo{Kind: "recipients", Recipients: []string{name}}})
			}
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: nothing to lock the keys with; give --passphrase or --recipient", ErrKey)
	}
	return all, nil
}

func (l lock) write(ctx context.Context, st store.Writer, keys *sealed.Keys, now time.Time) error {
	data, err := keys.Lock(l.recipients...)
	if err != nil {
		return err
	}
	var b [4]byte
	rand.Read(b[:])
	l.meta.Name = hex.EncodeToString(b[:])
	l.meta.Created, l.meta.Generation = now, keys.Generation
	note, err := json.Marshal(l.meta)
	if err != nil {
		return err
	}
	if note, err = keys.Seal(note); err != nil {
		return err
	}
	// The note first: a key without one would be a riddle to `key list`.
	if err := st.Put(ctx, keysPrefix+l.meta.Name+metaSuffix, note); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	if err := st.Put(ctx, keysPrefix+l.meta.Name, data); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	return nil
}
