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
	manifest bool // it is one
	tries    int  // in vain, so far
	again    time.Time
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
		d = &doubt{manifest: manifest}
		ds.of[key] = d
	}
	d.err = err
	d.restLocked(pause)
	ds.count.Store(int32(len(ds.of))) //nolint:gosec // maxDoubts at most
}

// restLocked has it left alone for a pause, or longer after each try.
func (d *doubt) restLocked(pause time.Duration) {
	d.tries++
	rest := pause
	for range d.tries - 1 {
		rest = min(2*rest, max(pause, hopelessFor))
	}
	d.again = time.Now().Add(rest)
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

// get returns why something cannot be had, and whether it is a manifest; nil if it can,
// for all we know.
func (ds *doubts) get(key membership) (err error, manifest bool) { //nolint:revive // the error is what is asked for
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if d := ds.of[key]; d != nil {
		return d.err, d.manifest
	}
	return nil, false
}

// take reports whether it is time to try something again, once to each who is told so.
func (ds *doubts) take(key membership, pause time.Duration) bool {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	d := ds.of[key]
	if d == nil || time.Now().Before(d.again) {
		return false
	}
	d.restLocked(pause)
	return true
}

// hasten has what is in doubt, of a repository or, if that is nil, of all, tried again
// when it is asked for next.
func (ds *doubts) hasten(repo *oci.Repository) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	for key, d := range ds.of {
		if repo == nil || key.repo == *repo {
			d.again, d.tries = time.Time{}, 0
		}
	}
}

// doubt notes what came of asking upstream for content of repo that is named there, for
// a client or, again, behind him. What is our own doing, or the client's, tells nothing.
func (c *Cache) doubt(repo oci.Repository, lost lost, ask oci.Ask) {
	key, err := membership{repo, lost.digest}, lost.err
	switch {
	case errors.Is(err, errCannotKeep), errors.Is(err, store.ErrDisk):
		c.doubts.settle(key) // upstream gives it
		return
	case isOurs(err):
		return
	}
	pause := min(max(c.cfg.RetryAfter, oci.RetryAfter(err)), mostPause)
	c.doubts.add(key, lost.manifest, !ask.Background, pause, fmt.Errorf("%w: %w", errUnfetched, err))
}

// isOurs reports an end that upstream has no part in.
func isOurs(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, errClosed) || errors.Is(err, errIdle) || errors.Is(err, oci.ErrCrowded)
}

// missing is what cannot be had of the image that a tag names now, where the one before
// is whole.
func (c *Cache) missing(ctx context.Context, repo oci.Repository, rec *store.Tag) (all []lost) {
	if rec.Former == nil || c.doubts.none() || !c.disk.IsWhole(ctx, rec.Former.Digest) {
		return nil
	}
	isWhole := c.disk.IsWhole(ctx, rec.Digest)
	c.disk.EachPart(ctx, rec.Digest, func(dg oci.Digest, elsewhere bool) {
		if isWhole && !elsewhere || c.has(dg) {
			return
		}
		if err, manifest := c.doubts.get(membership{repo, dg}); err != nil {
			all = append(all, lost{dg, manifest, err})
		}
	})
	return all
}

// retryMissing tries again what is missing, if it is time to.
func (c *Cache) retryMissing(repo oci.Repository, all []lost) {
	for _, l := range all {
		if c.doubts.take(membership{repo, l.digest}, c.cfg.RetryAfter) {
			c.spawn(func() { c.retry(repo, l) })
		}
	}
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
