package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// transfer drives the streams of a fill.
type transfer struct {
	*fill
	up    oci.Blob // nil until somebody is asked
	asked oci.Ask  // by up
	ups   int      // handles there were
	work  *sync.WaitGroup
	retries
	landed int64     // bytes that were there at the last failure
	pause  time.Time // no stream starts before this
}

// stream is one upstream request that writes into the fill, from at up to end.
type stream struct {
	at, end int64 // guarded by the fill's lock; end shrinks when another stream takes the rest
	landed  bool  // likewise; bytes have come
	whole   bool  // likewise; it asked for everything, and can go on to the blob's end
	up      oci.Blob
	extra   bool // the fill had a stream already: it counts against its upstream's bound
	began   time.Time
	cancel  context.CancelFunc
}

// urgent is how many streams beyond the usual number may start for readers that
// wait where no stream is.
const urgent = 2

// maxExtras bounds the streams of one upstream that are not their fill's first.
// With the places that an upstream client has for transfers, this leaves most of
// them to blobs that have none yet. extraAgain is when a fill that found no
// place for another stream looks again.
const (
	maxExtras  = 24
	extraAgain = time.Second
)

// extras counts the streams that are not their fill's first, by upstream.
type extras struct {
	mu sync.Mutex // guards n
	n  map[string]int
}

func (e *extras) take(host string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.n == nil {
		e.n = make(map[string]int)
	}
	if e.n[host] >= maxExtras {
		return false
	}
	e.n[host]++
	return true
}

func (e *extras) give(host string) {
	e.mu.Lock()
	e.n[host]--
	e.mu.Unlock()
}

// forever is the end of a stream that reads to wherever the blob ends.
const forever = math.MaxInt64

// untilHashed starts streams for what is wanted until every byte is hashed, or
// nobody wants more, or it is hopeless.
func (t *transfer) untilHashed(ctx context.Context, hashed <-chan error) error {
	for {
		if err := t.judge(); err != nil {
			return err
		}
		if err := t.reserve(); err != nil { // of what is wanted whole only now
			return err
		}
		if t.isOver() {
			return errIdle
		}
		wait, err := t.schedule(ctx)
		if err != nil {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case err := <-hashed:
			timer.Stop()
			return err
		case <-t.wake:
		case <-timer.C:
			if t.idle() {
				return errIdle
			}
		case <-ctx.Done():
			timer.Stop()
			return errClosed
		}
		timer.Stop()
	}
}

// judge looks at a stream's failure: nil to go on, with a pause, or the error
// that ends the fill.
func (t *transfer) judge() error {
	t.mu.Lock()
	err, began := t.failed, t.failing
	t.failed, t.failing = nil, time.Time{}
	t.mu.Unlock()
	if err == nil {
		return nil
	}
	before, landed := t.landed, t.file.Landed()
	t.landed = landed
	wait, err := t.retries.judge(err, began, landed > before, landed > 0)
	if err != nil {
		return err
	}
	t.pause = time.Now().Add(wait)
	return nil
}

// reserve has the disk keep room for what is wanted whole. Who reads a stretch of
// a blob may never need the rest.
func (t *transfer) reserve() error {
	t.mu.Lock()
	whole := t.whole
	t.mu.Unlock()
	if !whole {
		return nil
	}
	return cannotKeep(t.file.Reserve())
}

// schedule starts streams while there is something to start them for, and
// returns how long the fill may sleep unless it is woken.
func (t *transfer) schedule(ctx context.Context) (time.Duration, error) {
	if wait := time.Until(t.pause); wait > 0 {
		return wait, nil
	}
	if err := t.address(ctx); err != nil {
		return 0, err
	}
	orphaned := t.orphaned()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failed != nil { // since it was judged last, and the wake for it is on its way
		return time.Hour, nil
	}
	if orphaned {
		for _, s := range t.streams {
			s.cancel()
		}
		return t.c.cfg.Linger, nil
	}
	for {
		s := t.nextLocked()
		if s == nil {
			break
		}
		s.up, s.extra, s.began = t.up, len(t.streams) > 0, time.Now() // here, since one may fail before the next runs
		if s.extra && !t.c.extras.take(t.origin.Host) {
			return extraAgain, nil
		}
		var sctx context.Context
		sctx, s.cancel = context.WithCancel(ctx)
		t.streams = append(t.streams, s)
		t.work.Go(func() { t.runStream(sctx, s) })
	}
	if len(t.streams) > 0 || t.orphan {
		return time.Hour, nil
	}
	return t.c.cfg.Linger, nil
}

