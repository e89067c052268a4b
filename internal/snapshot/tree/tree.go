package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
)

// IncompleteMark is the file in a volume's root that says: a restore did not end here.
const IncompleteMark = ".backupd-incomplete"

// Visitor is told of entries by Walk.
type Visitor interface {
	// Skip is asked before an entry is opened; if true it is not visited, nor
	// is anything below it.
	Skip(n *Node) bool
	// Visit is called for each entry in the order of paths, a directory before
	// what is below it. The node stays valid until it is released.
	Visit(n *Node) error
}

// ErrReplaced says that an entry is no longer of the type that the walk saw.
var ErrReplaced = errors.New("was replaced by something else while it was read")

// ErrPlatform says that trees are not read and written here: what makes that
// exact and safe are system calls that only Linux has.
var ErrPlatform = errors.New("volumes can be read and written on Linux only; run it through Docker: docker compose run --rm backup")

// DestOptions say how a tree is written.
type DestOptions struct {
	// NoOwner leaves every entry to whoever restores it. Then what gives an
	// owner's power to others is left out too, silently: the set-uid and
	// set-gid bits and security.capability were meant for another owner.
	NoOwner bool
}

// OwnerError says that an owner could not be set: usually for want of root's rights.
type OwnerError struct {
	Path     string
	UID, GID uint32
	Err      error
}

func (e *OwnerError) Error() string {
	return fmt.Sprintf("give %s to user %d, group %d: %v", quote(e.Path), e.UID, e.GID, e.Err)
}

// Unwrap returns the cause.
func (e *OwnerError) Unwrap() error { return e.Err }

// DeviceError is a device node that the kernel lets nobody make in this user
// namespace, as in the containers of a rootless engine.
type DeviceError struct {
	Path string
	Err  error
}

func (e *DeviceError) Error() string {
	return fmt.Sprintf("make device %s in a user namespace: %v", quote(e.Path), e.Err)
}

// Unwrap returns the cause.
func (e *DeviceError) Unwrap() error { return e.Err }

// XattrError says that an extended attribute could not be set or removed. All
// else of the entry was done. Some file systems say ENOSPC of a value that
// they have no room for, however empty they are. Where several attributes failed,
// the error is a join of these.
type XattrError struct {
	Path, Name string
	Err        error
}

func (e *XattrError) Error() string {
	return fmt.Sprintf("set attribute %s of %s: %v", e.Name, quote(e.Path), e.Err)
}

// Unwrap returns the cause.
func (e *XattrError) Unwrap() error { return e.Err }

// ModeError says that the kernel took another mode than was asked for: without
// CAP_FSETID it drops the set-gid bit where the group is not one's own, and calls that
// success. All else of the entry was done.
type ModeError struct {
	Path      string
	Want, Got uint32
}

func (e *ModeError) Error() string {
	return fmt.Sprintf("set mode of %s: it is %04o and not %04o: the set-gid bit takes CAP_FSETID", quote(e.Path), e.Got, e.Want)
}

// MakeRoot makes a directory for a tree where only its last component is missing.
func MakeRoot(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// quote shortens and quotes a path for a message.
func quote(p string) string {
	if len(p) > 200 {
		return strconv.Quote(p[:100]) + "..." + strconv.Quote(p[len(p)-60:])
	}
	return strconv.Quote(p)
}

// act gives an error the act and the path.
func act(what, p string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: what, Path: quote(p), Err: err}
}

// XattrSizeError says that a file has an attribute, or names of attributes,
// too large to be read.
type XattrSizeError struct {
	Name string // empty: the list of names
}

func (e *XattrSizeError) Error() string {
	if e.Name == "" {
		return "the names of the extended attributes are too many to be read"
	}
	return fmt.Sprintf("extended attribute %s is larger than can be read (1 MiB at the most)", e.Name)
}
