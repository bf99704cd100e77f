package ratelimit

import (
	"container/list"
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// gate lets requests through as what it guards allows. Who has to wait stands in
// a line with a lane for each client, and the lanes are served in turn: a client
// with a thousand requests delays another's one by one. There is a line for each
// rank, and a later one moves when nobody waits in those before it.
type gate struct {
	// take takes one, or tells how long until there may be one: not in any time
	// that could be told if it is negative. It is called with mu held.
	take func(now time.Time, background bool) (wait time.Duration, ok bool)

	mu    sync.Mutex // guards what follows, and what take looks at
	lines [numRanks]line
	timer *time.Timer // for the next one to be there
}

// rank is the order of the lines.
type rank int

const (
	begun    rank = iota // the rest of questions that had a turn
	promised             // who was told to come again, and has
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

// enter waits for a turn. expect, if not nil, is asked how long that will take
// with so many turns before it. Errors: errTooLate, at once where the wait would
// outlast deadline; ctx.Err().
func (g *gate) enter(ctx context.Context, call Call, r rank, deadline time.Time, expect func(ahead int) time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t, err := g.queue(call, r, deadline, expect)
	if t == nil {
		return err
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
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

// queue takes a turn that is there, or a place in the line.
func (g *gate) queue(call Call, r rank, deadline time.Time, expect func(int) time.Duration) (*ticket, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if g.isFreeLocked(r) {
		if _, ok := g.take(now, r == unhurried); ok {
			return nil, nil
		}
	}
	if expect != nil && now.Add(expect(g.aheadLocked(call.Client, r))).After(deadline) {
		return nil, errTooLate
	}
	t := g.lines[r].push(call.Client, call.cost())
	g.serveLocked()
	return t, nil
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
		wait, ok := g.take(time.Now(), r == unhurried)
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
func newSlots(n int) (g *gate, release func()) {
	left := n
	g = &gate{take: func(time.Time, bool) (time.Duration, bool) {
		if left == 0 {
			return -1, false
		}
		left--
		return 0, true
	}}
	return g, func() { g.free(func() { left++ }) }
}

// turns are a gate at which requests are spaced. Who is refused is promised a
// turn: by the promises the next one is told a later time, and who comes when he
// was told to goes before who is new.
type turns struct {
	*gate
	rate     *rate.Limiter
	promises promises // guarded by the gate's mutex
}

func newTurns(limits Limits) *turns {
	t := &turns{rate: rate.NewLimiter(rate.Limit(limits.Rate), limits.Burst)}
	t.gate = &gate{take: func(now time.Time, background bool) (time.Duration, bool) {
		if t.rate.TokensAt(now) >= t.need(background) && t.rate.AllowN(now, 1) {
			return 0, true
		}
		return t.until(now, t.need(background)), false
	}}
	return t
}

// need is how many turns have to be there for one to be taken: half the burst
// is kept for those who wait themselves.
func (t *turns) need(background bool) float64 {
	if background {
		return max(1, float64(t.rate.Burst())/2)
	}
	return 1
}

// until is when so many turns will be there. Rounding up, and a floor, keep a
// wait from ending just before that.
func (t *turns) until(now time.Time, n float64) time.Duration {
	missing := n - t.rate.TokensAt(now)
	return max(time.Microsecond, time.Duration(math.Ceil(missing/float64(t.rate.Limit())*float64(time.Second))))
}

// tooLate refuses a request that is promised a turn after a wait.
type tooLate struct{ wait time.Duration }

func (*tooLate) Error() string { return errTooLate.Error() }

// enter is as the gate's, with a *tooLate for errTooLate.
func (t *turns) enter(ctx context.Context, call Call, deadline time.Time) error {
	came := time.Now()
	r := t.rankOf(call, came)
	err := t.gate.enter(ctx, call, r, deadline, func(ahead int) time.Duration { // with the gate's mutex held
		if r == fresh {
			ahead += t.promises.ahead(call.Client, deadline)
		}
		return t.until(time.Now(), float64(ahead)+t.need(call.Background))
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err == nil:
		t.promises.drop(call.promise())
	case errors.Is(err, errTooLate):
		now := time.Now()
		// Who has waited in vain, or has come when told to, keeps his place.
		return &tooLate{t.promiseLocked(call, now, r != fresh || now.After(came))}
	}
	return err
}

// rankOf is the rank of a call, which a promise that is due has raised.
func (t *turns) rankOf(call Call, now time.Time) rank {
	r := rankOf(call)
	if r != fresh {
		return r
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.promises.expire(now)
	if due, ok := t.promises.due[call.promise()]; ok && !due.After(now) {
		t.promises.drop(call.promise())
		return promised
	}
	return r
}

// promiseLocked tells how long until a call that is refused has a turn, the same
// again to who asks before that.
func (t *turns) promiseLocked(call Call, now time.Time, keepsPlace bool) time.Duration {
	p := call.promise()
	if due, ok := t.promises.due[p]; ok && due.After(now) {
		return due.Sub(now)
	}
	r := rankOf(call)
	ahead := t.aheadLocked(call.Client, r)
	if !keepsPlace {
		ahead += t.promises.ahead(call.Client, time.Time{})
	}
	wait := t.until(now, float64(ahead)+t.need(call.Background))
	if r != unhurried {
		t.promises.make(p, now.Add(wait))
	}
	return wait
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
}

func (l *line) push(client string, cost int) *ticket {
	el := l.lanes[client]
	if el == nil {
		if l.lanes == nil {
			l.lanes = map[string]*list.Element{}
		}
		el = l.ring.PushBack(&lane{client: client})
		l.lanes[client] = el
	}
	t := &ticket{client: client, cost: cost, turn: make(chan struct{})}
	lane := el.Value.(*lane)
	lane.tickets = append(lane.tickets, t)
	l.n++
	l.cost += cost
	return t
}

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
