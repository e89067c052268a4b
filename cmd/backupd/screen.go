package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// screen is a terminal whose last line may be written again and again, below
// all else that is printed on it.
type screen struct {
	to   *os.File
	mu   sync.Mutex
	last string
}

// onScreen makes a writer a screen, if it is a terminal.
func onScreen(w io.Writer) io.Writer {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return &screen{to: f}
	}
	return w
}

// takeBack goes to the line's beginning and clears it.
const takeBack = "\r\x1b[K"

// Write prints lines.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == "" {
		return s.to.Write(p)
	}
	_, err := fmt.Fprint(s.to, takeBack, string(p), s.last)
	return len(p), err
}

// redraw puts a text of ASCII in place of the last line; an empty one takes it away.
// It is cut to the screen's width: what goes on in another line could not be taken back.
func (s *screen) redraw(text string) {
	if width, _, err := term.GetSize(int(s.to.Fd())); err == nil && width > 0 {
		text = text[:min(len(text), width-1)]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = text
	fmt.Fprint(s.to, takeBack, text)
}

// bar draws how much of a whole is done, as [===>------]. The whole is an
// estimate: it is never full.
func bar(done, whole int64) string {
	const width = 28
	n := 0
	if whole > 0 {
		n = min(int(float64(done)/float64(whole)*width), width-1)
	}
	if n == 0 {
		return "[" + strings.Repeat("-", width) + "]"
	}
	return "[" + strings.Repeat("=", n-1) + ">" + strings.Repeat("-", width-n) + "]"
}
