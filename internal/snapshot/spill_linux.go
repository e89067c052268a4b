package snapshot

import "golang.org/x/sys/unix"

// spillRoom is how many bytes a spill in a directory may have: half of what is
// free, and nothing where files lie in memory.
func spillRoom(dir string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0
	}
	switch uint32(st.Type) { //nolint:gosec // its width differs between architectures, the magic numbers have 32 bits
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		return 0
	}
	return int64(st.Bavail) / 2 * st.Bsize //nolint:unconvert,gosec // unsigned and of another width elsewhere
}
