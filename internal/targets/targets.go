// Package targets opens the places where snapshots live, by their names. Each
// kind is a package of its own below this one; none knows more of backupd than
// the contract in internal/store.
package targets

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/targets/directory"
	"github.com/disko/backupd/internal/targets/nfs"
	"github.com/disko/backupd/internal/targets/rclone"
	"github.com/disko/backupd/internal/targets/retry"
	"github.com/disko/backupd/internal/targets/s3"
	"github.com/disko/backupd/internal/targets/sftp"
)

// Options are the settings of each kind, which a target's name overrides.
type Options struct {
	S3     s3.Options
	NFS    nfs.Options
	SFTP   sftp.Options
	Rclone rclone.Options
	// Retry is how operations of targets behind a network are repeated.
	Retry retry.Options
}

// remote is how other tools name places, as in s3:bucket. Taken for a
// relative path, a slip would make a directory and keep the backups there.
var remote = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+-]+:`)

// place is what a target's name means.
type place struct {
	kind string // directory, s3, nfs, sftp or rclone
	path string // of a directory: absolute
	// open opens it; with create it makes what is missing of it, where that is
	// only its last part.
	open func(ctx context.Context, create bool) (store.Writer, error)
}

// Check says what is wrong with a target's name, without going there.
func Check(name string, o Options) error {
	_, err := parse(name, o)
	return err
}

// Open opens a target that exists.
func Open(ctx context.Context, name string, o Options) (store.Writer, error) {
	return open(ctx, name, o, false)
}

// Create opens a target, and makes its directory where only that is missing.
func Create(ctx context.Context, name string, o Options) (store.Writer, error) {
	return open(ctx, name, o, true)
}

func open(ctx context.Context, name string, o Options, create bool) (store.Writer, error) {
	p, err := parse(name, o)
	if err != nil {
		return nil, err
	}
	if p.kind == "directory" {
		return p.open(ctx, create)
	}
	return writer(retry.Open(ctx, shown(name), o.Retry, func(ctx context.Context) (store.Writer, error) { return p.open(ctx, create) }))
}

// shown is a target's name for messages, without what may be secret.
func shown(name string) string {
	name, _, _ = strings.Cut(name, "?")
	if strings.HasPrefix(name, "rclone:") {
		name, _, _ = strings.Cut(name, ",") // of a connection string
	}
	return name
}

// parse reads a target's name. Its errors never have the whole of it: it may
// hold a password.
func parse(name string, o Options) (place, error) {
	scheme, rest, ok := strings.Cut(name, "://")
	switch {
	case name == "":
		return place{}, fmt.Errorf("no target named: say --target DIR")
	case strings.HasPrefix(name, "rclone:"):
		return far("rclone", name, o.Rclone, rclone.Parse, rclone.Open, rclone.Create)
	case ok && scheme == "s3":
		return far("s3", name, o.S3, s3.Parse, s3.Open, s3.Create)
	case ok && scheme == "nfs":
		return far("nfs", name, o.NFS, nfs.Parse, nfs.Open, nfs.Create)
	case ok && scheme == "sftp":
		return far("sftp", name, o.SFTP, sftp.Parse, sftp.Open, sftp.Create)
	case ok && scheme == "file":
		if !strings.HasPrefix(rest, "/") {
			return place{}, fmt.Errorf("target %q: file:// needs an absolute path, as in file:///backups", name)
		}
		name = rest
	case ok:
		return place{}, fmt.Errorf("target %q: there is no such kind of target; %s", scheme+"://...", kinds)
	case remote.MatchString(name):
		scheme, _, _ = strings.Cut(name, ":")
		return place{}, fmt.Errorf("target %q: there is no such kind of target; %s; a directory with a colon in its name is ./NAME, and a remote of rclone's rclone:NAME:PATH", scheme+":...", kinds)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return place{}, fmt.Errorf("target %q: a path has no NUL", name)
	}
	path, err := filepath.Abs(name)
	if err != nil {
		return place{}, fmt.Errorf("target %q: %w", name, err)
	}
	return place{"directory", path, func(_ context.Context, create bool) (store.Writer, error) {
		if create {
			return writer(directory.Create(path))
		}
		return writer(directory.Open(path))
	}}, nil
}

const kinds = "name a directory (/backups), s3://bucket/prefix, nfs://host/export/path, sftp://user@host/path or rclone:remote:path"

// far is a target behind a network, by its kind's functions.
func far[O any, T store.Writer](kind, name string, defaults O, parse func(string, O) (O, error), open, create func(context.Context, O) (T, error)) (place, error) {
	o, err := parse(name, defaults)
	if err != nil {
		return place{}, err
	}
	return place{kind: kind, open: func(ctx context.Context, make bool) (store.Writer, error) {
		if make {
			return writer(create(ctx, o))
		}
		return writer(open(ctx, o))
	}}, nil
}

// writer keeps a nil target from becoming a store that is not nil.
func writer[T store.Writer](t T, err error) (store.Writer, error) {
	if err != nil {
		return nil, err
	}
	return t, nil
}
