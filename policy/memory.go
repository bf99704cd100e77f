package policy

import (
	"sync"
	"time"

	"entrepot/oci"
)

// memory remembers verdicts. It is bounded: when the younger half is full, the
// older one is dropped, so what is asked for stays.
type memory struct {
	mu         sync.Mutex // guards what follows
	young, old map[memoryKey]remembered
}

// memoryKey is what was judged: by which rule, or by none in particular.
type memoryKey struct {
	kind int
	repo oci.Repository
	d    oci.Digest
}

type remembered struct {
	no    *refusal
	until time.Time // zero: for good
}

const (
	maxYoung = 8192
	// judgedAgain is how long the refusal of a manifest is kept: it grows older,
	// and other tags may come to lead to it.
	judgedAgain = time.Minute
)

func (m *memory) get(key memoryKey) (no *refusal, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.young[key]
	if !ok {
		if r, ok = m.old[key]; ok {
			m.putLocked(key, r)
		}
	}
	if ok && !r.until.IsZero() && !time.Now().Before(r.until) {
		return nil, false
	}
	return r.no, ok
}

func (m *memory) put(key memoryKey, no *refusal) {
	r := remembered{no: no}
	if no != nil && key.kind != byRepository {
		r.until = time.Now().Add(judgedAgain)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.putLocked(key, r)
}

func (m *memory) putLocked(key memoryKey, r remembered) {
	if len(m.young) >= maxYoung || m.young == nil {
		m.old, m.young = m.young, make(map[memoryKey]remembered)
	}
	m.young[key] = r
}
