package ratelimit

import "time"

const (
	// maxPromises bounds those that are remembered: who is refused beyond them is
	// told the same as the last.
	maxPromises = 1024
	// promiseGrace is how long after its time a promise stands. Times are told in
	// whole seconds, and clients take some to come.
	promiseGrace = 5 * time.Second
)

// promise is what a refused request was told to come again for.
type promise struct {
	client, what string
	cost         int
}

func (c Call) promise() promise { return promise{c.Client, c.What, c.cost()} }

// promises are the times that refused requests were told. The zero value is
// ready for use.
type promises struct {
	due map[promise]time.Time
}

func (ps *promises) make(p promise, due time.Time) {
	if len(ps.due) >= maxPromises {
		return
	}
	if ps.due == nil {
		ps.due = map[promise]time.Time{}
	}
	ps.due[p] = due
}

func (ps *promises) drop(p promise) { delete(ps.due, p) }

// expire drops those whose time has passed, and nobody came.
func (ps *promises) expire(now time.Time) {
	for p, due := range ps.due {
		if now.Sub(due) > promiseGrace {
			ps.drop(p)
		}
	}
}

// ahead is how many turns those take that go before another of a client, of
// those that are due before a time, if one is given: as in a line, of each other
// client no more than it has itself, and one.
func (ps *promises) ahead(client string, before time.Time) int {
	type share struct{ n, cost int }
	shares := map[string]share{}
	for p, due := range ps.due {
		if before.IsZero() || due.Before(before) {
			s := shares[p.client]
			shares[p.client] = share{s.n + 1, s.cost + p.cost}
		}
	}
	own := shares[client]
	delete(shares, client)
	turns := own.cost
	for _, s := range shares {
		turns += s.cost * min(s.n, own.n+1) / s.n
	}
	return turns
}
