// Package notify tells people what became of runs: through shoutrrr to mail and
// chats, and by pings to a service that misses them.
//
// Invariants: telling never fails a run, nor holds it up; what could not be sent is
// tried again for hours, for the network may be down for the same reason as the
// target, and then logged; one condition is told once, and again after a day at
// the earliest; no secret of an address is ever logged. What is
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

// Teller sends messages behind the caller's back: to each service one after the
// other, and none waits for another.
type Teller struct {
	services []service
	lanes    []*lane // of the services, in their order
	pings    *lane
	on       []Level
	template *template.Template
	ping     *pinger
	told     *memory
	log      *slog.Logger
	now      func() time.Time

	mu     sync.Mutex
	closed bool
	done   sync.WaitGroup
	ctx    context.Context //nolint:containedctx // of the sending goroutines, which Close ends
	cancel context.CancelFunc
}

// lane is what waits for one service.
type lane struct {
	queue    chan job
	patience time.Duration // how long a job is tried
}

// job is something to be sent.
type job struct {
	what string // for the log
	send func(ctx context.Context) error
	lost func() // where set: called if it could not be sent
}

// maxQueue bounds what waits to be sent; more is logged and dropped.
const maxQueue = 64

// A message may be late by hours; a ping that is, says something wrong.
const (
	messagePatience = 12 * time.Hour
	pingPatience    = 10 * time.Minute
)

// The pause before the second attempt, which doubles, and the longest.
const (
	firstPause = 5 * time.Second
	maxPause   = 15 * time.Minute
)

// New checks the settings and returns a teller, which Close ends. All that is
// wrong with the settings is in the error.
func New(ctx context.Context, s Settings) (*Teller, error) {
	t := &Teller{on: s.On, told: openMemory(s.StateFile), log: s.Log, now: s.Now}
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
	t.pings = t.lane(pingPatience)
	for range t.services {
		t.lanes = append(t.lanes, t.lane(messagePatience))
	}
	return t, nil
}

// lane begins to send what is put into it, until Close.
func (t *Teller) lane(patience time.Duration) *lane {
	l := &lane{make(chan job, maxQueue), patience}
	t.done.Go(func() {
		for j := range l.queue {
			t.deliver(j, l.patience)
		}
	})
	return l
}

// Started tells that a run begins: to the ping only.
func (t *Teller) Started(r *runs.Run) {
	if t.ping != nil && pinged(r) {
		id := r.ID
		t.enqueue(t.pings, job{"ping: start", func(ctx context.Context) error { return t.ping.send(ctx, "/start", id, "") }, nil})
	}
}

// Ended tells what became of a run, by messages and the ping. last is the run of
// the same kind and policy before it, or nil.
func (t *Teller) Ended(r, last *runs.Run) {
	t.Ping(r)
	t.Tell(r, last)
}

// Ping tells what became of a run to the ping only.
func (t *Teller) Ping(r *runs.Run) {
	m, ok := OfRun(r, nil)
	if !ok || t.ping == nil || !pinged(r) {
		return
	}
	path := ""
	if m.Level == Failure {
		path = "/fail"
	}
	id, text := r.ID, m.Title+"\n"+m.Text
	t.enqueue(t.pings, job{"ping: " + string(m.Level), func(ctx context.Context) error { return t.ping.send(ctx, path, id, text) }, nil})
}

// Tell tells what became of a run by messages only.
func (t *Teller) Tell(r, last *runs.Run) {
	m, ok := OfRun(r, last)
	if !ok {
		return
	}
	key := strings.Join([]string{string(r.Kind), r.Policy, r.Stack}, "/")
	switch m.Level {
	case Failure, Warning:
		if t.told.again(key, string(m.Level), t.now()) {
			t.message(m, func() { t.told.forget(key) })
		}
	default:
		t.told.forget(key)
		t.message(m, nil)
	}
}

// pinged says whether a run is one that the ping is for: a person who backs up by
// hand sees what happens.
func pinged(r *runs.Run) bool { return r.Kind == runs.Backup && r.Policy != "" }

// Alarm tells of something that is wrong without a run: that there was none for
// too long, say. key names the condition; it is told once a day at the most, until Clear.
func (t *Teller) Alarm(key, stack, title, text string) {
	key = "alarm/" + key
	if t.told.again(key, string(Failure), t.now()) {
		t.message(Message{Level: Failure, Title: title, Text: text, Stack: stack}, func() { t.told.forget(key) })
	}
}

// Clear tells that a condition has ended, if it was told.
func (t *Teller) Clear(key, stack, title string) {
	if t.told.forget("alarm/" + key) {
		t.message(Message{Level: Recovery, Title: title, Stack: stack}, nil)
	}
}

// message sends a message to every service, if its level is asked for. One that is
// lost was not told: lost makes that the next one is.
func (t *Teller) message(m Message, lost func()) {
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
	for i, s := range t.services {
		t.enqueue(t.lanes[i], job{s.scheme + ": " + m.Title, func(ctx context.Context) error { return s.send(ctx, title, text) }, lost})
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

func (t *Teller) enqueue(l *lane, j job) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	select {
	case l.queue <- j:
	default:
		t.log.Error("message dropped: too many wait to be sent", "message", j.what)
	}
}

// deliver sends with patience, and gives up in the end.
func (t *Teller) deliver(j job, patience time.Duration) {
	begin, pause := time.Now(), firstPause
	for n := 1; ; n++ {
		err := j.send(t.ctx)
		if err == nil {
			return
		}
		if time.Since(begin)+pause > patience || t.ctx.Err() != nil {
			t.log.Error("message not sent", "message", j.what, "attempts", n, "error", err)
			if j.lost != nil {
				j.lost()
			}
			return
		}
		if n == 1 {
			t.log.Warn("message not sent yet; it is tried again", "message", j.what, "for", patience, "error", err)
		}
		select {
		case <-time.After(pause):
		case <-t.ctx.Done():
		}
		pause = min(2*pause, maxPause)
	}
}

// Close sends what waits, for as long as ctx allows, and ends the teller.
func (t *Teller) Close(ctx context.Context) {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.pings.queue)
		for _, l := range t.lanes {
			close(l.queue)
		}
	}
	t.mu.Unlock()
	done := make(chan struct{})
	go func() {
		t.done.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	t.cancel()
	<-done
}
