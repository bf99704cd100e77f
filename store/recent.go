package store

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

// recheck is how long a record that was read from disk is believed. It bounds
// how late we notice that somebody changed the data directory by hand.
const recheck = 2 * time.Second

// recent remembers small records that change, for a moment, to spare the disk.
// It is written only after the file is, so it never says more than the disk.
//
// Every hit by tag looks here, so that a look takes no lock: entries are never
// changed, those whose keys lead to one place are a list, and who changes such a
// list makes a new one.
type recent[K comparable, V any] struct {
	most int
	keep time.Duration
	seed maphash.Seed
	hash func(maphash.Seed, K) uint64

	since time.Time // when it was made

	places []atomic.Pointer[recentEntry[K, V]] // the first of each list; set under mu alone

	mu   sync.Mutex // guards what follows
	held int
	next int // place at which room is made
}

type recentEntry[K comparable, V any] struct {
	key   K
	value V
	until time.Duration // of age
	next  *recentEntry[K, V]
}

// recentPerPlace is how many entries a place has when all is full.
const recentPerPlace = 2

func newRecent[K comparable, V any](most int, keep time.Duration, hash func(maphash.Seed, K) uint64) *recent[K, V] {
	return &recent[K, V]{
		most: most, keep: keep, seed: maphash.MakeSeed(), hash: hash, since: time.Now(),
		places: make([]atomic.Pointer[recentEntry[K, V]], max(1, most/recentPerPlace)),
	}
}

func (r *recent[K, V]) place(hash uint64) *atomic.Pointer[recentEntry[K, V]] {
	return &r.places[hash%uint64(len(r.places))]
}

func (r *recent[K, V]) get(key K) (value V, ok bool) {
	value, _, ok = r.look(r.hash(r.seed, key), func(k K) bool { return k == key })
	return value, ok
}

// find is get for a name that its caller has built on the stack.
func find[V any](r *recent[string, V], name []byte) (V, bool) {
	value, _, ok := look(r, name)
	return value, ok
}

// look is find, and tells until which age the entry is believed. A name that is
// converted to be compared, and hashed as it is, makes no string.
func look[V any](r *recent[string, V], name []byte) (V, time.Duration, bool) {
	return r.look(maphash.Bytes(r.seed, name), func(k string) bool { return k == string(name) })
}

func (r *recent[K, V]) look(hash uint64, is func(K) bool) (value V, until time.Duration, ok bool) {
	for e := r.place(hash).Load(); e != nil; e = e.next {
		if is(e.key) {
			return e.value, e.until, r.age() <= e.until
		}
	}
	return value, 0, false
}

// age is the time on which entries end. It takes half as long as a look at the
// clock on the wall.
func (r *recent[K, V]) age() time.Duration { return time.Since(r.since) }

func (r *recent[K, V]) put(key K, value V) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.place(r.hash(r.seed, key))
	rest, known := at.Load().without(key)
	if !known {
		if r.held >= r.most {
			r.makeRoomLocked()
			rest, _ = at.Load().without(key) // it may have been emptied
		}
		r.held++
	}
	at.Store(&recentEntry[K, V]{key, value, r.age() + r.keep, rest})
}

func (r *recent[K, V]) forget(key K) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.place(r.hash(r.seed, key))
	if rest, known := at.Load().without(key); known {
		at.Store(rest)
		r.held--
	}
}

// makeRoomLocked empties places one after the other, which is as good as random:
// what is in use comes back with one read.
func (r *recent[K, V]) makeRoomLocked() {
	for r.held > r.most*7/8 {
		for e := r.places[r.next].Swap(nil); e != nil; e = e.next {
			r.held--
		}
		r.next = (r.next + 1) % len(r.places)
	}
}

// without is a list that lacks a key, and whether it was there. Readers may be in
// the old one, so what stood before the key is copied.
func (e *recentEntry[K, V]) without(key K) (rest *recentEntry[K, V], known bool) {
	switch {
	case e == nil:
		return nil, false
	case e.key == key:
		return e.next, true
	}
	if rest, known = e.next.without(key); !known {
		return e, false
	}
	return &recentEntry[K, V]{e.key, e.value, e.until, rest}, true
}
