package upstream

import (
	"context"
	"sync"
	"time"
)

// How a refused credential is held back: at first for a minute, then twice as
// long each time, so that an hour of a wrong password costs about ten attempts, of
// two requests each.
const (
	minRefusal = time.Minute
	maxRefusal = 10 * time.Minute
	// maxAccounts bounds the credentials that are remembered.
	maxAccounts = 64
)

// verdict is what an answer says about the credential that was used.
type verdict int

const (
	unclear   verdict = iota
	accepted          //
	rejected          // 401: the password is wrong, or, to some, the repository is none
	forbidden         // 403: the repository is not for this account, or is none (GHCR)
)

// accounts remembers how each credential has fared, so that a rejected password
// is not tried again and again.
type accounts struct {
	now func() time.Time

	mu   sync.Mutex // guards what follows, turns excepted
	byID map[credentialID]*account
}

type account struct {
	turn    chan struct{} // held by the one attempt of a credential not known to be good
	good    bool
	judged  time.Time // when it was last accepted, or it was asked whether it is
	doubted bool      // somebody finds out whether it still is
	until   time.Time // held back until then; zero: it never was, or was accepted or forgotten since
	wait    time.Duration
	used    time.Time
	refused *refusal // what is told of it, while until is set; nil: it was accepted since
}

// A settlement tells what came of an attempt, and reports whether the credential is
// held back from then on. whole asks, of a credential that was rejected for a
// repository, what is said of it by itself; nil if it was not.
type settlement func(v verdict, whole func() verdict) (heldBack bool)

func newAccounts(now func() time.Time) *accounts {
	return &accounts{now: now, byID: map[credentialID]*account{}}
}

// try reports whether a credential may be used now. One that has not proven good
// is tried by one request at a time, while the others wait for the verdict: a
// cold start with a wrong password is one attempt, not one per repository. If
// ok, settle must be called once.
func (a *accounts) try(ctx context.Context, id credentialID) (settle settlement, ok bool, err error) {
	acc := a.get(id)
	heldBack, good := a.state(acc)
	if !heldBack && !good {
		select {
		case acc.turn <- struct{}{}:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
		// Whoever had the turn before may have brought the verdict.
		if heldBack, good = a.state(acc); !heldBack && !good {
			return func(v verdict, whole func() verdict) bool {
				defer func() { <-acc.turn }()
				return a.settle(acc, v, whole)
			}, true, nil
		}
		<-acc.turn
	}
	if heldBack {
		return nil, false, nil
	}
	return func(v verdict, whole func() verdict) bool { return a.settle(acc, v, whole) }, true, nil
}

func (a *accounts) get(id credentialID) *account {
	a.mu.Lock()
	defer a.mu.Unlock()
	acc := a.byID[id]
	if acc == nil {
		if len(a.byID) >= maxAccounts {
			a.forgetOldestLocked()
		}
		acc = &account{turn: make(chan struct{}, 1)}
		a.byID[id] = acc
	}
	acc.used = a.now()
	return acc
}

func (a *accounts) forgetOldestLocked() {
	var oldest credentialID
	for id, acc := range a.byID {
		if o := a.byID[oldest]; o == nil || acc.used.Before(o.used) {
			oldest = id
		}
	}
	delete(a.byID, oldest)
}

func (a *accounts) state(acc *account) (heldBack, good bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return acc.until.After(a.now()), acc.good
}

// settle holds a credential back that is refused by itself. That it is for one
// repository is remembered for that: registries say so of what does not exist, too,
// and whoever asks for that must not take the password away from all others.
func (a *accounts) settle(acc *account, v verdict, whole func() verdict) (heldBack bool) {
	doubted := v == rejected && a.doubt(acc)
	switch {
	case doubted:
		v = whole()
	case v == rejected:
		v = unclear
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if doubted {
		acc.doubted, acc.judged = false, now
	}
	switch v {
	case accepted:
		acc.good, acc.judged, acc.wait, acc.until, acc.refused = true, now, 0, time.Time{}, nil
	case rejected:
		acc.good = false
		acc.wait = min(max(minRefusal, 2*acc.wait), maxRefusal)
		acc.until = now.Add(acc.wait)
	}
	return acc.until.After(now)
}

// doubt reports whether it is to be found out if a credential is good at all: not
// if that is known, was seen a moment ago, is being found out, or was asked a moment
// ago, be it without an answer that tells.
func (a *accounts) doubt(acc *account) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if acc.doubted || acc.until.After(now) || now.Sub(acc.judged) < minRefusal {
		return false
	}
	acc.doubted = true
	return true
}

// forget lets a credential be tried again at once.
func (a *accounts) forget(id credentialID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if acc := a.byID[id]; acc != nil {
		acc.judged, acc.wait, acc.until = time.Time{}, 0, time.Time{}
	}
}
