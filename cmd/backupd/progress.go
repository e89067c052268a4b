package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/disko/backupd/internal/bytesize"
	"github.com/disko/backupd/internal/snapshot"
)

const (
	barInterval  = 150 * time.Millisecond
	lineInterval = time.Minute // elsewhere than on a terminal
)

// shown is progress on its way to a person.
type shown struct {
	a     *app
	act   string
	p     *snapshot.Progress
	begun time.Time
	on    *screen // nil where there is no terminal
	end   chan struct{}
	once  sync.Once
	wg    sync.WaitGroup
}

// show begins to show progress, until stop.
func (a *app) show(act string, p *snapshot.Progress) *shown {
	s := &shown{a: a, act: act, p: p, begun: time.Now(), end: make(chan struct{})}
	if a.quiet {
		return s
	}
	interval := lineInterval
	if on, ok := a.stderr.(*screen); ok {
		interval, s.on = barInterval, on
	}
	s.wg.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-s.end:
				return
			case <-tick.C:
				s.update()
			}
		}
	})
	return s
}

func (s *shown) update() {
	if s.on == nil {
		fmt.Fprintf(s.a.stderr, "backupd: %s: %s\n", s.act, s.text())
		return
	}
	s.on.redraw(s.act + " " + bar(s.p.Bytes.Load(), s.p.TotalBytes.Load()) + " " + s.text())
}

// text is bytes, files, rate and time left.
func (s *shown) text() string {
	done, total := s.p.Bytes.Load(), s.p.TotalBytes.Load()
	elapsed := time.Since(s.begun)
	rate := float64(done) / max(elapsed.Seconds(), 0.001)
	out := bytesize.Text(done)
	if total > done {
		out += " of " + bytesize.Text(total)
	}
	out += fmt.Sprintf(", %d files, %s/s", s.p.Files.Load(), bytesize.Text(int64(rate)))
	if total > done && rate > 0 && elapsed > time.Second {
		out += fmt.Sprintf(", %s left", time.Duration(float64(total-done)/rate*1e9).Round(time.Second))
	}
	return out
}

// stop ends the showing and clears the bar.
func (s *shown) stop() {
	s.once.Do(func() {
		close(s.end)
		s.wg.Wait()
		if s.on != nil {
			s.on.redraw("")
		}
	})
}
