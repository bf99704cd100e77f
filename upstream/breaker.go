package upstream

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"entrepot/oci"
)

const (
	// tripAfter is how many failures in a row open a breaker. One request that
	// got no answer in all the time it had counts for as many.
	tripAfter = 3
	// An open breaker probes its host after a second, then after twice as long
	// each time.
	minProbeWait = time.Second
	maxProbeWait = 30 * time.Second
	// probeGrace is what a probe is given before its result is asked for.
	probeGrace = 500 * time.Millisecond
	// unwantedFor is how long a host is probed that nobody asks for.
	unwantedFor = time.Hour
	// maxBreakers bounds the hosts that are remembered: redirects name them.
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
	State    BreakerState
	Since    time.Time // when the outage began; zero while closed
	Failures int       // in a row; of probes too
	Refused  int       // requests that failed at once since then
	Err      error     // the last failure; nil if the host is well
	Next     time.Time // of the next probe, while open
	Paused   time.Time // until when it asked us to wait, with some of its requests or all; zero if it did not
}

// breakers keep requests away from hosts that do not answer. Each host, be it
// registry, token service or where redirects lead, has its own.
//
// An open breaker fails every request at once, the one that finds it time for a
// probe included: nobody waits for a black hole twice. A probe repeats the last
// request that was refused, as a HEAD without credentials, so that it costs no
// quota; whatever it is answered with, but a 5xx, closes the breaker.
type breakers struct {
	ask    func(u *url.URL) (outcome, time.Duration, error) // the probe
	cancel context.CancelFunc                               // of probes
	report func(host string, down error)                    // a breaker opened, or with nil closed
	probes sync.WaitGroup

	mu    sync.Mutex // guards what follows, and adding to probes
	ended bool
	hosts map[string]*breaker
}

type breaker struct {
	host     string
	open     bool
	probing  bool
	failures int
	err      error
	answered time.Time     // the last time that it was well
	failed   time.Time     // the last time that it was not
	took     time.Duration // by the last failure
	since    time.Time
	refused  int
	wanted   time.Time // by the last request that was refused, or that failed
	url      *url.URL  // of that one
	backoff  time.Duration
	next     time.Time
	timer    *time.Timer // of the next probe
}

func newBreakers(ask func(context.Context, *url.URL) (outcome, time.Duration, error), report func(string, error)) *breakers {
	ctx, cancel := context.WithCancel(context.Background())
	probe := func(u *url.URL) (outcome, time.Duration, error) { return ask(ctx, u) }
	return &breakers{ask: probe, cancel: cancel, report: report, hosts: map[string]*breaker{}}
}

// outcome is what came of a request, as far as it tells of its host.
type outcome int

const (
	unsaid   outcome = iota // the caller left, or it was never sent
	answered                // anything but a 5xx, a refusal included
	failed                  // refused, reset, nonsense, 5xx
	silent                  // no answer in all the time it had
)

// admit fails at once with Unavailable, and a truthful RetryAfter, where u's
// host does not answer.
func (b *breakers) admit(u *url.URL) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	br := b.hosts[u.Host]
	if br == nil || !br.open {
		return nil
	}
	now := time.Now()
	br.wanted, br.url = now, u
	br.refused++
	wait := br.next.Sub(now) + probeGrace
	if br.probing {
		wait = max(probeGrace, br.took-now.Sub(br.next))
	}
	return &oci.Error{
		Code:       oci.Unavailable,
		Detail:     fmt.Sprintf("%s; it is tried again in %v", detail(br.err), max(wait.Round(time.Second), time.Second)),
		RetryAfter: wait,
		Err:        br.err,
	}
}

// note tells what came of a request that began at a time; retry is how long the
// host asked to be left alone.
func (b *breakers) note(u *url.URL, began time.Time, o outcome, retry time.Duration, err error) {
	if o == unsaid {
		return
	}
	b.mu.Lock()
	down, changed := b.noteLocked(u, began, o, retry, err)
	b.mu.Unlock()
	if changed {
		b.report(u.Host, down)
	}
}

func (b *breakers) noteLocked(u *url.URL, began time.Time, o outcome, retry time.Duration, err error) (down error, changed bool) {
	now := time.Now()
	br := b.hostLocked(u.Host)
	switch {
	case o == answered:
		wasOpen := br.open
		br.closeLocked(now)
		br.backoff = 0
		return nil, wasOpen
	case br.open:
		return nil, false // an answer to a request from before
	case o == silent && !br.answered.After(began):
		br.failures = max(br.failures+1, tripAfter)
	case br.failed.After(began):
		// Requests that fail together, as those that share a connection do, are
		// one failure.
		return nil, false
	default:
		br.failures++
	}
	br.failed, br.err, br.took = now, err, now.Sub(began)
	br.wanted, br.url = now, u
	if br.failures < tripAfter {
		return nil, false
	}
	br.open, br.since, br.refused = true, now, 0
	b.scheduleLocked(br, retry)
	return err, true
}

