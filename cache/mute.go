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
	mu        sync.Mutex           // guards what follows
	hosts     map[string]*mute     // the upstreams, which are a closed set
	questions map[string]*question // on their way, or overdue
}

// mute is what is known of one upstream.
type mute struct {
	answered time.Time // last
	overdue  bool      // a check is, and nothing was answered since somebody waits for it
}

// question is what is known of one question, which may be on its way several times:
// for the background, and for who does not wait for that.
type question struct {
	key     string
	flights int
	began   time.Time // when the last of them did, for which somebody waits
	overdue bool      // somebody waited for it in vain, and it was not answered since
}

// is reports whether a question to an upstream is not to be waited for.
func (m *mutes) is(host, key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, q := m.hosts[host], m.questions[key]
	return h != nil && h.overdue || q != nil && q.overdue
}

// asked notes that a question is on its way, until ended.
func (m *mutes) asked(key string) *question {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.questions[key]
	if q == nil {
		if m.questions == nil || len(m.questions) >= maxMutes {
			m.questions = map[string]*question{} // forgetting costs one more wait each
		}
		q = &question{key: key}
		m.questions[key] = q
	}
	q.flights++
	q.began = time.Now()
	return q
}

// gaveUp notes that somebody waited for a question in vain, unless it was answered
// meanwhile.
func (m *mutes) gaveUp(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if q := m.questions[key]; q != nil {
		q.overdue = true
	}
}

// ended notes that a question is on its way no more. One that was overdue stays so
// until it gets an answer.
func (m *mutes) ended(q *question, answered bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	q.flights--
	q.overdue = q.overdue && !answered
	if q.flights == 0 && !q.overdue && m.questions[q.key] == q {
		delete(m.questions, q.key)
	}
}

// hostGaveUp is gaveUp of a check: nobody waits for its upstream, if that has said
// nothing since the check began. A check that was answered may hang at what the answer
// leads to.
func (m *mutes) hostGaveUp(host, key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, q := m.ofLocked(host), m.questions[key]
	h.overdue = h.overdue || q != nil && !h.answered.After(q.began)
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
