package store

import "golang.org/x/sys/unix"

// Space tells how large the file system of dir is, and what it has left for
// us.
func Space(dir string) (total, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	unit := int64(st.Frsize) //nolint:unconvert // narrower on 32 bits
	return int64(st.Blocks) * unit, int64(st.Bavail) * unit, nil
}
