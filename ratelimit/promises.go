package ratelimit

import (
	"math"
	"slices"
	"time"
)

const (
	// maxPromises bounds those that are remembered: who is refused beyond them is
	// told the truth as far as it is known by then.
	maxPromises = 1024
	// The places that are firm of one client: turns for so long, and so many at least.
	// What it is promised beyond them may have to make way for others.
	firmTime  = 30 * time.Second
	firmTurns = 32
	// prompt is how long after its time a place is left for who was told it. Times are
	// told in whole seconds, and clients take some to come.
	prompt = 2 * time.Second
	// missedWeight is that of one promise in how many are not taken up of late.
	missedWeight = 1. / 4
)

// promise is a place in the rate's calendar: what a refused request was told to come
// again for.
type promise struct {
	matter matter
	client string
	cost   int       // turns
	start  time.Time // of the first
	firm   bool
	waited bool // in vain, before it was made
	missed bool // nobody came in time
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
// firm one by slack at most.
//
// So who comes until stands after the start of a firm place is served within stands
// and slack, and a turn or two, whoever else comes when: of those who came before him
// and wait, none has a place older than stands when the first of them came, and places
// that begin between that and his own have no more turns than fit, but for slack.
type promises struct {
	every  time.Duration // of a turn
	slack  time.Duration
	stands time.Duration // after start

	due     []*promise // by start
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

// make finds a place behind those who are here, whose turns are all taken at a time. Who
// has waited is not behind those of its client that have not, nor for its turn.
func (ps *promises) make(call Call, cost int, from time.Time, waited bool) *promise {
	p := &promise{matter: call.matter(), client: call.Client, cost: cost, waited: waited}
	ps.drop(call)
	p.firm = ps.isFirm(p)
	i := ps.place(p, from)
	if len(ps.due) >= maxPromises {
		last := len(ps.due) - 1
		for last >= 0 && ps.due[last].firm {
			last--
		}
		if last < 0 || !p.firm {
			return p
		}
		ps.remove(ps.due[last])
		i = min(i, len(ps.due))
	}
	if ps.about == nil {
		ps.about = map[matter]*promise{}
	}
	ps.about[p.matter] = p
	ps.due = slices.Insert(ps.due, i, p)
	ps.putOff(from)
	return p
}

// putOff gives those whose places are not firm others, behind what goes before them now.
func (ps *promises) putOff(from time.Time) {
	for i, end := range ps.ends(from)[:len(ps.due)] {
		if p := ps.due[i]; !p.firm && !p.missed {
			p.start = latest(p.start, end.Add(ps.every))
		}
	}
	slices.SortStableFunc(ps.due, func(a, b *promise) int { return a.start.Compare(b.start) })
}

// isFirm reports whether a client has room for another firm place.
func (ps *promises) isFirm(p *promise) bool {
	turns := p.cost
	for _, other := range ps.due {
		if other.client == p.client && other.firm && !other.missed {
			turns += other.cost
		}
	}
	return turns <= firmTurns || time.Duration(turns)*ps.every <= firmTime
}

// length is how long turns take.
func (ps *promises) length(turns int) time.Duration { return time.Duration(turns) * ps.every }

// place gives p the first place that is free, or that those behind can be put off for,
// and returns before which other it is. It is behind those of its own client, and behind
// as many and one more of each other's.
func (ps *promises) place(p *promise, from time.Time) int {
	ends := ps.ends(from)
	room := ps.room(ends)
	for i := ps.turnOf(p, from); i < len(ps.due); i++ {
		p.start = ends[i].Add(ps.every)
		late := time.Duration(0)
		if next := ps.due[i]; next.firm && !p.start.Before(next.start) {
			late = p.start.Sub(next.start) + 1
			p.start = next.start.Add(-1)
		}
		if late <= ps.slack && ps.length(p.cost) <= room[i] {
			return i
		}
	}
	p.start = ends[len(ps.due)].Add(ps.every)
	return len(ps.due)
}

// turnOf is how many places are before that of another promise, as in a line.
func (ps *promises) turnOf(p *promise, from time.Time) int {
	own := 1
	for _, other := range ps.due {
		if other.client == p.client {
			own++
		}
	}
	turn, seen := 0, map[string]int{}
	for i, other := range ps.due {
		if seen[other.client]++; !p.waited && seen[other.client] <= own || !other.start.After(from) {
			turn = i + 1
		}
	}
	return turn
}

// ends is when the turns before each place, and before one behind all, are taken.
func (ps *promises) ends(from time.Time) []time.Time {
	ends := []time.Time{from}
	for _, p := range ps.due {
		if !p.missed {
			from = latest(from, p.start.Add(-ps.every)).Add(ps.length(p.cost))
		}
		ends = append(ends, from)
	}
	return ends
}

// room is how much longer what is before each place may take.
func (ps *promises) room(ends []time.Time) []time.Duration {
	room := make([]time.Duration, len(ends))
	room[len(ps.due)] = math.MaxInt64
	for i := len(ps.due) - 1; i >= 0; i-- {
		p := ps.due[i]
		room[i] = room[i+1]
		if p.missed {
			continue
		}
		begins := latest(ends[i], p.start.Add(-ps.every))
		if p.firm {
			room[i] = min(room[i], ps.slack-begins.Sub(p.start.Add(-ps.every)))
		}
		if gap := begins.Sub(ends[i]); room[i] < math.MaxInt64-gap {
			room[i] += gap
		}
	}
	return room
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
