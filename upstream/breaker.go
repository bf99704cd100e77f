package upstream

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"entrepot/oci"
)

const (
	// tripAfter is how many failures in a row open a breaker. One request that
	// took all the time it had in vain counts for as many.
	tripAfter = 3
	// maxBreakers bounds what is remembered: redirects name hosts.
	maxBreakers = 256
)

// BreakerState is what becomes of requests to a host.
type BreakerState string

// The states.
const (
	BreakerClosed  BreakerState = "closed"  // they are sent
	BreakerOpen    BreakerState = "open"    // they fail at once
	BreakerProbing BreakerState = "probing" // likewise, while a probe is on its way
)

// Breaker is what is known of how a host answers.
type Breaker struct {
	Upstream string
	Host     string // with its port, if the URL has one
	Part     string // empty: all of it; else the path or repository that is not asked by itself
	Repo     string // that the part is asked about; empty: none
	State    BreakerState
	Since    time.Time // when the outage began; zero while closed
	Failures int       // in a row; of probes too
	Refused  int       // requests that failed at once since then
	Failed   time.Time // when the last of them was; zero if the host is well
	Err      error     // what it was
	Next     time.Time // of the next probe, while open
	Behind   time.Time // until when other addresses are asked before it; zero: it has its place
	Why      Trouble   // for which it is behind them
	Paused   time.Time // until when it asked us to wait, with some of its requests or all; zero if it did not
	SignsIn  bool      // a login would be used there: it is no place that redirects lead to
}

// breakers keep requests away from hosts that do not answer. Each host, be it
// registry, token service or where redirects lead, has its own, and so has what
// answers 5xx by itself: a path, or a repository.
//
// A 5xx is first of all the word of what was asked for. It counts against a
// repository, or a host, only if no part of it that is known to fail gave it, so
// that what is broken takes nothing else away, however often it is asked for. Where
// no connection comes about, it is the host that fails. Where one does, and then no
// answer, the host is in doubt unless it has answered others meanwhile: its breaker
// is open until a probe of something else, which goes out at once, tells which of
// them it is: whatever that is answered with, the host does not hang for everything,
// and a 5xx counts as one more failure.
//
// An open breaker fails every request at once, the one that finds it time for a
// probe included: nobody waits for a black hole twice. In the first second of a doubt who
// has nothing else to serve waits for what comes of that. Where a host's trouble is
// 5xx, nobody waits: it may be that of some of its parts alone, so one request at
// a time for what is not known to fail goes out, as a trial. A probe repeats what was
// refused, as a HEAD without credentials, so that it costs no quota: what is not
// known to fail first, then one after the other. Whatever it is answered with, but a
// 5xx, closes the breaker; that of a part opens again with the next failure, since
// such a probe proves little of it. Probes are far apart after a while, but not where a
// transfer that was cut is to go on.
type breakers struct {
	ask    func(u *url.URL) (outcome, time.Duration, error) // the probe
	cancel context.CancelFunc                               // of probes
	report func(host string, down error)                    // a host's breaker opened, or with nil closed
	probes sync.WaitGroup

	mu    sync.Mutex // guards what follows, and adding to probes
	ended bool
	known map[scope]*breaker
}

// scope is what a breaker is for: a host, or a part of what it has.
type scope struct{ host, repo, path string }

func (p scope) isHost() bool { return p.repo == "" && p.path == "" }

// covers reports that q is a part of p.
func (p scope) covers(q scope) bool {
	return p != q && p.host == q.host && p.path == "" && (p.repo == "" || p.repo == q.repo)
}

// target is where a request goes.
type target struct {
	url  *url.URL
	repo string // that it is about; empty: none
	led  bool   // a redirect leads there
	cut  bool   // it is for a transfer that was cut, and that somebody waits for
	cold bool   // nothing can be served instead, as far as is known
}

