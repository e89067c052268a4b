package nfs

import (
	"context"
	"time"

	"github.com/disko/backupd/internal/store"
)

var _ store.Clock = (*Target)(nil)

// Now implements store.Clock: a file is touched, and the server says when.
func (t *Target) Now(ctx context.Context) (now time.Time, err error) {
	var tmp temporary
	err = t.run(ctx, func(s *session) error {
		tmp = newTemporary()
		err := t.fill(s, &tmp, []byte("\n"))
		now = tmp.mtime
		if tmp.made && s.remove(tmp.dir, tmp.name) == nil {
			tmp.made = false
		}
		return err
	})
	if err != nil && tmp.made && ctx.Err() != nil {
		t.sweep(context.WithoutCancel(ctx), tmp)
	}
	return now, t.explain("touch a file in", t.Location(), err)
}

// Modified implements store.Clock.
func (t *Target) Modified(ctx context.Context, key string) (at time.Time, err error) {
	err = t.do(ctx, "stat", key, func(s *session) error {
		f, err := s.find(key)
		if err == nil && f.kind != kindFile {
			err = statNoEnt
		}
		at = f.mtime
		return err
	})
	return at, err
}

// HostClock implements store.Clock: it is the server's.
func (t *Target) HostClock() bool { return false }
