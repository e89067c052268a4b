package sftp

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"time"

	"github.com/pkg/sftp"

	"github.com/disko/backupd/internal/store"
)

// cleanUpTime bounds the removal of a temporary file after the operation's
// context ended. What it leaves is removed a day later.
const cleanUpTime = 3 * time.Second

// Put implements store.Putter. What "durable" means depends on the server:
//
//   - With fsync@openssh.com the content is synced before the object is
//     placed, and once more, through its new name, after: journaling file
//     systems bring the name to disk with that. Directories cannot be synced,
//     so the names of new directories rest on the same journal.
//   - Without it the server's own habit decides, usually some seconds.
func (t *Target) Put(ctx context.Context, key string, data []byte) error {
	var tmp string
	err := t.do(ctx, "write", key, func(s *session, file string) (err error) {
		if _, err := s.Lstat(file); err == nil {
			return store.ErrExist // before its content is written for nothing
		} else if !errors.Is(err, fs.ErrNotExist) && !unspecific(err) {
			return err
		}
		tmp, err = t.temp(s, data)
		if err == nil {
			err = t.place(ctx, s, tmp, file, int64(len(data)))
		}
		if err != nil {
			// While the disk is still as full as it was.
			err = t.diagnose(s, err)
		}
		if tmp != "" && s.wire.why() == nil {
			rerr := s.Remove(tmp)
			if rerr == nil || errors.Is(rerr, fs.ErrNotExist) || errors.Is(rerr, fs.ErrPermission) {
				tmp = "" // who may add and not remove is good enough
			} else if err == nil {
				err = rerr
			}
		}
		return err
	})
	if tmp != "" {
		t.removeLater(ctx, tmp)
	}
	return err
}

// removeLater removes a temporary file through another connection, where that
// is possible at once.
func (t *Target) removeLater(ctx context.Context, tmp string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(cleanUpTime, t.o.StallTimeout))
	defer cancel()
	_ = t.pool.run(ctx, func(s *session) error { return s.Remove(tmp) }) // else tidy does, in a day
}

// temp writes data to a temporary file that is synced, closed and of the right
// size. It returns the name of what it made, with an error as well.
func (t *Target) temp(s *session, data []byte) (name string, err error) {
	var b [12]byte
	rand.Read(b[:])
	dir := path.Join(t.o.Path, tmpDir)
	tmp := path.Join(dir, hex.EncodeToString(b[:]))
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	f, err := s.OpenFile(tmp, flags)
	if errors.Is(err, fs.ErrNotExist) {
		if err := t.exists(s); err != nil {
			return "", err // a target that vanished is not made anew
		}
		if err := t.makeDir(s, dir); err != nil {
			return "", err
		}
		f, err = s.OpenFile(tmp, flags)
	}
	if err != nil {
		return "", writeError{err, 0}
	}
	_ = f.Chmod(fileMode) // a server may have its own idea of modes
	_, err = f.Write(data)
	if err == nil {
		err = syncFile(s, f)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return tmp, writeError{err, int64(len(data))}
	}
	st, err := s.Lstat(tmp)
	if err != nil {
		return tmp, err
	}
	if st.Size() != int64(len(data)) {
		return tmp, fmt.Errorf("the server has %d of %d bytes that it acknowledged", st.Size(), len(data))
	}
	t.tidy.Do(func() { tidy(s, dir, st.ModTime()) })
	return tmp, nil
}

// syncFile syncs where the server can.
func syncFile(s *session, f *sftp.File) error {
	if _, ok := s.HasExtension("fsync@openssh.com"); !ok {
		return nil
	}
	return f.Sync()
}

// place gives a temporary file its object's name. Other processes' objects are
// safe where the server has hard links, or is OpenSSH, whose rename makes a
// link itself and refuses to replace. On a server with neither, a second
// process that places the same key between the look and the rename may be
// replaced, or replace; within this process nobody meets.
func (t *Target) place(ctx context.Context, s *session, tmp, file string, size int64) error {
	unlock, err := t.lock(ctx, file)
	if err != nil {
		return err
	}
	defer unlock()
	err = t.link(s, tmp, file, size)
	if errors.Is(err, fs.ErrNotExist) {
		if err = t.makeDirs(s, path.Dir(file)); err == nil {
			err = t.link(s, tmp, file, size)
		}
	}
	if err != nil {
		if s.wire.why() != nil || errors.Is(err, store.ErrExist) {
			return err
		}
		return writeError{err, 0}
	}
	if err := syncAgain(s, file); err != nil {
		return writeError{fmt.Errorf("sync the object after it was placed: %w", err), size}
	}
	return nil
}

