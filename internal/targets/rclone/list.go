package rclone

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/disko/backupd/internal/store"
)

// List implements store.Lister. rclone gathers a listing before it answers:
// some 150 bytes of memory an object there, and 50 here. Names that start with
// a dot are a service's or a desktop's.
func (t *Target) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		objects, err := t.list(ctx, prefix)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			yield(store.Info{}, t.explain("list", prefix, err))
			return
		}
		for _, o := range objects {
			if err := ctx.Err(); err != nil {
				yield(store.Info{}, t.explain("list", prefix, err))
				return
			}
			if !yield(o, nil) {
				return
			}
		}
	}
}

func (t *Target) list(ctx context.Context, prefix string) ([]store.Info, error) {
	dir := strings.TrimSuffix(prefix, "/")
	if prefix != "" {
		if dir == prefix {
			return nil, fmt.Errorf("a prefix ends in a slash")
		}
		if err := store.CheckKey(dir); err != nil {
			return nil, err // it might lead out of the target
		}
	}
	items, err := t.items(ctx, dir, map[string]any{"recurse": true, "filesOnly": true, "noModTime": true, "noMimeType": true})
	if err != nil {
		return nil, err
	}
	var all []store.Info
	for _, it := range items {
		if ours(it.Path) {
			all = append(all, store.Info{Key: it.Path, Size: it.Size})
		}
	}
	return all, nil
}

// items lists a directory. One that is absent, or is an object, has none, as
// long as the target is there.
func (t *Target) items(ctx context.Context, dir string, opt map[string]any) ([]item, error) {
	var out struct {
		List []item `json:"list"`
	}
	err := t.call(ctx, "operations/list", map[string]any{"fs": targetFs, "remote": dir, "opt": opt}, &out)
	if notThere(err) {
		return nil, t.exists(ctx)
	}
	if err != nil && dir != "" {
		// Some services cannot list what is an object, and have no word for it.
		if it, serr := t.find(ctx, dir); serr == nil && it != nil {
			return nil, nil
		}
	}
	return out.List, err
}

// ours says that a path may be an object's.
func ours(path string) bool {
	if strings.HasPrefix(path, tmpDir+"/") || strings.HasPrefix(path, "lost+found/") {
		return false
	}
	for part := range strings.SplitSeq(path, "/") {
		if strings.HasPrefix(part, ".") {
			return false
		}
	}
	return true
}
