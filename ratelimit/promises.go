package ratelimit

import (
	"math"
	"slices"
	"time"
)

const (
	// maxPromises bounds those that are remembered: who is refused beyond them is
	// told a time behind all others, which is nobody else's as long as those come.
	maxPromises = 1024
	// firmTime is for how long turns are firm, of all clients together. What is promised
	// beyond it may have to make way for others; so may what one client is promised beyond
	// its first clientTurns, which are ten questions, or beyond what clientTime has of them.
	firmTime    = 90 * time.Second
	clientTurns = 20
	clientTime  = 2 * time.Second
	// One part in so many of the time is left for what may still come before what is not
	// firm.
	roomShare = 32
	// prompt is how long after its time a place is left for who was told it. Times are
	// told in whole seconds, and clients take some to come.
	prompt = 2 * time.Second
	// missedWeight is that of one promise in how many are not taken up of late.
	missedWeight = 1. / 4
)

// promise is a place in the rate's calendar: what a refused request was told to come
// again for.
type promise struct {
	matter  matter
	client  string
	cost    int       // turns
	start   time.Time // of the first
	firm    bool      // it makes way for nobody
	settles time.Time // it is told then, when those are known that come with it; zero: now
	waited  bool      // in vain, before it was made
	missed  bool      // nobody came in time
}

// matter is what a question is about: who comes for it is whoever asks that.
type matter struct{ what, client string }

func (c Call) matter() matter {
	if c.What == "" {
		return matter{client: c.Client}
	}
	return matter{what: c.What}
}

// promises are the places that refused requests were told, which do not overlap. Who
// is new to them goes before others as in a line, where those can wait for it: each
// firm one by slack at most. The others make way, so they are told only once those are
// known who come at the same time, and with a little room for who comes later.
//
// So who comes until stands after the start of a firm place is served within stands
// and slack, and a turn or two, whoever else comes when: of those who came before him
// and wait, none has a place older than stands when the first of them came, and places
// that begin between that and his own have no more turns than fit, but for slack.
type promises struct {
	every  time.Duration // of a turn
	slack  time.Duration
	stands time.Duration // after start
	settle time.Duration // before a place that is not firm is told

	due     []*promise // by start
	beyond  time.Time  // until then turns are told to those that are not remembered
	about   map[matter]*promise
	missing float64 // what share is not taken up of late
}

// of finds the promise for a call; nil if there is none.
func (ps *promises) of(call Call) *promise { return ps.about[call.matter()] }

// drop forgets the promise for a call, which was served before.
func (ps *promises) drop(call Call) {
	if p := ps.of(call); p != nil {
		ps.remove(p)
	}
}

// keep takes out a promise for which somebody has come.
func (ps *promises) keep(p *promise) {
	if !p.missed {
		ps.missing -= ps.missing * missedWeight
	}
	ps.remove(p)
}

func (ps *promises) remove(p *promise) {
	delete(ps.about, p.matter)
	if i := slices.Index(ps.due, p); i >= 0 {
		ps.due = slices.Delete(ps.due, i, i+1)
	}
}

// expire notes those whose time has passed, and drops those that stand no longer.
func (ps *promises) expire(now time.Time) {
	n := 0
	for _, p := range ps.due {
		late := now.Sub(p.start)
		if late <= prompt {
			break
		}
		if !p.missed {
			p.missed = true
			ps.missing += (1 - ps.missing) * missedWeight
		}
		if late > ps.stands {
			delete(ps.about, p.matter)
			n++
		}
	}
	ps.due = slices.Delete(ps.due, 0, n)
}

// make finds a place behind those who are here, whose turns are all taken by from. Who
// has waited is not behind those of its client that have not, nor for its turn.
func (ps *promises) make(call Call, cost int, now, from time.Time, waited bool) *promise {
	p := &promise{matter: call.matter(), client: call.Client, cost: cost, waited: waited}
	ps.drop(call)
	p.firm = ps.isFirm(p)
	if len(ps.due) >= maxPromises && !(p.firm && ps.makeRoom()) {
		end := latest(ps.gaps(from)[len(ps.due)].end, ps.beyond)
		p.firm, p.start = false, end.Add(ps.every+ps.room(p))
		ps.beyond = ps.end(p, end)
		return p
	}
	if !p.firm && !waited {
		p.settles = now.Add(ps.settle)
	}
	i := ps.place(p, from)
	if ps.about == nil {
		ps.about = map[matter]*promise{}
	}
	ps.about[p.matter] = p
	ps.due = slices.Insert(ps.due, i, p)
	ps.putOff(now, from)
	return p
}

// makeRoom forgets the last place that is not firm, and reports whether there was one.
func (ps *promises) makeRoom() bool {
	for _, p := range slices.Backward(ps.due) {
		if !p.firm {
			ps.remove(p)
			return true
		}
	}
	return false
}

