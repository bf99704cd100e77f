package warm

import (
	"sync"
	"time"

	"entrepot/oci"
)

// Progress is how far an image is. It is written by one Pull and read by
// whoever looks; the zero value is ready.
type Progress struct {
	mu    sync.Mutex // guards what follows
	state State
	last  time.Time // when something came
}

// State is a moment of a Progress.
type State struct {
	Blobs, BlobsDone int
	Bytes, BytesDone int64     // of blobs; Bytes is what manifests say until the blobs themselves do
	Waiting          string    // what stands in the way, without when to come again; empty for nothing
	Until            time.Time // when it will be tried again
}

// Now is how far it is.
func (p *Progress) Now() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// change changes the state, and notes that something came.
func (p *Progress) change(f func(*State)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.state)
	p.state.Waiting, p.state.Until = "", time.Time{}
	p.last = time.Now()
}

// mayWait reports whether waiting until then is within the patience with which
// nothing comes, and if so says what for.
func (p *Progress) mayWait(until time.Time, patience time.Duration, why error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if until.After(p.last.Add(patience)) {
		return false
	}
	p.state.Waiting, p.state.Until = oci.LastingWhy(why), until
	return true
}
