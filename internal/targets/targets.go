// Package targets opens the places where snapshots live, by their names. Each
// kind is a package of its own below this one; none knows more of backupd than
// the contract in internal/store.
package targets

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/targets/directory"
)

// Location is a target's name, taken apart.
type Location struct {
	Scheme string // "directory"
	Path   string // absolute
}

// remote is how rclone and restic name places, as in s3:bucket. Taken for a
// relative path, a slip would make a directory and keep the backups there.
var remote = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+-]+:`)

// Parse reads the name of a target: a path, or file:///path.
func Parse(name string) (Location, error) {
	scheme, rest, ok := strings.Cut(name, "://")
	switch {
	case name == "":
		return Location{}, fmt.Errorf("no target named: say --target DIR")
	case ok && scheme == "file":
		if !strings.HasPrefix(rest, "/") {
			return Location{}, fmt.Errorf("target %q: file:// needs an absolute path, as in file:///backups", name)
		}
		name = rest
	case ok:
		// Not the whole name: it may hold a password.
		return Location{}, fmt.Errorf("target %q: this version keeps snapshots in directories only; name one, as in --target /backups", scheme+"://...")
	case remote.MatchString(name):
		scheme, _, _ = strings.Cut(name, ":")
		return Location{}, fmt.Errorf("target %q: this version keeps snapshots in directories only; name one, as in --target /backups, and one with a colon as ./NAME", scheme+":...")
	}
	if strings.IndexByte(name, 0) >= 0 {
		return Location{}, fmt.Errorf("target %q: a path has no NUL", name)
	}
	path, err := filepath.Abs(name)
	if err != nil {
		return Location{}, fmt.Errorf("target %q: %w", name, err)
	}
	return Location{Scheme: "directory", Path: path}, nil
}

// Open opens a target that exists.
func Open(name string) (store.Writer, error) {
	l, err := Parse(name)
	if err != nil {
		return nil, err
	}
	return directory.Open(l.Path)
}

// Create opens a target, and makes its directory where only that is missing.
func Create(name string) (store.Writer, error) {
	l, err := Parse(name)
	if err != nil {
		return nil, err
	}
	return directory.Create(l.Path)
}
