package sftp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"strings"

	"github.com/disko/backupd/internal/store"
)

// List implements store.Lister. Names that start with a dot are a file
// system's or a desktop's; below the top, what is no regular file is none of
// ours either. At the top it is yielded: it tells a foreign directory.
func (t *Target) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		if err := checkPrefix(prefix); err != nil {
			yield(store.Info{}, err)
			return
		}
		if err := ctx.Err(); err != nil {
			yield(store.Info{}, explain("list", prefix, err))
			return
		}
		todo := []string{strings.TrimSuffix(prefix, "/")}
		for len(todo) > 0 {
			dir := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			// No connection is held while the reader is at work: it may need one.
			entries, err := t.readDir(ctx, dir)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(store.Info{}, explain("list", prefix, err))
				return
			}
			for _, e := range entries {
				key := path.Join(dir, e.Name())
				switch {
				case strings.HasPrefix(e.Name(), "."):
				case e.IsDir():
					if key != tmpDir && key != "lost+found" {
						todo = append(todo, key)
					}
				case e.Mode().IsRegular() || dir == "":
					if !yield(store.Info{Key: key, Size: e.Size()}, nil) {
						return
					}
				}
			}
		}
	}
}

// checkPrefix refuses what might lead out of the target.
func checkPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	dir, ok := strings.CutSuffix(prefix, "/")
	if !ok {
		return fmt.Errorf("list %q: a prefix ends in a slash", prefix)
	}
	if err := store.CheckKey(dir); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	return nil
}

// readDir reads one directory. One that is absent, or is none, has no entries,
// as long as the target is there.
func (t *Target) readDir(ctx context.Context, dir string) (entries []fs.FileInfo, err error) {
	name := path.Join(t.o.Path, dir)
	err = t.pool.run(ctx, func(s *session) error {
		entries, err = s.ReadDir(name)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, fs.ErrNotExist):
			return t.exists(s)
		case unspecific(err) && dir != "":
			if !t.noDirectory(s, name) {
				return err
			}
			return t.exists(s)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return entries, nil
}

// noDirectory says that a name, or one above it, is a file's.
func (t *Target) noDirectory(s *session, name string) bool {
	st, err := s.Lstat(name)
	if err == nil {
		return !st.IsDir()
	}
	return errors.Is(err, fs.ErrNotExist) || t.belowFile(s, name, err)
}
