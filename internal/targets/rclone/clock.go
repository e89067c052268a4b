package rclone

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/disko/backupd/internal/store"
)

var _ store.Clock = (*Target)(nil)

// Now implements store.Clock: an object is put, and the service says when.
func (t *Target) Now(ctx context.Context) (time.Time, error) {
	tmp := path.Join(tmpDir, rand.Text())
	there, err := t.upload(ctx, tmp, []byte("\n"))
	if there {
		defer t.discard(ctx, tmp)
	}
	var now time.Time
	if err == nil {
		now, err = t.modified(ctx, tmp)
	}
	return now, t.explain("touch an object in", t.Location(), err)
}

// Modified implements store.Clock.
func (t *Target) Modified(ctx context.Context, key string) (time.Time, error) {
	if err := checkKey(key); err != nil {
		return time.Time{}, err
	}
	at, err := t.modified(ctx, key)
	if errors.Is(err, store.ErrNotExist) {
		if gone := t.exists(ctx); gone != nil {
			err = gone
		}
	}
	return at, t.explain("stat", key, err)
}

// HostClock implements store.Clock. Many services keep the time that they are
// given, which is that of the machine that put the object.
func (t *Target) HostClock() bool { return true }

func (t *Target) modified(ctx context.Context, key string) (time.Time, error) {
	var out struct {
		Item *item `json:"item"`
	}
	err := t.call(ctx, "operations/stat", map[string]any{"fs": targetFs, "remote": key, "opt": map[string]any{"filesOnly": true, "noMimeType": true}}, &out)
	if notThere(err) || err == nil && out.Item == nil {
		return time.Time{}, store.ErrNotExist
	}
	if err != nil {
		return time.Time{}, err
	}
	at, err := time.Parse(time.RFC3339, out.Item.ModTime)
	if err != nil {
		return time.Time{}, fmt.Errorf("rclone tells its time as %q", out.Item.ModTime)
	}
	return at, nil
}
