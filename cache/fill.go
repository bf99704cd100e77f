package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// The shape of transfers.
const (
	// segment is what one stream of a big blob asks for at a time. Measured on
	// layers of 64 to 512 MiB: 8 to 32 MiB differ by a few per cent.
	segment = 16 << 20
	// window is the least that a ranged read fetches: pieces that follow each
	// other then share a request, and an isolated one wastes little.
	window = 1 << 20
	// near is how far ahead of a running stream a reader waits for it rather
	// than have another stream start where it stands: the chunks of 8 MB that
	// containerd asks for all at once then share streams.
	near       = segment / 2
	retryFirst = 100 * time.Millisecond
	retryMost  = 8 * time.Second
	// patience is how many failures in a row without one byte of progress are
	// hopeless: about half a minute with the pauses between them, however many
	// streams fail at a time. A blob of which nothing has come yet fails sooner,
	// while its client can still be told why.
	patience      = 10
	patienceFirst = 3
	// longestPause is the longest Retry-After that a running fill sits out.
	longestPause = 30 * time.Second
	// longestFirst is the longest that is sat out for a first byte, where a
	// client waits for its headers: a host that is known to be down for longer
	// is told of at once, with the time.
	longestFirst = 2 * time.Second
)

var (
	errFillOver   = errors.New("the fill has ended")
	errCannotKeep = errors.New("the disk cannot take it")
)

// fills are the fills that run, by digest: never two of one.
type fills struct {
	mu      sync.Mutex // guards running; taken before a fill's own lock
	running map[oci.Digest]*fill
}

// withFile is the running fill of a digest that has a file; nil if there is none.
func (fs *fills) withFile(dg oci.Digest) *fill {
	fs.mu.Lock()
	f := fs.running[dg]
	fs.mu.Unlock()
	if f == nil {
		return nil
	}
	select {
	case <-f.ready:
		if f.file != nil {
			return f
		}
	default:
	}
	return nil
}

func (fs *fills) sizeOf(dg oci.Digest) int64 {
	if f := fs.withFile(dg); f != nil {
		return f.file.Size()
	}
	return -1
}

// tellSize gives a fill the size that its upstream told in another answer. A
// client may have been promised it, so that the fill must hold to it.
func (fs *fills) tellSize(dg oci.Digest, host string, size int64) {
	f := fs.withFile(dg)
	if f == nil || f.origin.Host != host {
		return
	}
	err := cannotKeep(f.file.SetSize(size))
	f.mu.Lock()
	f.told = size
	if err != nil {
		f.failedLocked(err, time.Now())
	}
	f.mu.Unlock()
	f.poke()
}

// failedLocked leaves a failure to run: the first since it looked is judged.
func (f *fill) failedLocked(err error, began time.Time) {
	if f.failed == nil {
		f.failed = err
	}
	if began.After(f.failing) {
		f.failing = began
	}
}

// of counts the fills of an upstream.
func (fs *fills) of(host string) (n int) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, f := range fs.running {
		if f.origin.Host == host {
			n++
		}
	}
	return n
}

// orphans counts the fills of an upstream that run on without a reader.
func (fs *fills) orphans(host string) (n int) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, f := range fs.running {
		if f.origin.Host != host {
			continue
		}
		f.mu.Lock()
		if f.orphan {
			n++
		}
		f.mu.Unlock()
	}
	return n
}

// fill brings one blob in. One goroutine, run, owns it: it starts streams for
// what readers want, tries broken ones again, and passes the whole through the
// gate. It belongs to the cache: no reader that leaves ends it.
type fill struct {
	c      *Cache
	digest oci.Digest
	origin oci.Repository
	blob   blob  // that it was begun for
	hint   int64 // what upstream or a manifest said of the size; -1 if nothing
	began  time.Time

	ready chan struct{} // closed when file or openErr is set
	file  *store.Fill
	had   int64 // bytes that file began with
	err   error // why there is no file
	wake  chan struct{}
	done  chan struct{} // closed when it has ended and the next may begin
	spent atomic.Int64  // requests to upstream
	debt  *oci.Debt     // of what comes while somebody waits for it
	given sync.Once     // upstream has answered with it: the blob belongs to origin

	mu       sync.Mutex // guards the fields below
	ask      oci.Ask    // how upstream is asked
	readers  []*fillReader
	whole    bool      // somebody asked for all of it: it goes on without readers
	orphan   bool      // it does so now
	over     bool      // no reader may join any more
	streams  []*stream // running
	answered bool      // upstream has answered one of the streams
	from     string    // the host that did so last; empty if that is not known
	noRanges bool      // upstream ignores Range: one stream, from the start
	told     int64     // the size that a client was promised; -1 if none was
	failed   error     // a stream's failure, until run has judged it
	failing  time.Time // when the last of the streams began that failed since
}

