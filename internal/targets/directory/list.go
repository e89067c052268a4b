package directory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/disko/backupd/internal/store"
)

// List implements store.Lister. Names that start with a dot are a file
// system's or a desktop's; below the top, what is no regular file is none of
// ours either. At the top it is yielded: it tells a foreign directory.
func (t *Target) List(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		if prefix != "" && !strings.HasSuffix(prefix, "/") {
			yield(store.Info{}, fmt.Errorf("list %q: a prefix ends in a slash", prefix))
			return
		}
		if prefix != "" {
			if err := store.CheckKey(strings.TrimSuffix(prefix, "/")); err != nil {
				yield(store.Info{}, fmt.Errorf("list: %w", err)) // it might lead out of the target
				return
			}
		}
		top := filepath.Join(t.root, filepath.FromSlash(prefix))
		if prefix == "" {
			top += "/" // a root that is a symbolic link is followed
		}
		last := ""
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if absent(err) {
				if path == top {
					_, err := os.Stat(t.root)
					return err
				}
				return nil
			}
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(t.root, path)
			if err != nil {
				return err
			}
			if path == top && prefix != "" && !d.IsDir() {
				return nil // an object's key and a slash
			}
			if path != top && strings.HasPrefix(d.Name(), ".") {
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			if d.IsDir() {
				if rel == tmpDir || rel == "lost+found" {
					return fs.SkipDir
				}
				return nil
			}
			if !d.Type().IsRegular() && filepath.Dir(rel) != "." {
				return nil
			}
			if path == last {
				return nil // an NFS server may repeat a name when the directory changes
			}
			last = path
			st, err := d.Info()
			if errors.Is(err, syscall.ESTALE) {
				st, err = os.Lstat(path)
			}
			if err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				return err
			}
			if !yield(store.Info{Key: filepath.ToSlash(rel), Size: st.Size()}, nil) {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			yield(store.Info{}, t.explain("list", prefix, err))
		}
	}
}
