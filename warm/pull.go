package warm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"entrepot/oci"
)

// Puller reads images through a Source, in the background: others go first, and
// what an upstream's quota keeps for clients is left to them. It is safe for
// concurrent use.
type Puller struct {
	source oci.Source
	places chan struct{} // for blobs, whichever image they are of
}

// NewPuller makes a Puller that reads so many blobs at once.
func NewPuller(source oci.Source, blobs int) *Puller {
	return &Puller{source, make(chan struct{}, blobs)}
}

// Result is what was done for an image.
type Result struct {
	Digest    oci.Digest // that the reference names
	Manifests int
	Blobs     int
	Bytes     int64    // of all that
	Fetched   int64    // of them: that were not held before
	Skipped   int      // layers that are had elsewhere, and there alone
	Absent    []string // platforms that were wanted, and that it is not for
	Stale     string   // why upstream did not confirm the name; empty if it did

	whole bool         // nothing is missing
	parts []oci.Digest // all that it consists of, without what was skipped
}

// The waits between attempts where nobody names one, doubling.
const (
	retryFirst = time.Second
	retryMost  = time.Minute
)

// errNotKept ends what would cross the line for nothing.
var errNotKept = errors.New("it cannot be kept")

// Pull asks what an image's reference names now, and then reads what that leads
// to, unless it is held. What upstream limits, or fails at, is tried again, at
// the time that it names, as long as something comes within patience.
func (p *Puller) Pull(ctx context.Context, im Image, want Platforms, patience time.Duration, progress *Progress) (Result, error) {
	r := p.run(im, want, patience, progress)
	var named oci.Resolved
	var out oci.Outcome
	err := r.retry(ctx, func() (err error) {
		named, out, err = p.source.Resolve(ctx, im.Repository, im.Reference, ask(!im.isDigest()))
		return err
	})
	if err != nil {
		return Result{}, err
	}
	res, err := r.pull(ctx, named.Digest)
	if out.Cache == oci.Stale {
		res.Stale = out.Why
	}
	return res, err
}

// run is the work on one image.
type run struct {
	*Puller
	im       Image
	want     Platforms
	patience time.Duration
	progress *Progress
	fetched  atomic.Int64

	mu      sync.Mutex // guards skipped
	skipped map[oci.Digest]bool
}

func (p *Puller) run(im Image, want Platforms, patience time.Duration, progress *Progress) *run {
	progress.change(func(*State) {})
	return &run{Puller: p, im: im, want: want, patience: patience, progress: progress, skipped: map[oci.Digest]bool{}}
}

// pull reads all that a manifest leads to. One blob that fails does not keep the
// others from coming.
func (r *run) pull(ctx context.Context, root oci.Digest) (Result, error) {
	all, err := read(ctx, r.source, r.im.Repository, root, r.want, func(get func() error) error { return r.retry(ctx, get) })
	if err != nil {
		return Result{Digest: root}, err
	}
	res := all.result()
	r.progress.change(func(s *State) {
		s.Blobs = len(all.blobs)
		for _, b := range all.blobs {
			s.Bytes += hint(b.Size)
		}
	})
	err = r.readBlobs(ctx, all.blobs)
	res.Bytes += r.progress.Now().BytesDone
	res.Fetched = all.fetched + r.fetched.Load()
	res.without(func(b blob) bool { return r.skipped[b.Digest] }, all)
	if res.whole = err == nil; res.whole {
		res.Absent = r.want.absent(all.found(ctx, r.source, r.im.Repository))
	}
	return res, err
}

// result is what is known before a blob is looked at.
func (p *plan) result() Result {
	res := Result{Digest: p.root, Manifests: len(p.manifests), Blobs: len(p.blobs)}
	for _, m := range p.manifests {
		res.Bytes += m.Size
		res.parts = append(res.parts, m.Digest)
	}
	return res
}

// without adds the blobs of a plan that were not skipped, and counts the others.
func (r *Result) without(skipped func(blob) bool, all *plan) {
	for _, b := range all.blobs {
		if skipped(b) {
			r.Skipped++
		} else {
			r.parts = append(r.parts, b.Digest)
		}
	}
}

// hint is a size that a stranger wrote, for a sum.
func hint(size int64) int64 {
	const most = 1 << 50
	return min(max(size, 0), most)
}