// putOff gives those whose places are not firm, nor due, others behind what goes before
// them now; with some room before them, if they are not told, and behind all firm ones.
// Who was before a firm one stays there, unless that would be too late by now.
func (ps *promises) putOff(now, from time.Time) {
	for i, gap := range ps.gaps(from)[:len(ps.due)] {
		if p := ps.due[i]; !p.firm && p.start.After(now) {
			start := from.Add(ps.every)
			if gap.firm.IsZero() && !p.settles.IsZero() {
				start = start.Add(ps.room(p))
			}
			p.start = latest(p.start, start)
			if gap.bears >= 0 {
				p.start = before(p.start, gap.firm)
			}
		}
		from = ps.end(ps.due[i], from)
	}
	slices.SortStableFunc(ps.due, func(a, b *promise) int { return a.start.Compare(b.start) })
}

// before is t, or just before next if there is one that is not later.
func before(t, next time.Time) time.Time {
	if next.IsZero() || t.Before(next) {
		return t
	}
	return next.Add(-1)
}

// room is what is left before a place for what may still come before it.
func (ps *promises) room(p *promise) time.Duration { return ps.length(p.cost) / roomShare }

// isFirm reports whether there is room for a firm place of a client: for one question of
// each in any case, and for its first few as long as all have not too many.
func (ps *promises) isFirm(p *promise) bool {
	all, own := p.cost, p.cost
	for _, other := range ps.due {
		if !other.firm || other.missed {
			continue
		}
		all += other.cost
		if other.client == p.client {
			own += other.cost
		}
	}
	few := own <= clientTurns || ps.length(own) <= clientTime
	return own == p.cost || few && ps.length(all) <= firmTime
}

// length is how long turns take.
func (ps *promises) length(turns int) time.Duration { return time.Duration(turns) * ps.every }

// place gives p the first place that is free, or that those behind can be put off for,
// and returns before which other it is.
func (ps *promises) place(p *promise, from time.Time) int {
	gaps := ps.gaps(from)
	for i := ps.turnOf(p, from); i < len(ps.due); i++ {
		start := gaps[i].end.Add(ps.every)
		p.start = before(start, gaps[i].firm)
		if start.Sub(p.start) <= ps.slack && ps.length(p.cost) <= gaps[i].bears {
			return i
		}
	}
	end := gaps[len(ps.due)].end
	if !p.firm {
		end = latest(end, ps.beyond)
	}
	p.start = end.Add(ps.every)
	return len(ps.due)
}

// turnOf is how many places are before that of another promise, as in a line: those of its
// client and as many of each other, unless it is firm and one has more before that.
func (ps *promises) turnOf(p *promise, from time.Time) int {
	own := 1
	for _, other := range ps.due {
		if other.client == p.client && !other.missed {
			own++
		}
	}
	turn, seen, isTurn := 0, map[string]int{}, p.waited
	for i, other := range ps.due {
		if !other.missed {
			seen[other.client]++
		}
		hasMore := seen[other.client] > own
		isTurn = isTurn || p.firm && hasMore
		if !other.start.After(from) || !p.waited && other.client == p.client || !isTurn && !hasMore {
			turn = i + 1
		}
	}
	return turn
}

// gap is what there is before a place, or behind all.
type gap struct {
	end   time.Time     // of the turns before it
	firm  time.Time     // when the first place from there on starts that is firm; zero: none is
	bears time.Duration // how much longer what is before it may take, for the firm ones' sake
}

// gaps are those before each place, and the one behind all.
func (ps *promises) gaps(from time.Time) []gap {
	gaps := make([]gap, len(ps.due)+1)
	for i, p := range ps.due {
		gaps[i].end = from
		from = ps.end(p, from)
	}
	gaps[len(ps.due)] = gap{end: from, bears: math.MaxInt64}
	for i, p := range slices.Backward(ps.due) {
		gap, behind := &gaps[i], gaps[i+1]
		gap.firm, gap.bears = behind.firm, behind.bears
		if p.missed {
			continue
		}
		begins := p.start.Add(-ps.every)
		late := max(0, gap.end.Sub(begins))
		if p.firm {
			gap.firm = p.start
			gap.bears = min(gap.bears, ps.slack-late)
		}
		if free := max(0, begins.Sub(gap.end)); gap.bears < math.MaxInt64-free {
			gap.bears += free
		}
	}
	return gaps
}

// end is when the turns of a place are taken if those before it are by a time.
func (ps *promises) end(p *promise, before time.Time) time.Time {
	if p.missed {
		return before
	}
	return latest(before, p.start.Add(-ps.every)).Add(ps.length(p.cost))
}

// delay is when a turn comes, by when it would come with so many others before it:
// those that are promised until then, as far as they are likely to be taken up.
func (ps *promises) delay(call Call, with func(others int) time.Time) time.Time {
	own, others := ps.of(call), 0.
	turn := with(0)
	for _, p := range ps.due {
		if p.start.After(turn) {
			break
		}
		if p != own && !p.missed {
			others += float64(p.cost) * (1 - ps.missing)
			turn = with(int(math.Ceil(others - 1e-9)))
		}
	}
	return turn
}
