package upstream

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"time"

	"entrepot/oci"
	"entrepot/ratelimit"
)

// When what does not answer is asked again: by probes, by trials, and how a doubt
// is resolved. What is known of it is in breaker.go.

const (
	// An open breaker probes its host after a second, then after twice as long
	// each time.
	minProbeWait = time.Second
	maxProbeWait = 30 * time.Second
	// maxPartWait is that for a part of a host, of which there may be many.
	maxPartWait = time.Minute
	// probeGrace is what a probe is given before its result is asked for.
	probeGrace = 500 * time.Millisecond
	// A host that nobody has asked for in unwantedFor is probed once in
	// idleProbeWait alone, until somebody does. It is forgotten, unless it is one
	// of the upstream's own: however quiet it was, nobody waits for that once
	// more. What fails by itself is forgotten sooner: to ask it costs little.
	unwantedFor     = time.Hour
	unwantedPartFor = time.Minute
	idleProbeWait   = 15 * time.Minute
	// A host whose trouble is 5xx is tried again at most once in trialWait by a
	// request for what is not known to fail: what did, for as long as somebody
	// wants it, and suspectFor. No trial is longer than maxTrial.
	trialWait  = time.Second
	suspectFor = time.Hour
	maxTrial   = 30 * time.Second
	// maxWishes bounds the URLs that a breaker's probes take in turn.
	maxWishes = 8
)

// mostWait is the longest time between two probes of what is asked for.
func (p scope) mostWait() time.Duration {
	if p.isHost() {
		return maxProbeWait
	}
	return maxPartWait
}

// wish notes what is wanted: before what was probed already, if it is new.
func (br *breaker) wish(u *url.URL) {
	br.wanted = time.Now()
	if i := slices.IndexFunc(br.wishes, func(w *url.URL) bool { return w.Path == u.Path }); i >= 0 {
		br.wishes[i] = u // whose signature is good for longer
		return
	}
	br.wishes = slices.Insert(br.wishes[:min(len(br.wishes), maxWishes-1)], 0, u)
}

// mayTryLocked reports whether a request may find out if more than parts of an
// open host fail.
func (b *breakers) mayTryLocked(host *breaker, t target) bool {
	now := time.Now()
	if host.outcome != erred || now.Before(host.trial) {
		return false
	}
	return !slices.ContainsFunc(t.scopes(), func(p scope) bool {
		br := b.known[p]
		return br != nil && !p.isHost() && (br.open || p.path != "" && br.failures > 0 && now.Sub(br.wanted) < suspectFor)
	})
}

// doubtLocked keeps requests from a host, one of which hangs, while a probe finds
// out whether it answers anything else: what it answered last, if that is of
// another repository, or where a redirect leads another path, or else its root.
func (b *breakers) doubtLocked(br *breaker, t target) {
	other := br.well
	same := other.repo == t.repo
	if t.led && other.url != nil {
		same = other.url.Path == t.url.Path
	}
	if same || other.url == nil {
		other.url = &url.URL{Scheme: t.url.Scheme, Host: t.url.Host, Path: "/v2/"}
	}
	br.open, br.doubt, br.since, br.refused, br.outcome = true, true, time.Now(), 0, hung
	br.wishes = []*url.URL{other.url, t.url}
	b.probeInLocked(br, 0)
}

// confirmLocked has it that a host in doubt is down: what hung was no part alone.
func (b *breakers) confirmLocked(host *breaker) {
	host.doubt = false
	for p, br := range b.known {
		if br.open && br.outcome == hung && host.scope.covers(p) {
			b.forgetLocked(br)
		}
	}
}

// isForgotten reports whether nobody has wanted it for too long.
func (br *breaker) isForgotten(now time.Time) bool {
	if br.scope.isHost() {
		return !br.own && now.Sub(br.wanted) > unwantedFor
	}
	return now.Sub(br.wanted) > unwantedPartFor
}

// scheduleLocked sets when the next probe goes out.
func (b *breakers) scheduleLocked(br *breaker, retry time.Duration) {
	now := time.Now()
	retry = min(retry, idleProbeWait)
	br.rests = now.Add(retry)
	most := br.scope.mostWait()
	br.backoff = min(max(minProbeWait, 2*br.backoff), most)
	wait := min(br.backoff+rand.N(br.backoff/4), most)
	if now.Sub(br.wanted) > unwantedFor {
		wait = idleProbeWait
	}
	b.probeInLocked(br, max(retry, wait))
}

