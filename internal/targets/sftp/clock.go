package sftp

import (
	"context"
	"io/fs"
	"time"

	"github.com/disko/backupd/internal/store"
)

var _ store.Clock = (*Target)(nil)

// Now implements store.Clock: a file is touched, and the server says when, in
// whole seconds.
func (t *Target) Now(ctx context.Context) (now time.Time, err error) {
	var tmp string
	err = t.pool.run(ctx, func(s *session) (err error) {
		if tmp, err = t.temp(s, nil); err == nil {
			var st fs.FileInfo
			if st, err = s.Lstat(tmp); err == nil {
				now = st.ModTime()
			}
		}
		if tmp != "" && s.wire.why() == nil && s.Remove(tmp) == nil {
			tmp = ""
		}
		return t.diagnose(s, err)
	})
	if tmp != "" {
		t.removeLater(ctx, tmp)
	}
	return now, explain("touch a file in", t.Location(), err)
}

// Modified implements store.Clock.
func (t *Target) Modified(ctx context.Context, key string) (at time.Time, err error) {
	err = t.do(ctx, "stat", key, func(s *session, file string) error {
		st, err := t.lstat(s, file)
		if err != nil {
			return err
		}
		if !st.Mode().IsRegular() {
			return fs.ErrNotExist
		}
		at = st.ModTime()
		return nil
	})
	return at, err
}

// HostClock implements store.Clock: it is the server's.
func (t *Target) HostClock() bool { return false }
