package snapshot

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	if err := notRepository(ctx, st); !errors.Is(err, ErrNoRepository) {
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
	list := []KeyInfo{}
	for name, err := range keyNames(ctx, r.store) {
		if err != nil {
			return nil, fmt.Errorf("list keys: %w", err)
		}
		list = append(list, r.keyInfo(ctx, name))
	}
	slices.SortFunc(list, func(a, b KeyInfo) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name)) })
	return list, nil
}

// keyInfo reads what was noted of a key. The key itself counts, not its note.
func (r *Repository) keyInfo(ctx context.Context, name string) KeyInfo {
	info := KeyInfo{Name: name, Kind: "unknown"}
	note, err := r.store.Get(ctx, keysPrefix+name+metaSuffix, 0, -1)
	if err == nil {
		note, err = r.keys.Open(note)
	}
	var read KeyInfo
	if err == nil && json.Unmarshal(note, &read) == nil && read.Name == name {
		info = read
	}
	return info
}

// checkKey looks whether a locked key is whole: that some identity may open it
// is its header's word, which only that identity can check.
func (r *Repository) checkKey(ctx context.Context, name string) error {
	data, err := r.store.Get(ctx, keysPrefix+name, 0, -1)
	if err != nil {
		return err
	}
	return sealed.CheckLocked(data)
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
	for _, key := range []string{keysPrefix + name, keysPrefix + name + metaSuffix} {
		if err := w.Delete(ctx, key); err != nil {
			return fmt.Errorf("remove key %s from %s: %w", name, r.Location(), err)
		}
	}
	return nil
}

// RotateKeys gives the repository a new key pair and a new signing key for
// what is written from now on, locked for c. Locks of the former generation
// go where they may be deleted; what they opened stays readable with the new.
// It returns the new agent key: agents with the old one are refused from now on.
func (r *Repository) RotateKeys(ctx context.Context, w store.Writer, c *Credentials) (agentKey string, err error) {
	if err := r.mustRead("rotate the keys"); err != nil {
		return "", err
	}
	old, err := r.Keys(ctx)
	if err != nil {
		return "", err
	}
	found, err := r.find(ctx, "")
	if err != nil {
		return "", err
	}
	last := map[string]uint64{}
	for _, f := range found {
		last[f.Stack] = max(last[f.Stack], f.Sequence)
	}
	next, err := r.keys.Rotate(last)
	if err != nil {
		return "", err
	}
	locks, err := c.locks()
	if err != nil {
		return "", err
	}
	for _, l := range locks {
		if err := l.write(ctx, w, next, r.now().UTC()); err != nil {
			return "", fmt.Errorf("rotate the keys of %s: %w; the old ones are as they were", r.Location(), err)
		}
	}
	if err := w.Put(ctx, rotationsPrefix+strconv.Itoa(next.Generation), []byte("{}\n")); err != nil && !errors.Is(err, store.ErrExist) {
		return "", fmt.Errorf("rotate the keys of %s: tell agents: %w", r.Location(), err)
	}
	for _, k := range old {
		for _, key := range []string{keysPrefix + k.Name, keysPrefix + k.Name + metaSuffix} {
			if err := w.Delete(ctx, key); err != nil {
				return "", fmt.Errorf("rotate the keys of %s: the new keys are in force, but old key %s could not be removed: %w; remove it with `backupd key remove %s`", r.Location(), k.Name, err, k.Name)
			}
		}
	}
	r.keys = next
	return next.AgentKey()
}