// scopes are the breakers that a request has to pass, the host's last. Where
// redirects lead there are no repositories.
func (t target) scopes() []scope {
	host := scope{host: t.url.Host}
	if t.repo == "" || t.led {
		return []scope{{host.host, "", t.url.Path}, host}
	}
	return []scope{{host.host, t.repo, t.url.Path}, {host.host, t.repo, ""}, host}
}

// path is the narrowest of them.
func (t target) path() scope { return t.scopes()[0] }

type breaker struct {
	scope    scope
	own      bool // no redirect led to it
	open     bool
	probing  bool
	failures int
	err      error
	outcome  outcome         // the last failure, while open
	doubt    bool            // it is open until a probe tells whether it is well
	doubted  <-chan struct{} // closed when the first of those has come to something
	well     target          // the last that was answered
	trial    time.Time       // from when on one is allowed, while open; zero: at once
	tried    time.Time       // when the trials that there were would all have had their time
	answered time.Time       // the last time that it was well, or resolved a doubt
	failed   time.Time       // the last time that it was not
	took     time.Duration   // by the last failure
	since    time.Time
	refused  int
	heard    <-chan struct{} // closed when a question by hear is answered; nil: there is none
	wanted   time.Time       // by the last request that was refused, or that failed
	awaited  time.Time       // by the last of those that was for a transfer that was cut
	wishes   []target        // to be probed, the next one first
	backoff  time.Duration
	next     time.Time
	rests    time.Time   // of a path: until when it asked not to be probed
	timer    *time.Timer // of the next probe
}

func newBreakers(ask func(context.Context, *url.URL) (outcome, time.Duration, error), report func(string, error)) *breakers {
	ctx, cancel := context.WithCancel(context.Background())
	probe := func(u *url.URL) (outcome, time.Duration, error) { return ask(ctx, u) }
	return &breakers{ask: probe, cancel: cancel, report: report, known: map[scope]*breaker{}}
}

// outcome is what came of a request, as far as it tells of its host.
type outcome int

const (
	unsaid   outcome = iota // the caller left, or it was never sent
	answered                // anything but a 5xx, a refusal included
	failed                  // refused, reset, nonsense
	erred                   // 5xx
	silent                  // no connection in all the time it had
	hung                    // a connection, and no answer in all the time it had
)

// check fails with Unavailable, and a truthful RetryAfter, where t does not answer: at
// once, but for a moment in which that of a host in doubt is found out.
func (b *breakers) check(ctx context.Context, t target) error {
	b.awaitDoubt(ctx, t)
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.checkLocked(t)
}

// admit is check for a request that is sent next, of which note will tell.
func (b *breakers) admit(ctx context.Context, t target) error {
	b.awaitDoubt(ctx, t)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.checkLocked(t); err != nil {
		return err
	}
	if br := b.known[scope{host: t.url.Host}]; br != nil && br.open {
		br.trial = time.Now().Add(maxTrial)
	}
	return nil
}

func (b *breakers) checkLocked(t target) error {
	br := b.blockingLocked(t)
	if br == nil {
		return nil
	}
	b.wantLocked(br, t)
	return b.refusalLocked(br, t)
}

// foresee is check for who only wants to know: nothing is probed for that.
func (b *breakers) foresee(t target) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if br := b.blockingLocked(t); br != nil {
		return b.refusalLocked(br, t)
	}
	return nil
}

// foreseeLed is foresee for what is sent wherever a redirect leads, of which nothing is
// known but where the others led: nil, unless all of those hosts are down.
func (b *breakers) foreseeLed() (verdict error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	first := ""
	for p, br := range b.known {
		switch {
		case !p.isHost() || br.own:
		case !br.open || br.outcome == erred: // some of what it has may be had
			return nil
		case first == "" || p.host < first:
			first, verdict = p.host, b.refusalLocked(br, target{url: &url.URL{Host: p.host}, led: true})
		}
	}
	return verdict
}

