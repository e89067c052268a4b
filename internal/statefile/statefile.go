// Package statefile writes the small files that backupd keeps in its state
// directory: ledgers, notes, what was told to whom.
//
// A file is exchanged as a whole: whoever reads it, also after the power failed,
// finds it as it was or as it is. Several processes may write the same one; the
// last wins. It knows nothing of what the files hold.
package statefile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// Replace makes data the content of a file that its owner alone may read. It is
// on the disk when Replace returns nil; with an error the file is as it was, unless
// only syncing its directory failed. The directory is made where it is missing.
func Replace(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".tmp-") // with mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return SyncDir(dir)
}

// SyncDir makes the names in a directory durable, where the system can do that.
func SyncDir(dir string) error {
	if runtime.GOOS == "windows" { // which has no such call
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
