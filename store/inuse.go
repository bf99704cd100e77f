package store

import (
	"maps"
	"slices"
	"sync"

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
	fills uint64 // that began
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

// beginFill gives the fill of a digest that is held its number: from here on no
// earlier one can tell what is in their file.
func (u *inUse) beginFill(dg oci.Digest) uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	h := u.holders[dg]
	h.fills++
	u.holders[dg] = h
	return h.fills
}

// lastFill is the number of the fill of a digest that began last.
func (u *inUse) lastFill(dg oci.Digest) uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.holders[dg].fills
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
