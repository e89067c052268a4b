package nfs

import (
	"errors"
	"fmt"
	"strings"
)

// restarts is how often a directory that changes is read from its start.
const restarts = 5

// entry is a directory's: a name and what it is.
type entry struct {
	name string
	attributes
}

// readdir reads a whole directory, without the names that start with a dot:
// "." and "..", the .nfsXXXX files that clients make of those deleted while
// open, and what desktops leave. It is read before any of it is used, because
// it may have to be read again.
func (s *session) readdir(dir handle) ([]entry, error) {
	for range restarts {
		all, err := s.readdirOnce(dir)
		if !says(err, statBadCookie) {
			return all, err
		}
	}
	return nil, fmt.Errorf("read a directory %d times from its start: %w", restarts, statBadCookie)
}

func (s *session) readdirOnce(dir handle) ([]entry, error) {
	var all []entry
	seen := map[string]bool{} // some servers repeat names when a directory changes
	var cookie uint64
	var verf verifier
	size := s.export.dirmax
	for {
		d, err := s.ask(procReadDirPlus, func(e *encoder) {
			e.opaque([]byte(dir))
			e.u64(cookie)
			e.b = append(e.b, verf[:]...)
			e.u32(uint32(size) / 4) // names alone
			e.u32(uint32(size))
		})
		if says(err, statTooSmall) && size < maxPiece {
			size *= 2
			continue
		}
		if err != nil {
			return nil, err
		}
		d.maybeAttributes()
		verf = d.verifier()
		fresh := false
		var bare []entry // of which the server tells no attributes
		for d.bool() {
			d.u64() // file id
			name := string(d.opaque(maxRecord))
			cookie = d.u64()
			a, ok := d.maybeAttributes()
			d.maybeHandle()
			if d.err != nil {
				return nil, d.err
			}
			if strings.ContainsAny(name, "/\x00") || name == "" {
				return nil, fmt.Errorf("%w: a file's name is %q", errGarbled, name)
			}
			if seen[name] {
				continue
			}
			seen[name] = true
			fresh = true
			switch {
			case name[0] == '.':
			case ok:
				all = append(all, entry{name, a})
			default:
				bare = append(bare, entry{name: name})
			}
		}
		end := d.bool()
		if d.err != nil {
			return nil, d.err
		}
		for _, e := range bare {
			n, err := s.lookup(dir, e.name)
			if absent(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			all = append(all, entry{e.name, n.attributes})
		}
		if end {
			return all, nil
		}
		if !fresh {
			return nil, errors.New("the server lists a directory without end")
		}
	}
}
