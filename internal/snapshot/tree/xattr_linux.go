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

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	capability = "security.capability"
	// maxXattr bounds one value; Linux itself stops at 64 KiB.
	maxXattr = 1 << 20
)

// carried says which attributes belong to a file rather than to the machine
// that it lies on: labels and measurements of the latter (security.selinux,
// security.ima) would be wrong elsewhere, and system.nfs4_acl is a view of
// the server's that most file systems refuse.
func carried(name string) bool {
	switch name {
	case capability, aclAccess, aclDefault:
		return true
	}
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.")
}

// FdXattrs returns an open file's extended attributes, sorted by name; none
// where the file system has no such thing.
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

// procPath names an entry by its directory's descriptor: the *at calls for
// attributes are newer (6.13) than the kernels that we meet.
func procPath(dirfd int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(dirfd) + "/" + name
}

func readXattrs(list func([]byte) (int, error), get func(string, []byte) (int, error)) ([]tarstream.Xattr, error) {
	// Most files have none: then this is one call and no allocation.
	var stack [512]byte
	names, err := listXattrs(stack[:], list)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	var out []tarstream.Xattr
	for name := range bytes.SplitSeq(names, []byte{0}) {
		if !carried(string(name)) {
			continue
		}
		value, err := getXattr(string(name), get)
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

// listXattrs returns the names, separated by NULs.
func listXattrs(buf []byte, list func([]byte) (int, error)) ([]byte, error) {
	names, err := grow(buf, list)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENODATA):
		return nil, nil
	case errors.Is(err, unix.E2BIG), errors.Is(err, unix.ERANGE):
		return nil, &XattrSizeError{}
	case err != nil:
		return nil, err
	}
	return bytes.TrimSuffix(names, []byte{0}), nil
}

func getXattr(name string, get func(string, []byte) (int, error)) ([]byte, error) {
	value, err := grow(make([]byte, 256), func(buf []byte) (int, error) { return get(name, buf) })
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ERANGE) || len(value) > maxXattr {
		return nil, &XattrSizeError{Name: name}
	}
	return value, err
}

// grow calls read with larger buffers until what it returns fits: between
// asking for a size and reading, another process may have changed it.
func grow(buf []byte, read func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := ignoringEINTR(func() (int, error) { return read(buf) })
		if !errors.Is(err, unix.ERANGE) || len(buf) > maxXattr {
			return buf[:max(n, 0)], err
		}
		buf = make([]byte, 4*len(buf))
	}
}
