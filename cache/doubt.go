package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

const (
	// troubleFor is the longest that something is left alone that upstream could not give
	// for the moment.
	troubleFor = 2 * time.Minute
	// maxDoubts bounds the digests that could not be had and are remembered.
	maxDoubts = 4096
)

// doubts are what upstream did not give to a client who waited for it, though a
// manifest of its repository names it: an image that leads there cannot be pulled, for
// all we know, and a tag that has moved to it is served as it was. Each is tried again
// behind the answers that it changes, more and more rarely, until it has come.
type doubts struct {
	count atomic.Int32 // of them: mostly there are none

	mu sync.Mutex // guards of
	of map[membership]*doubt
}

// doubt is why something could not be had.
type doubt struct {
	err      error
	manifest bool          // it is one
	pause    time.Duration // between the last two tries
	again    time.Time     // when it is tried next
}

// lost is a digest that is in doubt.
type lost struct {
	digest   oci.Digest
	manifest bool
	err      error
}

func (ds *doubts) none() bool { return ds.count.Load() == 0 }

// add notes that something could not be had, and for how long it is left alone at
// least: the first time where a client has waited for it, later in any case.
func (ds *doubts) add(key membership, manifest, waited bool, pause time.Duration, err error) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	d := ds.of[key]
	switch {
	case d == nil && !waited:
		return
	case d == nil:
		if ds.of == nil || len(ds.of) >= maxDoubts {
			ds.of = map[membership]*doubt{} // forgetting costs a pull that fails
		}
		d = &doubt{manifest: manifest, pause: pause}
		ds.of[key] = d
	}
	d.err = err
	if again := time.Now().Add(pause); again.After(d.again) {
		d.again = again
	}
	ds.count.Store(int32(len(ds.of))) //nolint:gosec // maxDoubts at most
}

// settle notes that something could be had, or that it is not upstream that keeps it.
func (ds *doubts) settle(key membership) {
	if ds.none() {
		return
	}
	ds.mu.Lock()
	defer ds.mu.Unlock()
	delete(ds.of, key)
	ds.count.Store(int32(len(ds.of))) //nolint:gosec // maxDoubts at most
}

// get returns what is known of something that cannot be had; ok is false if it can, for
// all we know.
func (ds *doubts) get(key membership) (l lost, ok bool) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	d, ok := ds.of[key]
	if !ok {
		return lost{}, false
	}
	return lost{key.digest, d.manifest, d.err}, true
}

// take reports whether it is time to try something again, once to each who is told so.
func (ds *doubts) take(key membership) bool {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	d := ds.of[key]
	now := time.Now()
	if d == nil || now.Before(d.again) {
		return false
	}
	most := troubleFor
	if said := wordOf(d.err); said.isFinal() || said == Astray || said == Spoilt {
		most = hopelessFor
	}
	d.pause = min(2*d.pause, most)
	d.again = now.Add(d.pause)
	return true
}

// hasten has what is in doubt, of a repository or, if that is nil, of all, tried again
// when it is asked for next.
func (ds *doubts) hasten(repo *oci.Repository) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	for key, d := range ds.of {
		if repo == nil || key.repo == *repo {
			d.again = time.Time{}
		}
	}
}

// doubt notes what came of asking upstream for content of repo that is named there, for
// a client or, again, behind him. What is our own doing, or the client's, tells nothing.
func (c *Cache) doubt(repo oci.Repository, l lost, ask oci.Ask) {
	key, err := membership{repo, l.digest}, l.err
	switch {
	case errors.Is(err, errCannotKeep), errors.Is(err, store.ErrDisk):
		c.doubts.settle(key) // upstream gives it
		return
	case isOurs(err):
		return
	}
	pause := min(max(c.cfg.RetryAfter, oci.RetryAfter(err)), mostPause)
	c.doubts.add(key, l.manifest, !ask.Background, pause, fmt.Errorf("%w: %w", errUnfetched, err))
}

// isOurs reports an end that upstream has no part in.
func isOurs(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, errClosed) || errors.Is(err, errIdle) || errors.Is(err, oci.ErrCrowded)
}

// missing is what cannot be had of the image that a tag names now, where the one before
// is whole, and the new one is not as good.
func (c *Cache) missing(ctx context.Context, repo oci.Repository, rec *store.Tag) (all []lost) {
	if rec.Former == nil || c.doubts.none() || !c.isWhole(ctx, repo, rec.Former.Digest) {
		return nil
	}
	replaces, has := c.replaces(ctx, repo, rec.Digest, rec.Former.Digest), c.hasOf(repo)
	c.disk.EachPart(ctx, rec.Digest, func(dg oci.Digest, elsewhere bool) {
		if replaces && !elsewhere || has(dg) {
			return
		}
		if l, ok := c.doubts.get(membership{repo, dg}); ok {
			all = append(all, l)
		}
	})
	return all
}

// retryMissing tries again what is missing, if it is time to. What it returns waits
// for that.
func (c *Cache) retryMissing(repo oci.Repository, all []lost) *sync.WaitGroup {
	var tries sync.WaitGroup
	for _, l := range all {
		if !c.doubts.take(membership{repo, l.digest}) {
			continue
		}
		tries.Add(1)
		if !c.spawn(func() { defer tries.Done(); c.retry(repo, l) }) {
			tries.Done()
		}
	}
	return &tries
}

// Retry tries again what cannot be had of the image that a tag has moved to, and waits
// for that as long as ctx lives. It returns what clients are served instead, and why,
// where not all has come; zero and nil if they are served what the tag names.
func (c *Cache) Retry(ctx context.Context, repo oci.Repository, tag string) (instead oci.Digest, why error) {
	rec, err := c.record(repo, tag)
	if err != nil { // there is nothing to serve
		return oci.Digest{}, nil //nolint:nilerr // which was told before
	}
	c.doubts.hasten(&repo)
	tries := c.retryMissing(repo, c.missing(ctx, repo, &rec))
	done := make(chan struct{})
	if !c.spawn(func() { tries.Wait(); close(done) }) {
		return oci.Digest{}, nil
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	q := tagQuestion{repo: repo, tag: tag, rec: &rec, missing: c.missing(c.ctx, repo, &rec)}
	if len(q.missing) == 0 {
		return oci.Digest{}, nil
	}
	return c.image(c.ctx, &q, nil).Digest, q.missing[0].err
}

// retry asks for something that could not be had. What comes of it is noted where it
// comes in.
func (c *Cache) retry(repo oci.Repository, l lost) {
	ask := oci.Ask{Background: true}
	if l.manifest {
		_, _, _ = c.Manifest(c.ctx, repo, l.digest, ask)
		return
	}
	b, err := c.Blob(c.ctx, repo, l.digest, ask)
	if err != nil {
		return
	}
	r, err := b.Open(c.ctx, 0, -1)
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, r)
	_ = r.Close()
}
