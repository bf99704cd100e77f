package store

import (
	"sync"
	"time"
)

// recheck is how long a record that was read from disk is believed. It bounds
// how late we notice that somebody changed the data directory by hand.
const recheck = 2 * time.Second

// recent remembers small records that change, for a moment, to spare the disk.
// It is written only after the file is, so it never says more than the disk.
type recent[K comparable, V any] struct {
	most int
	keep time.Duration

	since time.Time // when it was made

	mu      sync.Mutex // guards the fields below
	entries map[K]recentEntry[V]
}

type recentEntry[V any] struct {
	value V
	until time.Duration // of age
}

func newRecent[K comparable, V any](most int, keep time.Duration) *recent[K, V] {
	return &recent[K, V]{most: most, keep: keep, since: time.Now(), entries: make(map[K]recentEntry[V])}
}

func (r *recent[K, V]) get(key K) (V, bool) {
	r.mu.Lock()
	e, ok := r.entries[key]
	r.mu.Unlock()
	return e.value, ok && r.age() <= e.until
}

// find is get for a name that its caller has built on the stack.
func find[V any](r *recent[string, V], name []byte) (V, bool) {
	value, _, ok := look(r, name)
	return value, ok
}

// look is find, and tells until which age the entry is believed. A map that is
// asked with a name that is converted on the spot makes no string of it.
func look[V any](r *recent[string, V], name []byte) (V, time.Duration, bool) {
	r.mu.Lock()
	e, ok := r.entries[string(name)]
	r.mu.Unlock()
	return e.value, e.until, ok && r.age() <= e.until
}

// age is the time on which entries end. It takes half as long as a look at the
// clock on the wall.
func (r *recent[K, V]) age() time.Duration { return time.Since(r.since) }

func (r *recent[K, V]) put(key K, value V) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.entries[key]; !ok && len(r.entries) >= r.most {
		r.makeRoom()
	}
	r.entries[key] = recentEntry[V]{value, r.age() + r.keep}
}

// makeRoom drops entries in map order, which is as good as random: what is in
// use comes back with one read.
func (r *recent[K, V]) makeRoom() {
	for key := range r.entries {
		delete(r.entries, key)
		if len(r.entries) <= r.most*7/8 {
			return
		}
	}
}

func (r *recent[K, V]) forget(key K) {
	r.mu.Lock()
	delete(r.entries, key)
	r.mu.Unlock()
}
