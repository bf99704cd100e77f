package upstream

import (
	"context"
	"sync"
	"time"
)

// attempt is a question to one of several addresses.
type attempt struct {
	ctx     context.Context //nolint:containedctx // its own: what it began may outlive the question
	cancel  context.CancelFunc
	unlink  func() bool // from the context of who asked
	silence silence
	all     *attempts

	asking, ended, lost bool // guarded by all
}

// asks tells whether a request is on its way, or its answer is. What lost ends where
// that is no longer so: nothing is learnt by going on.
func (a *attempt) asks(on bool) {
	if a == nil {
		return
	}
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	a.asking = on
	if a.lost && !on {
		a.cancel()
	}
}

// release ends what the attempt began.
func (a *attempt) release() {
	if a == nil { // there was nothing to choose
		return
	}
	a.unlink()
	a.cancel()
}

// lose lets go of an attempt that runs, and reports whether it did: it drops what
// it brings, and ends with the request that is on its way, if one is, or with the
// Client.
func (a *attempt) lose() bool {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	if a.ended {
		return false
	}
	a.lost = true
	a.unlink()
	if a.all.closed || !a.asking {
		a.cancel()
	}
	if a.all.closed {
		return true
	}
	a.all.losers[a] = struct{}{}
	a.all.late.Add(1)
	return true
}

// isPrompt reports whether an attempt that ends now is waited for, and took no longer
// than one is without asking another. Of one that had no other nobody knows.
func (a *attempt) isPrompt(patience time.Duration) bool {
	if a == nil {
		return false
	}
	_, took := a.silence.lasts()
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	return !a.lost && took <= patience
}

// end reports whether an attempt was lost by the time it ended.
func (a *attempt) end() (lost bool) {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	a.ended = true
	return a.lost
}

// gone is called when nothing is left of a lost attempt.
func (a *attempt) gone() {
	a.cancel()
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	if _, ok := a.all.losers[a]; ok {
		delete(a.all.losers, a)
		a.all.late.Done()
	}
}

// attempts are those that go on though another address has answered: what becomes
// of their requests tells their own address's breaker how it is.
type attempts struct {
	mu     sync.Mutex // guards what follows, and adding to late
	closed bool
	losers map[*attempt]struct{}
	late   sync.WaitGroup
}

// begin makes an attempt that ends with ctx until it is lost.
func (as *attempts) begin(ctx context.Context) *attempt {
	free, cancel := context.WithCancel(context.WithoutCancel(ctx))
	return &attempt{ctx: free, cancel: cancel, unlink: context.AfterFunc(ctx, cancel), silence: silence{began: time.Now()}, all: as}
}

// close ends those that were lost and waits for them.
func (as *attempts) close() {
	as.mu.Lock()
	as.closed = true
	for a := range as.losers {
		a.cancel()
	}
	as.mu.Unlock()
	as.late.Wait()
}

// silence is how long a question has had no answer, without what it waited for its turn.
// What it waited for a connection counts: others have those, and wait as well.
type silence struct {
	mu     sync.Mutex    // guards what follows
	began  time.Time     // as if it had never waited for its turn
	queued time.Duration // for connections, since then
	paused time.Time     // since when it waits for leave; zero: it does not
	isBusy func() bool   // of a wait: whether it is for a connection
}

func (s *silence) pause(isBusy func() bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused, s.isBusy = time.Now(), isBusy
}

func (s *silence) resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if waited := time.Since(s.paused); s.isBusy() {
		s.queued += waited
	} else {
		s.began = s.began.Add(waited)
	}
	s.paused = time.Time{}
}

// lasts is how long it is; own is without any wait, which the address that is asked has
// to answer for.
func (s *silence) lasts() (all, own time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all = time.Since(s.began)
	if s.paused.IsZero() {
		return all, all - s.queued
	}
	until := s.paused.Sub(s.began)
	if !s.isBusy() {
		all = until
	}
	return all, until - s.queued
}
