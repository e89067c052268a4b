package tree

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// carried says which attributes belong to a file rather than to the machine
// that it lies on: labels and measurements of the latter would be wrong elsewhere.
func carried(name string) bool {
	switch name {
	case "security.capability", aclAccess, aclDefault:
		return true
	}
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.")
}

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// FdXattrs returns an open file's extended attributes, sorted by name.
func FdXattrs(fd int) ([]tarstream.Xattr, error) {
	return readXattrs(
		func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) },
		func(name string, buf []byte) (int, error) { return unix.Fgetxattr(fd, name, buf) })
}

// LXattrs returns the extended attributes of a name below an open directory;
// those of a symlink itself.
func LXattrs(dirfd int, name string) ([]tarstream.Xattr, error) {
	path := procPath(dirfd, name)
	return readXattrs(
		func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) },
		func(attr string, buf []byte) (int, error) { return unix.Lgetxattr(path, attr, buf) })
}

// procPath names an entry by its directory's descriptor: there are no *at calls for attributes.
func procPath(dirfd int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(dirfd) + "/" + name
}

func readXattrs(list func([]byte) (int, error), get func(string, []byte) (int, error)) ([]tarstream.Xattr, error) {
	var stack [512]byte
	names, err := grow(stack[:], list)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODATA) || len(names) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []tarstream.Xattr
	for name := range bytes.SplitSeq(bytes.TrimSuffix(names, []byte{0}), []byte{0}) {
		if !carried(string(name)) {
			continue
		}
		value, err := grow(make([]byte, 256), func(buf []byte) (int, error) { return get(string(name), buf) })
		if errors.Is(err, unix.ENODATA) {
			continue // was removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, tarstream.Xattr{Name: string(name), Value: value})
	}
	slices.SortFunc(out, func(a, b tarstream.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// grow calls read with larger buffers until what it returns fits.
func grow(buf []byte, read func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := ignoringEINTR(func() (int, error) { return read(buf) })
		if !errors.Is(err, unix.ERANGE) || len(buf) > 1<<20 {
			return buf[:max(n, 0)], err
		}
		buf = make([]byte, 4*len(buf))
	}
}
