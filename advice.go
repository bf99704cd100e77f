package main

import (
	"errors"
	"io/fs"
	"sync"
	"time"

	"entrepot/store"
	"entrepot/upstream"
)

// advice is what a part of the program knows that spares work after a restart. It
// is kept below the data directory's state, from where it may be deleted.
type advice struct {
	name   string // of its file
	most   int64  // bytes of that
	load   func(state []byte) error
	save   func() (state []byte, changed bool) // since it was saved or loaded last
	lost   string                              // what the log says of a file that load does not understand
	unkept string                              // and of one that cannot be written
}

// saveEvery is how often advice is written. What is known since then is lost with a
// killed process.
const saveEvery = time.Minute

// keep takes over what the last process left, and keeps a until stop is called,
// which must come before the disk is closed.
func keep(disk *store.Disk, watcher *observer, a advice) (stop func()) {
	state, err := disk.State(a.name, a.most)
	if err == nil {
		err = a.load(state)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		watcher.log.Warn().Err(err).Msg(a.lost)
	}
	k := &keeper{advice: a, disk: disk, watcher: watcher}
	ended := repeat(saveEvery, k.save)
	return func() {
		ended()
		k.save()
	}
}

// keeper writes advice that has changed, or that could not be written before.
type keeper struct {
	advice
	disk    *store.Disk
	watcher *observer
	unsaved []byte // what could not be written last; nil: nothing
}

// save warns once of a disk that takes nothing, until that has taken something.
func (k *keeper) save() {
	state, changed := k.advice.save()
	if !changed {
		state = k.unsaved
	}
	if state == nil {
		return
	}
	err := k.disk.SaveState(k.name, state)
	switch {
	case err == nil:
		state = nil
	case k.unsaved == nil:
		k.watcher.diskWarning(k.unkept, err)
	default:
		k.watcher.metrics.notKept(err)
	}
	k.unsaved = state
}

// repeat does something now and then until stop is called, which waits for it.
func repeat(every time.Duration, do func()) (stop func()) {
	ticks, end := time.NewTicker(every), make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		defer ticks.Stop()
		for {
			select {
			case <-ticks.C:
				do()
			case <-end:
				return
			}
		}
	})
	return func() {
		close(end)
		work.Wait()
	}
}

// keepQuotas takes over what upstreams said to the last process of how much they may be
// asked, and keeps what they say to this one.
func keepQuotas(upstreams *upstream.Set, disk *store.Disk, watcher *observer) (stop func()) {
	return keep(disk, watcher, advice{
		name: "quotas", most: upstream.MaxState, load: upstreams.Load, save: upstreams.Save,
		lost: "what upstreams said of their limits is forgotten where it cannot be read", unkept: "what upstreams say of their limits could not be kept",
	})
}
