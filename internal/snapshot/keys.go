package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/store"
)

// Init makes a new encrypted repository on an empty target. Unlike the first
// backup's, its credentials may be recipients alone: the agent's key, which is
// returned, is then all that this machine can go on with.
func Init(ctx context.Context, st store.Writer, o Options) (r *Repository, agentKey string, err error) {
	if o.Credentials == nil {
		return nil, "", fmt.Errorf("%w: an encrypted repository needs somebody who can open it; give --passphrase or --recipient", ErrUsage)
	}
	_, err = st.Stat(ctx, markerKey)
	if err == nil {
		return nil, "", fmt.Errorf("%w: %s holds a repository already; nothing was changed: name another target, or see `backupd key`", ErrUsage, st.Location())
	}
	if !errors.Is(err, store.ErrNotExist) {
		return nil, "", fmt.Errorf("open %s: %w", st.Location(), err)
	}
	if err := o.notRepository(ctx, st); !errors.Is(err, ErrNoRepository) {
		return nil, "", err
	}
	m := newMarker(o)
	keys, err := sealed.Generate(m.ID, o.Credentials.PostQuantum)
	if err == nil {
		err = o.Credentials.lockNew(ctx, st, &m, keys)
	}
	if err == nil {
		err = m.write(ctx, st)
	}
	if err != nil {
		return nil, "", fmt.Errorf("create repository in %s: %w", st.Location(), err)
	}
	if r, err = newRepository(st, m.ID, keys, o); err != nil {
		return nil, "", err
	}
	if err := writeExtras(ctx, st); err != nil {
		return nil, "", err
	}
	agentKey, err = keys.AgentKey()
	return r, agentKey, err
}

// AgentKey returns the secret for an agent that may write and read nothing.
func (r *Repository) AgentKey() (string, error) {
	if err := r.mustRead("print the agent key"); err != nil {
		return "", err
	}
	return r.keys.AgentKey()
}

func (r *Repository) mustRead(act string) error {
	switch {
	case r.keys == nil:
		return fmt.Errorf("%s: %w: the repository in %s is not encrypted", act, ErrUsage, r.Location())
	case !r.keys.CanRead():
		return fmt.Errorf("%s: %w: %w", act, ErrKey, sealed.ErrNoIdentity)
	}
	return nil
}

// Keys lists the ways to open the repository, the oldest first.
func (r *Repository) Keys(ctx context.Context) ([]KeyInfo, error) {
	if err := r.mustRead("list keys"); err != nil {
		return nil, err
	}
	locks, err := listLocks(ctx, r.store, r.ID)
	if err != nil {
		return nil, err
	}
	list := []KeyInfo{}
	for _, l := range locks {
		info := KeyInfo{Name: l.name, Kind: "unknown"}
		if note, err := r.readNote(ctx, l.name); err == nil {
			info = note.KeyInfo
		}
		if l.size < 0 {
			info.Kind, info.Generation = "unfinished", 0
		}
		list = append(list, info)
	}
	slices.SortFunc(list, func(a, b KeyInfo) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name)) })
	return list, nil
}

func (r *Repository) readNote(ctx context.Context, name string) (note lockNote, err error) {
	data, err := r.store.Get(ctx, lockKey(r.ID, name)+noteSuffix, 0, -1)
	if err == nil {
		data, err = r.keys.Open(data)
	}
	if err == nil {
		err = strictJSON(data, &note)
	}
	if err == nil && note.Name != name {
		err = fmt.Errorf("%w: it is another key's", ErrDamaged)
	}
	return note, err
}

// checkLock compares a lock, which others may open, with its note.
func (r *Repository) checkLock(ctx context.Context, l listedLock) error {
	if l.size < 0 {
		return fmt.Errorf("%w: there is a note of it, and no key: it was lost, or never finished; `backupd key remove %s` ends that", ErrDamaged, l.name)
	}
	data, err := readLock(ctx, r.store, r.ID, l)
	if err != nil {
		return err
	}
	note, err := r.readNote(ctx, l.name)
	if errors.Is(err, sealed.ErrNoIdentity) {
		return nil // an agent cannot tell
	}
	if err != nil {
		return fmt.Errorf("its note: %w; add the key again, and remove this one", err)
	}
	if sumOf(data) != note.SHA256 {
		return fmt.Errorf("%w: it is not what was written; add the key again, and remove this one", ErrDamaged)
	}
	return nil
}

