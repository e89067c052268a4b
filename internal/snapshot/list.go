package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/disko/backupd/internal/store"
)

// Listed is a snapshot in a listing: its manifest, or why it cannot be read.
type Listed struct {
	Stack    string
	Sequence uint64
	ID       string
	Manifest *Manifest
	Err      error
	// Forgotten: it has a record, and lies there until prune deletes it.
	Forgotten bool
}

// ID is the snapshot's id: 32 hex digits.
func (m *Manifest) ID() string { return m.id }

// List returns the snapshots of a stack, or of all where stack is empty, by
// stack, sequence and id. One that cannot be read is listed with its error;
// what is forgotten is not listed.
func (r *Repository) List(ctx context.Context, stack string) ([]Listed, error) {
	list, err := r.ListAll(ctx, stack)
	return slices.DeleteFunc(list, func(l Listed) bool { return l.Forgotten }), err
}

// ListAll is List with the forgotten ones that are still there.
func (r *Repository) ListAll(ctx context.Context, stack string) ([]Listed, error) {
	if stack == "" {
		found, err := r.find(ctx, stack)
		if err != nil {
			return nil, err
		}
		return r.readAll(ctx, found)
	}
	if err := CheckName("stack", stack); err != nil {
		return nil, err
	}
	records := ahead(func() ([]string, error) { return r.records(ctx, stack) }) // while the manifests are listed
	found, err := r.findWith(ctx, stack, records)
	if err != nil {
		_, _ = records() // err is the cause
		return nil, err
	}
	return r.readAll(ctx, found)
}

// readAll reads the manifests that were found.
func (r *Repository) readAll(ctx context.Context, found []found) ([]Listed, error) {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(manifestReaders)
	for i := range found {
		g.Go(func() error { return found[i].read(gctx, r) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	list := make([]Listed, 0, len(found))
	for _, f := range found {
		if !errors.Is(f.Err, store.ErrNotExist) { // forgotten since it was listed
			list = append(list, f.Listed)
		}
	}
	return list, nil
}

// manifestReaders is how many manifests are read at a time: most of it is waiting.
const manifestReaders = 8

// found is a manifest that a listing has and nobody has read yet.
type found struct {
	Listed
	info store.Info
}

// find lists manifests without reading them, forgotten ones too, in the order of List.
func (r *Repository) find(ctx context.Context, stack string) ([]found, error) {
	return r.findWith(ctx, stack, func() ([]string, error) { return r.records(ctx, stack) })
}

// records lists what is forgotten of a stack.
func (r *Repository) records(ctx context.Context, stack string) (keys []string, err error) {
	for info, err := range r.store.List(ctx, forgottenPrefix(stack)) {
		if err != nil {
			return nil, fmt.Errorf("list what is forgotten in %s: %w", r.Location(), err)
		}
		keys = append(keys, info.Key)
	}
	return keys, nil
}

// ahead begins a call at once; what it returns waits for it.
func ahead(call func() ([]string, error)) func() ([]string, error) {
	var keys []string
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		keys, err = call()
	}()
	return func() ([]string, error) {
		<-done
		return keys, err
	}
}

// findWith is find with what is forgotten of the stack.
func (r *Repository) findWith(ctx context.Context, stack string, forgotten func() ([]string, error)) ([]found, error) {
	prefix := "stacks/"
	if stack != "" {
		if err := CheckName("stack", stack); err != nil {
			return nil, err
		}
		prefix = snapshotsPrefix(stack)
	}
	var list []found
	var records []string
	for info, err := range r.store.List(ctx, prefix) {
		if err != nil {
			return nil, fmt.Errorf("list snapshots in %s: %w", r.Location(), err)
		}
		if stack, seq, id, ok := splitSnapshotKey(info.Key); ok {
			list = append(list, found{Listed{Stack: stack, Sequence: seq, ID: id}, info})
		} else if _, _, _, ok := splitForgottenKey(info.Key); ok {
			records = append(records, info.Key)
		}
	}
	if stack != "" {
		more, err := forgotten()
		if err != nil {
			return nil, err
		}
		records = append(records, more...)
	}
	slices.SortFunc(list, func(a, b found) int {
		return cmp.Or(cmp.Compare(a.Stack, b.Stack), cmp.Compare(a.Sequence, b.Sequence), cmp.Compare(a.ID, b.ID))
	})
	return list, r.markForgotten(ctx, list, records)
}

// read reads the manifest; what is wrong with it is in Err. It returns an
// error only where ctx ended.
func (f *found) read(ctx context.Context, r *Repository) error {
	f.Manifest, f.Err = r.readManifest(ctx, f.info, f.Listed)
	if f.Err != nil {
		return ctx.Err()
	}
	return nil
}

// readManifest reads a manifest and makes sure that it is the one its key says.
func (r *Repository) readManifest(ctx context.Context, info store.Info, l Listed) (*Manifest, error) {
	if info.Size > maxManifest {
		return nil, fmt.Errorf("%w: manifest %s has %d bytes", ErrDamaged, info.Key, info.Size)
	}
	// A manifest never changes, and its key has its checksum: a copy is as good.
	if data := r.cache.get(info.Key, info.Size); data != nil {
		if m, err := r.checkManifest(data, l); err == nil {
			return m, nil
		}
		r.cache.drop(info.Key)
	}
	data, err := r.store.Get(ctx, info.Key, 0, info.Size)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", info.Key, err)
	}
	m, err := r.checkManifest(data, l)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", info.Key, err)
	}
	r.cache.put(info.Key, data)
	return m, nil
}

