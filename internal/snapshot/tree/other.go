//go:build !linux

package tree

import (
	"context"
	"os"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// What follows lets the programs that only read repositories be built
// elsewhere. No Source and no Dest is ever opened here.

// Source is a tree that is read.
type Source struct{}

// OpenSource returns ErrPlatform.
func OpenSource(string) (*Source, error) { return nil, ErrPlatform }

// Close does nothing.
func (*Source) Close() error { return nil }

// Root returns nothing.
func (*Source) Root() Stat { return Stat{} }

// HasMark says no.
func (*Source) HasMark() bool { return false }

// Identity returns ErrPlatform.
func (*Source) Identity() (Identity, error) { return Identity{}, ErrPlatform }

// Trust trusts nothing.
func (*Source) Trust() Trust { return Trust{FS: "other"} }

// Walk returns ErrPlatform.
func (*Source) Walk(context.Context, Visitor) error { return ErrPlatform }

// Node is an entry that a walk comes by.
type Node struct {
	Path string
	Stat Stat
	Err  error
}

// Header returns ErrPlatform.
func (*Node) Header() (tarstream.Header, error) { return tarstream.Header{}, ErrPlatform }

// Open returns ErrPlatform.
func (*Node) Open() (*File, Stat, error) { return nil, Stat{}, ErrPlatform }

// Release does nothing.
func (*Node) Release() {}

// File is a regular file of a source, open for reading.
type File struct{}

// Close does nothing.
func (*File) Close() error { return nil }

// Stat returns ErrPlatform.
func (*File) Stat() (Stat, error) { return Stat{}, ErrPlatform }

// Xattrs returns ErrPlatform.
func (*File) Xattrs() ([]tarstream.Xattr, error) { return nil, ErrPlatform }

// ReadAt returns ErrPlatform.
func (*File) ReadAt([]byte, int64) (int, error) { return 0, ErrPlatform }

// Extents returns ErrPlatform.
func (*File) Extents(int64) ([]tarstream.Extent, error) { return nil, ErrPlatform }

// Dest is a tree that is written.
type Dest struct{}

// OpenDest returns ErrPlatform.
func OpenDest(string, DestOptions) (*Dest, error) { return nil, ErrPlatform }

// Close does nothing.
func (*Dest) Close() error { return nil }

// Sync returns ErrPlatform.
func (*Dest) Sync() error { return ErrPlatform }

// WriteMark returns ErrPlatform.
func (*Dest) WriteMark([]byte) error { return ErrPlatform }

// HasMark says no.
func (*Dest) HasMark() bool { return false }

// ReadMark returns ErrPlatform.
func (*Dest) ReadMark() ([]byte, error) { return nil, ErrPlatform }

// RemoveMark returns ErrPlatform.
func (*Dest) RemoveMark() error { return ErrPlatform }

// Mkdir returns ErrPlatform.
func (*Dest) Mkdir(string) (bool, error) { return false, ErrPlatform }

// FinishDir returns ErrPlatform.
func (*Dest) FinishDir(*tarstream.Header) error { return ErrPlatform }

// CreateFile returns ErrPlatform.
func (*Dest) CreateFile(*tarstream.Header, bool) (*DestFile, error) { return nil, ErrPlatform }

// WriteSmall returns ErrPlatform.
func (*Dest) WriteSmall(*tarstream.Header, []byte, bool) error { return ErrPlatform }

// Symlink returns ErrPlatform.
func (*Dest) Symlink(*tarstream.Header, bool) error { return ErrPlatform }

// Special returns ErrPlatform.
func (*Dest) Special(*tarstream.Header, bool) error { return ErrPlatform }

// Link returns ErrPlatform.
func (*Dest) Link(*tarstream.Header, bool) error { return ErrPlatform }

// SetMeta returns ErrPlatform.
func (*Dest) SetMeta(*tarstream.Header, *Stat) error { return ErrPlatform }

// Lstat returns ErrPlatform.
func (*Dest) Lstat(string) (Stat, error) { return Stat{}, ErrPlatform }

// ReadDirNames returns ErrPlatform.
func (*Dest) ReadDirNames(string) ([]string, error) { return nil, ErrPlatform }

// Readlink returns ErrPlatform.
func (*Dest) Readlink(string) (string, error) { return "", ErrPlatform }

// OpenRead returns ErrPlatform.
func (*Dest) OpenRead(string) (*os.File, error) { return nil, ErrPlatform }

// Xattrs returns ErrPlatform.
func (*Dest) Xattrs(string) ([]tarstream.Xattr, error) { return nil, ErrPlatform }

// Remove returns ErrPlatform.
func (*Dest) Remove(string, func(string) bool) error { return ErrPlatform }

// DestFile is a regular file that is being written.
type DestFile struct{}

// WriteAt returns ErrPlatform.
func (*DestFile) WriteAt([]byte, int64) (int, error) { return 0, ErrPlatform }

// Truncate returns ErrPlatform.
func (*DestFile) Truncate(int64) error { return ErrPlatform }

// Abort does nothing.
func (*DestFile) Abort() {}

// Finish returns ErrPlatform.
func (*DestFile) Finish() error { return ErrPlatform }
