package retry

import (
	"sync/atomic"
	"time"
)

const (
	// transfer is the size in bytes from which an operation's duration is that
	// of moving them.
	transfer = 1 << 20
	// maxPatience multiplies a deadline: 128 KiB/s become 8.
	maxPatience = 16
)

// patience is how many times its deadline a transfer is given: a fixed
// deadline would end every upload over a line slower than it supposes, and
// several that share the line make it slower. The zero value is once.
type patience struct{ doubled atomic.Int32 } // factor = 2^doubled

func (p *patience) factor(bytes int64) time.Duration {
	if moves(bytes) {
		return 1 << p.doubled.Load()
	}
	return 1
}

// learn is told of an attempt's end. The factor shrinks when far less time than
// the deadline was needed.
func (p *patience) learn(bytes int64, took, limit time.Duration, done, missed bool) {
	now := p.doubled.Load()
	switch {
	case !moves(bytes):
	case missed && 1<<now < maxPatience:
		p.doubled.CompareAndSwap(now, now+1)
	case done && took < limit/4 && now > 0:
		p.doubled.CompareAndSwap(now, now-1)
	}
}

func moves(bytes int64) bool { return bytes < 0 || bytes >= transfer }
