package upstream

import (
	"cmp"
	"fmt"
	"sync"
	"time"

	"entrepot/oci"
	"entrepot/ratelimit"
)

const (
	// A site that failed is asked after the others for so long, one that was
	// silent for longer: that cost more time.
	ailingAfterFailure = 5 * time.Second
	ailingAfterSilence = 30 * time.Second
	// slowFor is that for one whose bodies came too slowly, or stalled, and wrongFor
	// for one that gave wrong bytes, which costs a pull each time.
	slowFor  = 5 * time.Minute
	wrongFor = 10 * time.Minute
	// lacksFor is how long a site is asked after the others for a repository of
	// which it did not have what they had, and maxLacking of how many that is
	// remembered.
	lacksFor   = time.Minute
	maxLacking = 256
)

// health sorts what may be asked.
type health int

const (
	well    health = iota
	slow           // its bodies came too slowly, or stalled, a while ago
	ailing         // it failed a moment ago
	resting        // it wants to be left alone for a moment
	lacking        // it did not have what others had of the repository
	down           // its breaker is open: to ask it costs nothing
	lying          // it gave wrong bytes a while ago
)

// standing is what is remembered of how a site did.
type standing struct {
	mu     sync.Mutex // guards what follows
	ailing time.Time  // until when others are asked first; likewise:
	slow   time.Time
	rate   int64 // bytes a second of a body, while slow
	lying  time.Time
	lacks  map[string]time.Time // by the path of a repository
}

// health tells how the site, or another host that it leads to, is off for a call;
// rate is of one that is slow.
func (s *site) health(call ratelimit.Call, repo oci.Repository) (h health, rate int64) {
	if s.breakers.isOpen(call.Host) {
		h = down
	}
	paused := s.limiter.Paused(call) > 0
	now := time.Now()
	st := &s.standing
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case now.Before(st.lying):
		return lying, 0
	case h == down:
		return down, 0
	case now.Before(st.lacks[repo.Path]):
		return lacking, 0
	case paused:
		return resting, 0
	case now.Before(st.ailing):
		return ailing, 0
	case now.Before(st.slow):
		return slow, st.rate
	}
	return well, 0
}

// fared notes how a question went. A refusal is no sickness, and what limits
// keep away they know themselves. An answer that was late cures nothing.
func (s *site) fared(err error, prompt bool) {
	switch {
	case err == nil, !oci.IsRetryable(err):
		if prompt {
			s.recovers()
		}
	case oci.CodeOf(err) != oci.TooManyRequests && oci.CodeOf(err) != oci.Internal:
		s.ails(ailingAfterFailure)
	}
}

// ails has others asked first for a time, at least.
func (s *site) ails(d time.Duration) {
	s.standing.mu.Lock()
	defer s.standing.mu.Unlock()
	if until := time.Now().Add(d); until.After(s.standing.ailing) {
		s.standing.ailing = until
	}
}

func (s *site) isAiling() bool {
	s.standing.mu.Lock()
	defer s.standing.mu.Unlock()
	return time.Now().Before(s.standing.ailing)
}

func (s *site) recovers() {
	s.standing.mu.Lock()
	defer s.standing.mu.Unlock()
	s.standing.ailing = time.Time{}
}

// isSlow notes that a body came at a rate of bytes a second, and tells operators
// if others are asked for that reason.
func (s *site) isSlow(rate int64, left bool) {
	s.standing.mu.Lock()
	s.standing.slow, s.standing.rate = time.Now().Add(slowFor), rate
	s.standing.mu.Unlock()
	if left {
		s.warn(HostSlow, s.endpoint.Host, fmt.Sprintf("it sends %d bytes a second: other addresses are asked before it for %v", rate, slowFor))
	}
}

// lied notes that the site gave what a digest does not name.
func (s *site) lied(what string) {
	s.standing.mu.Lock()
	s.standing.lying = time.Now().Add(wrongFor)
	s.standing.mu.Unlock()
	s.warn(WrongBytes, s.endpoint.Host, fmt.Sprintf("%s came from there, and is not what its digest names: other addresses are asked before it for %v", what, wrongFor))
}

// lacked notes that the site had not what another had of a repository.
func (s *site) lacked(repo oci.Repository) {
	st := &s.standing
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.lacks == nil || len(st.lacks) >= maxLacking {
		st.lacks = map[string]time.Time{} // forgetting costs a question
	}
	st.lacks[repo.Path] = time.Now().Add(lacksFor)
}

// forgetLacks has a repository asked for by its place again.
func (st *standing) forgetLacks(repo string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	delete(st.lacks, repo)
}

// setBack tells until when, and why, a site is asked after the others, of what lasts.
func (st *standing) setBack() (until time.Time, why Trouble) {
	st.mu.Lock()
	defer st.mu.Unlock()
	switch now := time.Now(); {
	case now.Before(st.lying):
		return st.lying, WrongBytes
	case now.Before(st.slow):
		return st.slow, HostSlow
	}
	return time.Time{}, ""
}

// rank is a place in the order of addresses.
type rank struct {
	tries  int // of a mixture
	health health
	rate   int64
	fails  int
}

func (r rank) compare(o rank) int {
	if (r.health == lying) != (o.health == lying) {
		return cmp.Compare(r.health, o.health)
	}
	return cmp.Or(cmp.Compare(r.tries, o.tries), cmp.Compare(r.health, o.health), cmp.Compare(o.rate, r.rate), cmp.Compare(r.fails, o.fails))
}
