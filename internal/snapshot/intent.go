package snapshot

import (
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
	renewed time.Time // when the last was written
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

// end takes the intents back. It must reach the target though the run was
// interrupted, or the answer to the first one was lost; what stays expires by itself.
func (i *intents) end(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	i.mu.Lock()
	defer i.mu.Unlock()
	for k := range i.written + 1 {
		_ = i.w.Delete(ctx, runKey(i.stack, i.run, k))
	}
}
