package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Absence is why nothing can be had of an upstream.
type Absence int

// The absences.
const (
	Silent Absence = iota // it gives no answer
	Spent                 // it answers, and says that it gives nothing out
	numAbsences
)

// mostAway bounds how long one word makes an upstream away: clocks are wrong at times,
// and upstreams too.
const mostAway = 7 * 24 * time.Hour

// absences are until when an upstream is away, by Absence; zero: it is not.
type absences [numAbsences]time.Time

// at is what is left of them.
func (a absences) at(now time.Time) absences {
	for why, until := range a {
		if !until.After(now) {
			a[why] = time.Time{}
		}
	}
	return a
}

// until bounds a time, and rounds it up to a minute, so that one that moves with each
// answer is not written as often.
func (a *absences) until(why Absence, until, now time.Time) {
	if most := now.Add(mostAway); until.After(most) {
		until = most
	}
	if !until.IsZero() {
		until = until.UTC().Add(time.Minute - 1).Truncate(time.Minute)
	}
	a[why] = until
}

// stateAway tells which upstreams are away. After a restart nobody may have asked
// them yet when room is needed.
const stateAway = "away"

// maxAwayState bounds it, in bytes: upstreams are a few names.
const maxAwayState = 64 << 10

type awayState struct {
	Version   int            `json:"version"`
	Upstreams []awayUpstream `json:"upstreams"` // sorted by name
}

// awayUpstream is until when one is away, to the minute.
type awayUpstream struct {
	Name   string    `json:"name"`
	Silent time.Time `json:"silent,omitzero"`
	Spent  time.Time `json:"spent,omitzero"`
}

const awayVersion = 2

func parseAwayState(b []byte) (awayState, error) {
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &version); err != nil {
		return awayState{}, err
	}
	if version.Version != awayVersion {
		return awayState{}, fmt.Errorf("it is of version %d, and not %d", version.Version, awayVersion)
	}
	var s awayState
	if err := json.Unmarshal(b, &s); err != nil {
		return awayState{}, err
	}
	if slices.ContainsFunc(s.Upstreams, func(u awayUpstream) bool { return u.Name == "" }) {
		return awayState{}, errors.New("an upstream has no name")
	}
	return s, nil
}

// away are the upstreams whose content must stay.
type away struct {
	upstreams map[string]bool         // that may be away; nil: any. Not changed
	offline   []string                // whose content always must stay. Not changed
	now       atomic.Pointer[awaySet] // replaced as a whole

	mu    sync.Mutex     // held to replace now, and while the state is written
	saved []awayUpstream // what the state says
	stale bool           // it says something else, which is not understood
}

// awaySet is who is away. Whose time is over leaves it when the keeper looks next.
type awaySet struct {
	names  map[string]absences
	owners map[owner]bool // of these, and of what is offline
}

// owns reports that content of an owner must stay.
func (a *away) owns(o owner) bool { return a.now.Load().owners[o] }

func (a *away) put(names map[string]absences) {
	owners := make(map[owner]bool, len(names)+len(a.offline))
	for name := range names {
		owners[ownerOf(name)] = true
	}
	for _, name := range a.offline {
		owners[ownerOf(name)] = true
	}
	a.now.Store(&awaySet{names, owners})
}

// SetAway says until when content of an upstream is out of reach for a reason, for
// seven days at most from now; the zero time ends that. Meanwhile what the upstream
// filled is not evicted: nobody could fetch it again. A restart does not change that,
// as long as the upstream is one of Config's.
func (d *Disk) SetAway(upstream string, why Absence, until time.Time) {
	a := &d.away
	now := time.Now()
	was := a.now.Load().names[upstream]
	of := was
	if of.until(why, until, now); of[why].Equal(was[why]) || a.upstreams != nil && !a.upstreams[upstream] {
		return // the usual case: it may be told of each request
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	names := maps.Clone(a.now.Load().names)
	of = names[upstream].at(now)
	of.until(why, until, now)
	if names[upstream] = of; of == (absences{}) {
		delete(names, upstream)
	}
	a.put(names)
	isSaved := slices.ContainsFunc(a.saved, func(u awayUpstream) bool { return u.Name == upstream })
	if of != (absences{}) && !isSaved {
		d.saveAwayLocked() // that it is back can wait: it may come and go with each answer
	}
}

// loadAway is before the keeper begins.
func (d *Disk) loadAway(cfg *Config) {
	a := &d.away
	if cfg.Upstreams != nil {
		a.upstreams = make(map[string]bool, len(cfg.Upstreams))
		for _, name := range cfg.Upstreams {
			a.upstreams[name] = true
		}
	}
	a.offline = cfg.Offline
	names := make(map[string]absences)
	a.saved = d.readAway()
	for _, u := range a.saved {
		if a.upstreams == nil || a.upstreams[u.Name] {
			var of absences
			of.until(Silent, u.Silent, time.Now())
			of.until(Spent, u.Spent, time.Now())
			names[u.Name] = of
		}
	}
	a.put(names)
	d.saveAway()
}

// readAway reads the state. One that is not understood is replaced: who would have it
// back, and until then would be warned of it at each start?
func (d *Disk) readAway() []awayUpstream {
	b, err := d.readFile(path.Join(stateDir, stateAway), maxAwayState)
	if isGone(err) {
		return nil
	}
	var s awayState
	if err == nil {
		s, err = parseAwayState(b)
	}
	if d.away.stale = err != nil; d.away.stale {
		d.warn("which upstreams were away is forgotten, and written anew: what they gave may be evicted until somebody asks them", fmt.Errorf("%s/%s: %w", stateDir, stateAway, err))
	}
	return s.Upstreams
}

// saveAway forgets who is back, and writes the state if it says anything else. One that
// cannot be written is tried again the next time.
func (d *Disk) saveAway() {
	d.away.mu.Lock()
	defer d.away.mu.Unlock()
	d.saveAwayLocked()
}

func (d *Disk) saveAwayLocked() {
	a := &d.away
	now, names, upstreams := time.Now(), make(map[string]absences), []awayUpstream{}
	for name, of := range a.now.Load().names {
		if of = of.at(now); of != (absences{}) {
			names[name] = of
			upstreams = append(upstreams, awayUpstream{name, of[Silent], of[Spent]})
		}
	}
	a.put(names)
	slices.SortFunc(upstreams, func(x, y awayUpstream) int { return strings.Compare(x.Name, y.Name) })
	if !a.stale && slices.Equal(upstreams, a.saved) {
		return
	}
	if d.saveState(stateAway, awayState{awayVersion, upstreams}) == nil {
		a.saved, a.stale = upstreams, false
	}
}