// AddKeys locks the repository's keys for what the credentials name, too.
func (r *Repository) AddKeys(ctx context.Context, w store.Writer, c *Credentials) error {
	if err := r.mustRead("add a key"); err != nil {
		return err
	}
	locks, err := c.locks()
	if err != nil {
		return err
	}
	for _, l := range locks {
		if err := l.write(ctx, w, r.keys, r.now().UTC()); err != nil {
			return fmt.Errorf("add a key to %s: %w", r.Location(), err)
		}
	}
	return nil
}

// RemoveKey removes a way to open the repository, but never the last. Whoever
// had it may have kept what it opens: only Rotate shuts them out of what is to come.
func (r *Repository) RemoveKey(ctx context.Context, w store.Writer, name string) error {
	list, err := r.Keys(ctx)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(list, func(k KeyInfo) bool { return k.Name == name })
	current := 0
	for _, k := range list {
		if k.Name != name && k.Generation == r.keys.Generation {
			current++
		}
	}
	switch {
	case at < 0:
		return fmt.Errorf("%w: there is no key %q; `backupd key list` tells what there is", ErrUsage, name)
	case current == 0:
		return fmt.Errorf("%w: %q is the last key that opens the newest snapshots; nobody could read them without it. Add another first", ErrUsage, name)
	}
	if err := removeLock(ctx, w, r.ID, name); err != nil {
		return fmt.Errorf("remove key %s from %s: %w", name, r.Location(), err)
	}
	return nil
}

// removeLock removes a lock, and then what was noted of it.
func removeLock(ctx context.Context, w store.Deleter, repository, name string) error {
	key := lockKey(repository, name)
	if err := w.Delete(ctx, key); err != nil {
		return err
	}
	return w.Delete(ctx, key+noteSuffix)
}

// Rotated tells what a rotation did.
type Rotated struct {
	AgentKey string // agents with the former one are refused from now on
	// Refused are snapshots that were committed with the former keys while they
	// were rotated: readers refuse them.
	Refused []Listed
}

// RotateKeys gives the repository a new key pair and a new signing key for
// what is written from now on, locked for c. Locks of the former generation
// go where they may be deleted; what they opened stays readable with the new.
func (r *Repository) RotateKeys(ctx context.Context, w store.Writer, c *Credentials) (*Rotated, error) {
	if err := r.mustRead("rotate the keys"); err != nil {
		return nil, err
	}
	former, err := listLocks(ctx, r.store, r.ID)
	if err != nil {
		return nil, err
	}
	found, err := r.find(ctx, "")
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, f := range found {
		known[f.ID] = true
	}
	next, err := r.keys.Rotate(slices.Collect(maps.Keys(known)))
	if err != nil {
		return nil, err
	}
	if err := r.putInForce(ctx, w, c, next); err != nil {
		return nil, fmt.Errorf("rotate the keys of %s: %w; unless this went through all the same, the former keys are in force as before", r.Location(), err)
	}
	for _, l := range former {
		if err := removeLock(ctx, w, r.ID, l.name); err != nil {
			return nil, fmt.Errorf("rotate the keys of %s: the new keys are in force, but former key %s could not be removed: %w; remove it with `backupd key remove %s`, and see `backupd key agent`", r.Location(), l.name, err, l.name)
		}
	}
	if err := r.use(w, next); err != nil {
		return nil, err
	}
	out := &Rotated{}
	if found, err = r.find(ctx, ""); err != nil {
		return nil, err
	}
	for _, f := range found {
		if !known[f.ID] {
			out.Refused = append(out.Refused, f.Listed)
		}
	}
	out.AgentKey, err = next.AgentKey()
	return out, err
}

// putInForce writes the locks of new keys, and then says that these count.
func (r *Repository) putInForce(ctx context.Context, w store.Writer, c *Credentials, next *sealed.Keys) error {
	locks, err := c.locks()
	if err != nil {
		return err
	}
	for _, l := range locks {
		if err := l.write(ctx, w, next, r.now().UTC()); err != nil {
			return err
		}
	}
	err = w.Put(ctx, rotationsPrefix+strconv.Itoa(next.Generation), rotation{Keys: next.Digest()}.encode())
	if err == nil {
		return nil
	}
	// The answer may be lost, and not the act.
	if now, rerr := currentKeys(ctx, r.store); rerr == nil && now.fits(next) {
		return nil
	}
	if errors.Is(err, store.ErrExist) {
		return fmt.Errorf("%w: somebody else rotated them meanwhile", err)
	}
	return err
}
