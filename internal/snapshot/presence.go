package snapshot

import (
	"context"
	"sync"
)

// presence is a listing of a stack's packs that goes on while its manifests are
// read: a distant target's delay counts once then. Its yes is one; what it does
// not have may have been put since, or be beyond what it keeps.
type presence struct {
	stack  string
	cancel context.CancelFunc
	done   sync.WaitGroup
	sizes  map[string]int64
}

// maxPresence bounds the objects that are kept of a listing; about 200 bytes each.
const maxPresence = 16 << 10

// look begins to list a stack's packs. An encrypted repository has none that
// can be named before its manifests are read.
func (r *Repository) look(ctx context.Context, stack string) *presence {
	p := &presence{stack: stack}
	if stack == "" || CheckName("stack", stack) != nil || r.keys != nil {
		return p
	}
	ctx, p.cancel = context.WithCancel(ctx)
	p.done.Go(func() {
		sizes := map[string]int64{}
		for info, err := range r.store.List(ctx, volumesPrefix(stack)) {
			if err != nil || len(sizes) >= maxPresence {
				return // whoever asks lists for himself, and meets the error
			}
			sizes[info.Key] = info.Size
		}
		p.sizes = sizes
	})
	return p
}

// all says whether all that a manifest names was listed, with its size.
func (p *presence) all(m *Manifest) bool {
	p.done.Wait()
	if p.sizes == nil || m.Stack != p.stack {
		return false
	}
	for key, size := range m.sizes() {
		if have, ok := p.sizes[key]; !ok || have != size {
			return false
		}
	}
	return true
}

// end gives the listing up, if it still goes on.
func (p *presence) end() {
	if p.cancel != nil {
		p.cancel()
		p.done.Wait()
	}
}
