// Package ratelimit keeps us inside what others allow. A Limiter stands before
// one upstream: it spaces the requests, bounds the connections, shares both
// fairly between clients, sits out the pauses that upstream asks for, and spends
// the quota that it tells where that is of most use.
//
// It sends nothing and knows no registry protocol beyond the two forms of a 429.
// Start at Acquire.
package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"entrepot/oci"
)

// A Class sorts requests by what upstreams count and refuse apart. A pause that
// concerns one leaves the others alone.
type Class int

// The classes.
const (
	Pull     Class = iota // GET of a manifest: what Docker Hub counts
	Check                 // HEAD of a manifest: not counted
	Blob                  // blobs, as far as the registry itself answers
	List                  // tags, referrers
	Token                 // the token service
	Redirect              // a host that is led to: no request rate
	Probe                 // whether a host is well: only what pauses all of it holds those
	numClasses
)

// Call is one HTTP request about to be sent.
type Call struct {
	Host       string // as in the URL, with its port
	Class      Class
	Account    string // whose quota it may cost; empty: that of our address
	Repository string // of what it asks for, as far as quotas are by repository
	Client     string // for whom it is sent
	Transfer   bool   // the answer is a blob's body
	Background bool   // nobody waits for it
	Held       bool   // there is something to serve instead

	What  string    // it is about: who asks for that again has what was promised
	Since time.Time // when the client's question came, whose deadline this is; zero: now
	Begun bool      // it is not the first request for that question
}

// backgroundPatience is how many times longer than others a request waits for
// which nobody does.
const backgroundPatience = 6

// maxHosts bounds the hosts that are remembered: redirects name them.
const maxHosts = 256

// Limiter holds the limits of one upstream. It is safe for concurrent use.
type Limiter struct {
	limits Limits
	now    func() time.Time

	mu      sync.Mutex // guards what follows
	hosts   map[string]*host
	budgets map[string]*budget // by account
}

// host is what one host of the upstream may still bear. Its counters and pauses
// are guarded by the Limiter's mutex.
type host struct {
	turns               *turns // nil: no bound
	requests, transfers *gate
	freeRequest         func()
	freeTransfer        func()

	users   int // calls that hold or await a place
	all     pause
	classes [numClasses]pause
}

// New makes a Limiter. Zero fields of limits take the defaults of a registry
// that nothing is known of.
func New(limits Limits) *Limiter {
	return &Limiter{limits: limits.or(base), now: time.Now, hosts: map[string]*host{}, budgets: map[string]*budget{}}
}

// Pass is the leave to send one request. Answered is told how it was answered,
// if it was. Release must be called when its answer, body included, is done
// with; calling it again does nothing.
type Pass struct {
	limiter *Limiter
	host    *host
	call    Call
	budget  *budget // whose quota it may cost; nil: nobody's
	left    int     // of that account's quota, as known when the call came
	claimed bool    // budget counts it as on its way; guarded by the Limiter's mutex
	release sync.Once
	free    func() // its place; nil: it has none
}

// Acquire waits until call may be sent. Errors: TooManyRequests (or what a pause
// was caused by) with a truthful RetryAfter if the wait would be longer than
// the limits allow; ctx.Err().
func (l *Limiter) Acquire(ctx context.Context, call Call) (*Pass, error) {
	p, err := l.enter(call)
	if err != nil {
		return nil, err
	}
	if err := p.await(ctx, l.deadline(call, l.now())); err != nil {
		p.Release()
		return nil, err
	}
	return p, nil
}

// await goes through all that stands before a request. Pauses and quota are
// looked at before it takes up a place, and again at the very end, since what
// others are answered meanwhile changes them.
func (p *Pass) await(ctx context.Context, deadline time.Time) error {
	if err := p.clear(ctx, deadline, false); err != nil {
		return err
	}
	if err := p.takePlace(ctx, deadline); err != nil {
		return err
	}
	return p.clear(ctx, deadline, true)
}

// Begin waits until the first request of a question may be sent, and keeps its place
// and those of what follows, for a moment: the question is then one that has begun.
// It is for where something has to be asked of another host first, which would be lost
// on a question that is refused. more is how many requests it takes that call does not
// tell of. Errors: as Acquire.
func (l *Limiter) Begin(ctx context.Context, call Call, more int) error {
	p, err := l.enter(call)
	if err != nil {
		return err
	}
	defer p.leave()
	deadline := l.deadline(call, l.now())
	if err := p.clear(ctx, deadline, false); err != nil {
		return err
	}
	turns := p.turns()
	if turns == nil {
		return nil
	}
	return p.tooMany(turns, turns.begin(ctx, p.call, more, deadline))
}

