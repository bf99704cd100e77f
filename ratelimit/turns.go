package ratelimit

import (
	"context"
	"errors"
	"time"
)

// turns are a gate at which requests are spaced. Who is refused is promised a turn:
// it has a place of its own in the rate's calendar, which is told, and who comes when
// told to goes before who is new. With a question the turns of what follows its first
// request are given out: who is let in is not held up in the middle, and a place that
// is promised is large enough.
type turns struct {
	*gate
	rate     float64       // a second
	patience time.Duration // the longest that what follows is waited for

	// Guarded by the gate's mutex.
	bucket
	debts    debts
	promises promises
	spare    time.Time // a full bucket is no reason before it to let in who takes no turn yet
}

func newTurns(limits Limits, now func() time.Time) *turns {
	t := &turns{rate: limits.Rate, patience: limits.begunWait()}
	t.bucket = bucket{every: time.Duration(float64(time.Second) / limits.Rate), burst: limits.Burst}
	t.promises = promises{every: t.every, slack: limits.Wait / 5, stands: max(prompt, limits.Wait*7/10), settle: limits.Wait / 2}
	t.gate = &gate{take: t.take, now: now}
	return t
}

// take is the gate's.
func (t *turns) take(now time.Time, r rank, k *ticket) (time.Duration, bool) {
	if wait := t.readyLocked(now, r, k).Sub(now); wait > 0 {
		return wait, false
	}
	if k.waits {
		t.spare = now.Add(t.every)
	} else {
		t.bucket.take(now)
	}
	t.debts.owe(k.call, k.owes, now.Add(t.patience))
	if r == fresh {
		t.promises.drop(k.call)
	}
	return 0, true
}

// readyLocked is when a ticket may have its turn, or is worth another look. What is
// owed is left, unless the bucket is full: turns would be lost.
func (t *turns) readyLocked(now time.Time, r rank, k *ticket) time.Time {
	if r == begun {
		return t.at(now, 1)
	}
	owed, next := t.debts.sum(now)
	ready := t.at(now, owed+t.need(r))
	if owed == 0 {
		return ready
	}
	full := t.at(now, t.burst)
	if k.waits {
		full = latest(full, t.spare)
	}
	return earliest(earliest(ready, full), next)
}

// need is how many turns have to be there for one to be taken: half the burst
// is kept for those who wait themselves.
func (t *turns) need(r rank) int {
	if r == unhurried {
		return max(1, t.burst/2)
	}
	return 1
}

// tooLate refuses a request that is to come again after a wait.
type tooLate struct{ wait time.Duration }

func (*tooLate) Error() string { return errTooLate.Error() }

// enter waits for a turn, and tells in which rank it was had. Errors: *tooLate, before
// deadline for who is new where the wait would outlast it: at once where the place that he
// is told is firm; ctx.Err().
func (t *turns) enter(ctx context.Context, call Call, deadline time.Time) (rank, error) {
	return t.wait(ctx, ticket{call: call, owes: call.cost() - 1}, deadline)
}

// begin is enter for a question whose first request is yet to come: its turn is
// kept, with more turns for requests that the call does not tell of.
func (t *turns) begin(ctx context.Context, call Call, more int, deadline time.Time) error {
	_, err := t.wait(ctx, ticket{call: call, owes: call.cost() + more, waits: true}, deadline)
	return err
}

func (t *turns) wait(ctx context.Context, k ticket, deadline time.Time) (rank, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	for {
		p := place{ticket: new(k), rank: rankOf(k.call), until: deadline}
		served, err := t.find(&p)
		if served || err != nil {
			return p.rank, err
		}
		if p.aside {
			if err := sleep(ctx, p.until.Sub(t.now()), nil); err != nil {
				return p.rank, err
			}
			continue
		}
		err = t.await(ctx, p.ticket, p.rank, p.until)
		switch {
		case !errors.Is(err, errTooLate):
			return p.rank, err
		case !p.until.Before(deadline):
			return p.rank, t.refuse(p.ticket)
		}
	}
}

// place is where a ticket waits.
type place struct {
	ticket *ticket
	rank   rank
	until  time.Time // its deadline, or when a promise is due that makes it another
	aside  bool      // it is in no line, but told by then when to come again
}

// find has a place served at once, or waiting, or refuses it.
func (t *turns) find(p *place) (served bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, k := t.now(), p.ticket
	k.client, k.cost = k.call.Client, k.turns()
	t.promises.expire(now)
	var told *promise
	switch p.rank {
	case begun:
		t.debts.pay(k.call)
	case fresh:
		if told = t.promises.of(k.call); told != nil && !told.start.After(now) {
			t.promises.keep(told)
			p.rank, k.client = promised, "" // one lane for all: their times are fair
			told = nil
		}
	}
	if t.tryLocked(now, k, p.rank) {
		return true, nil
	}
	if (p.rank == fresh || p.rank == unhurried) && t.expectLocked(now, k.call, p.rank).After(p.until) {
		if told == nil {
			told = t.promiseLocked(now, k, p.rank, false)
		}
		if told.start.After(p.until) {
			if told.settles.After(now) && p.until.After(now) {
				p.until, p.aside = earliest(told.settles, p.until), true
				return false, nil
			}
			told.settles = time.Time{}
			return false, &tooLate{told.start.Sub(now)}
		}
	}
	if told != nil && told.start.Before(p.until) {
		p.until, k.cost = told.start, 0 // it has its place in the calendar
	}
	t.queueLocked(k, p.rank)
	return false, nil
}