// address makes the handle that streams ask by: a new one where the fill is to
// be asked for in another way than before.
func (t *transfer) address(ctx context.Context) (err error) {
	if ask := t.asking(); t.up == nil || t.asked != ask {
		t.up, err = t.blob.remote(ctx, ask)
		t.asked = ask
		t.ups++
	}
	return err
}

// doubt tells upstream that what it gave is wrong, if all of it came by one handle.
func (t *transfer) doubt() {
	if up, ok := t.up.(oci.Doubtful); ok && t.ups == 1 {
		up.Wrong()
	}
}

// orphaned reports that nobody reads the fill and it may not run on. A few per
// upstream may, if somebody wanted the whole.
func (t *transfer) orphaned() bool {
	t.mu.Lock()
	alone, whole, already := len(t.readers) == 0, t.whole, t.orphan
	t.mu.Unlock()
	if !alone || already {
		return false
	}
	if !whole || t.c.fills.orphans(t.origin.Host) >= t.c.cfg.MaxOrphans {
		return whole
	}
	t.mu.Lock()
	t.orphan = len(t.readers) == 0
	t.mu.Unlock()
	return false
}

// idle closes the fill to readers if there are none and nothing runs.
func (t *transfer) idle() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Now().Before(t.pause) || len(t.readers) > 0 || len(t.streams) > 0 || t.orphan {
		return false
	}
	t.over = true
	return true
}

// nextLocked is the stream to start next: first for readers that wait for a
// byte, in the order they came, then for what lies ahead of them.
func (t *transfer) nextLocked() *stream {
	switch {
	case len(t.streams) > 0 && (!t.answered || t.noRanges):
		return nil // the first answer tells whether upstream can do ranges at all
	case t.noRanges:
		return t.rangelessLocked()
	}
	for _, r := range t.readers {
		if len(t.streams) >= t.c.cfg.Streams+urgent {
			return nil
		}
		if want, ok := t.wantsLocked(r); ok {
			if s := t.forReaderLocked(want); s != nil {
				return s
			}
		}
	}
	if len(t.streams) >= t.c.cfg.Streams || len(t.streams) > 0 && !t.bigLocked() {
		return nil
	}
	for _, r := range t.readers {
		if want, ok := r.Wants(); ok && !t.probesLocked(r, want) {
			if s := t.aheadLocked(want); s != nil {
				return s
			}
		}
	}
	if t.whole || t.provingLocked() {
		return t.aheadLocked(store.Span{Start: 0, End: -1})
	}
	return nil
}

// probesLocked reports that a reader asks for all from somewhere on and may close
// early, as eager and lazy pullers do: it has not read through a segment yet. Where
// upstream tells no size, only the end of its answer does.
func (t *transfer) probesLocked(r *fillReader, want store.Span) bool {
	return want.End < 0 && !t.whole && want.Start-r.offset < segment && (t.size() >= 0 || !t.answered)
}

// wantsLocked is what to fetch for a reader that waits: for one that probes, as
// much again as it has read, or the chunks that are read with it.
func (t *transfer) wantsLocked(r *fillReader) (want store.Span, ok bool) {
	want, ok = r.Wants()
	if t.probesLocked(r, want) {
		want.End = max(want.Start+max(window, want.Start-r.offset), r.chunks, r.offset+r.chunk)
	}
	return want, ok
}

// provingLocked reports that a reader waits for the end, or will, whose last byte
// goes out only when all the others are there to prove it.
func (t *transfer) provingLocked() bool {
	return slices.ContainsFunc(t.readers, func(r *fillReader) bool {
		want, ok := r.Wants()
		return ok && want.End < 0 && (!t.probesLocked(r, want) || r.AwaitsProof())
	})
}

// forReaderLocked starts a stream where a reader stands, unless the byte it
// wants is there or will soon be brought by a stream that runs.
func (t *transfer) forReaderLocked(want store.Span) *stream {
	if t.file.Gap(store.Span{Start: want.Start, End: want.Start + 1}).Len() == 0 || t.beyondLocked(want.Start) {
		return nil
	}
	for _, s := range t.streams {
		if want.Start < s.at || want.Start >= s.end {
			continue
		}
		if want.Start-s.at <= near || t.size() < 0 {
			return nil
		}
		s.end = want.Start // it stops where the new stream begins
		break
	}
	return t.streamLocked(want.Start, want)
}

// aheadLocked starts a stream at the first byte of want that is neither there
// nor on its way.
func (t *transfer) aheadLocked(want store.Span) *stream {
	end := t.endLocked()
	if want.End >= 0 {
		end = min(end, want.End)
	}
	for at := want.Start; at < end; {
		gap := t.file.Gap(store.Span{Start: at, End: end})
		if gap.Len() == 0 {
			return nil
		}
		at = gap.Start
		covered := false
		for _, s := range t.streams {
			if s.at <= at && at < s.end {
				at, covered = s.end, true
			}
		}
		if !covered {
			return t.streamLocked(at, want)
		}
	}
	return nil
}

