package upstream

import (
	"context"
	"slices"
	"time"
)

// race is one question to several places of type P, of which one is to answer.
type race[P, T any] struct {
	client   *Client
	q        *question
	places   []P           // in the order in which they are asked
	patience time.Duration // for one of them until the next is asked, too

	ask       func(context.Context, *question, P) (T, error)
	drop      func(T)                       // closes an answer that is not wanted any more; nil: that needs nothing
	failed    func(P, error) (verdict bool) // is told of each failure; there is one verdict at most
	overrules func(P) bool                  // reports who is asked, and waited for, in spite of a verdict
	silent    func(P)                       // is told who had the next one asked, too, by saying nothing
	ails      func(P) bool                  // reports who was in trouble a moment ago

	next    int          // in places
	running []*leg[P, T] // that have no answer yet, the last to be asked last
	ends    chan *leg[P, T]
	timer   *time.Timer // when the last of them is looked at
}

// leg is a place that was asked.
type leg[P, T any] struct {
	n     int // in places
	place P
	q     *question
	moot  bool // nobody waits for it: there is a verdict
	*attempt
	value T
	err   error
}

// run asks one place after the other until one has an answer: the next where the
// last that was asked fails, or says nothing for too long. Time that a question waits
// for its turn is none of that. A verdict holds once those have failed that were
// asked before who gave it, or overrule it. The caller releases what won, which is nil if
// none has an answer: all have failed, there is a verdict, or ctx has ended.
func (r *race[P, T]) run(ctx context.Context) *leg[P, T] {
	if len(r.places) == 1 {
		return r.askOne(ctx)
	}
	r.ends = make(chan *leg[P, T], len(r.places))
	r.timer = time.NewTimer(r.patience)
	defer r.timer.Stop()
	defer r.lose(ctx)
	r.start(ctx)
	for r.isOpen() {
		select {
		case l := <-r.ends:
			if l.err == nil {
				r.finish(l)
				return l
			}
			r.fail(ctx, l)
		case <-r.timer.C:
			r.listen(ctx)
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// isOpen reports whether somebody is waited for.
func (r *race[P, T]) isOpen() bool {
	return slices.ContainsFunc(r.running, func(l *leg[P, T]) bool { return !l.moot })
}

// askOne is run where there is nothing to choose.
func (r *race[P, T]) askOne(ctx context.Context) *leg[P, T] {
	l := &leg[P, T]{place: r.places[0], q: r.q}
	l.value, l.err = r.ask(ctx, r.q, l.place)
	switch {
	case l.err == nil:
		return l
	case ctx.Err() == nil:
		r.failed(l.place, l.err)
	}
	return nil
}

// start asks the next place.
func (r *race[P, T]) start(ctx context.Context) {
	l := &leg[P, T]{n: r.next, place: r.places[r.next], attempt: r.client.attempts.begin(ctx)}
	l.q = r.q.fork(l.attempt)
	r.running = append(r.running, l)
	r.next++
	r.timer.Reset(r.patience)
	go r.runLeg(l)
}

func (r *race[P, T]) runLeg(l *leg[P, T]) {
	l.value, l.err = r.ask(l.ctx, l.q, l.place)
	if !l.end() {
		r.ends <- l
		return
	}
	if l.err == nil && r.drop != nil {
		r.drop(l.value)
	}
	l.gone()
}

// finish takes over what a leg has spent, and what it tells if it won.
func (r *race[P, T]) finish(l *leg[P, T]) {
	r.running = slices.DeleteFunc(r.running, func(o *leg[P, T]) bool { return o == l })
	r.q.spent += l.q.spent
	if l.err == nil {
		r.q.account, r.q.why = l.q.account, l.q.why
	}
}

// fail has the next place asked where the last one failed, or nobody is waited for.
func (r *race[P, T]) fail(ctx context.Context, l *leg[P, T]) {
	r.finish(l)
	l.release()
	if ctx.Err() != nil {
		return
	}
	if r.failed(l.place, l.err) {
		r.rule(l)
	}
	if r.next < len(r.places) && (l.n == r.next-1 || !r.isOpen()) {
		r.start(ctx)
	}
}

// rule keeps to a verdict from now on: of those that are to be asked, or are, after who
// gave it, it leaves the ones that overrule it.
func (r *race[P, T]) rule(verdict *leg[P, T]) {
	for _, l := range r.running {
		l.moot = l.n > verdict.n && !r.overrules(l.place)
	}
	left := slices.DeleteFunc(slices.Clone(r.places[r.next:]), func(p P) bool { return !r.overrules(p) })
	r.places = slices.Concat(r.places[:r.next], left)
}

// listen has the next place asked where the last one has said nothing for too long, or
// others have found meanwhile that it is in trouble.
func (r *race[P, T]) listen(ctx context.Context) {
	if r.next == len(r.places) {
		return
	}
	last := r.running[len(r.running)-1]
	all, own := last.silence.lasts()
	if left := r.patience - all; left > 0 && !r.ails(last.place) {
		r.timer.Reset(max(min(left, r.patience/4), r.patience/8))
		return
	}
	if own >= r.patience {
		r.silent(last.place)
	}
	r.start(ctx)
}

// lose has those go on by themselves that did not win, unless ctx has ended.
func (r *race[P, T]) lose(ctx context.Context) {
	for _, l := range r.running {
		if ctx.Err() != nil {
			l.cancel()
		}
		if l.lose() {
			continue
		}
		late := <-r.ends // whichever ended a moment too late
		if late.err == nil && r.drop != nil {
			r.drop(late.value)
		}
		late.release()
	}
}
