package retry

import (
	"fmt"
	"sync"
	"time"
)

// quiet is how long an operation fails before it is an outage worth a message.
const quiet = 5 * time.Second

// Event is the begin or the end of an outage.
type Event struct {
	Location string    // of the target, for messages; no secrets
	Err      error     // why; nil: the target answers again
	Since    time.Time // when the first attempt began that failed
	Until    time.Time // how long is tried on; zero at the end
	Now      time.Time
}

// String is the event as a line for the user.
func (e Event) String() string {
	if e.Err == nil {
		return fmt.Sprintf("target %s answers again, after %v", e.Location, e.Now.Sub(e.Since).Round(time.Second))
	}
	until := e.Until.Format("15:04")
	if e.Until.Sub(e.Now) < 2*time.Minute {
		until = e.Until.Format("15:04:05")
	}
	return fmt.Sprintf("target %s does not answer (%v); trying on until %s", e.Location, e.Err, until)
}

// watch makes one outage of the operations that fail at the same time: it
// lasts until none of them is failing any more.
type watch struct {
	location string
	notify   func(Event)
	now      func() time.Time

	mu      sync.Mutex // also held while notify is called, to keep the order
	failing int        // operations
	since   time.Time
}

// observe counts an operation that has been failing for a while.
func (t *trial) observe(now time.Time, err error) {
	if t.watched || now.Sub(t.began) < quiet {
		return
	}
	t.watched = true
	w := &t.s.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failing++; w.failing > 1 {
		return
	}
	w.since = t.began
	w.notify(Event{Location: w.location, Err: err, Since: t.began, Until: t.end(), Now: now})
}

// unwatch takes an operation back that is not failing any more.
func (t *trial) unwatch(answered bool) {
	if !t.watched {
		return
	}
	t.watched = false
	w := &t.s.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failing--; w.failing > 0 || !answered {
		return
	}
	w.notify(Event{Location: w.location, Since: w.since, Now: w.now()})
}
