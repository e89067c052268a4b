package retry

import (
	"math"
	"time"
)

// Options bound the repeating. The zero value of each field is its default.
type Options struct {
	// Attempts is how often one operation is tried; as often as Outage and
	// Budget allow.
	Attempts int
	// Outage is how long one operation may keep failing, counted from the end
	// of its first failed attempt; 15 minutes. One more attempt is made when it
	// is over, so that no outage that was shorter ends an operation.
	Outage time.Duration
	// Budget is how many retries all operations together may use up; 300, and
	// no bound if negative. Ten operations that were answered give one back, so
	// a target that fails more than about every tenth time ends with an error,
	// and one that fails more rarely can go on for ever. Where operations fail
	// one after another with no success between them, only the first is
	// counted: Outage bounds the rest, however many run at once.
	Budget int
	// Base and Max are of the wait before the n-th retry (n from 0): at random
	// between nothing and the smaller of Max and Base*2^n, so that clients that
	// failed together do not come back together; 500 ms and 30 s.
	Base, Max time.Duration
	// OpTimeout is how long one attempt of an operation may take that moves so
	// many bytes; negative bytes: unknown. For a listing it is the time between
	// two keys. 0 is no deadline. Default: DefaultTimeout. A transfer that
	// misses its deadline gets twice the time, up to 16 times, while Outage lasts:
	// a slow line is no outage.
	OpTimeout func(op Op, bytes int64) time.Duration
	// Now is the clock; time.Now.
	Now func() time.Time
	// Notify is told when operations have failed for more than 5 s, and when
	// the last that did has succeeded: once each, in this order, never two at a
	// time. What ends with an error is not told: the error is returned. It must
	// not use the Store.
	Notify func(Event)
}

// Op is an operation's name, as messages have it.
type Op string

// The operations.
const (
	OpGet    Op = "read"
	OpStat   Op = "stat"
	OpList   Op = "list"
	OpPut    Op = "write"
	OpDelete Op = "delete"
)

const (
	defaultOutage = 15 * time.Minute
	defaultBudget = 300
	defaultBase   = 500 * time.Millisecond
	defaultMax    = 30 * time.Second
	// retryAfterMax bounds what a server may ask for by RetryAfter.
	retryAfterMax = 2 * time.Minute
)

func (o Options) complete() Options {
	if o.Attempts <= 0 {
		o.Attempts = math.MaxInt
	}
	if o.Outage <= 0 {
		o.Outage = defaultOutage
	}
	if o.Budget == 0 {
		o.Budget = defaultBudget
	}
	if o.Base <= 0 {
		o.Base = defaultBase
	}
	if o.Max <= 0 {
		o.Max = defaultMax
	}
	if o.OpTimeout == nil {
		o.OpTimeout = DefaultTimeout
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Notify == nil {
		o.Notify = func(Event) {}
	}
	return o
}

const (
	// timeoutBase is longer than the targets' own time-outs for a connection
	// that stands still (60 s), which can say more of the reason.
	timeoutBase = 90 * time.Second
	// minimalRate is in bytes a second, about that of a 1 Mbit/s line.
	minimalRate = 128 << 10
	// unknownBytes stands for a size that is unknown: four packs.
	unknownBytes = 64 << 20
	// boundedBytes is more than any object has: a range may end in nowhere.
	boundedBytes = 1 << 30
)

// DefaultTimeout is 90 s, and the time that the bytes take at 128 KiB/s.
func DefaultTimeout(_ Op, bytes int64) time.Duration {
	if bytes < 0 {
		bytes = unknownBytes
	}
	return timeoutBase + time.Duration(min(bytes, boundedBytes))*time.Second/minimalRate
}
