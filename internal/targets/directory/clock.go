package directory

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/disko/backupd/internal/store"
)

var _ store.Clock = (*Target)(nil)

// Now implements store.Clock by the file system's own clock, which on a mount
// from elsewhere may be the server's: a file is touched. Where nothing may be
// written it is this machine's.
func (t *Target) Now(ctx context.Context) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, err
	}
	name, err := t.temp(nil)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.ENOSPC) {
		return time.Now(), nil
	}
	if err != nil {
		return time.Time{}, t.explain("touch a file in", tmpDir, err)
	}
	defer os.Remove(name)
	st, err := os.Lstat(name)
	if err != nil {
		return time.Time{}, t.explain("touch a file in", tmpDir, err)
	}
	return st.ModTime(), nil
}

// Modified implements store.Clock.
func (t *Target) Modified(ctx context.Context, key string) (time.Time, error) {
	path, err := t.path(key)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return time.Time{}, err
	}
	st, err := os.Lstat(path)
	if errors.Is(err, syscall.ENOTDIR) || err == nil && !st.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return time.Time{}, t.explain("stat", key, err)
	}
	return st.ModTime(), nil
}

// Near implements store.Near.
func (t *Target) Near() bool { return true }

// HostClock implements store.Clock.
func (t *Target) HostClock() bool { return true }
