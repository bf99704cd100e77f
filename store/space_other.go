//go:build !linux

package store

import "golang.org/x/sys/unix"

// Space tells how large the file system of dir is, and what it has left for
// us.
func Space(dir string) (total, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Blocks) * int64(st.Bsize), int64(st.Bavail) * int64(st.Bsize), nil
}