// deadline is that of a client's question, however many requests it takes.
func (l *Limiter) deadline(call Call, now time.Time) time.Time {
	wait := l.limits.Wait
	switch {
	case call.Background:
		return now.Add(backgroundPatience * wait)
	case call.Begun:
		wait = l.limits.begunWait()
	}
	if call.Since.IsZero() {
		return now.Add(wait)
	}
	return call.Since.Add(wait)
}

// enter finds or makes the host of a call and counts the call in.
func (l *Limiter) enter(call Call) (*Pass, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hosts[call.Host] == nil && len(l.hosts) >= maxHosts && !l.forgetLocked(l.now()) {
		return nil, oci.Errorf(oci.Unavailable, "upstream leads to more than %d hosts at once", maxHosts)
	}
	h := l.hostLocked(call.Host)
	// A redirect may name a host before the registry's own calls do.
	if h.turns == nil && call.Class != Redirect && l.limits.Rate > 0 {
		h.turns = newTurns(l.limits, l.now)
	}
	h.users++
	call.Client = keyOf(call.Client).String() // a host has one share, however many addresses
	p := &Pass{limiter: l, host: h, call: call}
	if b := l.budgets[call.Account]; b != nil {
		p.left = b.quota.Left
	}
	if call.Class == Pull {
		p.budget = l.budgetLocked(call.Account)
		p.budget.users++
	}
	return p, nil
}

// hostLocked finds or makes a host.
func (l *Limiter) hostLocked(name string) *host {
	h := l.hosts[name]
	if h == nil {
		h = new(host)
		h.requests, h.freeRequest = newSlots(l.limits.Requests, l.now)
		h.transfers, h.freeTransfer = newSlots(l.limits.Transfers, l.now)
		l.hosts[name] = h
	}
	return h
}

// forgetLocked drops one host that nobody uses and of which nothing is to be known.
func (l *Limiter) forgetLocked(now time.Time) bool {
	for name, h := range l.hosts {
		if h.users == 0 && h.isIdle(now) {
			delete(l.hosts, name)
			return true
		}
	}
	return false
}

// isIdle reports whether a host asked for no pause, and nobody is promised a turn there.
func (h *host) isIdle(now time.Time) bool {
	isPaused := func(p pause) bool { return p.left(now) > 0 }
	return !isPaused(h.all) && !slices.ContainsFunc(h.classes[:], isPaused) && (h.turns == nil || h.turns.isIdle(now))
}

// takePlace waits until the host's request rate admits another, and for one of its
// connections: nobody holds one of those while he waits with others for his turn. A
// probe, which tells whether it is worth waiting, does not wait for those itself.
func (p *Pass) takePlace(ctx context.Context, deadline time.Time) error {
	turns, r := p.turns(), rankOf(p.call)
	if turns != nil {
		var err error
		if r, err = turns.enter(ctx, p.call, deadline); err != nil {
			return p.tooMany(turns, err)
		}
	}
	if p.call.Class == Probe {
		return nil
	}
	slots, free := p.host.requests, p.host.freeRequest
	if p.call.Transfer {
		slots, free = p.host.transfers, p.host.freeTransfer
	}
	if slots.try(p.call.Client, r) {
		p.free = free
		return nil
	}
	if turns != nil {
		turns.putBack(p.call, r)
	}
	if err := slots.enter(ctx, p.call.Client, r, deadline); err != nil {
		return p.busy(err)
	}
	p.free = free
	if turns != nil {
		return p.tooMany(turns, turns.again(ctx, p.call, r, deadline))
	}
	return nil
}

// turns is the request rate of the call's host; nil if none holds for it.
func (p *Pass) turns() *turns {
	if p.call.Class == Redirect {
		return nil
	}
	p.limiter.mu.Lock()
	defer p.limiter.mu.Unlock()
	return p.host.turns
}

// tooMany is the error of who had no turn.
func (p *Pass) tooMany(turns *turns, err error) error {
	late, ok := errors.AsType[*tooLate](err)
	if !ok {
		return err
	}
	when := fmt.Sprintf(": the next turn is in %v", late.wait.Round(time.Second))
	return &oci.Error{
		Code:   oci.TooManyRequests,
		Detail: fmt.Sprintf("requests to %s are limited to %v a second", p.call.Host, turns.rate) + when, When: when,
		RetryAfter: late.wait, Err: oci.ErrCrowded,
	}
}

// busy is the error of who had no connection.
func (p *Pass) busy(err error) error {
	if !errors.Is(err, errTooLate) {
		return err
	}
	return &oci.Error{
		Code:       oci.TooManyRequests,
		Detail:     "every connection that " + p.call.Host + " is allowed is busy",
		RetryAfter: p.limiter.limits.Wait,
		Err:        oci.ErrCrowded,
	}
}

