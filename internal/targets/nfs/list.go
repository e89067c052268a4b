package nfs

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/disko/backupd/internal/store"
)

// List implements store.Lister. Names that start with a dot are another
// client's or a desktop's; below the top, what is no regular file is none of
// ours either. At the top it is yielded: it tells a foreign directory. It holds
// one directory's names at a time, and no connection while it yields.
func (t *Target) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		if prefix != "" && !strings.HasSuffix(prefix, "/") {
			yield(store.Info{}, fmt.Errorf("list %q: a prefix ends in a slash", prefix))
			return
		}
		top := strings.TrimSuffix(prefix, "/")
		if prefix != "" {
			if err := store.CheckKey(top); err != nil {
				yield(store.Info{}, fmt.Errorf("list: %w", err)) // it might lead out of the target
				return
			}
		}
		for todo := []string{top}; len(todo) > 0; {
			dir := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			entries, err := t.directory(ctx, dir)
			if err != nil {
				yield(store.Info{}, t.explain("list", prefix, err))
				return
			}
			for _, e := range entries {
				key := strings.TrimPrefix(dir+"/"+e.name, "/")
				switch {
				case key == tmpDir, key == "lost+found" && e.kind == kindDir:
				case e.kind == kindDir:
					todo = append(todo, key)
				case e.kind != kindFile && dir != "":
				default:
					if err := ctx.Err(); err != nil {
						yield(store.Info{}, t.explain("list", prefix, err))
						return
					}
					if !yield(store.Info{Key: key, Size: int64(e.size)}, nil) {
						return
					}
				}
			}
		}
	}
}

// directory reads one directory; one that is not there, or is a file, has
// nothing in it.
func (t *Target) directory(ctx context.Context, rel string) (entries []entry, err error) {
	err = t.run(ctx, func(s *session) error {
		entries = nil
		d, err := s.directory(rel)
		if err == nil {
			entries, err = s.readdir(d)
		}
		if absent(err) {
			if err = s.gone(nil); rel == "" && err == nil {
				err = fmt.Errorf("%w: it cannot be read as a directory", store.ErrNoTarget)
			}
		}
		return err
	})
	return entries, err
}
