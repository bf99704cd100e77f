package upstream

import (
	"sync"
	"time"

	"entrepot/oci"
)

const (
	// mixedFor is how long a blob is had from one address at a time, once it was wrong
	// and had come from several. Large ones take long. maxMixed is of how many that is
	// remembered.
	mixedFor = time.Hour
	maxMixed = 256
)

// mixtures are the blobs that came from several addresses, and were wrong. Each try
// is at one address for a while: it is right, or tells who has the wrong bytes.
type mixtures struct {
	mu       sync.Mutex // guards byDigest, and until of what is in it
	byDigest map[oci.Digest]*mixture
}

// mixture is what is known of the addresses that a blob may be had from.
type mixture struct {
	until time.Time

	mu    sync.Mutex    // guards what follows
	tries map[*site]int // how often it was turned to
	last  *site         // it gave bytes last, and has not failed since
}

// add has d come from one address at a time.
func (m *mixtures) add(d oci.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	until := time.Now().Add(mixedFor)
	if known := m.byDigest[d]; known != nil {
		known.until = until
		return
	}
	if m.byDigest == nil || len(m.byDigest) >= maxMixed {
		m.byDigest = map[oci.Digest]*mixture{} // forgetting costs a try
	}
	m.byDigest[d] = &mixture{until: until, tries: map[*site]int{}}
}

// of is nil where nothing is known against d.
func (m *mixtures) of(d oci.Digest) *mixture {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.byDigest[d]
	if known == nil || time.Now().After(known.until) {
		delete(m.byDigest, d)
		return nil
	}
	return known
}

// rank is how soon s is asked. Where the last bytes came from, if that is well, the next
// come from, too: they may go on with what is kept of those, and may have been right. Of
// others those are first that were tried least.
func (m *mixture) rank(s *site, isWell bool) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if isWell && m.last == s {
		return -1
	}
	return m.tries[s]
}

// begins notes that all that a handle gives will come from s.
func (m *mixture) begins(s *site) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last != s {
		m.tries[s]++
	}
	m.last = s
}

// goesOn notes that more came from s.
func (m *mixture) goesOn(s *site) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = s
}

func (m *mixture) failed(s *site) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last == s {
		m.last = nil
	}
}