// obstacle is what stands before a request: for how long, at most, and what is
// said to who cannot wait for that.
type obstacle struct {
	wait    time.Duration
	never   bool // it is not to be waited for
	unsure  bool // wait is unknown: until changed
	code    oci.Code
	retry   time.Duration
	detail  string
	when    string          // what is said behind that of when to come again; may be empty
	cause   error           // what callers tell it by; may be nil
	changed <-chan struct{} // closed when it may have gone before its time; nil: it cannot
}

func (o *obstacle) refusal() error {
	return &oci.Error{Code: o.code, Detail: o.detail + o.when, When: o.when, RetryAfter: o.retry, Err: o.cause}
}

// clear waits until no obstacle is left. With claim the request then counts as
// on its way. What nobody waits for is told of a pause that is longer than a client's
// patience: it can come again, and say meanwhile what it waits for.
func (p *Pass) clear(ctx context.Context, deadline time.Time, claim bool) error {
	for {
		now := p.limiter.now()
		o := p.look(now, claim)
		if o == nil {
			return nil
		}
		if o.unsure {
			o.wait = deadline.Sub(now)
		}
		isLong := p.call.Background && !o.unsure && o.wait > p.limiter.limits.Wait
		if o.never || o.wait <= 0 || isLong || now.Add(o.wait).After(deadline) {
			return o.refusal()
		}
		if err := sleep(ctx, o.wait, o.changed); err != nil {
			return err
		}
	}
}

// look finds the obstacle that lasts longest; nil if there is none.
func (p *Pass) look(now time.Time, claim bool) *obstacle {
	l := p.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	if o := p.pauseLocked(now); o != nil {
		return o
	}
	costs := p.budget != nil && p.budget.costs(p.call, now)
	if costs {
		if o := p.budget.obstacle(p.call, l.limits.Reserve, now, claim); o != nil {
			return o
		}
	}
	if o := p.tryLocked(claim); o != nil {
		return o
	}
	if costs && claim {
		p.budget.running++
		p.claimed = true
	}
	return nil
}

// Release gives the place back. A request that was never answered no longer
// counts as on its way.
func (p *Pass) Release() {
	p.release.Do(func() {
		if p.free != nil {
			p.free()
		}
		if turns := p.turns(); turns != nil {
			turns.done(p.call)
		}
		p.leave()
	})
}

// leave counts the call out.
func (p *Pass) leave() {
	p.limiter.mu.Lock()
	defer p.limiter.mu.Unlock()
	p.host.users--
	p.triedLocked(false)
	p.settleLocked()
	if p.budget != nil {
		p.budget.users--
	}
}

// settleLocked ends a claim on the quota.
func (p *Pass) settleLocked() {
	if p.claimed {
		p.claimed = false
		p.budget.running--
		p.budget.tell()
	}
}

// Answered tells how the request was answered; body is the start of a failure's
// body. It returns how long requests like it are paused now.
func (p *Pass) Answered(status int, header http.Header, body []byte) time.Duration {
	p.limiter.mu.Lock()
	defer p.limiter.mu.Unlock()
	now := p.limiter.now() // with the lock: no answer is older than the one before
	wait := p.answeredLocked(status, header, body, now)
	p.settleLocked()
	return wait
}

// Paused is how long a call would have to wait for pauses and quota alone, as
// far as that can be told now.
func (l *Limiter) Paused(call Call) time.Duration {
	if o := l.foresee(call); o != nil {
		return o.retry
	}
	return 0
}

// Refusal is what Acquire would say to a call for pauses and quota alone; nil if it
// would wait them out, or there are none.
func (l *Limiter) Refusal(call Call) error {
	if o := l.foresee(call); o != nil && (o.never || o.wait > l.limits.Wait) {
		return o.refusal()
	}
	return nil
}

// Spent is what upstream is expected to say to a call that Refusal lets through, since it
// said last that nothing is left; nil if it did not, or does not count the call.
func (l *Limiter) Spent(call Call) error {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.budgets[call.Account]
	if b == nil || !b.costs(call, now) || !b.current(now) || b.quota.Left != 0 {
		return nil
	}
	return oci.Errorf(oci.TooManyRequests, "it said last that none of the pulls%s is left", b.of())
}

// foresee is the obstacle that a call would meet; nil if there is none.
func (l *Limiter) foresee(call Call) *obstacle {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &Pass{limiter: l, host: l.hosts[call.Host], call: call}
	if p.host != nil {
		if o := p.pauseLocked(now); o != nil {
			return o
		}
	}
	if b := l.budgets[call.Account]; b != nil && b.costs(call, now) {
		return b.obstacle(call, l.limits.Reserve, now, false)
	}
	return nil
}

// sleep waits, or until changed, or returns ctx.Err().
func sleep(ctx context.Context, d time.Duration, changed <-chan struct{}) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-changed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
