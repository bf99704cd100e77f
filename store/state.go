package store

import (
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"path"
)

// The state directory holds advice: files that spare work after a restart, and
// may be deleted at any time.

// stateHeld tells how many bytes the data directory took when it was written, so
// that the budget holds while the first walk is still under way.
const stateHeld = "held"

type heldState struct {
	Held int64 `json:"held"`
}

func parseHeldState(b []byte) (heldState, error) {
	var s heldState
	if err := json.Unmarshal(b, &s); err != nil {
		return heldState{}, err
	}
	if s.Held < 0 {
		return heldState{}, errors.New("less than nothing is held")
	}
	return s, nil
}

// loadHeld makes the first guess at what is held: the last word of the process
// before us, or else as much as the disk could have on it.
func (d *Disk) loadHeld() error {
	guess := int64(0)
	b, err := d.readFile(path.Join(stateDir, stateHeld), maxRecord)
	if err == nil {
		var s heldState
		s, err = parseHeldState(b)
		guess = s.Held
	}
	if err != nil {
		if _, err := d.root.Lstat(blobsDir); errors.Is(err, fs.ErrNotExist) {
			return nil // a new data directory
		}
		guess = d.account.used()
	}
	d.account.book(".", guess)
	return nil
}

// slack is how much more than is held now the state says, so that it need not be
// written for every blob.
func slack(held int64) int64 { return max(64<<20, held/32) }

// saveHeld writes the state if it says little more than is held, or far too much.
// exact is for the end, when nothing changes any more.
func (d *Disk) saveHeld(exact bool) {
	held := d.account.held()
	margin := slack(held)
	say, pass := held+margin, held+margin/2
	if budget := d.account.budget; held < budget && budget <= say {
		say, pass = budget, math.MaxInt64 // there is never more
	}
	switch {
	case exact:
		say = held + blocks(1) // the state itself
	case held+margin/2 < d.saidHeld && d.saidHeld <= held+2*margin, d.saidHeld == say:
		return
	}
	d.account.tellAbove(pass) // whether it can be written now or not
	if d.saveState(stateHeld, heldState{say}) == nil {
		d.saidHeld = say
	}
}

func (d *Disk) saveState(name string, state any) error {
	b, err := json.Marshal(state)
	if err != nil {
		return err
	}
	return d.writeFile(path.Join(stateDir, name), b, written{mode: 0o644, hurry: true})
}

// SaveState keeps advice of others than the store under a name of their own. It may
// tell of clients and accounts, and is for nobody else to read.
func (d *Disk) SaveState(name string, state []byte) error {
	return d.writeFile(path.Join(stateDir, name), state, written{mode: 0o600, hurry: true})
}

// State is the advice that was saved last, of so many bytes at most;
// fs.ErrNotExist if there is none.
func (d *Disk) State(name string, most int64) ([]byte, error) {
	return d.readFile(path.Join(stateDir, name), most)
}