// joinOrStart finds the running fill of a blob, or starts one from the blob's
// repository, as a part of what ctx is for. It returns nil when the cache is closing.
func (c *Cache) joinOrStart(ctx context.Context, b *blob) (f *fill, started bool) {
	c.fills.mu.Lock()
	if f := c.fills.running[b.dg]; f != nil {
		c.fills.mu.Unlock()
		f.hurry(b.ask)
		return f, false
	}
	f = c.newFill(b)
	defer c.fills.mu.Unlock()
	life := oci.CarrySpan(ctx, c.ctx)
	if !c.spawn(func() { f.run(life) }) {
		return nil, false
	}
	c.fills.running[b.dg] = f
	return f, true
}

func (c *Cache) newFill(b *blob) *fill {
	return &fill{
		c: c, digest: b.dg, debt: c.debts.open(b.dg), origin: b.place(), blob: *b, ask: forFill(b.ask), hint: b.size(), told: -1, began: time.Now(),
		ready: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1),
	}
}

// open adds a reader, of a part or of the whole blob. errFillOver if the fill has
// ended, errCannotKeep if it never could begin.
func (f *fill) open(ctx context.Context, offset, length int64, whole bool) (*fillReader, error) {
	if err := f.awaitReady(ctx); err != nil {
		return nil, err
	}
	f.mu.Lock()
	if f.over {
		f.mu.Unlock()
		return nil, errFillOver
	}
	r := &fillReader{FillReader: f.file.Open(ctx, offset, length), fill: f, offset: offset, length: length}
	if length < 0 && !whole {
		r.Starved = f.poke // it is given its bytes bit by bit
	}
	f.noteChunksLocked(r)
	f.readers = append(f.readers, r)
	f.whole = f.whole || whole
	f.orphan = false
	f.mu.Unlock()
	f.poke()
	return r, nil
}

// noteChunksLocked tells readers to the end that come together of each other. A
// client that fetches in chunks has one for each, and leaves it where the next
// begins, the last one where the blob ends.
func (f *fill) noteChunksLocked(r *fillReader) {
	for _, o := range f.readers {
		first, second := r, o
		if first.offset > second.offset {
			first, second = second, first
		}
		apart := second.offset - first.offset
		if r.length >= 0 || o.length >= 0 || apart == 0 || apart > segment {
			continue
		}
		first.chunks = max(first.chunks, second.offset)
		if second.chunk == 0 || apart < second.chunk {
			second.chunk = apart
		}
	}
}

// wantWhole has the fill go to its end without a reader.
func (f *fill) wantWhole() {
	f.mu.Lock()
	f.whole = true
	f.mu.Unlock()
	f.poke()
}

// forFill is ask as a fill asks, which outlasts whoever began it: each of its
// requests has a deadline of its own, and what they are for is its own matter.
func forFill(ask oci.Ask) oci.Ask {
	ask.Since, ask.Ranged = time.Time{}, false
	return ask
}

// hurry has a fill that was begun in the background take its place among those
// that somebody waits for.
func (f *fill) hurry(ask oci.Ask) {
	f.mu.Lock()
	hurried := f.ask.Background && !ask.Background
	if hurried {
		f.ask = forFill(ask)
		for _, s := range f.streams {
			if !s.landed { // it may be waiting for leave to ask
				s.cancel()
			}
		}
	}
	f.mu.Unlock()
	if hurried {
		f.poke()
	}
}

// asking is how upstream is asked now.
func (f *fill) asking() oci.Ask {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ask
}

// abandon ends a fill that nobody reads and nobody wants whole.
func (f *fill) abandon() {
	f.mu.Lock()
	f.over = f.over || len(f.readers) == 0 && !f.whole
	f.mu.Unlock()
	f.poke()
}

// isOver reports that no reader may join any more.
func (f *fill) isOver() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.over
}

