package testtree

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Mutate changes the tree at dir as time would, and returns what it did, one line
// each, for the test's log. Now and then it does nothing at all. A plain user's
// steps that permissions forbid are skipped.
func Mutate(t testing.TB, dir string, seed uint64) []string {
	t.Helper()
	r, err := openRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	m := &mutator{root: r, rng: newRand(seed, "mutate"), super: os.Geteuid() == 0}
	if m.rng.IntN(16) == 0 {
		return []string{"nothing at all"}
	}
	if err := m.list(); err != nil {
		t.Fatalf("list the tree to be changed: %v", err)
	}
	var did []string
	for range min(5+m.rng.IntN(8)+len(m.all)/40, 40) {
		step := steps[m.rng.IntN(len(steps))]
		what, err := step.do(m)
		switch {
		case !m.super && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)):
			did = append(did, step.name+": not permitted")
		case err != nil:
			t.Fatalf("change the tree: %s: %v\nuntil then:\n%q", step.name, err, did)
		case what == "":
			continue // there is nothing in the tree to do it to
		default:
			did = append(did, step.name+": "+what)
		}
		if err := m.list(); err != nil {
			t.Fatalf("list the changed tree: %v", err)
		}
	}
	return did
}

type mutator struct {
	root  *root
	rng   *rand.Rand
	super bool
	all   []entry // what is there before each step
}

func (m *mutator) list() (err error) {
	m.all, err = m.root.walk()
	return err
}

// steps are what may happen to a tree. Each returns what it was done to, or
// nothing when the tree has no such thing.
var steps = []struct {
	name string
	do   func(m *mutator) (string, error)
}{
	{"write in place", (*mutator).writeInPlace},
	{"write in place", (*mutator).writeInPlace},
	{"replace by rename", (*mutator).replace},
	{"append", (*mutator).appendTo},
	{"truncate", (*mutator).truncate},
	{"same size, same mtime", (*mutator).sneak},
	{"make large", (*mutator).grow},
	{"make small", (*mutator).shrink},
	{"punch a hole", (*mutator).punch},
	{"chmod", (*mutator).chmod},
	{"chown", (*mutator).chown},
	{"set mtime", (*mutator).touch},
	{"set xattr", (*mutator).setXattr},
	{"remove xattr", (*mutator).removeXattr},
	{"delete", (*mutator).remove},
	{"delete directory", (*mutator).removeDir},
	{"add file", (*mutator).addFile},
	{"add file", (*mutator).addFile},
	{"add directory", (*mutator).addDir},
	{"add symlink", (*mutator).addSymlink},
	{"rename file", (*mutator).renameFile},
	{"rename directory", (*mutator).renameDir},
	{"exchange", (*mutator).exchange},
	{"file becomes directory", (*mutator).fileToDir},
	{"directory becomes file", (*mutator).dirToFile},
	{"directory becomes symlink", (*mutator).dirToSymlink},
	{"file becomes symlink", (*mutator).fileToSymlink},
	{"symlink becomes file", (*mutator).symlinkToFile},
	{"file becomes fifo", (*mutator).fileToFifo},
	{"add hard link", (*mutator).addLink},
	{"remove hard link", (*mutator).removeLink},
	{"remove first name of a hard link", (*mutator).removeHolder},
	{"break hard link", (*mutator).breakLink},
	{"nothing", func(*mutator) (string, error) { return "done", nil }},
}

// pick chooses among the entries that pass.
func (m *mutator) pick(pass func(e *entry) bool) *entry {
	var chosen *entry
	n := 0
	for i := range m.all {
		if pass(&m.all[i]) {
			if n++; m.rng.IntN(n) == 0 {
				chosen = &m.all[i]
			}
		}
	}
	return chosen
}

func (m *mutator) pickKind(want uint32) *entry {
	return m.pick(func(e *entry) bool { return kind(&e.st) == want })
}

// pickFile chooses a regular file of at least some size, but not one so large
// that rewriting it would take long.
func (m *mutator) pickFile(atLeast int64) *entry {
	return m.pick(func(e *entry) bool {
		return kind(&e.st) == unix.S_IFREG && e.st.Size >= atLeast && e.st.Size <= 16<<20
	})
}

// pickDir chooses a directory with less than a quarter of the tree below it.
func (m *mutator) pickDir() *entry {
	e := m.pick(func(e *entry) bool { return kind(&e.st) == unix.S_IFDIR })
	if e == nil || 4*m.below(e.path) > len(m.all) {
		return nil
	}
	return e
}

func (m *mutator) below(dir string) (n int) {
	for i := range m.all {
		if within(m.all[i].path, dir) {
			n++
		}
	}
	return n
}

// within says whether path is dir or below it.
func within(path, dir string) bool {
	return path == dir || len(path) > len(dir) && path[:len(dir)] == dir && path[len(dir)] == '/'
}

// newPath is an unused path in some directory that is not at or below avoid.
func (m *mutator) newPath(avoid string) string {
	dir := "."
	if e := m.pickKind(unix.S_IFDIR); e != nil && m.rng.IntN(6) > 0 && (avoid == "" || !within(e.path, avoid)) {
		dir = e.path
	}
	for {
		name := ordinaryName(m.rng)
		if m.rng.IntN(5) == 0 {
			name = oddNames[m.rng.IntN(len(oddNames))]
		}
		path := join(dir, name)
		if _, err := m.root.lstat(path); errors.Is(err, unix.ENOENT) {
			return path
		} else if err != nil {
			dir = "."
		}
	}
}

// write writes n bytes of new content at off, in the file that is there.
func (m *mutator) write(path string, flags int, off int64, data []byte) (err error) {
	f, err := m.root.openFile(path, unix.O_WRONLY|flags)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = f.WriteAt(data, off)
	return err
}

func (m *mutator) create(path string, size int) error {
	return m.write(path, unix.O_CREAT|unix.O_EXCL, 0, content(m.rng, size))
}

func quote(e *entry) string { return fmt.Sprintf("%q", shorten(e.path)) }
