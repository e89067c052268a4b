package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/tarstream"
	"github.com/disko/backupd/internal/snapshot/tree"
)

func (r *restore) removeOthers(ctx context.Context) error {
	if r.plan == nil {
		return nil
	}
	r.plan.absent = map[string]index.Kind{}
	m, err := newMerged(ctx, r.v.pg, r.v.vol, nil, index.Absent)
	if err != nil {
		return err
	}
	for {
		e, _, err := m.next()
		if err != nil {
			return err
		}
		if e == nil {
			break
		}
		if e.Kind.LeftOut() {
			r.plan.absent[e.Path] = e.Kind
		}
	}
	for _, path := range r.plan.remove {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := r.dest.Remove(path, func(p string) bool {
			_, left := r.plan.absent[p]
			return left || !r.included(p, false)
		})
		if err != nil {
			return err
		}
		r.stats.Removed++
	}
	return nil
}

// findStandIns looks for hard links that are included while the path that
// holds their content is not: the first of them gets the content.
func (r *restore) findStandIns(ctx context.Context) error {
	r.standIns = map[string][]string{}
	if len(r.include) == 0 {
		return nil
	}
	return r.v.nodes(ctx, func(e *index.Entry, _ *tarstream.Header) error {
		if e.Kind == index.Link && r.wants(e.Path) && !r.wants(e.Link) {
			r.standIns[e.Link] = append(r.standIns[e.Link], e.Path)
		}
		return nil
	})
}

// makeDirs makes the directories, open to us until their time comes. Of those
// that are not included, the ones that something included lies in.
func (r *restore) makeDirs(ctx context.Context) error {
	var above []string // of the current path
	parents := func(path string) error {
		for len(above) > 0 && !index.Below(path, above[len(above)-1]) {
			above = above[:len(above)-1]
		}
		from := 0
		if len(above) > 0 {
			from = len(above[len(above)-1]) + 1
		}
		for i := from; i < len(path); i++ {
			if path[i] == '/' {
				if _, err := r.dest.Mkdir(path[:i]); err != nil {
					return err
				}
				above = append(above, path[:i])
			}
		}
		return nil
	}
	m, err := newMerged(ctx, r.v.pg, r.v.vol, nil, index.Nodes)
	if len(r.include) > 0 && err == nil {
		m, err = newMerged(ctx, r.v.pg, r.v.vol, nil, index.Files, index.Nodes)
	}
	if err != nil {
		return err
	}
	var page *index.Page
	for {
		e, it, err := m.next()
		if err != nil || e == nil {
			return err
		}
		if r.v.spans != nil && it.Page != page {
			page = it.Page
			for _, ref := range page.Tar {
				r.v.spans.keepTar(ref)
			}
		}
		if e.Path == index.Root || !r.included(e.Path, e.Kind == index.Dir) {
			continue
		}
		if len(r.include) > 0 {
			if err := parents(e.Path); err != nil {
				return err
			}
		}
		if e.Kind != index.Dir {
			continue
		}
		if _, err := r.dest.Mkdir(e.Path); err != nil {
			return err
		}
		above = append(above, e.Path)
	}
}

func (r *restore) writeFiles(ctx context.Context) error {
	want := func(e *index.Entry) bool {
		if _, ok := r.standIns[e.Path]; ok {
			return true
		}
		if !r.wants(e.Path) {
			return false
		}
		if !r.plan.touches(e.Path) {
			r.o.Progress.Files.Add(1)
			r.o.Progress.Bytes.Add(e.Size)
			return false
		}
		return true
	}
	return r.v.files(ctx, want, func(e *index.Entry, h *tarstream.Header) (fileSink, error) {
		if in := r.standIns[e.Path]; len(in) > 0 {
			h.Path = in[0]
		}
		return &writer{r: r, h: *h}, nil
	})
}

// writer is a fileSink that writes a file into the volume.
type writer struct {
	r *restore
	h tarstream.Header

	mu sync.Mutex
	f  *tree.DestFile
}

// replace says whether the file gets its name only when it is whole.
func (w *writer) replace() bool { return w.r.plan != nil || w.r.o.Fresh != nil }

// Write implements fileSink. A file that comes in one piece takes the short way.
func (w *writer) Write(p []byte, off int64) error {
	w.mu.Lock()
	if w.f == nil {
		if off == 0 && w.h.Sparse == nil && int64(len(p)) == w.h.Size {
			defer w.mu.Unlock()
			return w.small(p)
		}
		f, err := w.r.dest.CreateFile(&w.h, w.replace())
		if err != nil {
			w.mu.Unlock()
			return err
		}
		w.f = f
	}
	w.mu.Unlock()
	err := spread(layout(&w.h), p, off, func(p []byte, at int64) error {
		_, err := w.f.WriteAt(p, at)
		return err
	})
	w.r.o.Progress.Bytes.Add(int64(len(p)))
	return err
}

