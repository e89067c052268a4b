package nfs

import (
	"errors"
	"fmt"
)

// status is an answer other than NFS3_OK: nfsstat3 of RFC 1813, section 2.6.
// MOUNT's mountstat3 has the same numbers.
type status uint32

const (
	statPerm        status = 1
	statNoEnt       status = 2
	statAcces       status = 13
	statExist       status = 17
	statNotDir      status = 20
	statIsDir       status = 21
	statInval       status = 22
	statNoSpc       status = 28
	statROFS        status = 30
	statMLink       status = 31
	statNameTooLong status = 63
	statDQuot       status = 69
	statStale       status = 70
	statBadHandle   status = 10001
	statBadCookie   status = 10003
	statNotSupp     status = 10004
	statTooSmall    status = 10005
	statServerFault status = 10006
	statJukebox     status = 10008
)

func (s status) Error() string {
	return fmt.Sprintf("the server says %s (NFS error %d)", s.words(), uint32(s))
}

func (s status) words() string {
	switch s {
	case statPerm:
		return "not owner"
	case statNoEnt:
		return "no such file or directory"
	case 5:
		return "input/output error"
	case statAcces:
		return "permission denied"
	case statExist:
		return "file exists"
	case 18:
		return "another file system"
	case statNotDir:
		return "not a directory"
	case statIsDir:
		return "is a directory"
	case statInval:
		return "invalid argument"
	case 27:
		return "file too large"
	case statNoSpc:
		return "no space left on device"
	case statROFS:
		return "read-only file system"
	case statMLink:
		return "too many links"
	case statNameTooLong:
		return "name too long"
	case 66:
		return "directory not empty"
	case statDQuot:
		return "disk quota exceeded"
	case statStale:
		return "stale file handle"
	case statBadHandle:
		return "bad file handle"
	case statBadCookie:
		return "the directory changed while it was read"
	case statNotSupp:
		return "not supported"
	case statTooSmall:
		return "too small"
	case statServerFault:
		return "server fault"
	case statJukebox:
		return "try again later"
	}
	return "an error of its own"
}

// says asks whether an error is one of some statuses.
func says(err error, which ...status) bool {
	var s status
	if !errors.As(err, &s) {
		return false
	}
	for _, w := range which {
		if s == w {
			return true
		}
	}
	return false
}

// absent says that there is nothing of a name, a part of which may be a file's.
func absent(err error) bool { return says(err, statNoEnt, statNotDir) }

// stale says that a handle no longer stands for anything.
func stale(err error) bool { return says(err, statStale, statBadHandle) }