// checkManifest reads a manifest that lies where l says.
func (r *Repository) checkManifest(data []byte, l Listed) (*Manifest, error) {
	m, id, err := parseManifest(data)
	if err != nil {
		return nil, err
	}
	if id != l.ID || m.Stack != l.Stack || m.Sequence != l.Sequence || m.Repository != r.ID {
		return nil, fmt.Errorf("%w: it belongs elsewhere: to snapshot %s, number %d of stack %s in repository %s", ErrDamaged, id, m.Sequence, m.Stack, m.Repository)
	}
	m.id = id
	return m, nil
}

// Find returns the snapshot that name means: "latest" or "" (the highest
// sequence that is complete and leads), "origin:NAME" (the highest that is complete and
// comes from that installation), an id or the beginning of one, or a tag (the
// latest that bears it). An empty stack searches all, but for latest there must then be one only.
func (r *Repository) Find(ctx context.Context, stack, name string) (*Manifest, error) {
	there := &presence{}
	if name == "" || name == "latest" || strings.HasPrefix(name, originPrefix) {
		there = r.look(ctx, stack)
		defer there.end()
	}
	all, err := r.ListAll(ctx, stack)
	if err != nil {
		return nil, err
	}
	list := slices.DeleteFunc(slices.Clone(all), func(l Listed) bool { return l.Forgotten })
	if len(all) == 0 {
		if stack != "" {
			return nil, fmt.Errorf("%w: stack %s has none in %s%s", ErrNoSnapshot, stack, r.Location(), r.stacksHint(ctx))
		}
		return nil, fmt.Errorf("%w: there is none in %s yet; `backupd backup` takes one", ErrNoSnapshot, r.Location())
	}
	if name == "" || name == "latest" {
		return r.leading(ctx, stack, list, all, there)
	}
	if origin, ok := strings.CutPrefix(name, originPrefix); ok {
		m, err := r.latest(ctx, list, func(m *Manifest) bool { return m.Origin == origin }, name, there)
		if errors.Is(err, ErrNoSnapshot) {
			return nil, fmt.Errorf("%w: none of origin %q in %s; %s", ErrNoSnapshot, origin, r.Location(), origins(list))
		}
		return m, err
	}
	hits := withPrefix(list, name)
	if len(hits) == 0 {
		// Forgotten, and still there: whoever has its id may want it back.
		if hits = withPrefix(all, name); len(hits) == 1 {
			r.notice(fmt.Sprintf("snapshot %.8s is forgotten: a prune deletes it; `backupd copy` it if it is still wanted", hits[0].ID))
		}
	}
	switch {
	case len(hits) == 1:
		return hits[0].Manifest, hits[0].Err
	case len(hits) > 1:
		var ids []string
		for _, h := range hits {
			ids = append(ids, h.ID[:min(len(h.ID), max(8, len(name)+2))])
		}
		return nil, fmt.Errorf("%w: %q is the beginning of %d snapshots: %s; give more of the id", ErrAmbiguous, name, len(hits), strings.Join(ids, ", "))
	}
	m, err := r.latest(ctx, list, func(m *Manifest) bool { return slices.Contains(m.Tags, name) }, name, there)
	if errors.Is(err, ErrNoSnapshot) {
		return nil, fmt.Errorf("%w: no id begins with %q and no tag is %q in %s; `backupd snapshots` lists what there is", ErrNoSnapshot, name, name, r.Location())
	}
	return m, err
}

func withPrefix(list []Listed, prefix string) []Listed {
	return slices.DeleteFunc(slices.Clone(list), func(l Listed) bool { return !strings.HasPrefix(l.ID, prefix) })
}

// originPrefix begins the names of snapshots that are asked for by their origin.
const originPrefix = "origin:"

// origins says what can be named in place of latest, for an error.
func origins(list []Listed) string {
	newest := map[string]string{}
	for _, l := range list {
		if l.Err == nil && l.Manifest.Origin != "" {
			newest[l.Manifest.Origin] = fmt.Sprintf("%s%s (%.8s)", originPrefix, l.Manifest.Origin, l.ID)
		}
	}
	if len(newest) == 0 {
		return "`backupd snapshots` lists what there is"
	}
	names := slices.Sorted(maps.Values(newest))
	return "there are " + strings.Join(names[:min(len(names), 10)], ", ")
}