// streamLocked shapes a stream that begins at at: up to what is wanted, at least
// a window, at most a segment of a blob that is big, or of which nobody has said
// yet that it is not, and never into what is there or on its way, nor up to
// readers that will have streams of their own: a request that is cut short costs
// what is under way. The first is shorter, for it tells nothing yet of readers
// that come with it.
func (t *transfer) streamLocked(at int64, want store.Span) *stream {
	end, most := int64(forever), int64(segment)
	if want.End >= 0 {
		end = max(want.End, at+window)
	}
	if !t.answered {
		most = near
	}
	if t.bigLocked() || t.size() < 0 && !t.answered {
		end = min(end, at+most)
	}
	for _, r := range t.readers {
		if other, ok := r.Wants(); ok && other.Start-at > near {
			end = min(end, other.Start)
		}
	}
	if size := t.size(); size >= 0 && end >= size {
		end = forever // where it truly ends is upstream's to say
	}
	gap := t.file.Gap(store.Span{Start: at, End: end})
	if gap.Start != at {
		return nil
	}
	end = gap.End
	for _, s := range t.streams {
		if s.at > at {
			end = min(end, s.at)
		}
	}
	return &stream{at: at, end: end}
}

// rangelessLocked is the one stream of an upstream that ignores Range: all of
// it again, of which only what is absent is kept.
func (t *transfer) rangelessLocked() *stream {
	if t.file.Gap(store.Span{Start: 0, End: t.endLocked()}).Len() == 0 {
		return nil
	}
	return &stream{at: 0, end: forever}
}

// size is the best knowledge of the blob's size; -1 without any.
func (t *transfer) size() int64 {
	if n := t.file.Size(); n >= 0 {
		return n
	}
	return t.hint
}

func (t *transfer) endLocked() int64 {
	if n := t.file.Size(); n >= 0 {
		return n
	}
	return forever
}

func (t *transfer) bigLocked() bool { return t.size() >= t.c.cfg.StreamThreshold }

// beyondLocked reports that no byte exists at off; the one exception is an empty
// blob of unknown emptiness.
func (t *transfer) beyondLocked(off int64) bool {
	n := t.file.Size()
	return n >= 0 && off >= n
}

// runStream runs one stream to its end and reports how it went.
func (t *transfer) runStream(ctx context.Context, s *stream) {
	defer s.cancel()
	err := t.copyStream(ctx, s)
	t.mu.Lock()
	t.streams = slices.DeleteFunc(t.streams, func(o *stream) bool { return o == s })
	if s.extra {
		t.c.extras.give(t.origin.Host)
	}
	if err != nil && ctx.Err() == nil {
		t.failedLocked(err, s.began)
	}
	t.mu.Unlock()
	t.poke()
}

func (t *transfer) copyStream(ctx context.Context, s *stream) error {
	t.mu.Lock()
	at, length := s.at, int64(-1)
	if s.end != forever {
		length = s.end - s.at
	}
	s.whole = at == 0 && length < 0
	t.mu.Unlock()
	src, err := s.up.Open(ctx, at, length)
	if oci.CodeOf(err) == oci.RangeInvalid {
		return t.learnSize(ctx, s, at)
	}
	if err != nil {
		t.spent.Add(1) // at least
		return err
	}
	defer src.Close()
	t.spent.Add(int64(src.Outcome().Spent))
	t.c.spoke(t.origin.Host, src.Outcome(), nil)
	if n := src.Size(); n >= 0 {
		if err := cannotKeep(t.file.SetSize(n)); err != nil {
			return err
		}
		t.wasGiven(n)                       // before any client can have it all
		if err := t.reserve(); err != nil { // before any has a byte: those then begin together past the disk
			return err
		}
	}
	if (src.Outcome().Whole || src.Offset() < at) && !t.goRangeless(s) {
		return nil
	}
	t.mu.Lock()
	t.answered, t.from = true, src.Outcome().From
	t.mu.Unlock()
	t.poke() // others may start now
	return t.pump(s, src)
}

// wasGiven notes that upstream has answered with the blob. What is said elsewhere
// proves nothing.
func (t *transfer) wasGiven(size int64) {
	if !t.blob.isElsewhere() {
		t.given.Do(func() { t.blob.markProven(size) })
	}
}

