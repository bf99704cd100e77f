package cache

import (
	"sync"
	"time"
)

// maxMutes bounds the questions that mutes knows.
const maxMutes = 4096

// mutes knows what is left without an answer, so that one client alone waits for
// it in vain. That is an upstream of which nothing is heard any more: nobody waits
// then, whatever held tag they ask for, until it has said something, or the check
// has failed, from where on its breaker knows. And it is a single question that
// hangs at an upstream that answers others: nobody waits for that one until it was
// answered itself.
type mutes struct {
	mu        sync.Mutex       // guards what follows
	hosts     map[string]*mute // the upstreams, which are a closed set
	questions map[string]bool  // on their way, or overdue: whether they are
}

// mute is what is known of one upstream.
type mute struct {
	answered time.Time // last
	overdue  bool      // a check is, and nothing was answered since somebody waits for it
}

// is reports whether a question to an upstream is not to be waited for.
func (m *mutes) is(host, key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.hosts[host]
	return h != nil && h.overdue || m.questions[key]
}

// asked notes that a question is on its way.
func (m *mutes) asked(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.questions[key]; known {
		return
	}
	if m.questions == nil || len(m.questions) >= maxMutes {
		m.questions = map[string]bool{} // forgetting costs one more wait each
	}
	m.questions[key] = false
}

// gaveUp notes that somebody waited for a question in vain, unless it was answered
// meanwhile.
func (m *mutes) gaveUp(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.questions[key]; known {
		m.questions[key] = true
	}
}

// ended notes that a question has. One that was overdue stays so until it gets an
// answer.
func (m *mutes) ended(key string, answered bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if answered || !m.questions[key] {
		delete(m.questions, key)
	}
}

// hostGaveUp notes that somebody waited in vain since a time.
func (m *mutes) hostGaveUp(host string, since time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.ofLocked(host)
	h.overdue = h.overdue || !h.answered.After(since)
}

// hostEnded notes that a check has, and whether it was answered.
func (m *mutes) hostEnded(host string, answered bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.ofLocked(host)
	h.overdue = false
	if answered {
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