// blockingLocked is the breaker that keeps t from being asked; nil if none does.
func (b *breakers) blockingLocked(t target) *breaker {
	for _, p := range slices.Backward(t.scopes()) { // the parts of a host that is down want no probe
		br := b.known[p]
		if br != nil && br.open && !(p.isHost() && b.mayTryLocked(br, t)) {
			return br
		}
	}
	return nil
}

// wantLocked notes that t was wanted.
func (b *breakers) wantLocked(br *breaker, t target) {
	now := time.Now()
	br.wish(t)
	br.refused++
	if t.cut {
		br.awaited = now
	}
	switch next := br.next.Sub(now); {
	case br.probing:
	case next > br.scope.mostWait(): // it was idle
		b.probeSoonLocked(br)
	case t.cut && next > maxCutWait:
		b.probeInLocked(br, max(maxCutWait, time.Until(b.restLocked(br))))
	}
	for _, p := range t.scopes() {
		if part := b.known[p]; part != nil {
			part.wanted = now
		}
	}
}

func (b *breakers) refusalLocked(br *breaker, t target) error {
	now := time.Now()
	wait := br.next.Sub(now) + probeGrace
	if br.probing {
		wait = max(probeGrace, br.took-now.Sub(br.next))
	}
	for _, p := range t.scopes() {
		if part := b.known[p]; part != nil {
			wait = max(wait, part.rests.Sub(now)+probeGrace)
		}
	}
	when := fmt.Sprintf("; it is tried again in %v", max(wait.Round(time.Second), time.Second))
	return &oci.Error{Code: oci.Unavailable, Detail: detail(br.err) + when, When: when, RetryAfter: wait, Err: br.err}
}

// note tells what came of a request that began at a time; retry is how long the
// host asked to be left alone.
func (b *breakers) note(t target, began time.Time, o outcome, retry time.Duration, err error) {
	b.mu.Lock()
	if br := b.known[scope{host: t.url.Host}]; br != nil && br.open { // it was a trial
		br.triedLocked()
	}
	if o == unsaid {
		b.mu.Unlock()
		return
	}
	down, changed := b.noteLocked(t, began, o, retry, err)
	b.mu.Unlock()
	if changed {
		b.report(t.url.Host, down)
	}
}

// noteLocked reports whether the host's breaker has opened, or closed.
func (b *breakers) noteLocked(t target, began time.Time, o outcome, retry time.Duration, err error) (down error, changed bool) {
	now := time.Now()
	known := false // that a part fails in this way, which is no news of the whole
	for _, p := range t.scopes() {
		if !p.isHost() && o != erred && o != hung { // it concerns a part in that it ends its trouble at most
			if br := b.known[p]; br != nil && o == answered {
				b.forgetLocked(br)
			}
			continue
		}
		br := b.atLocked(p)
		br.own = br.own || !t.led
		failing := br.isFailing(now) && (o != hung || br.outcome == hung)
		switch {
		case o == answered:
			wasOpen, wasDoubt := br.open, br.doubt
			br.closeLocked(now)
			if wasOpen {
				b.uncoverLocked(p)
				changed = !wasDoubt
			}
			br.backoff, br.well = 0, t
		case !known && br.counts(began, o):
			br.failed, br.err, br.took = now, err, now.Sub(began)
			br.wish(t)
			if p.path != "" && o == erred && retry > 0 { // it is busy, and says for how long
				br.failures, br.rests = max(br.failures, tripAfter), now.Add(min(retry, idleProbeWait))
			}
			switch {
			case o == hung && p.isHost():
				b.doubtLocked(br, t)
			case br.failures >= tripAfter:
				br.open, br.since, br.refused, br.outcome, br.trial = true, now, 0, o, time.Time{}
				b.scheduleLocked(br)
				down, changed = err, p.isHost()
			}
		}
		known = known || failing
	}
	return down, changed
}

