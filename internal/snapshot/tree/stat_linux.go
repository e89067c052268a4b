package tree

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// statAt returns the stat of a name below a directory, or of the directory
// itself where name is "", without following a symlink.
func statAt(dirfd int, name string) (Stat, error) {
	var stx unix.Statx_t
	err := unix.Statx(dirfd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_EMPTY_PATH,
		unix.STATX_BASIC_STATS|unix.STATX_BTIME, &stx)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		// Engines with an old seccomp profile forbid statx.
		var st unix.Stat_t
		if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_EMPTY_PATH); err != nil {
			return Stat{}, err
		}
		return fromStat(&st), nil
	}
	if err != nil {
		return Stat{}, err
	}
	return Stat{
		Type: typeOf(uint32(stx.Mode)), Mode: uint32(stx.Mode) & 0o7777, UID: stx.Uid, GID: stx.Gid,
		Size: int64(stx.Size), Blocks: int64(stx.Blocks), Nlink: stx.Nlink, Ino: stx.Ino,
		Dev: uint64(stx.Dev_major)<<32 | uint64(stx.Dev_minor), Major: stx.Rdev_major, Minor: stx.Rdev_minor,
		Mtime: statxTime(stx.Mtime), Ctime: statxTime(stx.Ctime), Btime: statxTime(stx.Btime),
		MountRoot:  stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
		MountKnown: stx.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0,
	}, nil
}

// statFd is statAt of an open file, by the cheaper call.
func statFd(fd int) (Stat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Stat{}, err
	}
	return fromStat(&st), nil
}

func fromStat(st *unix.Stat_t) Stat {
	return Stat{
		Type: typeOf(st.Mode), Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
		Size: st.Size, Blocks: st.Blocks, Nlink: uint32(st.Nlink), Ino: st.Ino,
		Dev:   uint64(unix.Major(uint64(st.Dev)))<<32 | uint64(unix.Minor(uint64(st.Dev))),
		Major: unix.Major(uint64(st.Rdev)), Minor: unix.Minor(uint64(st.Rdev)),
		Mtime: tarstream.Time{Sec: int64(st.Mtim.Sec), Nsec: int32(st.Mtim.Nsec)},
		Ctime: tarstream.Time{Sec: int64(st.Ctim.Sec), Nsec: int32(st.Ctim.Nsec)},
	}
}

func statxTime(t unix.StatxTimestamp) tarstream.Time {
	return tarstream.Time{Sec: t.Sec, Nsec: int32(t.Nsec)}
}

func typeOf(mode uint32) tarstream.Type {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return tarstream.File
	case unix.S_IFDIR:
		return tarstream.Dir
	case unix.S_IFLNK:
		return tarstream.Symlink
	case unix.S_IFIFO:
		return tarstream.Fifo
	case unix.S_IFCHR:
		return tarstream.Char
	case unix.S_IFBLK:
		return tarstream.Block
	}
	return 0
}
