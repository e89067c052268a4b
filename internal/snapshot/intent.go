package snapshot

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/disko/backupd/internal/store"
)

// intentLife is how long a run's intent holds; it is renewed at half of it.
const intentLife = 24 * time.Hour

// intent announces a run to prune: what it relies on and how long.
type intent struct {
	Run     string    `json:"run"`
	Copies  []string  `json:"copies,omitempty"` // runs whose packs a copy writes
	Parent  string    `json:"parent,omitempty"`
	Started time.Time `json:"started"`
	Expires time.Time `json:"expires"`
}

// intents are the announcements of one run, each written as a new object.
type intents struct {
	r          *Repository
	w          store.Writer
	stack, run string
	parent     string
	copies     []string

	mu      sync.Mutex
	written int
	renewed time.Time       // when the last was written
	packs   map[string]bool // keys that were written, or may have been
	done    bool            // they are in a snapshot

	stop func() // ends the renewing in the background
}

// renew writes an intent where there is none, or the last one is half over.
func (i *intents) renew(ctx context.Context) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.r.now().UTC()
	if i.written > 0 && now.Sub(i.renewed) < intentLife/2 {
		return nil
	}
	data, err := json.Marshal(intent{Run: i.run, Copies: i.copies, Parent: i.parent, Started: now, Expires: now.Add(intentLife)})
	if err != nil {
		return err
	}
	if err := i.w.Put(ctx, runKey(i.stack, i.run, i.written), append(data, '\n')); err != nil {
		return fmt.Errorf("announce the run in %s: %w", i.r.Location(), err)
	}
	i.written++
	i.renewed = now
	return nil
}

// put writes a pack, between two renewals: packs of which no intent tells would
// be nobody's garbage. The second is for a run that was suspended in between, and
// whose intents a prune removed meanwhile.
func (i *intents) put(ctx context.Context, key string, data []byte) error {
	if err := i.renew(ctx); err != nil {
		return err
	}
	i.mu.Lock()
	if i.packs == nil {
		i.packs = map[string]bool{}
	}
	i.packs[key] = true
	i.mu.Unlock()
	err := i.w.Put(ctx, key, data)
	return cmp.Or(err, i.renew(ctx))
}

// begin writes the first intent, and renews it while the run reads and has
// nothing to put. end must be called.
func (i *intents) begin(ctx context.Context) error {
	if err := i.renew(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(intentLife / 4)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_ = i.renew(ctx) // the next put says what is wrong
			case <-ctx.Done():
				return
			}
		}
	}()
	i.stop = func() {
		cancel()
		<-ended
	}
	return nil
}

// succeeded says that a snapshot has what was written. A run that went over a
// volume again may have left packs that it does not need; then the intents stay.
func (i *intents) succeeded(m *Manifest) {
	sizes := m.sizes()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.done = true
	for key := range i.packs {
		if _, ok := sizes[key]; !ok {
			i.done = false
		}
	}
}

// end takes the intents back. It must reach the target though the run was
// interrupted, or the answer to the first one was lost. Those of a run that left
// packs and no snapshot stay: once they expired they tell prune what is garbage.
func (i *intents) end(ctx context.Context) {
	if i.stop != nil {
		i.stop()
	}
	if len(i.packs) > 0 && !i.done {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	i.mu.Lock()
	defer i.mu.Unlock()
	for k := range i.written + 1 {
		_ = i.w.Delete(ctx, runKey(i.stack, i.run, k))
	}
}
