package store

import (
	"context"
	"math"
	"strings"
	"time"
)

// The keeper's rounds.
const (
	// lookEvery is how often it asks what is free on the disk, and brings its state up
	// to date.
	lookEvery = 5 * time.Second
	// recountEvery is how often it counts again what others may have changed. On
	// a million files that takes a second, or some if they are cold.
	recountEvery = time.Hour
)

// keep is the one goroutine that makes room. It begins with the walk that finds
// out what is held.
func (d *Disk) keep(ctx context.Context) {
	d.sweep(ctx)
	close(d.counted)
	look, recount := time.NewTicker(lookEvery), time.NewTicker(recountEvery)
	defer look.Stop()
	defer recount.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.account.poke:
			d.sweep(ctx)
		case <-d.account.passed:
			d.saveHeld(false)
		case <-look.C:
			d.account.look()
			d.relieve(ctx)
			d.saveHeld(false)
			d.saveAway()
		case <-recount.C:
			_ = d.count(ctx, nil) // ends early only when we close
			d.sweep(ctx)
		}
	}
}

// sweep evicts down to the low mark if the high mark is crossed or somebody
// waits for room. The first one only counts, unless there is too much.
func (d *Disk) sweep(ctx context.Context) {
	began := time.Now()
	need, due := d.account.beginSweep()
	rest := time.Duration(0)
	if due || !d.isCounted() {
		if stuck := d.sweepDown(ctx, need); stuck {
			rest = 4 * time.Since(began)
		}
	}
	d.account.endSweep(rest)
}

// sweepDown reports that it got stuck above the low mark: what is left is
// protected. What was guessed before a walk says how many candidates it should
// bring; what it found says how many must go. Their number is bounded, so that
// it may take more than one round.
func (d *Disk) sweepDown(ctx context.Context, need int64) (stuck bool) {
	for round := 0; ctx.Err() == nil; round++ {
		var records int64
		found, err := d.candidates(ctx, d.account.aims(need), func(e entry) {
			if strings.HasPrefix(e.dir, reposDir+"/") {
				records += e.blocks
			}
		})
		if err != nil {
			if ctx.Err() == nil {
				d.warn("nothing can be evicted", err)
			}
			return true
		}
		var due bool
		if need, due = d.account.excess(); round == 0 && !due || need <= 0 {
			return false
		}
		if d.trimRecords(ctx, records)+d.evictAll(ctx, found, need, math.MaxInt64) == 0 {
			return true
		}
		if need, _ = d.account.excess(); need <= 0 {
			return false
		}
	}
	return false
}

func (d *Disk) isCounted() bool {
	select {
	case <-d.counted:
		return true
	default:
		return false
	}
}
