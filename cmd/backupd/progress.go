package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

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
	mpb   *mpb.Progress // nil where there is no terminal
	bar   *mpb.Bar
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
	if f, ok := a.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		interval = barInterval
		s.mpb = mpb.New(mpb.WithOutput(f), mpb.WithRefreshRate(barInterval), mpb.WithWidth(30))
		s.bar = s.mpb.New(0, mpb.BarStyle(), mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name(act+" ")),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return s.text() })))
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
	if s.bar == nil {
		fmt.Fprintf(s.a.stderr, "backupd: %s: %s\n", s.act, s.text())
		return
	}
	done, total := s.p.Bytes.Load(), s.p.TotalBytes.Load()
	if total == 0 {
		return // a first backup: nobody knows how much there is
	}
	// The total is an estimate: the bar must not be complete before its time.
	s.bar.SetTotal(max(total, done)+1, false)
	s.bar.SetCurrent(done)
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

// println prints a line without disturbing the bar.
func (s *shown) println(format string, args ...any) {
	if s.mpb != nil {
		fmt.Fprintf(s.mpb, format+"\n", args...)
		return
	}
	fmt.Fprintf(s.a.stderr, format+"\n", args...)
}

// stop ends the showing and clears the bar.
func (s *shown) stop() {
	s.once.Do(func() {
		close(s.end)
		s.wg.Wait()
		if s.mpb != nil {
			s.bar.Abort(true)
			s.mpb.Wait()
		}
	})
}
