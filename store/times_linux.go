package store

import (
	"io/fs"
	"syscall"
	"time"
)

// changeTime is when a file's inode last changed; false where that is not told.
func changeTime(info fs.FileInfo) (time.Time, bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return time.Time{}, false
	}
	return time.Unix(stat.Ctim.Unix()), true
}
