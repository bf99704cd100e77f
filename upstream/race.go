package upstream

import (
	"context"
	"slices"
	"sync"
	"time"
)

// attempt is a question to one of several addresses.
type attempt struct {
	ctx    context.Context //nolint:containedctx // its own: what it began may outlive the question
	cancel context.CancelFunc
	unlink func() bool // from the context of who asked

	ended, lost bool // guarded by attempts
}

// release ends what the attempt began.
func (a *attempt) release() {
	if a == nil { // there was nothing to choose
		return
	}
	a.unlink()
	a.cancel()
}

// attempts are those that go on though another address has answered: what becomes
// of them tells their own address's breaker how it is.
type attempts struct {
	mu     sync.Mutex // guards what follows, and adding to late
	closed bool
	losers map[*attempt]struct{}
	late   sync.WaitGroup
}

// begin makes an attempt that ends with ctx until it is lost.
func (*attempts) begin(ctx context.Context) *attempt {
	free, cancel := context.WithCancel(context.WithoutCancel(ctx))
	return &attempt{ctx: free, cancel: cancel, unlink: context.AfterFunc(ctx, cancel)}
}

// lose lets go of an attempt that runs, and reports whether it did: it drops what
// it brings, and ends within its own timeouts, or with the Client.
func (as *attempts) lose(a *attempt) bool {
	as.mu.Lock()
	defer as.mu.Unlock()
	if a.ended {
		return false
	}
	a.lost = true
	a.unlink()
	if as.closed {
		a.cancel()
		return true
	}
	as.losers[a] = struct{}{}
	as.late.Add(1)
	return true
}

// end reports whether an attempt was lost by the time it ended.
func (as *attempts) end(a *attempt) (lost bool) {
	as.mu.Lock()
	defer as.mu.Unlock()
	a.ended = true
	return a.lost
}

// gone is called when nothing is left of a lost attempt.
func (as *attempts) gone(a *attempt) {
	a.cancel()
	as.mu.Lock()
	defer as.mu.Unlock()
	if _, ok := as.losers[a]; ok {
		delete(as.losers, a)
		as.late.Done()
	}
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

// race is one question to several places of type P, of which one is to answer.
type race[P, T any] struct {
	client   *Client
	q        *question
	places   []P           // in the order in which they are asked
	patience time.Duration // for one of them until the next is asked, too

	ask    func(context.Context, *question, P) (T, error)
	drop   func(T)                       // closes an answer that is not wanted any more; nil: that needs nothing
	failed func(P, error) (verdict bool) // is told of each failure; a verdict ends the race
	silent func(P)                       // is told who had the next one asked, too, by saying nothing
}

// leg is a place that was asked.
type leg[P, T any] struct {
	n     int // in places
	place P
	q     *question
	*attempt
	value T
	err   error
}

// silence is how long a question has had no answer, without what it waited for leave
// to be sent.
type silence struct {
	mu     sync.Mutex // guards what follows
	began  time.Time  // as if it had never waited
	paused time.Time  // zero while it does not wait
}

func (s *silence) pause(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if on {
		s.paused = time.Now()
		return
	}
	s.began, s.paused = s.began.Add(time.Since(s.paused)), time.Time{}
}

func (s *silence) lasts() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.paused.IsZero() {
		return s.paused.Sub(s.began)
	}
	return time.Since(s.began)
}

// run asks one place after the other until one has an answer: the next where the
// last that was asked fails, or says nothing for too long. Time that a question waits
// for leave to be sent is none of that. The caller releases what won, which is nil if
// none has an answer: all have failed, there is a verdict, or ctx has ended.
func (r *race[P, T]) run(ctx context.Context) *leg[P, T] {
	if len(r.places) == 1 {
		l := &leg[P, T]{place: r.places[0], q: r.q}
		if l.value, l.err = r.ask(ctx, r.q, l.place); l.err != nil {
			r.failed(l.place, l.err)
			return nil
		}
		return l
	}
	ends := make(chan *leg[P, T], len(r.places))
	var running []*leg[P, T]
	next := 0
	start := func() {
		l := &leg[P, T]{n: next, place: r.places[next], q: r.q.fork(), attempt: r.client.attempts.begin(ctx)}
		running = append(running, l)
		next++
		go r.runLeg(l, ends)
	}
	var won *leg[P, T]
	defer func() { r.lose(ctx, running, won, ends) }()
	start()
	timer := time.NewTimer(r.patience)
	defer timer.Stop()
	for {
		select {
		case l := <-ends:
			running = slices.DeleteFunc(running, func(o *leg[P, T]) bool { return o == l })
			r.q.spent += l.q.spent
			switch {
			case l.err == nil:
				r.q.account, r.q.why = l.q.account, l.q.why
				won = l
				return l
			case ctx.Err() != nil, r.failed(l.place, l.err):
				l.release()
				return nil
			}
			l.release()
			if next < len(r.places) && (l.n == next-1 || len(running) == 0) {
				start()
				timer.Reset(r.patience)
			} else if len(running) == 0 {
				return nil
			}
		case <-timer.C:
			last := running[len(running)-1]
			left := r.patience - last.q.silence.lasts()
			if left <= 0 && next < len(r.places) {
				r.silent(last.place)
				start()
				left = r.patience
			}
			if next < len(r.places) {
				timer.Reset(max(left, r.patience/4))
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (r *race[P, T]) runLeg(l *leg[P, T], ends chan<- *leg[P, T]) {
	l.value, l.err = r.ask(l.ctx, l.q, l.place)
	if !r.client.attempts.end(l.attempt) {
		ends <- l
		return
	}
	if l.err == nil && r.drop != nil {
		r.drop(l.value)
	}
	r.client.attempts.gone(l.attempt)
}

// lose has those go on by themselves that did not win, unless ctx has ended.
func (r *race[P, T]) lose(ctx context.Context, running []*leg[P, T], won *leg[P, T], ends <-chan *leg[P, T]) {
	for _, l := range running {
		if ctx.Err() != nil && l != won {
			l.cancel()
		}
		if l == won || r.client.attempts.lose(l.attempt) {
			continue
		}
		late := <-ends // whichever ended a moment too late
		if late.err == nil && r.drop != nil {
			r.drop(late.value)
		}
		late.release()
	}
}
