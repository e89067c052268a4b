package main

import "golang.org/x/sys/unix"

// freeSpace is how many bytes may still be written to where a directory lies.
func freeSpace(dir string) (free int64, known bool) {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0, false
	}
	return int64(st.Bavail) * int64(st.Bsize), true //nolint:unconvert // 32 bits wide on some machines
}
