package retry

import "sync"

// refills is how many answered operations give back one retry.
const refills = 10

// budget is a bucket of tokens for the retries of all operations.
type budget struct {
	mu        sync.Mutex
	unbounded bool
	tokens    int // a retry costs refills of them
	max       int
	silent    bool // nothing has been answered since the last failure
}

func (b *budget) init(retries int) {
	b.unbounded = retries < 0
	b.max = retries * refills
	b.tokens = b.max
}

// spend pays for a retry, and says whether there may be one.
func (b *budget) spend() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.unbounded:
		return true
	case b.tokens < refills:
		return false
	case !b.silent:
		b.silent = true
		b.tokens -= refills
	}
	return true
}

func (b *budget) answered() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.silent = false
	b.tokens = min(b.tokens+1, b.max)
}
