// Package notify tells people what became of runs: through shoutrrr to mail and
// chats, and by pings to a service that misses them.
//
// Invariants: telling never fails a run, nor holds it up; what could not be sent is
// tried again a few times and then logged; one condition is told once, and again
// after a day at the earliest; no secret of an address is ever logged. What is
// worth a run and when runs happen is decided elsewhere.
package notify

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"text/template"
	"time"

	"github.com/disko/backupd/internal/runs"
)

// Settings say who is told what.
type Settings struct {
	// URLs are shoutrrr's addresses: https://shoutrrr.nickfedor.com/latest/services/overview/
	URLs []string
	// On lists the levels that are sent; empty for failure, warning and recovery.
	On []Level
	// Template, where set, is a text/template over Message that makes the text.
	Template string
	// Ping is an address after healthchecks.io's manner: it is asked with /start
	// behind it when a scheduled backup begins, as it is when it succeeds (with or
	// without warnings), and with /fail when it fails. Empty for none.
	Ping string
	// StateFile remembers what was told, over restarts; empty for nothing.
	StateFile string
	Log       *slog.Logger
	// Now is the clock; time.Now where nil.
	Now func() time.Time
}

// Teller sends messages, one after the other, behind the caller's back.
type Teller struct {
	services []service
	on       []Level
	template *template.Template
	ping     *pinger
	told     *memory
	log      *slog.Logger
	now      func() time.Time

	mu     sync.Mutex
	closed bool
	queue  chan job
	done   chan struct{}
	ctx    context.Context //nolint:containedctx // of the sending goroutine, which Close ends
	cancel context.CancelFunc
}

// job is something to be sent.
type job struct {
	what string // for the log
	send func(ctx context.Context) error
}

// maxQueue bounds what waits to be sent; more is logged and dropped.
const maxQueue = 64

// Attempts, and the pause before the second; it doubles.
const (
	attempts   = 4
	firstPause = 5 * time.Second
)

// New checks the settings and returns a teller, which Close ends. All that is
// wrong with the settings is in the error.
func New(ctx context.Context, s Settings) (*Teller, error) {
	t := &Teller{on: s.On, told: openMemory(s.StateFile), log: s.Log, now: s.Now, queue: make(chan job, maxQueue), done: make(chan struct{})}
	if len(t.on) == 0 {
		t.on = []Level{Failure, Warning, Recovery}
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	if t.now == nil {
		t.now = time.Now
	}
	var bad []string
	for _, u := range s.URLs {
		svc, err := openService(u)
		if err != nil {
			bad = append(bad, err.Error())
			continue
		}
		t.services = append(t.services, svc)
	}
	var err error
	if s.Template != "" {
		if t.template, err = parseTemplate(s.Template); err != nil {
			bad = append(bad, err.Error())
		}
	}
	if s.Ping != "" {
		if t.ping, err = newPinger(s.Ping, http.DefaultTransport); err != nil {
			bad = append(bad, err.Error())
		}
	}
	if len(bad) > 0 {
		return nil, fmt.Errorf("%s", strings.Join(bad, "; "))
	}
	t.ctx, t.cancel = context.WithCancel(ctx)
	go t.work()
	return t, nil
}

// Started tells that a run begins: to the ping only.
func (t *Teller) Started(r *runs.Run) {
	if t.ping != nil && pinged(r) {
		id := r.ID
		t.enqueue(job{"ping: start", func(ctx context.Context) error { return t.ping.send(ctx, "/start", id, "") }})
	}
}

// Ended tells what became of a run. last is the run of the same kind and policy
// before it, or nil.
func (t *Teller) Ended(r, last *runs.Run) {
	m, ok := OfRun(r, last)
	if !ok {
		return
	}
	if t.ping != nil && pinged(r) {
		path := ""
		if m.Level == Failure {
			path = "/fail"
		}
		id, text := r.ID, m.Title+"\n"+m.Text
		t.enqueue(job{"ping: " + string(m.Level), func(ctx context.Context) error { return t.ping.send(ctx, path, id, text) }})
	}
	key := strings.Join([]string{string(r.Kind), r.Policy, r.Stack}, "/")
	switch m.Level {
	case Failure, Warning:
		if t.told.again(key, string(m.Level), t.now()) {
			t.message(m)
		}
	default:
		t.told.forget(key)
		t.message(m)
	}
}

// pinged says whether a run is one that the ping is for: a person who backs up by
// hand sees what happens.
func pinged(r *runs.Run) bool { return r.Kind == runs.Backup && r.Policy != "" }

// Alarm tells of something that is wrong without a run: that there was none for
// too long, say. key names the condition; it is told once a day at the most, until Clear.
func (t *Teller) Alarm(key, stack, title, text string) {
	if t.told.again("alarm/"+key, string(Failure), t.now()) {
		t.message(Message{Level: Failure, Title: title, Text: text, Stack: stack})
	}
}

// Clear tells that a condition has ended, if it was told.
func (t *Teller) Clear(key, stack, title string) {
	if t.told.forget("alarm/" + key) {
		t.message(Message{Level: Recovery, Title: title, Stack: stack})
	}
}

func (t *Teller) message(m Message) {
	if !slices.Contains(t.on, m.Level) {
		return
	}
	text := m.Text
	if t.template != nil {
		var b strings.Builder
		if err := t.template.Execute(&b, m); err != nil {
			t.log.Error("message not made by the template; sent without", "error", err)
		} else {
			text = b.String()
		}
	}
	if text == "" {
		text = m.Title
	}
	title := "backupd: " + m.Title
	for _, s := range t.services {
		t.enqueue(job{s.scheme + ": " + m.Title, func(ctx context.Context) error { return s.send(ctx, title, text) }})
	}
}

// Test sends a message to every service now, and returns what went wrong.
func (t *Teller) Test(ctx context.Context) error {
	var bad []string
	for _, s := range t.services {
		if err := s.send(ctx, "backupd: a test", "If you read this, messages arrive."); err != nil {
			bad = append(bad, err.Error())
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("%s", strings.Join(bad, "; "))
	}
	return nil
}

func (t *Teller) enqueue(j job) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	select {
	case t.queue <- j:
	default:
		t.log.Error("message dropped: too many wait to be sent", "message", j.what)
	}
}

func (t *Teller) work() {
	defer close(t.done)
	for j := range t.queue {
		t.deliver(j)
	}
}

// deliver sends with patience, and gives up in the end.
func (t *Teller) deliver(j job) {
	pause := firstPause
	for n := 1; ; n++ {
		err := j.send(t.ctx)
		if err == nil {
			return
		}
		if n == attempts || t.ctx.Err() != nil {
			t.log.Error("message not sent", "message", j.what, "attempts", n, "error", err)
			return
		}
		t.log.Warn("message not sent yet", "message", j.what, "error", err)
		select {
		case <-time.After(pause):
		case <-t.ctx.Done():
		}
		pause *= 2
	}
}

// Close sends what waits, for as long as ctx allows, and ends the teller.
func (t *Teller) Close(ctx context.Context) {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.queue)
	}
	t.mu.Unlock()
	select {
	case <-t.done:
	case <-ctx.Done():
	}
	t.cancel()
	<-t.done
}
