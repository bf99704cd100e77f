package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"sync"
	"sync/atomic"
)

// stateAway tells which upstreams were away. After a restart nobody may have asked
// them yet when room is needed.
const stateAway = "away"

// maxAwayState bounds it, in bytes: upstreams are a few names.
const maxAwayState = 64 << 10

type awayState struct {
	Version   int      `json:"version"`
	Upstreams []string `json:"upstreams"` // sorted
}

const awayVersion = 1

func parseAwayState(b []byte) (awayState, error) {
	var s awayState
	if err := json.Unmarshal(b, &s); err != nil {
		return awayState{}, err
	}
	switch {
	case s.Version != awayVersion:
		return awayState{}, fmt.Errorf("it is of version %d, and not %d", s.Version, awayVersion)
	case slices.Contains(s.Upstreams, ""):
		return awayState{}, errors.New("an upstream has no name")
	}
	return s, nil
}

// away are the upstreams whose content must stay.
type away struct {
	upstreams map[string]bool         // that may be away; nil: any. Not changed
	now       atomic.Pointer[awaySet] // replaced as a whole

	mu    sync.Mutex // held to replace now, and while the state is written
	saved []string   // what the state says
}

type awaySet struct {
	names  map[string]bool
	owners map[owner]bool
}

func (a *away) isAway(upstream string) bool { return a.now.Load().names[upstream] }

// owns reports that content of an owner must stay.
func (a *away) owns(o owner) bool { return a.now.Load().owners[o] }

func (a *away) put(names map[string]bool) {
	owners := make(map[owner]bool, len(names))
	for name := range names {
		owners[ownerOf(name)] = true
	}
	a.now.Store(&awaySet{names, owners})
}

// SetUnreachable says whether content of an upstream is out of reach. While it is,
// what that filled is not evicted: nobody could fetch it again. A restart does not
// change that, as long as the upstream is one of Config's.
func (d *Disk) SetUnreachable(upstream string, unreachable bool) {
	a := &d.away
	if a.isAway(upstream) == unreachable || a.upstreams != nil && !a.upstreams[upstream] {
		return // the usual case: it may be told of each request
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	names := maps.Clone(a.now.Load().names)
	if delete(names, upstream); unreachable {
		names[upstream] = true
	}
	a.put(names)
	if unreachable && !slices.Contains(a.saved, upstream) {
		d.saveAwayLocked() // that it is back can wait: it may come and go with each answer
	}
}

// loadAway is before the keeper begins.
func (d *Disk) loadAway(upstreams []string) {
	a := &d.away
	if upstreams != nil {
		a.upstreams = make(map[string]bool, len(upstreams))
		for _, name := range upstreams {
			a.upstreams[name] = true
		}
	}
	names := make(map[string]bool)
	for _, name := range d.readAway() {
		a.saved = append(a.saved, name)
		if a.upstreams == nil || a.upstreams[name] {
			names[name] = true
		}
	}
	a.put(names)
}

func (d *Disk) readAway() []string {
	b, err := d.readFile(path.Join(stateDir, stateAway), maxAwayState)
	if isGone(err) {
		return nil
	}
	var s awayState
	if err == nil {
		s, err = parseAwayState(b)
	}
	if err != nil {
		d.warn("which upstreams were away is forgotten: what they gave may be evicted until somebody asks them", fmt.Errorf("%s/%s: %w", stateDir, stateAway, err))
	}
	return s.Upstreams
}

// saveAway writes the state if it says anything else. One that cannot be written is
// tried again the next time.
func (d *Disk) saveAway() {
	d.away.mu.Lock()
	defer d.away.mu.Unlock()
	d.saveAwayLocked()
}

func (d *Disk) saveAwayLocked() {
	names := slices.AppendSeq([]string{}, maps.Keys(d.away.now.Load().names))
	slices.Sort(names)
	if slices.Equal(names, d.away.saved) {
		return
	}
	if d.saveState(stateAway, awayState{awayVersion, names}) == nil {
		d.away.saved = names
	}
}