// isFailing reports that it did when it was last wanted, and nothing was answered
// since.
func (br *breaker) isFailing(now time.Time) bool {
	return br.open || br.failures > 0 && now.Sub(br.wanted) < suspectFor
}

// counts adds a failure, unless it says no more than the last one did: requests
// that fail together, as those that share a connection do, are one failure.
//
// What hangs trips by itself at once, and has a host doubted.
func (br *breaker) counts(began time.Time, o outcome) bool {
	switch {
	case br.open: // an answer to a request from before, or to a trial
		if o != hung { // which a probe will tell
			br.outcome = o
		}
		return false
	case o == hung && br.scope.isHost() && br.answered.After(began):
		return false
	case o == hung && (br.scope.isHost() || br.scope.path != ""), o == silent && !br.answered.After(began):
		br.failures += tripAfter
	case br.failed.After(began):
		return false
	default:
		br.failures++
	}
	return true
}

// atLocked finds or makes a breaker. Of too many it forgets one that is closed,
// or else the one that nobody has wanted for longest.
func (b *breakers) atLocked(p scope) *breaker {
	if br := b.known[p]; br != nil {
		return br
	}
	if len(b.known) >= maxBreakers {
		var least *breaker
		for _, br := range b.known {
			if least == nil || !br.open && least.open || br.open == least.open && br.last().Before(least.last()) {
				least = br
			}
		}
		b.forgetLocked(least)
	}
	br := &breaker{scope: p}
	b.known[p] = br
	return br
}

// last is when it was last of use to anybody.
func (br *breaker) last() time.Time {
	if br.open || br.wanted.After(br.answered) {
		return br.wanted
	}
	return br.answered
}

func (b *breakers) forgetLocked(br *breaker) {
	if br.timer != nil {
		br.timer.Stop()
	}
	delete(b.known, br.scope)
}

// closeLocked lets requests through. The backoff stays until one of them is
// answered: a host that is well for probes alone opens it for longer.
func (br *breaker) closeLocked(now time.Time) {
	if br.timer != nil {
		br.timer.Stop()
	}
	br.open, br.probing, br.doubt, br.failures, br.err, br.wishes = false, false, false, 0, nil, nil
	br.answered = now
}

// isOpen reports whether requests to a host fail at once.
func (b *breakers) isOpen(host string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	br := b.known[scope{host: host}]
	return br != nil && br.open
}

// state lists the hosts in some trouble, and these, by host, each before those of
// its parts that are not asked.
func (b *breakers) state(upstream string, always ...string) []Breaker {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []Breaker
	for p, br := range b.known {
		host := p.host
		if p.isHost() && br.failures == 0 && !slices.Contains(always, host) || !p.isHost() && !br.open {
			continue
		}
		s := Breaker{Upstream: upstream, Host: host, Part: cmp.Or(p.path, p.repo), Repo: p.repo, State: BreakerClosed, Failures: br.failures, Err: br.err}
		if br.failures > 0 {
			s.Failed = br.failed
		}
		if br.open {
			s.State, s.Since, s.Refused, s.Next = BreakerOpen, br.since, br.refused, br.next
		}
		if br.probing {
			s.State, s.Next = BreakerProbing, time.Time{}
		}
		all = append(all, s)
	}
	for _, host := range always {
		if b.known[scope{host: host}] == nil {
			all = append(all, Breaker{Upstream: upstream, Host: host, State: BreakerClosed})
		}
	}
	slices.SortFunc(all, func(x, y Breaker) int {
		return cmp.Or(strings.Compare(x.Host, y.Host), strings.Compare(x.Part, y.Part), strings.Compare(x.Repo, y.Repo))
	})
	return all
}

// close ends the probes and waits for them.
func (b *breakers) close() {
	b.mu.Lock()
	b.ended = true
	for _, br := range b.known {
		if br.timer != nil {
			br.timer.Stop()
		}
	}
	b.mu.Unlock()
	b.cancel()
	b.probes.Wait()
}