func (b *breakers) probeInLocked(br *breaker, wait time.Duration) {
	if br.timer != nil {
		br.timer.Stop()
	}
	br.next = time.Now().Add(wait)
	br.timer = time.AfterFunc(wait, func() { b.probe(br) })
}

// probeSoonLocked is the next probe of what has become worth one, but not while it
// asked for rest.
func (b *breakers) probeSoonLocked(br *breaker) {
	b.probeInLocked(br, max(minProbeWait, time.Until(br.rests)))
}

// probe finds out whether what a breaker is for answers again.
func (b *breakers) probe(br *breaker) {
	b.mu.Lock()
	now := time.Now()
	switch {
	case b.ended, !br.open, br.probing, b.known[br.scope] != br:
		b.mu.Unlock()
		return
	case br.isForgotten(now):
		b.forgetLocked(br)
		b.mu.Unlock()
		return
	case b.isCoveredLocked(br.scope):
		b.probeInLocked(br, maxPartWait)
		b.mu.Unlock()
		return
	}
	br.probing, br.next = true, now
	u := br.wishes[0]
	if !br.doubt { // which only something else resolves
		br.wishes = append(br.wishes[1:], u)
	}
	b.probes.Add(1)
	b.mu.Unlock()
	defer b.probes.Done()

	o, retry, err := b.ask(u)

	b.mu.Lock()
	wasDoubt := br.doubt
	up := b.probedLocked(br, o, retry, err)
	confirmed := wasDoubt && !br.doubt && br.open
	b.mu.Unlock()
	switch {
	case confirmed:
		b.report(br.scope.host, err)
	case up && br.scope.isHost() && !wasDoubt:
		b.report(br.scope.host, nil)
	}
}

// isCoveredLocked reports a part of what is open: the probes of that find out for
// both.
func (b *breakers) isCoveredLocked(part scope) bool {
	for p, br := range b.known {
		if br.open && p.covers(part) {
			return true
		}
	}
	return false
}

// uncoverLocked has the parts of what is open no more probed soon.
func (b *breakers) uncoverLocked(whole scope) {
	for p, br := range b.known {
		if br.open && !br.probing && whole.covers(p) {
			b.probeSoonLocked(br)
		}
	}
}

func (b *breakers) probedLocked(br *breaker, o outcome, retry time.Duration, err error) (up bool) {
	if b.ended || !br.probing || b.known[br.scope] != br {
		return false // a late answer to an earlier request has closed it
	}
	br.probing = false
	if o == answered {
		br.closeLocked(time.Now())
		b.uncoverLocked(br.scope)
		return true
	}
	if o != unsaid {
		br.failures++
		br.outcome, br.err, br.took = o, err, time.Since(br.next)
		if br.doubt {
			b.confirmLocked(br)
		}
	}
	b.scheduleLocked(br, retry)
	return false
}

// forget has all that is open probed at once, whatever it asked for.
func (b *breakers) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, br := range b.known {
		if br.open && !br.probing && !b.ended {
			br.rests = time.Time{}
			b.probeInLocked(br, 0)
		}
	}
}

// probe asks a host by a HEAD without credentials whether it is well. retry is
// how long it is not to be asked again.
func (s *site) probe(ctx context.Context, u *url.URL) (o outcome, retry time.Duration, err error) {
	q := &question{ask: oci.Ask{Background: true}}
	pass, err := s.limiter.Acquire(ctx, ratelimit.Call{Host: u.Host, Class: ratelimit.Check, Background: true})
	if err != nil {
		return unsaid, oci.RetryAfter(err), err
	}
	a, err := s.transmit(ctx, q, request{kind: ProbeKind, method: http.MethodHead, url: u}, login{}, pass)
	if err != nil {
		return failureOutcome(ctx, err), 0, err
	}
	a.paused = pass.Answered(a.status, a.header, a.start)
	return a.outcome(), a.paused, a.trouble()
}