// awaitEnd returns errFillOver when another fill of the digest may begin.
func (f *fill) awaitEnd(ctx context.Context) error {
	select {
	case <-f.done:
		return errFillOver
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// awaitReady returns when the fill has a file, or the reason why it has none.
func (f *fill) awaitReady(ctx context.Context) error {
	select {
	case <-f.ready:
		return f.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// holdsOthers reports that bytes of the fill came, or come, under the name of
// another repository than repo, which repo may have no right to. It must be
// ready.
func (f *fill) holdsOthers(repo oci.Repository) bool {
	if f.origin != repo {
		return true
	}
	return f.file != nil && !f.file.Resumed().IsZero() && f.file.Resumed() != repo
}

// poke has run look again at what is wanted.
func (f *fill) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// run is the life of the fill.
func (f *fill) run(ctx context.Context) {
	defer f.remove()
	if !f.begin() {
		return
	}
	ctx, span := oci.BeginSpan(ctx, "fill", "entrepot.upstream", f.origin.Host, "entrepot.repository", f.origin.Path, "entrepot.reference", f.digest.String())
	err := f.bring(ctx)
	for try := 1; try < 2 && isWrong(err); try++ {
		f.c.cfg.Warn("what came is not what its digest names; it is fetched once more", f.origin, err)
		err = f.bring(ctx)
	}
	oci.EndSpan(span, err, "entrepot.bytes", f.file.Landed()-f.had, "entrepot.spent", f.spent.Load())
	f.end(err)
}

// begin opens the file, unless the blob has just been kept by an earlier fill.
func (f *fill) begin() bool {
	defer close(f.ready)
	if content, err := f.c.disk.Open(f.c.ctx, f.digest, f.hint); err == nil {
		f.err = errors.Join(errFillOver, content.Close())
		return false
	}
	file, err := f.c.disk.Fill(f.digest, f.origin)
	if err != nil {
		f.c.cfg.Warn("a blob cannot be kept; it is passed through", f.origin, err)
		f.err = fmt.Errorf("%w: %w", errCannotKeep, err)
		return false
	}
	f.file, f.had = file, file.Landed()
	return true
}

// unkeptFor is how long a blob that the disk would not take is passed through
// before the disk is tried again.
const unkeptFor = time.Minute

// passBy has whoever comes next leave the disk alone, once somebody who waits has
// found out: what was fetched ahead may fit when a client comes for it.
func (c *Cache) passBy(dg oci.Digest, ask oci.Ask, why error) {
	if !ask.Background {
		c.unkept.put(dg.String(), unkeptFor, "", why)
	}
}

// remove lets the next request start anew.
func (f *fill) remove() {
	f.c.fills.mu.Lock()
	delete(f.c.fills.running, f.digest)
	f.c.fills.mu.Unlock()
	close(f.done)
}

// end closes the fill for readers and tells them why, if it is not whole.
func (f *fill) end(err error) {
	f.mu.Lock()
	f.over, f.orphan = true, false
	wanted := len(f.readers) > 0
	f.mu.Unlock()
	switch {
	case err == nil:
		f.blob.markProven(f.file.Size())
		f.c.doubts.settle(membership{f.blob.repo, f.digest})
	case isWrong(err):
		err = oci.Errorf(oci.BadUpstream, "what came is not what %s names: %w", f.digest, err)
	}
	if wanted && errors.Is(err, errCannotKeep) {
		f.c.passBy(f.digest, f.asking(), err)
	}
	if err != nil && !errors.Is(err, errIdle) {
		f.blob.noteFailure(DigestKind, err) // before anybody hears of it, and asks again
		if _, elsewhere := f.blob.elsewhere(f.c.ctx, err); !elsewhere && f.c.ctx.Err() == nil {
			f.c.cfg.Warn("a fill failed", f.origin, fmt.Errorf("fill %s: %w", f.digest, err))
		}
		f.file.Fail(err)
	}
	if err := f.file.Close(); err != nil {
		f.c.cfg.Warn("a fill could not be put away", f.origin, err)
	}
}

// isWrong reports that upstream's answers contradict the digest or each other.
func isWrong(err error) bool {
	return errors.Is(err, store.ErrMismatch) || errors.Is(err, store.ErrSizeChanged) || errors.Is(err, store.ErrSurplus)
}

// errIdle ends a fill that nobody wants any more: it is not a failure.
var errIdle = errors.New("nobody reads it")

// bring gets the bytes and passes them through the gate. When it returns no
// stream is running, and after a wrong body the fill is empty.
func (f *fill) bring(ctx context.Context) error {
	f.mu.Lock()
	f.answered, f.failed, f.failing = false, nil, time.Time{} // a stream of the try before may have failed last of all
	f.mu.Unlock()
	if err := f.holdToPromise(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	hashed := make(chan error, 1)
	had := f.file.Landed()
	work.Go(func() { hashed <- f.file.Follow(ctx) })
	t := transfer{fill: f, work: &work, landed: f.file.Landed()}
	err := t.untilHashed(ctx, hashed)
	cancel()
	work.Wait()
	switch {
	case err == nil:
		err = f.file.Commit()
		if errors.Is(err, store.ErrMismatch) && !errors.Is(err, store.ErrAltered) && had == 0 {
			t.doubt()
		}
		if err != nil && !isWrong(err) {
			f.c.cfg.Warn("a blob was proven but could not be kept", f.origin, err)
			return nil
		}
		return err
	case isWrong(err):
		return errors.Join(err, f.file.Reset())
	case errors.Is(err, store.ErrDisk): // which did not give back what it took
		return cannotKeep(err)
	}
	return err
}

// holdToPromise starts with the size that a client was promised, if one was.
func (f *fill) holdToPromise() error {
	f.mu.Lock()
	told := f.told
	f.mu.Unlock()
	if told < 0 {
		return nil
	}
	return cannotKeep(f.file.SetSize(told))
}
