package tree

import (
	"container/list"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// Dest is a tree that is written. Each entry is reached through a descriptor
// of its directory, which was opened below the root's without following any
// symlink, and by a name of one component: nothing outside the root can be
// written, whatever names the tree has, and whatever symlinks are put into it
// meanwhile. (A process that may move a directory of the tree to a place
// outside takes along what is being written into it.) Safe for concurrent use.
type Dest struct {
	o DestOptions
	// walks: openat2(2) is missing or forbidden, paths are opened one component at a time.
	walks bool
	umask uint32

	root *handle
	mu   sync.Mutex
	open map[string]*handle // by path, without the root
	idle *list.List         // of those that nobody uses, the latest first
	gone uint64             // counts what was dropped because its directory went
}

var (
	// errSwapped: what we made or saw a moment ago is something else now.
	errSwapped = errors.New("was replaced by another process meanwhile")
	errMark    = errors.New("is the name of the mark of unfinished restores")
	errType    = errors.New("is of another type")
)

// OpenDest opens the directory root, itself possibly a symlink to one, for writing a tree into it.
func OpenDest(root string, o DestOptions) (*Dest, error) { return openDest(root, o, false) }

func openDest(root string, o DestOptions, walks bool) (*Dest, error) {
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, act("open directory", root, err)
	}
	d := &Dest{o: o, walks: walks, umask: umask(), open: map[string]*handle{}, idle: list.New()}
	d.root = newHandle(".", fd, false)
	if !walks {
		// Older kernels and their containers' seccomp profiles do not have it.
		probe, err := openBeneath(fd, ".", unix.O_PATH|unix.O_DIRECTORY)
		if d.walks = err != nil; err == nil {
			unix.Close(probe)
		}
	}
	return d, nil
}

// umask reads the process's mask, which the system call tells only by
// changing it, for all threads.
func umask() uint32 {
	b, err := os.ReadFile("/proc/self/status")
	_, rest, ok := strings.Cut(string(b), "\nUmask:\t")
	line, _, _ := strings.Cut(rest, "\n")
	n, perr := strconv.ParseUint(line, 8, 32)
	if err != nil || !ok || perr != nil {
		return 0o777 // every mode is then set explicitly
	}
	return uint32(n)
}

// Close closes all descriptors. No call may be running, no DestFile be open.
func (d *Dest) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range d.open {
		unix.Close(h.fd)
	}
	clear(d.open)
	d.idle.Init()
	return act("close directory", ".", unix.Close(d.root.fd))
}

// Sync makes everything written durable.
func (d *Dest) Sync() error { return act("sync", ".", unix.Syncfs(d.root.fd)) }

// entry returns the open directory that an entry lies in, for d.release, and its name there.
func (d *Dest) entry(p string) (up *handle, name string, err error) {
	if err := tarstream.CheckPath(p); err != nil {
		return nil, "", err
	}
	i := strings.LastIndexByte(p, '/')
	if i < 0 {
		return d.root, p, nil
	}
	up, err = d.dir(p[:i])
	return up, p[i+1:], err
}

// newEntry is entry for what is to be made.
func (d *Dest) newEntry(p string) (up *handle, name string, err error) {
	switch p {
	case IncompleteMark:
		return nil, "", act("create", p, errMark)
	case ".":
		return nil, "", act("create", p, fs.ErrExist)
	}
	return d.entry(p)
}
