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
	// maxCutWait is that for what a transfer that was cut goes on with, as long as it
	// tries: its client has a part, and waits for the rest. It tries in awaitedFor.
	maxCutWait = 5 * time.Second
	awaitedFor = 10 * time.Second
	// probeGrace is what a probe is given before its result is asked for.
	probeGrace = 500 * time.Millisecond
	// A host that nobody has asked for in unwantedFor is probed once in
	// idleProbeWait alone, until somebody does. It is forgotten, unless it is one
	// of the upstream's own: however quiet it was, nobody waits for that once
	// more. What fails by itself is not probed for nobody: to ask it costs little.
	unwantedFor     = time.Hour
	unwantedPartFor = time.Minute
	idleProbeWait   = 15 * time.Minute
	// A host whose trouble is 5xx is tried again by one request at a time, for what
	// is not known to fail: what did, and was not answered since, for as long as
	// somebody wants it, and suspectFor. There are firstTrials at once, and then one
	// in trialWait; none is longer than maxTrial.
	trialWait   = time.Second
	firstTrials = 8
	suspectFor  = time.Hour
	maxTrial    = 30 * time.Second
	// doubtWait is how long a question waits for what comes of a doubt, from when it arose.
	doubtWait = time.Second
	// maxPartProbes bounds the probes of a host's parts that are on their way: each may
	// hang for as long as headers may take.
	maxPartProbes = 4
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
func (br *breaker) wish(t target) {
	br.wanted = time.Now()
	if i := slices.IndexFunc(br.wishes, func(w target) bool { return w.path() == t.path() }); i >= 0 {
		br.wishes[i] = t // whose signature is good for longer
		return
	}
	br.wishes = slices.Insert(br.wishes[:min(len(br.wishes), maxWishes-1)], 0, t)
}

// restLocked is when the first of what a breaker's probes are for may be asked: what
// asked for rest is left alone, whatever becomes of the rest of its host.
func (b *breakers) restLocked(br *breaker) time.Time {
	var first time.Time
	for i, w := range br.wishes {
		if rests := b.restsLocked(w); i == 0 || rests.Before(first) {
			first = rests
		}
	}
	return first
}

func (b *breakers) restsLocked(t target) time.Time {
	if br := b.known[t.path()]; br != nil {
		return br.rests
	}
	return time.Time{}
}

// nextLocked is what to probe now: what was not for longest, unless it rests.
func (b *breakers) nextLocked(br *breaker) (t target, ok bool) {
	i := slices.IndexFunc(br.wishes, func(w target) bool { return !b.restsLocked(w).After(time.Now()) })
	if i < 0 {
		return target{}, false
	}
	t = br.wishes[i]
	if !br.doubt { // which only something else resolves
		br.wishes = append(slices.Delete(br.wishes, i, i+1), t)
	}
	return t, true
}

// mayTryLocked reports whether a request may find out if more than parts of an
// open host fail.
func (b *breakers) mayTryLocked(host *breaker, t target) bool {
	now := time.Now()
	if host.outcome != erred || now.Before(host.trial) {
		return false
	}
	for _, p := range t.scopes() {
		br := b.known[p]
		switch {
		case br == nil, p.isHost(), !br.isFailing(now):
		case p.path != "":
			return false
		case host.tried.After(now.Add(-firstTrials * trialWait)): // other parts of it failed: the rest goes first
			return false
		}
	}
	return true
}

// triedLocked ends a trial, or a request from before that was as good as one.
func (br *breaker) triedLocked() {
	now := time.Now()
	if early := now.Add(-firstTrials * trialWait); br.tried.Before(early) {
		br.tried = early
	}
	if !br.tried.After(now) {
		br.tried = br.tried.Add(trialWait)
	}
	br.trial = br.tried
}

// doubtLocked keeps requests from a host, one of which hangs, while a probe finds
// out whether it answers anything else: what it answered last, if that is of another
// repository and wants no rest, or else its root.
func (b *breakers) doubtLocked(br *breaker, t target) {
	other := br.well
	if other.url == nil || other.repo == t.repo || b.restsLocked(other).After(time.Now()) {
		other = target{url: &url.URL{Scheme: t.url.Scheme, Host: t.url.Host, Path: "/v2/"}, led: t.led}
	}
	br.open, br.doubt, br.since, br.refused, br.outcome = true, true, time.Now(), 0, hung
	br.wishes = []target{other, t}
	if br.timer != nil {
		br.timer.Stop()
	}
	if br.next, br.doubted = br.since, nil; !b.ended {
		br.doubted = b.goLocked(func() { b.probe(br) })
	}
}

