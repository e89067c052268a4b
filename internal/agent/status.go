package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Phase is how far an agent is.
type Phase string

// Phases of an agent.
const (
	Seeding Phase = "seeding" // dependents must wait
	Serving Phase = "serving"
	Ending  Phase = "ending"
)

// Status is what an agent says of itself. Its JSON form is stable.
type Status struct {
	Phase Phase     `json:"phase"`
	Since time.Time `json:"since"`
	Stack string    `json:"stack,omitempty"`
	// Seeded says in a sentence what was seeded.
	Seeded string `json:"seeded,omitempty"`
	// Beat is when the scheduler last gave a sign of life; it does at least
	// every BeatEvery while it serves.
	Beat time.Time `json:"beat"`
	// Next is when the next run is due; zero where there is no schedule.
	Next time.Time `json:"next,omitzero"`
	// Problems are sentences on what is wrong: a last run that failed, a newest
	// snapshot that is too old.
	Problems []string `json:"problems,omitempty"`
}

// BeatEvery is how often a scheduler must give a sign of life; a health check
// takes one that is silent for three times as long for dead.
const BeatEvery = time.Minute

// Health says what is wrong with an agent at a time, or nothing. Where
// onlySeeded is set, runs that failed do not matter.
func (s *Status) Health(now time.Time, onlySeeded bool) error {
	switch {
	case s.Phase == Seeding:
		return errors.New("the volumes are being seeded")
	case s.Phase != Serving:
		return fmt.Errorf("the agent is %s", s.Phase)
	case now.Sub(s.Beat) > 3*BeatEvery:
		return fmt.Errorf("the scheduler gave no sign of life since %s", s.Beat.Format(time.RFC3339))
	case len(s.Problems) > 0 && !onlySeeded:
		return errors.New(strings.Join(s.Problems, "; "))
	}
	return nil
}

// Board is where an agent keeps its status for others to read.
type Board struct {
	mu sync.Mutex
	s  Status
}

// Update changes the status.
func (b *Board) Update(change func(s *Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.s)
}

// Status returns a copy of the status.
func (b *Board) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.s
	s.Problems = append([]string(nil), s.Problems...)
	return s
}

// statusPath is where the status is asked for.
const statusPath = "/status"

// Publish answers for the board at a name until ctx ends: a socket of the
// kernel's abstract namespace, which needs no writable file system, is as private
// as the network is, and is gone when the process is. It returns once it listens,
// with a function that waits until it has ended.
func (b *Board) Publish(ctx context.Context, name string) (wait func(), err error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket(name))
	if err != nil {
		return nil, fmt.Errorf("another agent serves here already, or its status cannot be published: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+statusPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(b.Status())
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: askTimeout, ReadTimeout: askTimeout, WriteTimeout: askTimeout}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	return func() {
		stop()
		_ = srv.Close()
		<-done
	}, nil
}

func socket(name string) string { return "@backupd/" + name }

// askTimeout is how long an agent may take to say how it is.
const askTimeout = 5 * time.Second

// Ask asks the agent that publishes its status under a name.
func Ask(ctx context.Context, name string) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket(name))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://backupd"+statusPath, http.NoBody)
	if err != nil {
		return Status{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return Status{}, fmt.Errorf("no agent answers here: %w; `backupd serve` is one", err)
	}
	defer resp.Body.Close()
	var s Status
	if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 1<<20)).Decode(&s); err != nil {
		return Status{}, fmt.Errorf("read the agent's status: %w", err)
	}
	return s, nil
}
