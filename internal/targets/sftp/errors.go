package sftp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/pkg/sftp"

	"github.com/disko/backupd/internal/store"
)

// readOnlyFS is the flag of statvfs@openssh.com for a read-only file system
// (OpenSSH, PROTOCOL, section 4.4).
const readOnlyFS = 1

// fewBytes is too little to go on with: the next object would not fit.
const fewBytes = 64 << 10

// writeError is an error of writing, which a full disk may be the reason of;
// size is how many bytes were to be written.
type writeError struct {
	error
	size int64
}

func (e writeError) Unwrap() error { return e.error }

// unspecific says that the server gave no reason. The protocol's version 3 has
// no codes for a full disk, an existing file, a file in place of a directory,
// or a read-only file system: OpenSSH says SSH_FX_FAILURE to all of them.
func unspecific(err error) bool {
	return errors.Is(err, sftp.ErrSSHFxFailure) || hasCode(err, uint32(sftp.ErrSSHFxFailure))
}

func unsupported(err error) bool {
	return errors.Is(err, sftp.ErrSSHFxOpUnsupported) || hasCode(err, uint32(sftp.ErrSSHFxOpUnsupported))
}

func hasCode(err error, code uint32) bool {
	var status *sftp.StatusError
	return errors.As(err, &status) && status.Code == code
}

// diagnose asks the server for what its error does not say.
func (t *Target) diagnose(s *session, err error) error {
	if errors.Is(err, fs.ErrNotExist) && errors.Is(t.exists(s), store.ErrNoTarget) {
		return fmt.Errorf("%w: %s on %s is gone; is its disk still mounted?", store.ErrNoTarget, t.o.Path, t.o.Host)
	}
	var w writeError
	if !errors.As(err, &w) || !unspecific(err) {
		return err
	}
	if _, ok := s.HasExtension("statvfs@openssh.com"); !ok {
		return fmt.Errorf("%w; the server does not say why: its disk may be full, or a quota", err)
	}
	v, verr := s.StatVFS(t.o.Path)
	switch {
	case verr != nil:
		return err
	case v.Flag&readOnlyFS != 0:
		return fmt.Errorf("%w: the file system of %s is read-only (%w)", store.ErrAccess, t.o.Path, err)
	case int64(v.Bavail*v.Frsize) < max(w.size, fewBytes), v.Files > 0 && v.Favail == 0:
		return fmt.Errorf("%w: the disk of %s has %d bytes and %d inodes free (%w)", store.ErrNoSpace, t.o.Path, v.Bavail*v.Frsize, v.Favail, err)
	}
	return fmt.Errorf("%w; the server does not say why, and its disk is not full: a quota may be", err)
}

// explain gives an error the sentinel that callers ask for, and says the act.
// A broken connection gets none: it may be better the next time.
func explain(act, what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrShort), errors.Is(err, store.ErrExist), errors.Is(err, store.ErrAccess),
		errors.Is(err, store.ErrNoTarget), errors.Is(err, store.ErrNoSpace),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s %s: %w", act, what, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s %s: %w (%w)", act, what, store.ErrAccess, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s %s: %w (%w)", act, what, store.ErrNotExist, err)
	}
	return fmt.Errorf("%s %s: %w", act, what, err)
}
