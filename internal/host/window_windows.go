package host

import (
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/disko/backupd/internal/docker"
)

// windows tells the size of a terminal, now and whenever it changed, until stop.
// Windows sends no signal: it is looked at twice a second.
func windows(fd int) (sizes <-chan docker.Window, stop func()) {
	out, end := make(chan docker.Window), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		var last docker.Window
		for {
			if w, h, err := term.GetSize(fd); err == nil {
				if now := (docker.Window{Width: uint(w), Height: uint(h)}); now != last {
					select {
					case <-end:
						return
					case out <- now:
						last = now
					}
				}
			}
			select {
			case <-end:
				return
			case <-tick.C:
			}
		}
	})
	return out, func() {
		close(end)
		wg.Wait()
	}
}
