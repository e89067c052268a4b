// Package rclone keeps objects on any remote that the user's rclone program
// reaches: WebDAV, Azure, Google Drive, Dropbox, B2 and some seventy others.
//
// The program runs as a child (`rclone rcd`, its control interface on a local
// port with a password of one run) and dies with this process; when it dies
// before, the next operation starts it anew. An object is uploaded under a
// temporary name in tmp/ and moved or copied into place by the service, so
// that it is never seen in part; see put for services that can do neither.
//
// It cannot place an object without replacing: services behind rclone have no
// such request. Objects of other processes are protected by a look only. Nor
// can it sync: an object is as durable as the service makes what it has
// acknowledged. It does not try again what failed; rclone does, a little.
package rclone

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/disko/backupd/internal/store"
)

const (
	tmpDir = "tmp"
	// leftoverAge is when a temporary object belongs to nobody any more.
	leftoverAge = 24 * time.Hour
	// cleanUpTime bounds the removal of a temporary object after the operation's
	// context ended. What it leaves is removed a day later.
	cleanUpTime = 3 * time.Second
)

// oldest is the version of Debian 12.
var oldest = []int{1, 60}

// Target is a path of a remote. It implements store.Writer, and is safe for
// concurrent use.
type Target struct {
	o      Options
	staged bool // the service can give an object its name after it was uploaded
	tidy   sync.Once

	// placing has a lock for each key that this process writes: at least its own
	// writers must not meet.
	placing sync.Map

	// known has the directories that something was written to; making is held by
	// who writes to another. Services refuse those who make one at the same time.
	known  sync.Map
	making chan struct{}

	starting chan struct{} // held by whoever looks at or changes what follows
	child    *child
	closed   bool
}

var _ store.Writer = (*Target)(nil)

// Open starts rclone and returns the target in an existing directory or bucket.
func Open(ctx context.Context, o Options) (*Target, error) {
	t, _, err := connect(ctx, o)
	if err == nil {
		if err = t.exists(ctx); err == nil {
			return t, nil
		}
	}
	return nil, t.giveUp("open", err)
}

// Create is Open, but makes the directory or bucket where only that, the last
// component of the path, is missing.
func Create(ctx context.Context, o Options) (*Target, error) {
	t, features, err := connect(ctx, o)
	if err == nil {
		if err = t.create(ctx, features); err == nil {
			return t, nil
		}
	}
	return nil, t.giveUp("create", err)
}

// features are what a service can do by itself.
type features struct {
	Move, Copy, BucketBased bool
}

func connect(ctx context.Context, o Options) (*Target, features, error) {
	full, err := o.complete()
	t := &Target{o: full, starting: make(chan struct{}, 1), making: make(chan struct{}, 1)}
	if err != nil {
		return t, features{}, err
	}
	if err := t.checkVersion(ctx); err != nil {
		return t, features{}, err
	}
	var info struct {
		Features features
	}
	if err := t.call(ctx, "operations/fsinfo", map[string]any{"fs": targetFs}, &info); err != nil {
		return t, features{}, err
	}
	t.staged = info.Features.Move || info.Features.Copy
	return t, info.Features, nil
}

// checkVersion refuses programs that were never tried: older ones lack
// functions, and say of those what they say of absent objects.
func (t *Target) checkVersion(ctx context.Context) error {
	var is struct {
		Version    string
		Decomposed []int
	}
	if err := t.call(ctx, "core/version", nil, &is); err != nil {
		return err
	}
	if slices.Compare(is.Decomposed, oldest) < 0 {
		return fmt.Errorf("%w: %s is rclone %s, and 1.60 or newer is needed; install that, or use an image that has it", store.ErrNoTarget, t.o.Binary, is.Version)
	}
	return nil
}

func (t *Target) giveUp(act string, err error) error {
	_ = t.Close() // the error that counts is another
	return t.explain(act, t.Location(), err)
}

