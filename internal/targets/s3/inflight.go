package s3

import (
	"context"
	"sync"
)

// inFlight has the keys that this process is putting, one at a time each.
type inFlight struct {
	mu   sync.Mutex
	keys map[string]chan struct{} // closed when the put is done
}

// begin waits for its turn at a key; the caller calls done.
func (f *inFlight) begin(ctx context.Context, key string) (done func(), err error) {
	for {
		f.mu.Lock()
		other, busy := f.keys[key]
		if !busy {
			mine := make(chan struct{})
			f.keys[key] = mine
			f.mu.Unlock()
			return func() {
				f.mu.Lock()
				delete(f.keys, key)
				f.mu.Unlock()
				close(mine)
			}, nil
		}
		f.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
