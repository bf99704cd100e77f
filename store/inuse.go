package store

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"entrepot/oci"
)

// inUse knows which digests somebody has open: those are not evicted. Its size
// is that of what is open.
type inUse struct {
	mu      sync.Mutex // guards the fields below
	holders map[oci.Digest]holding
	claims  map[oci.Digest]chan struct{} // being removed; closed when that is over
}

// holding is what is known of a digest while somebody has it open.
type holding struct {
	count int
	drops *atomic.Int64 // how often the bytes in its fills' file were dropped; nil before the first fill
	loose bool          // readers may have bytes of that file which no record tells of
}

func newInUse() *inUse {
	return &inUse{holders: make(map[oci.Digest]holding), claims: make(map[oci.Digest]chan struct{})}
}

// hold protects dg until release. If dg is being removed right now it waits for
// the end of that, which takes one unlink.
func (u *inUse) hold(dg oci.Digest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for u.claims[dg] != nil {
		over := u.claims[dg]
		u.mu.Unlock()
		<-over
		u.mu.Lock()
	}
	h := u.holders[dg]
	h.count++
	u.holders[dg] = h
}

// beginFill gives the fill of a digest that is held the count of how often the
// bytes of its file were dropped, which it shares with those that worked on that
// file before it; anew says that it has a file of its own.
func (u *inUse) beginFill(dg oci.Digest, anew bool) *atomic.Int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	h := u.holders[dg]
	if anew || h.drops == nil {
		h.drops, h.loose = new(atomic.Int64), false
	}
	u.holders[dg] = h
	return h.drops
}

// setLoose notes that the fill of a digest left readers with bytes that are not on
// record: another that went on from the record might write over them.
func (u *inUse) setLoose(dg oci.Digest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	h := u.holders[dg]
	h.loose = true
	u.holders[dg] = h
}

func (u *inUse) isLoose(dg oci.Digest) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.holders[dg].loose
}

func (u *inUse) release(dg oci.Digest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	h := u.holders[dg]
	if h.count--; h.count == 0 {
		delete(u.holders, dg)
		return
	}
	u.holders[dg] = h
}

// claim reserves dg for removal unless somebody holds it. unclaim ends that.
func (u *inUse) claim(dg oci.Digest) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.holders[dg].count > 0 || u.claims[dg] != nil {
		return false
	}
	u.claims[dg] = make(chan struct{})
	return true
}

func (u *inUse) unclaim(dg oci.Digest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	close(u.claims[dg])
	delete(u.claims, dg)
}

// settle returns when the removals that are under way now are over.
func (u *inUse) settle() {
	u.mu.Lock()
	claims := slices.Collect(maps.Values(u.claims))
	u.mu.Unlock()
	for _, over := range claims {
		<-over
	}
}

func (u *inUse) held(dg oci.Digest) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.holders[dg].count > 0
}