// turns is how many it takes with what follows.
func (k *ticket) turns() int {
	if k.waits {
		return k.owes
	}
	return 1 + k.owes
}

// refuse tells who has waited in vain when to come again.
func (t *turns) refuse(k *ticket) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	told := t.promises.of(k.call)
	if told == nil || !told.start.After(now) {
		told = t.promiseLocked(now, k, rankOf(k.call), true)
	}
	return &tooLate{max(time.Millisecond, told.start.Sub(now))}
}

// promiseLocked finds a place in the calendar, and keeps it for who will come for it:
// whoever has something to serve instead does not, nor does who waits for nobody.
func (t *turns) promiseLocked(now time.Time, k *ticket, r rank, waited bool) *promise {
	if k.call.Background || k.call.Held {
		return &promise{start: t.expectLocked(now, k.call, r)}
	}
	owed, _ := t.debts.sum(now)
	for i := range t.lines[:unhurried] {
		owed += t.lines[i].cost
	}
	return t.promises.make(k.call, k.turns(), now, latest(now.Add(-t.every), t.at(now, owed)), waited)
}

// expectLocked is when the turn of who is new would come, if others come for what
// they are promised as they do of late.
func (t *turns) expectLocked(now time.Time, call Call, r rank) time.Time {
	n, _ := t.debts.sum(now)
	n += t.aheadLocked(call.Client, r) + t.need(r)
	if r != fresh {
		return t.at(now, n)
	}
	return t.promises.delay(call, func(others int) time.Time { return t.at(now, n+others) })
}

// putBack gives back a turn that could not be used, and what was to follow it.
func (t *turns) putBack(call Call, r rank) {
	t.free(func() {
		t.bucket.put()
		if r != begun {
			t.debts.forget(call)
		}
	})
}

// again takes the turn that was put back, before all who are new.
func (t *turns) again(ctx context.Context, call Call, r rank, deadline time.Time) error {
	k := &ticket{client: call.Client, cost: 1, call: call}
	if r != begun {
		k.owes = call.cost() - 1
	}
	if t.tryOrQueue(k, begun) {
		return nil
	}
	err := t.await(ctx, k, begun, deadline)
	if errors.Is(err, errTooLate) {
		return t.refuse(k)
	}
	return err
}

// done tells that a request is over: what follows it comes now, or not at all.
func (t *turns) done(call Call) {
	t.free(func() { t.debts.shorten(call, t.now().Add(followUp)) })
}

// isIdle reports whether forgetting t would lose nothing.
func (t *turns) isIdle(now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.promises.expire(now)
	return len(t.promises.due) == 0 && !t.promises.beyond.After(now) && !t.at(now, t.burst).After(now)
}

// bucket holds turns, up to a burst of them, and one more in every interval.
type bucket struct {
	every time.Duration
	burst int
	spent time.Time // until then all turns are taken; a bucket that fills up moves it
}

// at is when so many turns are there.
func (b *bucket) at(now time.Time, n int) time.Time {
	full := now.Add(-time.Duration(b.burst) * b.every)
	return latest(b.spent, full).Add(time.Duration(n) * b.every)
}

func (b *bucket) take(now time.Time) { b.spent = b.at(now, 1) }

func (b *bucket) put() { b.spent = b.spent.Add(-b.every) }

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// followUp is how long turns are kept for what follows a request that is over: it
// comes at once.
const followUp = time.Second

// debts are the turns that questions which were let in will still take.
type debts struct {
	of map[debtor]*debt
}

// debtor is a question: its client and when that asked.
type debtor struct {
	client string
	since  time.Time
}

type debt struct {
	turns int
	until time.Time // then it is forgotten
}

func (c Call) debtor() debtor { return debtor{c.Client, c.Since} }

func (ds *debts) owe(call Call, n int, until time.Time) {
	if n == 0 {
		return
	}
	if ds.of == nil {
		ds.of = map[debtor]*debt{}
	}
	d := ds.of[call.debtor()]
	if d == nil {
		d = new(debt)
		ds.of[call.debtor()] = d
	}
	d.turns += n
	d.until = until
}

func (ds *debts) pay(call Call) {
	if d := ds.of[call.debtor()]; d != nil {
		if d.turns--; d.turns == 0 {
			ds.forget(call)
		}
	}
}

func (ds *debts) forget(call Call) { delete(ds.of, call.debtor()) }

func (ds *debts) shorten(call Call, until time.Time) {
	if d := ds.of[call.debtor()]; d != nil {
		d.until = earliest(d.until, until)
	}
}

// sum is how much is owed, and when that may be less because it is forgotten.
func (ds *debts) sum(now time.Time) (turns int, next time.Time) {
	for key, d := range ds.of {
		if !d.until.After(now) {
			delete(ds.of, key)
			continue
		}
		if turns == 0 || d.until.Before(next) {
			next = d.until
		}
		turns += d.turns
	}
	return turns, next
}