// awaitDoubt returns when it is known whether a host in doubt is well, if that is all that
// keeps t from being asked, and nothing can be served instead; after doubtWait in any case,
// or when ctx ends.
func (b *breakers) awaitDoubt(ctx context.Context, t target) {
	b.mu.Lock()
	br := b.known[scope{host: t.url.Host}]
	if !t.cold || br == nil || !br.doubt || br.doubted == nil || b.failsApartLocked(t) {
		b.mu.Unlock()
		return
	}
	doubted, until := br.doubted, br.since.Add(doubtWait)
	b.mu.Unlock()
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	await(ctx, doubted)
}

// failsApartLocked reports that t would not be asked if its host were well.
func (b *breakers) failsApartLocked(t target) bool {
	return slices.ContainsFunc(t.scopes(), func(p scope) bool {
		br := b.known[p]
		return !p.isHost() && br != nil && br.open
	})
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

// isUnwanted reports that nobody has asked for it for too long.
func (br *breaker) isUnwanted(now time.Time) bool {
	if br.scope.isHost() {
		return !br.own && now.Sub(br.wanted) > unwantedFor
	}
	return now.Sub(br.wanted) > unwantedPartFor
}

// standDownLocked has a part asked by whoever wants it next, whose failure opens it
// again. It is known to fail until something that was asked for is answered: a probe,
// which goes out without credentials, is no proof of that.
func (br *breaker) standDownLocked() {
	br.open, br.failures = false, tripAfter-1
}

// scheduleLocked sets when the next probe goes out.
func (b *breakers) scheduleLocked(br *breaker) {
	most := br.scope.mostWait()
	br.backoff = min(max(minProbeWait, 2*br.backoff), most)
	wait := min(br.backoff+rand.N(br.backoff/4), most)
	switch {
	case time.Since(br.wanted) > unwantedFor:
		wait = idleProbeWait
	case time.Since(br.awaited) < awaitedFor:
		wait = min(wait, maxCutWait)
	}
	b.probeInLocked(br, max(wait, time.Until(b.restLocked(br))))
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
	b.probeInLocked(br, max(minProbeWait, time.Until(b.restLocked(br))))
}

// probe finds out whether what a breaker is for answers again.
func (b *breakers) probe(br *breaker) {
	t, ok := b.beginProbe(br)
	if !ok {
		return
	}
	defer b.probes.Done()
	began := time.Now()
	o, retry, err := b.ask(t.url)

	b.mu.Lock()
	if retry > 0 {
		b.atLocked(t.path()).rests = time.Now().Add(min(retry, idleProbeWait))
	}
	wasDoubt := br.doubt
	over := b.probedLocked(br, o, err)
	confirmed := wasDoubt && !br.doubt && br.open
	b.mu.Unlock()
	switch {
	case confirmed:
		b.report(br.scope.host, err)
	case over && o == erred:
		b.note(t, began, o, retry, err)
	case over && br.scope.isHost() && !wasDoubt:
		b.report(br.scope.host, nil)
	}
}

// beginProbe picks what to ask, if it is time for that. The probe is then on its way.
func (b *breakers) beginProbe(br *breaker) (t target, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	switch {
	case b.ended, !br.open, br.probing, b.known[br.scope] != br:
		return target{}, false
	case br.isUnwanted(now) && br.scope.isHost():
		b.forgetLocked(br)
		return target{}, false
	case br.isUnwanted(now):
		br.standDownLocked()
		return target{}, false
	case b.isCoveredLocked(br.scope):
		b.probeInLocked(br, maxPartWait)
		return target{}, false
	}
	if t, ok = b.nextLocked(br); !ok || !br.scope.isHost() && b.partProbesLocked(br.scope.host) >= maxPartProbes {
		b.probeSoonLocked(br)
		return target{}, false
	}
	br.probing, br.next = true, now
	b.probes.Add(1)
	return t, true
}

// partProbesLocked counts the probes of parts of a host that are on their way.
func (b *breakers) partProbesLocked(host string) (n int) {
	for p, br := range b.known {
		if br.probing && p.host == host && !p.isHost() {
			n++
		}
	}
	return n
}

// hear sends one request for all who want to know if a host answers, unless that is
// known: it has answered since a time, or is down. It returns when what came of it is
// noted, or ctx ends.
func (b *breakers) hear(ctx context.Context, t target, since time.Time) {
	b.mu.Lock()
	br := b.atLocked(scope{host: t.url.Host})
	if b.ended || br.open || br.answered.After(since) {
		b.mu.Unlock()
		return
	}
	if br.heard == nil {
		br.heard = b.goLocked(func() {
			began := time.Now()
			o, retry, err := b.ask(t.url)
			b.note(t, began, o, retry, err)
			b.mu.Lock()
			br.heard = nil
			b.mu.Unlock()
		})
	}
	heard := br.heard
	b.mu.Unlock()
	await(ctx, heard)
}

// goLocked runs work that is b's to wait for, who must not have ended, whatever
// becomes of those who wait for it to be done.
func (b *breakers) goLocked(work func()) (done <-chan struct{}) {
	ended := make(chan struct{})
	b.probes.Go(func() {
		defer close(ended)
		work()
	})
	return ended
}

func await(ctx context.Context, done <-chan struct{}) {
	select {
	case <-done:
	case <-ctx.Done():
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

// probedLocked notes what came of a probe, and reports whether that ended the trouble,
// or a doubt.
func (b *breakers) probedLocked(br *breaker, o outcome, err error) (over bool) {
	if b.ended || !br.probing || b.known[br.scope] != br {
		return false // a late answer to an earlier request has closed it
	}
	br.probing = false
	switch {
	case o == erred && br.doubt: // it does not hang, nor is it well
		before := br.failures - tripAfter
		br.closeLocked(time.Now())
		br.failures = before
	case o != answered:
		b.failedLocked(br, o, err)
		return false
	case br.scope.isHost():
		br.closeLocked(time.Now())
	default:
		br.standDownLocked()
	}
	b.uncoverLocked(br.scope)
	return true
}

// failedLocked notes a probe that was not answered, or by a 5xx.
func (b *breakers) failedLocked(br *breaker, o outcome, err error) {
	if o != unsaid {
		br.failures++
		br.failed, br.outcome, br.err, br.took = time.Now(), o, err, time.Since(br.next)
		if br.doubt {
			b.confirmLocked(br)
		}
	}
	b.scheduleLocked(br)
}

// forget has what fails of a repository asked for again, whatever it asked for, and
// finds out whether hosts that are down still are: not if that took longer the last
// time than it is ago. It returns when that is known, or ctx ends.
func (b *breakers) forget(ctx context.Context, repo string) {
	var probes []<-chan struct{}
	b.mu.Lock()
	for p, br := range b.known {
		switch {
		case p.repo == repo:
			b.forgetLocked(br)
		case p.isHost() && br.open && !b.ended && time.Since(br.failed) >= br.took:
			probes = append(probes, b.goLocked(func() { b.probe(br) }))
		}
	}
	b.mu.Unlock()
	for _, done := range probes {
		await(ctx, done)
	}
}

// probeNow has all that is open probed at once: what it failed of is gone.
func (b *breakers) probeNow() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, br := range b.known {
		if br.open && !br.probing && !b.ended {
			b.probeInLocked(br, 0)
		}
	}
}

// probe asks a host by a HEAD without credentials whether it is well. retry is
// how long it is not to be asked again.
func (s *site) probe(ctx context.Context, u *url.URL) (o outcome, retry time.Duration, err error) {
	q := &question{ask: oci.Ask{Background: true}}
	r := request{kind: ProbeKind, class: ratelimit.Probe, method: http.MethodHead, url: u}
	pass, err := s.limiter.Acquire(ctx, ratelimit.Call{Host: u.Host, Class: r.class, Background: true})
	if err != nil {
		return unsaid, oci.RetryAfter(err), err
	}
	a, err := s.transmit(ctx, q, r, login{}, pass.Release)
	if err != nil {
		return failureOutcome(ctx, err), 0, err
	}
	a.paused = pass.Answered(a.status, a.header, a.start)
	return a.outcome(), a.paused, a.trouble()
}