// learnSize deals with an upstream that has no byte at off. Where the size is
// unknown, somebody asked for a range beyond it: the size turns that away.
func (t *transfer) learnSize(ctx context.Context, s *stream, off int64) error {
	wrong := fmt.Errorf("upstream has nothing at %d: %w", off, store.ErrSizeChanged)
	if t.file.Size() >= 0 {
		return wrong
	}
	desc, out, err := s.up.Stat(ctx)
	t.spent.Add(int64(out.Spent))
	if err != nil {
		return err
	}
	if desc.Size < 0 && t.file.Gap(store.Span{Start: 0, End: off}).Len() == 0 {
		desc.Size = off // nobody tells, and all that there is has come
	}
	if desc.Size < 0 || desc.Size > off {
		return wrong
	}
	t.wasGiven(desc.Size)
	return t.file.SetSize(desc.Size)
}

// goRangeless notes that upstream ignores Range. The only stream then goes on
// from the start of the blob; others make room for it. It goes on to the end
// whatever was asked for, since each other piece would cost all before it again.
func (t *transfer) goRangeless(s *stream) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.noRanges, t.whole = true, true
	for _, o := range t.streams {
		if o.whole { // though it was to stop where s begins
			o.end = forever
		}
	}
	if len(t.streams) > 1 {
		return false
	}
	s.at, s.end = 0, forever
	return true
}

// pump copies until the stream's end, which may move while it runs.
func (t *transfer) pump(s *stream, src io.Reader) error {
	buf := buffers.Get().(*[pieceSize]byte)
	defer buffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		done, werr := t.put(s, buf[:n])
		switch {
		case werr != nil:
			return werr
		case done:
			return nil
		case errors.Is(err, io.EOF):
			return t.atEOF(s)
		case err != nil:
			return err
		}
	}
}

// pieceSize is the most that is taken from upstream, hashed and made readable
// at a time.
const pieceSize = 256 << 10

// buffers serves the streams: as many as run at once are in use.
var buffers = sync.Pool{New: func() any { return new([pieceSize]byte) }} //nolint:gochecknoglobals // a pool is shared by its nature

// put writes what came and moves the stream on. done says that the stream has
// reached its end.
func (t *transfer) put(s *stream, p []byte) (done bool, err error) {
	t.mu.Lock()
	at, end, sparse, ahead := s.at, s.end, t.noRanges, t.ask.Background
	t.mu.Unlock()
	if !ahead {
		t.debt.Owe(int64(len(p)))
	}
	p = p[:min(int64(len(p)), end-at)]
	for len(p) > 0 {
		n := int64(len(p))
		if sparse { // keep only what is absent: what is there may be hashed already
			gap := t.file.Gap(store.Span{Start: at, End: at + n})
			if skip := gap.Start - at; skip > 0 {
				at, p = gap.Start, p[skip:]
				continue
			}
			n = gap.Len()
		}
		if _, err := t.file.WriteAt(p[:n], at); err != nil {
			return false, cannotKeep(err)
		}
		at, p = at+n, p[n:]
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s.at, s.landed = at, true
	return at >= s.end, nil
}

// cannotKeep tells the disk's refusals from upstream's mistakes.
func cannotKeep(err error) error {
	if err == nil || isWrong(err) {
		return err
	}
	return fmt.Errorf("%w: %w", errCannotKeep, err)
}

// atEOF is a body that ended. If nobody told the size, this is where it is known.
func (t *transfer) atEOF(s *stream) error {
	t.mu.Lock()
	at, end := s.at, s.end
	t.mu.Unlock()
	switch size := t.file.Size(); {
	case size < 0 && end == forever:
		t.wasGiven(at) // before any client can have it all
		return t.file.SetSize(at)
	case at < end && at != size:
		return fmt.Errorf("fill %s: upstream ended at %d: %w", t.digest, at, io.ErrUnexpectedEOF)
	}
	return nil
}

// leave takes a reader off. Streams that served it alone go on for a window, no
// further: whoever comes next may read on there.
func (f *fill) leave(r *fillReader) {
	f.mu.Lock()
	f.readers = slices.DeleteFunc(f.readers, func(o *fillReader) bool { return o == r })
	for _, s := range f.streams {
		if !f.whole && !f.isWantedLocked(s) {
			s.end = min(s.end, s.at+window)
		}
	}
	f.mu.Unlock()
	f.poke()
}

// isWantedLocked reports that a reader is to read what a stream still brings.
func (f *fill) isWantedLocked(s *stream) bool {
	return slices.ContainsFunc(f.readers, func(r *fillReader) bool {
		want, ok := r.Wants()
		return ok && want.Start < s.end && (want.End < 0 || want.End > s.at)
	})
}
