package main

import (
	"bytes"
	"errors"
	"io/fs"
	"path"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/store"
)

// What the disk does not take is written as soon as it does, though nothing has changed
// meanwhile, and each outage is told of once.
func TestAdviceThatTheDiskRefusedIsWrittenLater(t *testing.T) {
	for name, row := range map[string]struct {
		refused  []bool // the disk takes nothing at these ticks
		atTheEnd bool   // nor when it ends
		changes  map[int]string
		want     string
		warnings int
	}{
		"it takes it":                    {[]bool{false}, false, map[int]string{0: "a"}, "a", 0},
		"it takes it at the next tick":   {[]bool{true, false}, true, map[int]string{0: "a"}, "a", 1},
		"it takes it at a later tick":    {[]bool{true, true, true, false}, true, map[int]string{0: "a"}, "a", 1},
		"it takes it at the end":         {[]bool{true, true, true}, false, map[int]string{0: "a"}, "a", 1},
		"it never takes it":              {[]bool{true, true}, true, map[int]string{0: "a"}, "", 1},
		"what is newer is in its place":  {[]bool{true, true, false}, true, map[int]string{0: "a", 1: "b"}, "b", 1},
		"an outage that ended and began": {[]bool{true, false, true, true}, false, map[int]string{0: "a", 2: "b"}, "b", 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tick, known := -1, ""
				refuses := func(_ store.Op, file string) error {
					isRefused := row.atTheEnd
					if tick < len(row.refused) {
						isRefused = row.refused[max(tick, 0)]
					}
					if isRefused && path.Base(file) == "known" {
						return syscall.EROFS
					}
					return nil
				}
				disk, err := store.Open(t.Context(), store.Config{Dir: t.TempDir(), Faults: refuses})
				if err != nil {
					t.Fatal(err)
				}
				defer disk.Close()
				var log bytes.Buffer
				stop := keep(disk, observerOn(&log, "info"), advice{
					name: "known", most: 100,
					load: func([]byte) error { return nil },
					save: func() ([]byte, bool) {
						tick++
						now, changes := row.changes[tick]
						if changes {
							known = now
						}
						return []byte(known), changes
					},
					unkept: "it could not be kept",
				})
				time.Sleep(time.Duration(len(row.refused))*saveEvery + time.Second)
				stop()
				got, err := disk.State("known", 100)
				if string(got) != row.want || err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("it has %q, %v; want %q", got, err, row.want)
				}
				if n := strings.Count(log.String(), "it could not be kept"); n != row.warnings {
					t.Errorf("%d warnings, want %d:\n%s", n, row.warnings, log.String())
				}
			})
		})
	}
}
