package upstream

import (
	"context"
	"errors"
	"slices"
	"time"

	"entrepot/oci"
	"entrepot/ratelimit"
)

// inOrder asks one site after the other, those that are well first, until one
// has an answer. That there is none is only the primary's to say, once those that
// stand before it have no answer, and its error is the one that counts: where that
// asks to come again, the one that asks for the soonest.
func inOrder[T any](ctx context.Context, c *Client, q *question, class ratelimit.Class, ask func(context.Context, *question, *site) (T, error)) (T, error) {
	var none T
	var said joint
	var refused []*site
	r := race[*site, T]{
		client: c, q: q, places: c.order(ctx, q, class), patience: c.patience(class),
		ask: func(ctx context.Context, q *question, s *site) (T, error) {
			v, err := ask(ctx, q, s)
			s.answered(ctx, c, q, class, err)
			return v, err
		},
		failed: func(s *site, err error) bool {
			if s == c.primary {
				said.primary = err
			} else {
				said.other(s, err)
			}
			if isLack(err) && class != ratelimit.List {
				refused = append(refused, s)
			}
			return s == c.primary && !oci.IsRetryable(err)
		},
		overrules: func(s *site) bool { return c.mayOverrule(s, q, func() ratelimit.Call { return s.call(ctx, q, class) }) },
		silent:    func(s *site) { s.ails(ailingAfterSilence) },
		ails:      func(s *site) bool { return s.isAiling() },
	}
	won := r.run(ctx)
	switch {
	case won != nil:
		won.release()
		for _, s := range refused {
			s.lacked(q.repo)
		}
		q.note(won.place, c)
		return won.value, nil
	case ctx.Err() != nil:
		return none, failure(ctx, c.cfg.Name, ctx.Err(), nil)
	}
	return none, said.err()
}

// joint is what the addresses of an upstream have said together of a question.
type joint struct {
	primary error
	soonest error // of those of others that name a time after which to come again
}

// other takes in what another address than the primary said. One that is down names no
// time by which it will have an answer.
func (j *joint) other(s *site, err error) {
	if isWait(err) && !s.breakers.isOpen(s.endpoint.Host) && (j.soonest == nil || oci.RetryAfter(err) < oci.RetryAfter(j.soonest)) {
		j.soonest = err
	}
}

// err is the primary's word, unless that is to come again, and another address says
// the same of a time before. What we say ourselves, since others come first, stands.
func (j *joint) err() error {
	isOurs := errors.Is(j.primary, oci.ErrReserved) || errors.Is(j.primary, oci.ErrCrowded)
	isAlike := oci.CodeOf(j.soonest) == oci.CodeOf(j.primary) // of a quota that is spent no trouble of a mirror's tells
	if j.soonest != nil && isAlike && isWait(j.primary) && !isOurs && oci.RetryAfter(j.soonest) < oci.RetryAfter(j.primary) {
		return j.soonest
	}
	return j.primary
}

// isWait reports an error that names a time after which to come again.
func isWait(err error) bool {
	code := oci.CodeOf(err)
	return (code == oci.TooManyRequests || code == oci.Unavailable) && oci.RetryAfter(err) > 0
}

// mayOverrule reports whether a site may have what the primary says there is not: it
// stands before it, and is asked later at most since it is slow, or was in trouble.
func (c *Client) mayOverrule(s *site, q *question, call func() ratelimit.Call) bool {
	if slices.Index(c.sites, s) >= slices.Index(c.sites, c.primary) {
		return false
	}
	h, _ := s.health(call(), q.repo)
	return h <= ailing
}

// isLack reports an answer that a site does not have, or give, what it was asked for.
func isLack(err error) bool { return oci.IsUnknown(err) || oci.CodeOf(err) == oci.Denied }

// answered notes how a question to one of several sites went.
func (s *site) answered(ctx context.Context, c *Client, q *question, class ratelimit.Class, err error) {
	if ctx.Err() != nil || len(c.sites) == 1 {
		return
	}
	switch s.fared(err, q.attempt.isPrompt(c.patience(class))); {
	case errors.Is(err, errLied):
		s.lied("a manifest of " + q.repo.String())
	case errors.Is(err, errTooLong):
		s.isSlow(0, true)
	}
}

// patience is how long one site is waited for until the next is asked, too. What
// may cost a pull, or a transfer, waits for longer. All have been asked by half of
// the time that the client has.
func (c *Client) patience(class ratelimit.Class) time.Duration {
	t := c.cfg.Timeouts
	d := t.Next
	if class == ratelimit.Pull || class == ratelimit.Blob {
		d *= 3
	}
	return min(d, t.Answer/time.Duration(2*len(c.sites)))
}

// note says in the Outcome that a mirror answered.
func (q *question) note(s *site, c *Client) {
	if s == c.primary {
		return
	}
	if q.why != "" {
		q.why += ", "
	}
	q.why += "from mirror " + s.endpoint.Host
}

// order is the order in which sites are asked now.
func (c *Client) order(ctx context.Context, q *question, class ratelimit.Class) []*site {
	if len(c.sites) == 1 {
		return c.sites
	}
	ranks := map[*site]rank{}
	for _, s := range c.sites {
		if q.ask.Refresh {
			s.standing.forgetLacks(q.repo.Path)
		}
		var r rank
		r.health, r.rate = s.health(s.call(ctx, q, class), q.repo)
		ranks[s] = r
	}
	return slices.SortedStableFunc(slices.Values(c.sites), func(a, b *site) int { return ranks[a].compare(ranks[b]) })
}

// call is what limits look at of a question that a site would be asked.
func (s *site) call(ctx context.Context, q *question, class ratelimit.Class) ratelimit.Call {
	call := ratelimit.Call{Host: s.endpoint.Host, Class: class, Repository: q.repo.Path, Background: q.ask.Background, Held: q.ask.Held}
	if class == ratelimit.Pull {
		cred, _, err := s.credential(ctx, q.repo)
		if heldBack, _ := s.accounts.state(s.accounts.get(cred.id)); err == nil && !heldBack {
			call.Account = cred.account()
		}
	}
	return call
}

// Withheld is how long upstream is known to give out no manifest of a repository to
// who asks in the background, by its limits and its quota; 0 if it may be asked. It
// asks nobody.
func (c *Client) Withheld(ctx context.Context, repo oci.Repository) time.Duration {
	wait, _ := c.withheld(ctx, &question{repo: repo, ask: oci.Ask{Background: true}})
	return wait
}

// withheld is how long no site that could be asked now would give out a manifest;
// 0 if one does. reserved says that one would to others, for whom it is kept.
func (c *Client) withheld(ctx context.Context, q *question) (least time.Duration, reserved bool) {
	for _, s := range c.sites {
		call := s.call(ctx, q, ratelimit.Pull)
		if s.breakers.isOpen(call.Host) {
			continue
		}
		wait := s.limiter.Paused(call)
		if wait <= 0 {
			return 0, false
		}
		if least == 0 || wait < least {
			least = wait
		}
		reserved = reserved || errors.Is(s.limiter.Refusal(call), oci.ErrReserved)
	}
	return least, reserved
}
