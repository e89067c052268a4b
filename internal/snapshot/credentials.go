package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"

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
	now, err := currentKeys(ctx, st)
	if err != nil {
		return nil, err
	}
	if len(ids) == 0 {
		if c.Agent == nil {
			return nil, fmt.Errorf("%w: a recipient alone opens nothing; give also --passphrase, --identity or --agent-key", ErrKey)
		}
		if !now.fits(c.Agent) {
			return nil, errRotated
		}
		return c.Agent, m.Encryption.fits(c.Agent)
	}
	keys, err := unlockAny(ctx, st, m.ID, now, ids)
	if err == nil && c.Agent != nil && !keys.Same(c.Agent) {
		err = fmt.Errorf("%w: agent key and identity are of different repositories", ErrKey)
	}
	if err == nil {
		err = m.Encryption.fits(keys)
	}
	return keys, err
}

// fits makes sure that the marker tells restore.sh the truth.
func (e *encryption) fits(keys *sealed.Keys) error {
	over, err := sealed.Overhead(keys)
	if err == nil && over != e.Overhead {
		err = fmt.Errorf("%w: its marker %s says that objects have %d bytes before their content, they have %d; mend that number", ErrDamaged, markerKey, e.Overhead, over)
	}
	return err
}

// create makes keys for a new repository and writes them, locked; nil where it
// is not to be encrypted. They must be openable again with what was given.
func (c *Credentials) create(ctx context.Context, st store.Writer, m *marker) (*sealed.Keys, error) {
	if c == nil {
		for info, err := range st.List(ctx, keysPrefix) {
			if err != nil {
				return nil, err
			}
			return nil, fmt.Errorf("%w: somebody began an encrypted repository there (%s) and no key is given; give --passphrase or --identity, or empty the target", ErrKey, info.Key)
		}
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
	// An identity is there to open what is made: it does, named as a recipient or not.
	for _, id := range c.Identities {
		if r, name, ok := sealed.RecipientOf(id); ok && !slices.Contains(c.RecipientNames, name) {
			all = append(all, lock{[]age.Recipient{r}, KeyInfo{Kind: "recipients", Recipients: []string{name}}})
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: nothing to lock the keys with; give --passphrase or --recipient", ErrKey)
	}
	return all, nil
}
