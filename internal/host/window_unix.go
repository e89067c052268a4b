//go:build !windows

package host

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/term"

	"github.com/disko/backupd/internal/docker"
)

// windows tells the size of a terminal, now and whenever it changes, until stop.
func windows(fd int) (sizes <-chan docker.Window, stop func()) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	changed <- syscall.SIGWINCH
	out, end := make(chan docker.Window), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-end:
				return
			case <-changed:
			}
			w, h, err := term.GetSize(fd)
			if err != nil {
				continue
			}
			select {
			case <-end:
				return
			case out <- docker.Window{Width: uint(w), Height: uint(h)}:
			}
		}
	})
	return out, func() {
		signal.Stop(changed)
		close(end)
		wg.Wait()
	}
}