// hostLocked finds or makes the breaker of a host. Of too many it forgets one
// that is closed, or else the one that nobody has wanted for longest.
func (b *breakers) hostLocked(host string) *breaker {
	if br := b.hosts[host]; br != nil {
		return br
	}
	if len(b.hosts) >= maxBreakers {
		var least *breaker
		for _, br := range b.hosts {
			if least == nil || !br.open && least.open || br.open == least.open && br.last().Before(least.last()) {
				least = br
			}
		}
		b.forgetLocked(least)
	}
	br := &breaker{host: host}
	b.hosts[host] = br
	return br
}

// last is when the host was last of use to anybody.
func (br *breaker) last() time.Time {
	if br.open {
		return br.wanted
	}
	return br.answered
}

func (b *breakers) forgetLocked(br *breaker) {
	if br.timer != nil {
		br.timer.Stop()
	}
	delete(b.hosts, br.host)
}

// closeLocked lets requests through. The backoff stays until one of them is
// answered: a host that is well for probes alone opens it for longer.
func (br *breaker) closeLocked(now time.Time) {
	if br.timer != nil {
		br.timer.Stop()
	}
	br.open, br.probing, br.failures, br.err, br.url = false, false, 0, nil, nil
	br.answered = now
}

// scheduleLocked sets when the next probe goes out.
func (b *breakers) scheduleLocked(br *breaker, retry time.Duration) {
	br.backoff = min(max(minProbeWait, 2*br.backoff), maxProbeWait)
	wait := max(retry, min(br.backoff+rand.N(br.backoff/4), maxProbeWait))
	br.next = time.Now().Add(wait)
	br.timer = time.AfterFunc(wait, func() { b.probe(br) })
}

// probe finds out whether a host answers again.
func (b *breakers) probe(br *breaker) {
	b.mu.Lock()
	now := time.Now()
	switch {
	case b.ended, !br.open, br.probing, b.hosts[br.host] != br:
		b.mu.Unlock()
		return
	case now.Sub(br.wanted) > unwantedFor:
		b.forgetLocked(br)
		b.mu.Unlock()
		return
	}
	br.probing, br.next = true, now
	u := br.url
	b.probes.Add(1)
	b.mu.Unlock()
	defer b.probes.Done()

	o, retry, err := b.ask(u)

	b.mu.Lock()
	up := b.probedLocked(br, o, retry, err)
	b.mu.Unlock()
	if up {
		b.report(br.host, nil)
	}
}

func (b *breakers) probedLocked(br *breaker, o outcome, retry time.Duration, err error) (up bool) {
	if b.ended || !br.probing || b.hosts[br.host] != br {
		return false // a late answer to an earlier request has closed it
	}
	br.probing = false
	if o == answered {
		br.closeLocked(time.Now())
		return true
	}
	if o != unsaid {
		br.failures++
		br.err, br.took = err, time.Since(br.next)
	}
	b.scheduleLocked(br, retry)
	return false
}

// isOpen reports whether requests to a host fail at once.
func (b *breakers) isOpen(host string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	br := b.hosts[host]
	return br != nil && br.open
}

// state lists the hosts in some trouble, and these, by host.
func (b *breakers) state(upstream string, always ...string) []Breaker {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []Breaker
	for host, br := range b.hosts {
		if br.failures == 0 && !slices.Contains(always, host) {
			continue
		}
		s := Breaker{Upstream: upstream, Host: host, State: BreakerClosed, Failures: br.failures, Err: br.err}
		if br.open {
			s.State, s.Since, s.Refused, s.Next = BreakerOpen, br.since, br.refused, br.next
		}
		if br.probing {
			s.State, s.Next = BreakerProbing, time.Time{}
		}
		all = append(all, s)
	}
	for _, host := range always {
		if b.hosts[host] == nil {
			all = append(all, Breaker{Upstream: upstream, Host: host, State: BreakerClosed})
		}
	}
	slices.SortFunc(all, func(x, y Breaker) int { return strings.Compare(x.Host, y.Host) })
	return all
}

// close ends the probes and waits for them.
func (b *breakers) close() {
	b.mu.Lock()
	b.ended = true
	for _, br := range b.hosts {
		if br.timer != nil {
			br.timer.Stop()
		}
	}
	b.mu.Unlock()
	b.cancel()
	b.probes.Wait()
}
