// Package ledger tells who and what spent what upstreams allow, over the last
// day.
//
// It is told of each request to an upstream, of the bytes that came (Spent), and
// of each answer to a client (Served), and keeps sums for each hour, by upstream,
// account, repository and client. What is shared is paid by who began it: a blob
// that many clients read along with costs the one that started its fill, a check
// of a tag the first of those who waited for it.
//
// What is saved are the bytes served to clients that did not have to come from
// upstream for them: each byte that comes for clients, also ahead of them, is
// charged to the first of them that it is served to, and all other bytes are
// saved. So over a long time that is what was served less what was fetched for
// clients; what is kept warm is fetched for this program itself.
//
// Memory is bounded (book.go): where there are more names in an hour than there
// is room for, those that spent least are summed up as others, so that every
// total stays exact.
package ledger

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Sum is what pulls cost and what was saved.
type Sum struct {
	Requests int64 `json:"requests,omitempty"` // of clients, that were answered
	Held     int64 `json:"held,omitempty"`     // of these, those all of whose bytes were saved: held, or on their way to another
	Stale    int64 `json:"stale,omitempty"`    // of these, those that upstream could not confirm
	Failed   int64 `json:"failed,omitempty"`   // of the requests, those that did not get what they were for
	Denied   int64 `json:"denied,omitempty"`   // of the failed, those that were not allowed, or, as many registries say it, for what is not there
	Limited  int64 `json:"limited,omitempty"`  // of the failed, those that a quota, a rate or another limit was in the way of; the others met trouble
	Served   int64 `json:"served,omitempty"`   // bytes to clients
	Saved    int64 `json:"saved,omitempty"`    // of these, those that did not have to come from upstream for the request
	Pulls    int64 `json:"pulls,omitempty"`    // GETs of manifests that upstream answered: what Docker Hub counts
	Heads    int64 `json:"heads,omitempty"`    // HEADs of manifests
	Calls    int64 `json:"calls,omitempty"`    // all requests to upstreams: these, and those for blobs, lists and tokens
	Fetched  int64 `json:"fetched,omitempty"`  // bytes of manifests and blobs from upstreams
}

func (s *Sum) columns() [12]*int64 {
	return [...]*int64{&s.Requests, &s.Held, &s.Stale, &s.Failed, &s.Denied, &s.Limited, &s.Served, &s.Saved, &s.Pulls, &s.Heads, &s.Calls, &s.Fetched}
}

func (s *Sum) add(o Sum) {
	theirs := o.columns()
	for i, n := range s.columns() {
		*n += *theirs[i]
	}
}

func (s *Sum) take(o Sum) {
	theirs := o.columns()
	for i, n := range s.columns() {
		*n -= *theirs[i]
	}
}

// weight is the worth of a sum when it is decided whose name is kept: that of so
// many MiB served from what is held. A pull is what is scarce, so that it
// outweighs gigabytes that cost nothing.
func (s *Sum) weight() float64 {
	const pull, call, fetched = 4096, 16, 4
	calls := float64(s.Requests) + pull*float64(s.Pulls) + call*(float64(s.Heads)+float64(s.Calls))
	return calls + (float64(s.Served)+fetched*float64(s.Fetched))/(1<<20)
}

// Party is who spent, and on what. An empty account is whoever asks from our
// address, an empty client this program itself.
type Party struct {
	Upstream, Account, Repository, Client string
}

// Hours is how far back the ledger reaches, the running hour included.
const Hours = 24

// maxTotals bounds what is kept apart since the start.
const maxTotals = 1024

// Ledger is safe for concurrent use.
type Ledger struct {
	front atomic.Pointer[front]

	mu      sync.Mutex // guards what follows
	retired []*front   // whose last words may still come
	hours   [Hours]hour
	since   [byAccount + 1]book // by upstream and by account, since the start
	changed bool                // since it was last saved
}

// hour holds the sums of one hour.
type hour struct {
	number int64 // since 1970
	books  [sides]book
}

// The sides from which spending is looked at. Those of accounts know of no
// answers to clients: what is held belongs to nobody's account.
const (
	byUpstream = iota
	byAccount
	byRepository
	byClient
	sides
)

// room is how many names an hour has on each side.
func room(side int) int { return [sides]int{64, 64, 256, 256}[side] }