func (t *Target) create(ctx context.Context, f features) error {
	err := t.exists(ctx)
	if !errors.Is(err, store.ErrNoTarget) {
		return err
	}
	r, perr := parseRemote(t.o.Remote)
	if perr != nil {
		return perr
	}
	up, below := r.parent()
	if !below {
		return err
	}
	// Without credentials for it, the list of all buckets is no error.
	if !f.BucketBased || strings.Trim(up.path, "/") != "" {
		perr := t.call(ctx, "operations/list", map[string]any{"fs": parentFs, "remote": "", "opt": map[string]any{"dirsOnly": true, "noModTime": true}}, nil)
		if notThere(perr) {
			up.params = ""
			return fmt.Errorf("%w: there is no %s to make the target in; check the path", store.ErrNoTarget, up)
		}
		if perr != nil {
			return perr
		}
	}
	if err := t.call(ctx, "operations/mkdir", map[string]any{"fs": targetFs, "remote": ""}, nil); err != nil {
		return err
	}
	return t.exists(ctx)
}

// exists says ErrNoTarget unless there is a directory or bucket.
func (t *Target) exists(ctx context.Context) error {
	err := t.call(ctx, "operations/list", map[string]any{"fs": targetFs, "remote": "", "opt": map[string]any{"noModTime": true, "noMimeType": true}}, nil)
	if notThere(err) {
		return fmt.Errorf("%w: there is nothing at %s; check the path (%w)", store.ErrNoTarget, t.Location(), err)
	}
	return err
}

// Close ends rclone, and refuses operations from now on. Those under way fail.
func (t *Target) Close() error {
	t.starting <- struct{}{}
	defer func() { <-t.starting }()
	t.closed = true
	if t.child != nil {
		t.child.stop()
	}
	return nil
}

// Location implements store.Reader.
func (t *Target) Location() string { return t.o.location() }

// checkKey also keeps the place of temporaries.
func checkKey(key string) error {
	if err := store.CheckKey(key); err != nil {
		return err
	}
	if key == tmpDir || strings.HasPrefix(key, tmpDir+"/") {
		return fmt.Errorf("object key %q: %s is for temporary objects", key, tmpDir)
	}
	return nil
}

// item is what rclone tells of an object.
type item struct {
	Path    string
	Size    int64  // -1: not known
	ModTime string // RFC 3339; empty where it was not asked for
}

// find returns an object, or nil where there is none.
func (t *Target) find(ctx context.Context, key string) (*item, error) {
	var out struct {
		Item *struct {
			Size int64
		} `json:"item"`
	}
	err := t.call(ctx, "operations/stat", map[string]any{
		"fs": targetFs, "remote": key,
		"opt": map[string]any{"filesOnly": true, "noModTime": true, "noMimeType": true},
	}, &out)
	if notThere(err) || err == nil && out.Item == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &item{Path: key, Size: out.Item.Size}, nil
}

// stat is find, and says ErrNotExist of an absent object, or ErrNoTarget.
func (t *Target) stat(ctx context.Context, key string) (*item, error) {
	it, err := t.find(ctx, key)
	if err == nil && it == nil {
		if err = t.exists(ctx); err == nil {
			err = store.ErrNotExist
		}
	}
	return it, err
}

// Stat implements store.Getter.
func (t *Target) Stat(ctx context.Context, key string) (store.Info, error) {
	if err := checkKey(key); err != nil {
		return store.Info{}, err
	}
	it, err := t.stat(ctx, key)
	if err != nil {
		return store.Info{}, t.explain("stat", key, err)
	}
	return store.Info{Key: key, Size: it.Size}, nil
}

// Delete implements store.Deleter. Some services keep what is deleted in a
// trash for a while, and count it.
func (t *Target) Delete(ctx context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	err := t.remove(ctx, key)
	if notThere(err) {
		err = t.exists(ctx) // absent, or is all the rest as well?
	}
	return t.explain("delete", key, err)
}

func (t *Target) remove(ctx context.Context, key string) error {
	return t.call(ctx, "operations/deletefile", map[string]any{"fs": targetFs, "remote": key}, nil)
}