// readBlobs returns the first error, and how many others there were.
func (r *run) readBlobs(ctx context.Context, blobs []blob) error {
	queue := make(chan blob)
	failed := make(chan error, len(blobs))
	var workers sync.WaitGroup
	for range min(cap(r.places), len(blobs)) {
		workers.Go(func() {
			for b := range queue {
				if err := r.readBlob(ctx, b); err != nil {
					failed <- fmt.Errorf("%s: %w", b.Digest, err)
				}
			}
		})
	}
	for _, b := range blobs {
		queue <- b // its end comes with ctx, too: each attempt looks at that
	}
	close(queue)
	workers.Wait()
	close(failed)
	switch first := <-failed; {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case first != nil && len(failed) > 0:
		return fmt.Errorf("%w (and %d more of %d blobs)", first, len(failed), len(blobs))
	default:
		return first
	}
}

// readBlob reads one blob to its end, unless it is held.
func (r *run) readBlob(ctx context.Context, b blob) error {
	c := &counter{progress: r.progress, size: hint(b.Size), had: -1}
	err := r.retry(ctx, func() error {
		select {
		case r.places <- struct{}{}:
			defer func() { <-r.places }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		return r.attempt(ctx, b, c)
	})
	if err != nil && b.foreign && isElsewhere(err) {
		r.mu.Lock()
		r.skipped[b.Digest] = true
		r.mu.Unlock()
		c.end(0)
		return nil
	}
	return err
}

// isElsewhere says of a foreign layer that its place is not for us.
func isElsewhere(err error) bool {
	return oci.IsUnknown(err) || errors.Is(err, oci.ErrDenied) || errors.Is(err, oci.ErrUnsupported)
}

func (r *run) attempt(ctx context.Context, b blob, c *counter) error {
	handle, err := r.source.Blob(ctx, r.im.Repository, b.Digest, ask(false))
	if err != nil {
		return err
	}
	src, err := handle.Open(ctx, 0, -1)
	if err != nil {
		return err
	}
	defer src.Close()
	switch out := src.Outcome(); {
	case out.Cache == oci.Hit:
		c.end(src.Size())
		return nil
	case out.Cache == oci.Bypass && !out.Proves:
		return fmt.Errorf("%w: %s", errNotKept, out.Why)
	default:
		c.begin(src.Size(), out.Had)
	}
	n, err := io.CopyBuffer(c, onlyReader{src}, make([]byte, 256<<10))
	if err != nil {
		return err
	}
	r.fetched.Add(max(0, n-c.had))
	c.end(n)
	return nil
}

// onlyReader keeps a copy from going round the counter.
type onlyReader struct{ io.Reader }

// counter tells the progress of one blob, of which each attempt begins at its
// start.
type counter struct {
	progress *Progress
	size     int64 // as it is counted in
	done     int64 // likewise
	at       int64 // in this attempt
	had      int64 // was here before the first of them; -1 until that begins
}

func (c *counter) begin(size, had int64) {
	c.at = 0
	if c.had < 0 {
		c.had = had
	}
	if size < 0 {
		return
	}
	c.progress.change(func(s *State) { s.Bytes += size - c.size })
	c.size = size
}

func (c *counter) Write(p []byte) (int, error) {
	c.at += int64(len(p))
	if more := c.at - c.done; more > 0 {
		c.progress.change(func(s *State) { s.BytesDone += more })
		c.done = c.at
	}
	return len(p), nil
}

// end counts the blob as done, with the size that it has.
func (c *counter) end(size int64) {
	c.progress.change(func(s *State) {
		s.Bytes += size - c.size
		s.BytesDone += size - c.done
		s.BlobsDone++
	})
}

// retry does what may fail for a while.
func (r *run) retry(ctx context.Context, work func() error) error {
	for backoff := retryFirst; ; backoff = min(2*backoff, retryMost) {
		err := work()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
			r.progress.change(func(*State) {})
			return nil
		case !oci.IsRetryable(err), errors.Is(err, errNotKept), errors.Is(err, oci.ErrOffline):
			return err
		}
		wait := max(backoff, oci.RetryAfter(err))
		if !r.progress.mayWait(time.Now().Add(wait), r.patience, err) {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}
