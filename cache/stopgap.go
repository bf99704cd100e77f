package cache

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// What the disk does not take, full or broken as it may be, is remembered for a while:
// else each client who asks for it would cost a question, and of a manifest a pull.

const (
	// stopgapFor is for how long it is, and stopgapRetry when the disk is tried again.
	stopgapFor   = time.Hour
	stopgapRetry = time.Minute
)

// stopgap remembers values of a kind for a while, in bounded memory.
type stopgap[V any] struct {
	count atomic.Int32 // of values: of most disks none

	mu   sync.Mutex // guards kept
	kept weighed[stopgapEntry[V]]
}

type stopgapEntry[V any] struct {
	value V
	until time.Time
	tried *time.Time // when the disk was last
}

// put remembers a value of a size.
func (s *stopgap[V]) put(key string, value V, size int, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept.put(key, stopgapEntry[V]{value, until, new(time.Now())}, size+len(key)+500)
	s.countLocked()
}

// get finds a value. retry says that it is time to try the disk again, once to each
// who is told so.
func (s *stopgap[V]) get(key string) (value V, retry, ok bool) {
	if s.isEmpty() {
		return value, false, false
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.kept.get(key)
	if !ok || !now.Before(e.until) {
		s.dropLocked(key)
		return value, false, false
	}
	if retry = now.Sub(*e.tried) >= stopgapRetry; retry {
		*e.tried = now
	}
	return e.value, retry, true
}

func (s *stopgap[V]) drop(key string) {
	if s.isEmpty() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropLocked(key)
}

func (s *stopgap[V]) dropLocked(key string) {
	s.kept.drop(key)
	s.countLocked()
}

func (s *stopgap[V]) countLocked() {
	s.count.Store(int32(len(s.kept.items))) //nolint:gosec // each weighs 500 bytes of 8 MiB
}

func (s *stopgap[V]) isEmpty() bool { return s.count.Load() == 0 }

// unrecorded is a tag's record that is not on disk, and what is there instead.
type unrecorded struct {
	rec, onDisk store.Tag
}

// record is what is known of a tag; store.ErrNotHeld if nothing.
func (c *Cache) record(repo oci.Repository, tag string) (store.Tag, error) {
	rec, err := c.disk.Tag(repo, tag)
	if c.unrecorded.isEmpty() || err != nil && !errors.Is(err, store.ErrNotHeld) {
		return rec, err
	}
	latest, _, ok := c.unrecorded.get(repo.String() + ":" + tag)
	if ok && latest.onDisk.Digest == rec.Digest && latest.onDisk.Checked.Equal(rec.Checked) { // nobody removed or changed it since
		return latest.rec, nil
	}
	return rec, err
}

// putRecord keeps a tag's record: on disk, unless that has the image of the old one
// and does not take the manifest of the new.
func (c *Cache) putRecord(ctx context.Context, q *tagQuestion, next store.Tag) {
	if q.rec == nil || c.has(next.Digest) || !c.has(c.image(ctx, q, nil).Digest) {
		err := c.disk.PutTag(q.repo, q.tag, next)
		if err == nil {
			c.unrecorded.drop(q.key())
			return
		}
		c.cfg.Warn("a tag could not be recorded; it will be asked for again", q.repo, err)
	}
	onDisk, err := c.disk.Tag(q.repo, q.tag)
	if err != nil {
		onDisk = store.Tag{}
	}
	believed := min(c.cfg.ttlOf(q.repo, q.tag), stopgapFor)
	c.unrecorded.put(q.key(), unrecorded{next, onDisk}, 0, next.Checked.Add(believed))
}

// unkeptManifest is a manifest of repo that the disk would not take. Now and then it
// is asked to again.
func (c *Cache) unkeptManifest(repo oci.Repository, dg oci.Digest) (oci.Manifest, bool) {
	m, retry, ok := c.unkeptManifests.get(manifestKey(repo, dg))
	if retry {
		c.spawn(func() { c.keepManifest(repo, m) })
	}
	return m, ok
}
