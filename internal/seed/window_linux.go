package seed

import "time"

// dockerenv is made when a container is created.
const dockerenv = "/.dockerenv"

// OwnWindow reads the window of the container that this process runs in. It is
// zero where that cannot be known: outside of a container, and with other engines than Docker's.
func OwnWindow() Window {
	list, err := ownMounts()
	if err != nil {
		return Window{}
	}
	if _, ok := containerOf(list, hostname); !ok {
		return Window{}
	}
	created, err := statPath(dockerenv)
	if err != nil {
		return Window{}
	}
	started, err := statPath(hostname)
	if err != nil || started.born == 0 {
		return Window{}
	}
	begin := created.born
	if begin == 0 {
		// fuse-overlayfs tells no births. The change time is never earlier, so that
		// the window becomes smaller at most.
		begin = created.ctime
	}
	w := Window{Created: time.Unix(0, begin).UTC(), Started: time.Unix(0, started.born).UTC()}
	if !w.known() {
		return Window{}
	}
	return w
}
