package cache

import (
	"errors"
	"sync"
	"time"

	"entrepot/oci"
)

// maxOverdue bounds the questions that are known to hang.
const maxOverdue = 4096

// mutes knows what is left without an answer, so that one client alone waits for
// it in vain. That is an upstream of which nothing is heard any more: nobody waits
// then, whatever is held that they ask for, until it has said something, or a question
// from before has failed, from where on its breaker knows; and nobody waits for those
// that are on their way still. And it is a single question that hangs at an upstream
// that answers others: nobody waits for that one until it was answered itself.
type mutes struct {
	mu      sync.Mutex          // guards what follows
	hosts   map[string]*mute    // the upstreams, which are a closed set
	flying  map[string]*flying  // questions on their way
	overdue map[string]struct{} // questions that somebody waited for in vain, and that were not answered since
}

// mute is what is known of one upstream.
type mute struct {
	answered time.Time // last
	overdue  time.Time // since when somebody has waited for it in vain; zero: nobody has
	failed   time.Time // when what was overdue did, and nothing was answered since; zero: it did not
}

// flying is what is known of a question on its way, which it may be several times:
// for the background, and for who does not wait for that.
type flying struct {
	flights    int
	began      time.Time // when the last of them did
	background bool      // that one gives way to others, and may not have been sent
}

// is reports whether a question to an upstream is not to be waited for.
func (m *mutes) is(host, key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, hangs := m.overdue[key]; hangs {
		return true
	}
	h, q := m.hosts[host], m.flying[key]
	return h != nil && (!h.overdue.IsZero() || q != nil && !q.began.After(h.failed))
}

// asked notes that a question is on its way, until ended, and returns since when.
func (m *mutes) asked(key string, ask oci.Ask) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.flying[key]
	if q == nil {
		if m.flying == nil {
			m.flying = map[string]*flying{}
		}
		q = new(flying)
		m.flying[key] = q
	}
	q.flights++
	q.began, q.background = time.Now(), ask.Background
	return q.began
}

// gaveUp notes that somebody waited for a question in vain, unless it was answered
// meanwhile. That is in vain for its upstream, too, if it has said nothing since the
// question began: one that was answered may hang at what the answer leads to.
func (m *mutes) gaveUp(host, key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.flying[key]
	if q == nil {
		return
	}
	if m.overdue == nil || len(m.overdue) >= maxOverdue {
		m.overdue = map[string]struct{}{} // forgetting costs one more wait each
	}
	m.overdue[key] = struct{}{}
	if h := m.ofLocked(host); h.overdue.IsZero() && !q.background && !h.answered.After(q.began) {
		h.overdue = time.Now()
	}
}

// heard notes what came of asking an upstream a question that began at a time. If that
// was before the upstream was overdue, and it failed, the breaker knows by now. One that
// let somebody wait once more does not: then only an answer will do.
func (m *mutes) heard(host string, began time.Time, ask oci.Ask, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.ofLocked(host)
	switch {
	case isAnswer(err, ask):
		*h = mute{answered: time.Now()}
	case !ask.Background && began.Before(h.overdue) && h.failed.IsZero():
		h.overdue, h.failed = time.Time{}, time.Now()
	}
}

// isAnswer reports that upstream said something, for all we know: a question in the
// background may have failed to get its turn.
func isAnswer(err error, ask oci.Ask) bool {
	said := wordOf(err)
	return err == nil || !ask.Background && said != Trouble && said != Spoilt && !errors.Is(err, oci.ErrCrowded)
}

// ended notes that a question is on its way no more. One that was overdue stays so
// until it gets an answer.
func (m *mutes) ended(key string, answered bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.flying[key]
	if q.flights--; q.flights == 0 {
		delete(m.flying, key)
	}
	if answered {
		delete(m.overdue, key)
	}
}

func (m *mutes) ofLocked(host string) *mute {
	h := m.hosts[host]
	if h == nil {
		if m.hosts == nil {
			m.hosts = map[string]*mute{}
		}
		h = new(mute)
		m.hosts[host] = h
	}
	return h
}
