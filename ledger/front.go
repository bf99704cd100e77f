package ledger

import (
	"strings"
	"sync/atomic"
	"time"
)

// What is served is counted in front of the books, since a hit must not wait for
// a lock: a table of counters that is only added to. Settle carries them over
// now and then; an answer counts in the hour in which that is done.

const (
	frontBits = 12
	frontSize = 1 << frontBits
	frontFull = frontSize / 2
	probes    = 8
	// retirement is how long a table that was replaced is still looked after: a
	// request may have found its counters just before.
	retirement = time.Minute
)

// front is a table by repository and client.
type front struct {
	cells   [frontSize]atomic.Pointer[cell]
	used    atomic.Int32
	hour    int64     // when it was new
	retired time.Time // guarded by the Ledger's mutex
}

type cell struct {
	upstream, repository, client string

	requests       [answers]atomic.Int64
	fetched, saved atomic.Int64 // bytes
}

// Answer is what became of a client's request.
type Answer int

// The answers.
const (
	Fetched Answer = iota // some of its bytes came from upstream for it
	Held                  // none did: they were held, or on their way to another
	Stale                 // likewise, and upstream could not confirm it
	Denied                // it did not get what it was for: it may not, or, as many registries say it, there is none
	Limited               // likewise: a quota, a rate or another limit was in the way
	Failed                // likewise: for trouble, of the upstream or of ours
	answers
)

// sum is what n such answers come to, but for their bytes.
func (a Answer) sum(n int64) Sum {
	s := Sum{Requests: n}
	switch a {
	case Held:
		s.Held = n
	case Stale:
		s.Held, s.Stale = n, n
	case Denied:
		s.Failed, s.Denied = n, n
	case Limited:
		s.Failed, s.Limited = n, n
	case Failed:
		s.Failed = n
	}
	return s
}

// Served adds an answer to a client, of so many bytes that were fetched for it and
// so many that were saved. It takes no lock and allocates nothing for a client and
// repository that were there lately.
func (l *Ledger) Served(upstream, repository, client string, a Answer, fetched, saved int64) {
	c := l.front.Load().find(upstream, repository, client)
	if c == nil {
		s := a.sum(1)
		s.Served, s.Saved = fetched+saved, saved
		l.post(upstream, repository, client, s)
		return
	}
	if fetched > 0 { // first, so that what is told of a request has its bytes
		c.fetched.Add(fetched)
	}
	if saved > 0 {
		c.saved.Add(saved)
	}
	c.requests[a].Add(1)
}

// find returns the cell of a repository and client; nil if there is no place for
// one.
func (f *front) find(upstream, repository, client string) *cell {
	at := place(repository, client)
	var made *cell
	for i := range uint64(probes) {
		at := &f.cells[(at+i)%frontSize]
		c := at.Load()
		if c == nil {
			if made == nil {
				made = &cell{upstream: strings.Clone(upstream), repository: strings.Clone(repository), client: strings.Clone(client)}
			}
			if at.CompareAndSwap(nil, made) {
				f.used.Add(1)
				return made
			}
			c = at.Load()
		}
		if c.repository == repository && c.client == client && c.upstream == upstream {
			return c
		}
	}
	return nil
}

// place is where a cell is looked for first. It goes by the ends of the names,
// where they differ: a hash of all of them would cost more than the counting.
// Whoever makes names that meet here takes the way through the lock, no more.
func place(repository, client string) uint64 {
	const odd = 0x9e3779b97f4a7c15 // 2^64 by the golden ratio
	h := (ending(repository) ^ uint64(len(repository))) * odd
	h = (h ^ h>>32 ^ ending(client)) * odd
	return h >> (64 - frontBits)
}

// ending is the last eight bytes of a name.
func ending(s string) (n uint64) {
	if len(s) >= 8 {
		s = s[len(s)-8:]
		return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
	}
	for i := range len(s) {
		n = n<<8 | uint64(s[i])
	}
	return n
}

func (l *Ledger) post(upstream, repository, client string, s Sum) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.postLocked(l.hourLocked(), upstream, repository, client, s)
}

// Settle carries over what was served since the last time.
func (l *Ledger) Settle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	keep := l.retired[:0]
	for _, f := range l.retired {
		l.drainLocked(f)
		if now.Sub(f.retired) < retirement {
			keep = append(keep, f)
		}
	}
	clear(l.retired[len(keep):])
	l.retired = keep
	f := l.front.Load()
	l.drainLocked(f)
	if used := f.used.Load(); used >= frontFull || used > 0 && f.hour != hourOf(now) {
		f.retired = now
		l.retired = append(l.retired, f)
		l.front.Store(&front{hour: hourOf(now)})
	}
}

func (l *Ledger) drainLocked(f *front) {
	for i := range f.cells {
		c := f.cells[i].Load()
		if c == nil {
			continue
		}
		if s := c.take(); s != (Sum{}) {
			l.postLocked(l.hourLocked(), c.upstream, c.repository, c.client, s)
		}
	}
}

// take empties a cell.
func (c *cell) take() (s Sum) {
	for a := range answers {
		if c.requests[a].Load() > 0 {
			s.add(a.sum(c.requests[a].Swap(0)))
		}
	}
	if c.saved.Load() > 0 {
		s.Saved = c.saved.Swap(0)
	}
	s.Served = s.Saved
	if c.fetched.Load() > 0 {
		s.Served += c.fetched.Swap(0)
	}
	return s
}
