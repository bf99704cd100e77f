package policy

import (
	"sync"
	"time"

	"entrepot/oci"
)

// memory remembers something of what was judged. It is bounded: when the younger
// half is full the older one is dropped, so what is asked for stays.
type memory[V any] struct {
	mu         sync.Mutex // guards what follows
	young, old map[memoryKey]V
}

// memoryKey is what is remembered: of a rule's place, or of one of the kinds.
type memoryKey struct {
	kind int
	repo oci.Repository
	d    oci.Digest
}

// maxYoung bounds one half.
const maxYoung = 8192

func (m *memory[V]) get(key memoryKey) (v V, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v, ok = m.young[key]; ok {
		return v, true
	}
	if v, ok = m.old[key]; ok {
		m.putLocked(key, v)
	}
	return v, ok
}

func (m *memory[V]) put(key memoryKey, v V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.putLocked(key, v)
}

func (m *memory[V]) putLocked(key memoryKey, v V) {
	if len(m.young) >= maxYoung || m.young == nil {
		m.old, m.young = m.young, make(map[memoryKey]V)
	}
	m.young[key] = v
}

// verdict is what came of judging; a nil refusal lets pass.
type verdict struct {
	no    *refusal
	until time.Time // zero: for good
}

// judgedAgain is how long the refusal of a manifest is kept: it grows older, and
// other tags may come to lead to it.
const judgedAgain = time.Minute

// remembered is a verdict that still holds.
func (g *Guard) remembered(key memoryKey) (no *refusal, ok bool) {
	v, ok := g.verdicts.get(key)
	if ok && !v.until.IsZero() && !time.Now().Before(v.until) {
		return nil, false
	}
	return v.no, ok
}

func (g *Guard) remember(key memoryKey, no *refusal) {
	v := verdict{no: no}
	if no != nil && key.kind != byRepository {
		v.until = time.Now().Add(judgedAgain)
	}
	g.verdicts.put(key, v)
}