// New makes an empty Ledger.
func New() *Ledger {
	l := &Ledger{}
	for side := range l.since {
		l.since[side] = newBook(maxTotals)
	}
	l.front.Store(&front{hour: hourOf(time.Now())})
	return l
}

func newHour(number int64) hour {
	h := hour{number: number}
	for side := range h.books {
		h.books[side] = newBook(room(side))
	}
	return h
}

func hourOf(t time.Time) int64 { return t.Unix() / 3600 }

// slot is the place of an hour.
func slot(number int64) int { return int((number%Hours + Hours) % Hours) }

// hourLocked is the running hour. A clock that is set back finds again what it
// had written, and what lies in the future then is not reported until it comes.
func (l *Ledger) hourLocked() *hour {
	number := hourOf(time.Now())
	h := &l.hours[slot(number)]
	if h.number != number || h.books[0].rows == nil {
		*h = newHour(number)
	}
	return h
}

// Spent adds what a party spent at an upstream.
func (l *Ledger) Spent(p Party, s Sum) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.hourLocked()
	h.books[byAccount].post(Key{p.Upstream, p.Account}, s)
	l.since[byAccount].post(Key{p.Upstream, p.Account}, s)
	l.postLocked(h, p.Upstream, p.Repository, p.Client, s)
}

// postLocked posts on all sides but that of accounts.
func (l *Ledger) postLocked(h *hour, upstream, repository, client string, s Sum) {
	h.books[byUpstream].post(Key{upstream, ""}, s)
	h.books[byRepository].post(Key{upstream, repository}, s)
	h.books[byClient].post(Key{upstream, client}, s)
	l.since[byUpstream].post(Key{upstream, ""}, s)
	l.changed = true
}

// Line is the sum of one name at an upstream.
type Line struct {
	Key
	Sum
}

// List has the lines that weigh most, the heaviest first, and the sum of all
// others.
type List struct {
	Lines  []Line
	Others Sum
}

// Report is what was spent in some hours.
type Report struct {
	Since        time.Time // the first of them of which anything is known
	Total        Sum
	Upstreams    List
	Accounts     List
	Repositories List
	Clients      List
}

// Report sums up the last hours, the running one included, with so many lines
// of repositories and of clients at most.
func (l *Ledger) Report(hours, most int) Report {
	l.Settle()
	now := time.Now()
	last := hourOf(now)
	r := Report{Since: now}
	var sums [sides]map[Key]*Sum
	var totals [sides]Sum
	for side := range sums {
		sums[side] = map[Key]*Sum{}
	}
	l.mu.Lock()
	for i := range l.hours {
		h := &l.hours[i]
		if h.number > last || h.number <= last-int64(hours) || h.books[0].rows == nil {
			continue
		}
		if began := time.Unix(h.number*3600, 0); began.Before(r.Since) {
			r.Since = began
		}
		for side := range h.books {
			totals[side].add(h.books[side].total)
			h.books[side].addTo(sums[side])
		}
	}
	l.mu.Unlock()
	r.Total = totals[byUpstream]
	for side, list := range [sides]*List{&r.Upstreams, &r.Accounts, &r.Repositories, &r.Clients} {
		lines := len(sums[side])
		if side == byRepository || side == byClient {
			lines = most
		}
		*list = heaviest(sums[side], totals[side], lines)
	}
	return r
}

// heaviest puts sums in order. What total has beyond them is others'.
func heaviest(sums map[Key]*Sum, total Sum, most int) List {
	list := List{Others: total}
	for k, s := range sums {
		list.Lines = append(list.Lines, Line{k, *s})
	}
	slices.SortFunc(list.Lines, func(a, b Line) int {
		return cmp.Or(cmp.Compare(b.weight(), a.weight()), a.Key.compare(b.Key))
	})
	list.Lines = list.Lines[:min(most, len(list.Lines))]
	for i := range list.Lines {
		list.Others.take(list.Lines[i].Sum)
	}
	return list
}

// Totals are the sums of each upstream since the start, by name.
func (l *Ledger) Totals() []Line { return l.totals(byUpstream) }

// AccountTotals are those of each account, of what upstreams were asked for.
func (l *Ledger) AccountTotals() []Line { return l.totals(byAccount) }

func (l *Ledger) totals(side int) []Line {
	l.Settle()
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []Line
	for _, r := range l.since[side].rows {
		all = append(all, Line{r.key, r.sum})
	}
	slices.SortFunc(all, func(a, b Line) int { return a.Key.compare(b.Key) })
	return all
}
