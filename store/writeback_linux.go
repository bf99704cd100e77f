package store

import (
	"os"

	"golang.org/x/sys/unix"
)

// seekHole finds the first hole of a file.
const seekHole = unix.SEEK_HOLE

// dropCached tells the kernel that a stretch will not be read again soon, so that
// a scrub does not push out what is.
func dropCached(f *os.File, off, n int64) {
	_ = unix.Fadvise(int(f.Fd()), off, n, unix.FADV_DONTNEED) // an advice
}

// startWriteback has the kernel begin to write a finished stretch, so that the
// sync at the end of a fill finds little left to do: measured on a 100 MiB
// blob, 3 ms instead of 45.
func startWriteback(f *os.File, off, n int64) {
	end := off + n
	if boundary := end - end%writebackStep; boundary > off {
		// An advice: if it fails the sync does all the work.
		_ = unix.SyncFileRange(int(f.Fd()), boundary-writebackStep, writebackStep, unix.SYNC_FILE_RANGE_WRITE)
	}
}