func syncAgain(s *session, file string) error {
	if _, ok := s.HasExtension("fsync@openssh.com"); !ok {
		return nil
	}
	f, err := s.Open(file)
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// link is place without its directories and syncs.
func (t *Target) link(s *session, tmp, file string, size int64) error {
	links, err := t.canLink(s, tmp)
	if err != nil {
		return err
	}
	if links {
		err := s.Link(tmp, file)
		if err == nil {
			return placed(s, file, size)
		}
		if errors.Is(err, fs.ErrNotExist) || s.wire.why() != nil {
			return err
		}
		// The object exists, or the reason is another: a look tells.
	}
	_, err = s.Lstat(file)
	if err == nil {
		return store.ErrExist
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Protocol 3's rename, never posix-rename@openssh.com, which replaces.
	err = s.Rename(tmp, file)
	switch {
	case err == nil:
		if err = placed(s, file, size); errors.Is(err, fs.ErrNotExist) {
			return errors.New("the server says that it renamed the object, and did not")
		}
	case unsupported(err):
		return fmt.Errorf("the server can neither link nor rename: %w", err)
	case unspecific(err):
		if _, serr := s.Lstat(file); serr == nil {
			return store.ErrExist
		}
	case errors.Is(err, fs.ErrNotExist):
		// Of the directory, if not of the file.
		if _, serr := s.Lstat(tmp); errors.Is(serr, fs.ErrNotExist) {
			return errors.New("the temporary file is gone; does something else clean up the target's tmp directory?")
		}
	}
	return err
}

// canLink tries once whether the server makes hard links. That it says so is
// not enough: rclone's server answers "done" to every link, and makes none. And
// behind a server that can, a file system may be that cannot.
func (t *Target) canLink(s *session, tmp string) (bool, error) {
	t.linking.Lock()
	defer t.linking.Unlock()
	if t.links != nil {
		return *t.links, nil
	}
	links := false
	if _, ok := s.HasExtension("hardlink@openssh.com"); ok {
		second := tmp + "-link"
		err := s.Link(tmp, second)
		if err == nil {
			_, err = s.Lstat(second)
			links = err == nil
		}
		if s.wire.why() != nil {
			return false, err
		}
		if links {
			err = s.Remove(second)
			if errors.Is(err, fs.ErrPermission) {
				// Whoever may not remove would leave a second name of each object.
				links, err = false, nil
			}
			if err != nil {
				return false, err
			}
		}
	}
	t.links = &links
	return links, nil
}

// placed looks at what was placed.
func placed(s *session, file string, size int64) error {
	st, err := s.Lstat(file)
	if err == nil && st.Size() != size {
		err = fmt.Errorf("the object has %d of %d bytes after it was placed", st.Size(), size)
	}
	return err
}

// lock keeps this process's own writers of a key apart.
func (t *Target) lock(ctx context.Context, file string) (unlock func(), err error) {
	mine := make(chan struct{})
	for {
		other, taken := t.placing.LoadOrStore(file, mine)
		if !taken {
			return func() {
				t.placing.Delete(file)
				close(mine)
			}, nil
		}
		select {
		case <-other.(chan struct{}):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// makeDirs makes the directories down to dir.
func (t *Target) makeDirs(s *session, dir string) error {
	if dir == t.o.Path || dir == "." {
		return t.exists(s) // a target that vanished is not made anew
	}
	if st, err := s.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	if err := t.makeDirs(s, path.Dir(dir)); err != nil {
		return err
	}
	return t.makeDir(s, dir)
}

func (t *Target) makeDir(s *session, dir string) error {
	err := s.Mkdir(dir)
	if err == nil {
		_ = s.Chmod(dir, dirMode) // a server may have its own idea of modes
		return nil
	}
	// There is no code for "exists": somebody else may have made it.
	if st, serr := s.Stat(dir); serr == nil && st.IsDir() {
		return nil
	}
	return writeError{fmt.Errorf("make directory %s: %w", dir, err), 0}
}

// tidy removes temporary files that are a day older than one just written, by
// the server's clock alone.
func tidy(s *session, dir string, now time.Time) {
	entries, err := s.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.Mode().IsRegular() && now.Sub(e.ModTime()) > leftoverAge {
			_ = s.Remove(path.Join(dir, e.Name())) // else the next run does
		}
	}
}