func (w *writer) small(p []byte) error {
	err := w.r.soft(w.h.Path, w.r.dest.WriteSmall(&w.h, p, w.replace()))
	if err == nil {
		w.r.o.Progress.Bytes.Add(int64(len(p)))
		w.r.wrote(1, int64(len(p)))
		w.h.Size = -1 // done
	}
	return err
}

// Done implements fileSink.
func (w *writer) Done() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.h.Size < 0 {
		return nil
	}
	if w.f == nil {
		if w.h.Sparse == nil && w.h.Size == 0 {
			return w.small(nil)
		}
		var err error
		if w.f, err = w.r.dest.CreateFile(&w.h, w.replace()); err != nil {
			return err
		}
	}
	if w.h.Sparse != nil {
		if err := w.f.Truncate(w.h.Size); err != nil {
			w.f.Abort()
			return err
		}
	}
	w.r.wrote(1, w.h.DataSize())
	return w.r.soft(w.h.Path, w.f.Finish())
}

// Abort implements fileSink.
func (w *writer) Abort() {
	if w.f != nil {
		w.f.Abort()
	}
}

func (r *restore) writeSpecials(ctx context.Context) error {
	return r.v.nodes(ctx, func(e *index.Entry, h *tarstream.Header) error {
		if e.Kind == index.Dir || e.Kind == index.Link {
			return nil
		}
		if in := r.standIns[e.Path]; len(in) > 0 {
			h.Path = in[0]
		} else if !r.wants(e.Path) || !r.plan.touches(e.Path) {
			return nil
		}
		r.wrote(1, 0)
		if h.Type == tarstream.Symlink {
			return r.soft(h.Path, r.dest.Symlink(h, r.plan != nil))
		}
		err := r.dest.Special(h, r.plan != nil)
		var device *tree.DeviceError
		if errors.As(err, &device) {
			r.lacks = append(r.lacks, h.Path)
			r.warn(h.Path, fmt.Errorf("device not restored: %w: a user namespace has no devices of its own; restore this volume with an engine that is not rootless if they are needed", device.Err))
			return nil
		}
		return r.soft(h.Path, err)
	})
}

func (r *restore) writeLinks(ctx context.Context) error {
	return r.v.nodes(ctx, func(e *index.Entry, h *tarstream.Header) error {
		if e.Kind != index.Link || !r.wants(e.Path) {
			return nil
		}
		if in := r.standIns[e.Link]; len(in) > 0 {
			if in[0] == e.Path {
				return nil
			}
			h.Link = in[0]
		}
		r.wrote(1, 0)
		if slices.Contains(r.lacks, h.Link) {
			r.warn(h.Path, fmt.Errorf("device not restored: it is a link to %q", h.Link))
			return nil
		}
		return r.dest.Link(h, r.plan != nil)
	})
}

// finishDirs gives directories their metadata, each after all that is below it.
func (r *restore) finishDirs(ctx context.Context) error {
	var open []*tarstream.Header
	finish := func(n int) error {
		for len(open) > n {
			h := open[len(open)-1]
			open = open[:len(open)-1]
			if h.Path == index.Root {
				r.root = h
				continue
			}
			if err := r.soft(h.Path, r.dest.FinishDir(h)); err != nil {
				return err
			}
			r.wrote(1, 0)
		}
		return nil
	}
	err := r.v.nodes(ctx, func(e *index.Entry, h *tarstream.Header) error {
		if e.Kind != index.Dir || !r.included(e.Path, true) {
			return nil
		}
		n := len(open)
		for n > 0 && !index.Below(e.Path, open[n-1].Path) {
			n--
		}
		if err := finish(n); err != nil {
			return err
		}
		c := *h
		open = append(open, &c)
		return nil
	})
	if err != nil {
		return err
	}
	return finish(0)
}

// finishRoot gives the root its metadata, last of all. It reads nothing from
// the target: the mark is gone, so it must not fail for the target's sake.
func (r *restore) finishRoot() error {
	if len(r.include) > 0 || r.root == nil {
		return nil
	}
	r.wrote(1, 0)
	return r.explain(r.soft(index.Root, r.dest.FinishDir(r.root)))
}

// soft turns an attribute or a set-gid bit that cannot be set into a warning.
func (r *restore) soft(path string, err error) error {
	var mode *tree.ModeError
	lost := errors.As(err, &mode)
	if lost {
		r.warn(path, errors.New("set-gid bit not restored: it takes CAP_FSETID; add FSETID to the container's cap_add, and restore with --force"))
	}
	var x *tree.XattrError
	if errors.As(err, &x) {
		r.warn(path, fmt.Errorf("attribute %s not restored: %w", x.Name, x.Err))
		return nil
	}
	if lost {
		return nil
	}
	return err
}

func (r *restore) wrote(files, bytes int64) {
	r.o.Progress.Files.Add(files)
	r.mu.Lock()
	r.stats.Files += files
	r.stats.Bytes += bytes
	r.mu.Unlock()
}
