package cache

import (
	"sync"
	"time"
)

// mutes knows which upstreams leave a check without an answer. One client has
// waited for that long enough; nobody else does, whatever held tag they ask for,
// until upstream has said something, or the check has failed, from where on its
// breaker knows.
type mutes struct {
	mu    sync.Mutex       // guards hosts
	hosts map[string]*mute // the upstreams, which are a closed set
}

// mute is what is known of one.
type mute struct {
	answered time.Time // last
	overdue  bool      // a check is, and nothing was answered since somebody waits for it
}

func (m *mutes) is(host string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.hosts[host]
	return h != nil && h.overdue
}

// gaveUp notes that somebody waited in vain since a time.
func (m *mutes) gaveUp(host string, since time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.ofLocked(host)
	h.overdue = h.overdue || !h.answered.After(since)
}

// ended notes that a check has.
func (m *mutes) ended(host string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.ofLocked(host)
	h.overdue = false
	if err == nil || !saidBy(err).isSilence() {
		h.answered = time.Now()
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
