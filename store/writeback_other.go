//go:build !linux

package store

import (
	"io"
	"os"
)

// seekHole finds the end of a file, where all of it counts as written.
const seekHole = io.SeekEnd

// dropCached is for Linux alone.
func dropCached(*os.File, int64, int64) {}

// startWriteback is for Linux alone; elsewhere the sync does all the work.
func startWriteback(*os.File, int64, int64) {}
