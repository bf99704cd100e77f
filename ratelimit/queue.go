package ratelimit

import (
	"container/list"
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// gate lets requests through as what it guards allows. Who has to wait stands in
// a line with a lane for each client, and the lanes are served in turn: a client
// with a thousand requests delays another's one by one. There is a line for each
// rank, and a later one moves when nobody waits in those before it.
type gate struct {
	// take takes one for a ticket, or tells how long until there may be one: not in
	// any time that could be told if it is negative. It is called with mu held.
	take func(now time.Time, r rank, t *ticket) (wait time.Duration, ok bool)

	mu    sync.Mutex // guards what follows, and what take looks at
	lines [numRanks]line
	timer *time.Timer // for the next one to be there

	now func() time.Time
}

// rank is the order of the lines.
type rank int

const (
	begun    rank = iota // the rest of questions that had a turn
	promised             // who was told to come now, and has
	fresh
	unhurried // for which nobody waits
	numRanks
)

func rankOf(call Call) rank {
	switch {
	case call.Background:
		return unhurried
	case call.Begun:
		return begun
	}
	return fresh
}

// cost is how many turns a request takes with what follows it: a check of what
// is not held is followed by the pull.
func (c Call) cost() int {
	if c.Class == Check && rankOf(c) == fresh && !c.Held {
		return 2
	}
	return 1
}

// errTooLate says that a request's turn did not come in time.
var errTooLate = errors.New("its turn did not come in time")

// enter waits for a turn. Errors: errTooLate; ctx.Err().
func (g *gate) enter(ctx context.Context, client string, r rank, deadline time.Time) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t := &ticket{client: client, cost: 1}
	if g.tryOrQueue(t, r) {
		return nil
	}
	return g.await(ctx, t, r, deadline)
}

// tryOrQueue takes a turn that is there, or a place in the line.
func (g *gate) tryOrQueue(t *ticket, r rank) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.tryLocked(g.now(), t, r) {
		return true
	}
	g.queueLocked(t, r)
	return false
}

// try takes a turn if one is there.
func (g *gate) try(client string, r rank) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.tryLocked(g.now(), &ticket{client: client, cost: 1}, r)
}

func (g *gate) tryLocked(now time.Time, t *ticket, r rank) bool {
	if !g.isFreeLocked(r) {
		return false
	}
	_, ok := g.take(now, r, t)
	return ok
}

func (g *gate) queueLocked(t *ticket, r rank) {
	t.turn = make(chan struct{})
	g.lines[r].push(t)
	g.serveLocked()
}

// await waits for the turn of who stands in a line.
func (g *gate) await(ctx context.Context, t *ticket, r rank, deadline time.Time) error {
	timer := time.NewTimer(deadline.Sub(g.now()))
	defer timer.Stop()
	var err error
	select {
	case <-t.turn:
		return nil
	case <-timer.C:
		err = errTooLate
	case <-ctx.Done():
		err = ctx.Err()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.serveLocked() // a turn that is due at this moment counts
	if t.served {
		return nil
	}
	g.lines[r].remove(t)
	g.serveLocked()
	return err
}

// isFreeLocked reports whether nobody waits up to a rank.
func (g *gate) isFreeLocked(r rank) bool {
	for i := range g.lines[:r+1] {
		if g.lines[i].n > 0 {
			return false
		}
	}
	return true
}

// aheadLocked is how many turns are taken before a client's next in a line.
func (g *gate) aheadLocked(client string, r rank) int {
	n := g.lines[r].ahead(client)
	for i := range g.lines[:r] {
		n += g.lines[i].cost
	}
	return n
}

// free gives back what was taken.
func (g *gate) free(put func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	put()
	g.serveLocked()
}

// serveLocked lets through who may go, and comes back when the next one may.
func (g *gate) serveLocked() {
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
	for {
		r := rank(0)
		for r < numRanks && g.lines[r].n == 0 {
			r++
		}
		if r == numRanks {
			return
		}
		wait, ok := g.take(g.now(), r, g.lines[r].first())
		if ok {
			g.lines[r].pop()
			continue
		}
		if wait >= 0 {
			g.timer = time.AfterFunc(wait, func() { g.free(func() {}) })
		}
		return
	}
}

// newSlots is a gate with n places. They are given back by release.
func newSlots(n int, now func() time.Time) (g *gate, release func()) {
	left := n
	g = &gate{now: now, take: func(time.Time, rank, *ticket) (time.Duration, bool) {
		if left == 0 {
			return -1, false
		}
		left--
		return 0, true
	}}
	return g, func() { g.free(func() { left++ }) }
}

// line is who waits at a gate.
type line struct {
	n     int                      // waiting, all together
	cost  int                      // turns that they take
	ring  list.List                // of *lane, the next to be served first
	lanes map[string]*list.Element // by client
}

// lane is who waits for one client. It is in the ring while that is anybody.
type lane struct {
	client  string
	tickets []*ticket
}

type ticket struct {
	client string
	cost   int           // turns that it takes with what follows it
	turn   chan struct{} // closed when it is served
	served bool

	call  Call // at the gate of turns: what it is for
	owes  int  // likewise: how many turns what follows it takes
	waits bool // likewise: it takes none itself, yet
}

func (l *line) push(t *ticket) {
	el := l.lanes[t.client]
	if el == nil {
		if l.lanes == nil {
			l.lanes = map[string]*list.Element{}
		}
		el = l.ring.PushBack(&lane{client: t.client})
		l.lanes[t.client] = el
	}
	lane := el.Value.(*lane)
	lane.tickets = append(lane.tickets, t)
	l.n++
	l.cost += t.cost
}

// first is who is served next.
func (l *line) first() *ticket { return l.ring.Front().Value.(*lane).tickets[0] }

// pop serves the first of the next lane, which then is the last.
func (l *line) pop() {
	el := l.ring.Front()
	lane := el.Value.(*lane)
	t := lane.tickets[0]
	l.remove(t)
	if len(lane.tickets) > 0 {
		l.ring.MoveToBack(el)
	}
	t.served = true
	close(t.turn)
}

func (l *line) remove(t *ticket) {
	el := l.lanes[t.client]
	lane := el.Value.(*lane)
	i := slices.Index(lane.tickets, t)
	lane.tickets = slices.Delete(lane.tickets, i, i+1)
	l.n--
	l.cost -= t.cost
	if len(lane.tickets) == 0 {
		l.ring.Remove(el)
		delete(l.lanes, t.client)
	}
}

// ahead is how many turns those take who go before the next of a client.
func (l *line) ahead(client string) int {
	own := 0
	if el := l.lanes[client]; el != nil {
		own = len(el.Value.(*lane).tickets)
	}
	n, before := 0, true
	for el := l.ring.Front(); el != nil; el = el.Next() {
		lane := el.Value.(*lane)
		first := own
		switch {
		case lane.client == client:
			before = false
		case before:
			first++
		}
		for _, t := range lane.tickets[:min(len(lane.tickets), first)] {
			n += t.cost
		}
	}
	return n
}
