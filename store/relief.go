package store

import (
	"context"
	"encoding/json"
	"errors"
	"path"
	"time"
)

// relief is how the evicting for the headroom's sake goes on.
type relief struct {
	reliefState
	saved reliefState // as state/ has it
	short bool        // the headroom was touched when last looked at
	free  int64       // on the disk, before the last batch
	freed int64       // by the last batch
	rest  time.Time   // no batch before this: the last one brought no space back
}

// stateRelief is below state/ what must outlive the process: whoever fills the
// disk bit by bit would otherwise empty us by halves.
const stateRelief = "relief"

type reliefState struct {
	Floor int64     `json:"floor"` // what must stay: half of what was held when it began; 0 when there is no need
	Short time.Time `json:"short"` // when the headroom was last touched
}

func parseReliefState(b []byte) (reliefState, error) {
	var s reliefState
	if err := json.Unmarshal(b, &s); err != nil {
		return reliefState{}, err
	}
	if s.Floor < 0 {
		return reliefState{}, errors.New("less than nothing must stay")
	}
	return s, nil
}

const (
	reliefBatch = 256 << 20
	reliefRest  = 10 * time.Minute
	// reliefForgets is for how long the headroom must be whole before another half
	// may go.
	reliefForgets = 7 * 24 * time.Hour
	// reliefSave is how far behind the state may be with when that was.
	reliefSave = time.Hour
)

// relieve evicts a batch if the headroom is touched, as long as the batches
// before it brought space back: whoever else fills the disk would otherwise
// empty us for nothing. It stops where half of what was held is gone, however
// often it begins, and begins anew only when nobody was short for long.
func (d *Disk) relieve(ctx context.Context) {
	short, free, headroom := d.account.short()
	now, held := time.Now(), d.account.held()
	r := &d.relief
	if r.Floor > 0 && now.Sub(r.Short) >= reliefForgets {
		*r = relief{saved: r.saved}
	}
	if short <= 0 {
		r.short, r.freed, r.rest = false, 0, time.Time{}
		d.saveRelief()
		return
	}
	if !r.short { // what came since may go by half as well
		r.Floor = max(1, r.Floor, held/2)
	}
	r.short, r.Short = true, now
	if r.freed > 0 && free-r.free < r.freed/4 {
		r.rest = now.Add(reliefRest)
	}
	d.saveRelief()
	r.free, r.freed = free, 0
	need := min(short+headroom/16, max(reliefBatch, held/32), held-r.Floor)
	if need <= 0 || now.Before(r.rest) {
		return
	}
	if found, err := d.candidates(ctx, d.account.aims(need), nil); err == nil {
		r.freed = d.evictAll(ctx, found, need, held-r.Floor)
	}
}

// loadRelief is before the keeper begins.
func (d *Disk) loadRelief() {
	b, err := d.readFile(path.Join(stateDir, stateRelief), maxRecord)
	if err != nil {
		return
	}
	s, err := parseReliefState(b)
	if err != nil {
		return // as if there had been none
	}
	if now := time.Now(); s.Short.After(now) { // by a clock that was wrong
		s.Short = now
	}
	d.relief.reliefState, d.relief.saved = s, s
}

// saveRelief writes the state if it says anything else. One that cannot be
// written is tried again the next time.
func (d *Disk) saveRelief() {
	r := &d.relief
	if r.Floor == r.saved.Floor && r.Short.Sub(r.saved.Short) < reliefSave {
		return
	}
	if d.saveState(stateRelief, r.reliefState) == nil {
		r.saved = r.reliefState
	}
}
