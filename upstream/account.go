package upstream

import (
	"context"
	"sync"
	"time"
)

// How a refused credential is held back: at first for a minute, then twice as
// long each time, so that an hour of a wrong password costs about ten attempts.
const (
	minRefusal = time.Minute
	maxRefusal = 10 * time.Minute
	// strikesOut is what it takes to hold a credential back everywhere.
	strikesOut = 3
	// maxAccounts bounds the credentials that are remembered.
	maxAccounts = 64
)

// verdict is what an answer says about the credential that was used.
type verdict int

const (
	unclear   verdict = iota
	accepted          //
	rejected          // 401: the password is wrong, or no longer right
	forbidden         // 403: the repository is not for this account, or is none (GHCR)
)

// strikes is how much a verdict weighs. One bad answer must not take a password
// that has been good away from all repositories: whoever asks for a missing one
// could do that. A 403 never does, of a password not known to be good either: it
// is remembered for its repository.
func (v verdict) strikes(good bool) int {
	switch {
	case v != rejected:
		return 0
	case good:
		return 1
	}
	return strikesOut
}

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
	strikes int
	until   time.Time // held back until then
	wait    time.Duration
	used    time.Time
}

func newAccounts(now func() time.Time) *accounts {
	return &accounts{now: now, byID: map[credentialID]*account{}}
}

// try reports whether a credential may be used now. One that has not proven good
// is tried by one request at a time, while the others wait for the verdict: a
// cold start with a wrong password is one attempt, not one per repository. If
// ok, settle must be called once; it reports whether the credential is held
// back from then on.
func (a *accounts) try(ctx context.Context, id credentialID) (settle func(verdict) bool, ok bool, err error) {
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
			return func(v verdict) bool {
				defer func() { <-acc.turn }()
				return a.settle(acc, v)
			}, true, nil
		}
		<-acc.turn
	}
	if heldBack {
		return nil, false, nil
	}
	return func(v verdict) bool { return a.settle(acc, v) }, true, nil
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

func (a *accounts) settle(acc *account, v verdict) (heldBack bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if v == accepted {
		acc.good, acc.strikes, acc.wait, acc.until = true, 0, 0, time.Time{}
		return false
	}
	strikes := v.strikes(acc.good)
	acc.strikes += strikes
	if strikes == 0 || acc.strikes < strikesOut {
		return false
	}
	acc.good = false
	if !acc.until.After(now) { // not by an answer that was already under way
		acc.wait = min(max(minRefusal, 2*acc.wait), maxRefusal)
		acc.until = now.Add(acc.wait)
	}
	return true
}

// forget lets every credential be tried again at once.
func (a *accounts) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, acc := range a.byID {
		acc.strikes, acc.wait, acc.until = 0, 0, time.Time{}
	}
}