// leading returns the newest complete snapshot of the list that leads its stack; all
// has the forgotten ones, too.
func (r *Repository) leading(ctx context.Context, stack string, list, all []Listed, there *presence) (*Manifest, error) {
	clones := 0
	m, err := r.latest(ctx, list, func(m *Manifest) bool {
		if !m.Leads() {
			clones++
		}
		return m.Leads()
	}, "latest", there)
	if errors.Is(err, ErrNoSnapshot) && clones > 0 {
		return nil, fmt.Errorf("%w: those of stack %s in %s are all of clones, which were seeded from it themselves, and none leads; name one by its id, by a tag, or by where it comes from: %s", ErrNoSnapshot, cmp.Or(stack, list[0].Stack), r.Location(), origins(list))
	}
	if err != nil {
		return nil, err
	}
	// A clone's snapshot is newer than the one before it: that one's number is no sign of a roll-back.
	newest := m
	for i := len(list) - 1; i >= 0 && clones > 0 && r.keys != nil; i-- {
		l := &list[i]
		if l.Err != nil || l.Stack != m.Stack || l.Sequence <= m.Sequence {
			continue
		}
		missing, err := r.missing(ctx, l.Manifest)
		if err != nil {
			return nil, err
		}
		if len(missing) == 0 {
			newest = l.Manifest
			break
		}
	}
	if err := r.notSetBack(ctx, newest, all); err != nil {
		return nil, err
	}
	return m, nil
}

// notSetBack compares the newest snapshot of an encrypted repository with the
// newest that this machine ever saw. Newer ones may have been forgotten: all
// are those that are there, and a record stays as long as it has the highest number.
func (r *Repository) notSetBack(ctx context.Context, m *Manifest, all []Listed) error {
	if r.keys == nil {
		return nil
	}
	highest := m.Sequence
	for _, l := range all {
		if l.Stack == m.Stack && l.Forgotten && l.Err == nil {
			highest = max(highest, l.Sequence)
		}
	}
	seen := r.trust.advance(m.Stack, highest)
	if seen > highest && r.keys.CanRead() {
		for info, err := range r.store.List(ctx, forgottenPrefix(m.Stack)) {
			if err != nil {
				return fmt.Errorf("list what is forgotten in %s: %w", r.Location(), err)
			}
			if rec, err := r.readRecord(ctx, info.Key); err == nil && r.hides(rec) {
				highest = max(highest, rec.Sequence)
			}
		}
	}
	if seen > highest {
		return fmt.Errorf("%w: the newest snapshot of stack %s in %s is number %d (%.8s), and this machine has seen number %d: newer ones were deleted, or the target was set back. If you know why, name the snapshot by its id", ErrSetBack, m.Stack, r.Location(), m.Sequence, m.id, seen)
	}
	return nil
}

// latest returns the last complete snapshot of the list that fits.
func (r *Repository) latest(ctx context.Context, list []Listed, fits func(*Manifest) bool, name string, there *presence) (*Manifest, error) {
	var last *Manifest
	var newer *Listed // the newest that cannot be used
	var bad error
	spoilt := func(l Listed, err error) {
		bad = cmp.Or(bad, err)
		if newer == nil && last == nil {
			l.Err = err
			newer = &l
		}
	}
	for i := len(list) - 1; i >= 0; i-- {
		l := list[i]
		if l.Err != nil {
			spoilt(l, l.Err)
			continue
		}
		if !fits(l.Manifest) {
			continue
		}
		if last != nil {
			if last.Stack != l.Stack {
				return nil, fmt.Errorf("%w: %q is of several stacks, %s and %s; say which with --stack", ErrAmbiguous, name, l.Stack, last.Stack)
			}
			continue
		}
		var missing []string
		if !there.all(l.Manifest) {
			var err error
			if missing, err = r.missing(ctx, l.Manifest); err != nil {
				return nil, err
			}
		}
		if len(missing) > 0 {
			spoilt(l, fmt.Errorf("%w: snapshot %.8s is incomplete: %s is missing or cut", ErrDamaged, l.ID, missing[0]))
			continue
		}
		last = l.Manifest
	}
	if last == nil && bad != nil {
		return nil, bad
	}
	if newer != nil {
		r.notice(fmt.Sprintf("snapshot %.8s, number %d of stack %s, is newer than the one taken and cannot be used: %v", newer.ID, newer.Sequence, newer.Stack, newer.Err))
	}
	if last == nil {
		return nil, ErrNoSnapshot
	}
	return last, nil
}

// stacksHint names the stacks that there are, for an error about one there is not.
func (r *Repository) stacksHint(ctx context.Context) string {
	seen := map[string]bool{}
	var stacks []string
	for info, err := range r.store.List(ctx, "stacks/") {
		if err != nil {
			return ""
		}
		if s, _, _, ok := splitSnapshotKey(info.Key); ok && !seen[s] {
			seen[s] = true
			stacks = append(stacks, s)
		}
	}
	if len(stacks) == 0 {
		return "; it has no snapshots of any stack yet"
	}
	slices.Sort(stacks)
	return "; it has those of " + strings.Join(stacks[:min(len(stacks), 10)], ", ")
}
