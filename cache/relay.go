package cache

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"entrepot/oci"
)

const (
	// relayWindow is the most that a relay holds of a blob: that far apart its
	// readers may be. The more relays run the less each of them holds, down to
	// leastWindow, so that all of them together hold a few MiB.
	relayWindow = 1 << 20
	leastWindow = 64 << 10
	relayPiece  = 64 << 10 // the most that is read from upstream at a time
	// relayPatience is how long, all in all, a relay's readers wait for one that
	// cannot keep up before that one has to go on by itself.
	relayPatience = time.Second
	// placeWait is how long who has no answer yet waits for one of the relays to
	// end: not as long as headers may take.
	placeWait = 10 * time.Second
)

var errBehind = errors.New("the reader could not keep up with the others")

// relays are the transfers that are not kept. Their number is bounded: each is a
// copy of its own on the line from upstream.
type relays struct {
	most int

	mu      sync.Mutex // guards what follows; taken before a relay's own lock
	n       int
	running map[string][]*relay // by place and digest
	changed chan struct{}       // closed when one begins or ends; nil: nobody waits
}

// relay is one transfer that is not kept, for all who want the same bytes at the
// same time. It holds a window of the last bytes, moves on with the slowest of
// its readers, and ends with the last of them.
type relay struct {
	blob   blob // that it was begun for
	key    string
	at     int64 // the first byte, and
	end    int64 // the stretch's end or forever
	begun  bool  // the headers of the one who began it are out
	window int64 // the most to hold
	cancel context.CancelFunc
	moved  chan struct{} // of one place: a reader moved on, or left

	mu      sync.Mutex // guards what follows
	ring    []byte     // nil until upstream has answered
	tail    int64      // ring holds the bytes from here
	head    int64      // to here
	readers []*relayReader
	up      oci.Blob      // the handle it reads by; nil until upstream has answered
	size    int64         // of the blob; -1 until known
	spent   int           // requests to upstream
	err     error         // why no more comes; io.EOF at the end
	changed chan struct{} // closed when bytes have come or err is set; nil: nobody waits
}

// relayReader is the place of one reader in a relay.
type relayReader struct {
	*relay
	pos    int64 // guarded by the relay's lock, as is
	behind bool  // it was too slow, and is no longer a reader
	first  bool  // the relay was begun for it
}

// join finds a relay that has the byte at and goes on to end, or begins one. If
// as many run as may, it waits for either: for placeWait, or where the client has
// its headers, and could only be cut, as long as that stays.
func (b *blob) join(ctx context.Context, at, end int64, begun bool) (*relayReader, error) {
	var late <-chan time.Time
	if !begun {
		timer := time.NewTimer(placeWait)
		defer timer.Stop()
		late = timer.C
	}
	for {
		r, changed, err := b.c.relays.tryJoin(ctx, b, at, end, begun)
		if r != nil || err != nil {
			return r, err
		}
		select {
		case <-changed:
		case <-late:
			return nil, oci.Errorf(oci.Unavailable, "%s cannot be kept, and %d transfers that are not kept are running already", b.dg, b.c.relays.most)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// tryJoin is join without waiting: changed is closed when it may go otherwise.
func (rs *relays) tryJoin(ctx context.Context, b *blob, at, end int64, begun bool) (r *relayReader, changed <-chan struct{}, err error) {
	key := b.key()
	if b.ask.Background {
		key += " background" // which may be refused what others get
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, l := range rs.running[key] {
		if r := l.add(at, end); r != nil {
			return r, nil, nil
		}
	}
	if rs.n >= rs.most {
		if rs.changed == nil {
			rs.changed = make(chan struct{})
		}
		return nil, rs.changed, nil
	}
	l := &relay{
		blob: *b, key: key, at: at, end: end, begun: begun, window: max(leastWindow, relayWindow/int64(rs.n+1)),
		moved: make(chan struct{}, 1), tail: at, head: at, size: -1,
	}
	r = &relayReader{relay: l, pos: at, first: true}
	l.readers = append(l.readers, r)
	life, cancel := context.WithCancel(oci.CarrySpan(ctx, b.c.ctx))
	l.cancel = cancel
	if !b.c.spawn(func() { l.run(life) }) {
		cancel()
		return nil, nil, errClosed
	}
	rs.n++
	rs.running[key] = append(rs.running[key], l)
	rs.wakeLocked()
	return r, nil, nil
}

func (rs *relays) wakeLocked() {
	if rs.changed != nil {
		close(rs.changed)
		rs.changed = nil
	}
}

// leave takes a reader off its relay, which ends with the last one.
func (rs *relays) leave(r *relayReader) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	l := r.relay
	l.mu.Lock()
	before := len(l.readers)
	l.readers = slices.DeleteFunc(l.readers, func(o *relayReader) bool { return o == r })
	last := before > 0 && len(l.readers) == 0
	l.mu.Unlock()
	l.move()
	if !last {
		return
	}
	l.cancel()
	rs.n--
	rs.running[l.key] = slices.DeleteFunc(rs.running[l.key], func(o *relay) bool { return o == l })
	if len(rs.running[l.key]) == 0 {
		delete(rs.running, l.key)
	}
	rs.wakeLocked()
}

// add gives a place to a reader of [at, end) if the relay can serve it; nil if not.
func (l *relay) add(at, end int64) *relayReader {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil || at < l.tail || at > l.head || end > l.end {
		return nil
	}
	r := &relayReader{relay: l, pos: at}
	l.readers = append(l.readers, r)
	return r
}

// move has run look again at where the readers are.
func (l *relay) move() {
	select {
	case l.moved <- struct{}{}:
	default:
	}
}

// run is the transfer.
func (l *relay) run(ctx context.Context) {
	length := int64(-1)
	if l.end != forever {
		length = l.end - l.at
	}
	src, err := l.blob.resume(ctx, l.at, length, l.begun)
	defer func() { _ = src.Close() }()
	l.begin(src)
	left := relayPatience
	for err == nil {
		var p []byte
		if p, err = l.room(ctx, &left); err != nil {
			break
		}
		var n int
		n, err = src.Read(p)
		l.land(src, n, err)
	}
	if l.blob.c.ctx.Err() != nil {
		err = errClosed
	}
	if !errors.Is(err, io.EOF) {
		l.blob.noteFailure(DigestKind, err)
	}
	l.land(src, 0, err)
}

// begin makes the window, no larger than there are bytes.
func (l *relay) begin(src *resumer) {
	window := min(l.window, l.end-l.at)
	if src.size >= 0 {
		window = min(window, src.size-l.at)
	}
	l.mu.Lock()
	l.ring, l.up = make([]byte, max(window, 1)), src.up
	l.mu.Unlock()
}

// land publishes n bytes that were read into room's, or why there are no more.
func (l *relay) land(src *resumer, n int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.head += int64(n)
	l.size, l.spent = src.size, src.spent
	if l.err == nil {
		l.err = err
	}
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// room waits for a place in the window for the next bytes. Readers who hold up
// others for longer than what is left of their patience are put out.
func (l *relay) room(ctx context.Context, left *time.Duration) ([]byte, error) {
	for {
		p, waiting := l.tryRoom()
		if p != nil {
			return p, nil
		}
		if !waiting {
			select {
			case <-l.moved:
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
			continue
		}
		began, late := time.Now(), time.NewTimer(*left)
		select {
		case <-l.moved:
			*left = max(0, *left-time.Since(began))
		case <-late.C:
			l.putOut()
			*left = relayPatience
		case <-ctx.Done():
		}
		late.Stop()
	}
}

// tryRoom returns the part of the window that nobody needs any more, for the next
// bytes, or whether a reader waits for those.
func (l *relay) tryRoom() (p []byte, waiting bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	slowest, held := l.head, int64(len(l.ring))
	for _, r := range l.readers {
		slowest = min(slowest, r.pos)
		waiting = waiting || r.pos == l.head
	}
	at := l.head % held
	n := min(held-(l.head-slowest), held-at, relayPiece)
	if n == 0 || len(l.readers) == 0 {
		return nil, waiting
	}
	l.tail = max(l.tail, l.head+n-held)
	return l.ring[at : at+n], false
}

// putOut removes the readers for whom others wait, if those are still there.
func (l *relay) putOut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	far := l.head - int64(len(l.ring)+1)/2
	if !slices.ContainsFunc(l.readers, func(r *relayReader) bool { return r.pos > far }) {
		return
	}
	l.readers = slices.DeleteFunc(l.readers, func(r *relayReader) bool {
		r.behind = r.pos <= far
		return r.behind
	})
}

// read gives out what there is at the reader's place, and waits for it.
func (r *relayReader) read(ctx context.Context, p []byte) (int, error) {
	for {
		n, changed, err := r.tryRead(p)
		if n > 0 || err != nil {
			r.move()
			return n, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// await returns when a byte has come, or none will.
func (r *relayReader) await(ctx context.Context) error {
	for {
		_, changed, err := r.tryRead(nil)
		if changed == nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tryRead copies what there is into p. changed is set while there is nothing.
func (r *relayReader) tryRead(p []byte) (n int, changed <-chan struct{}, err error) {
	l := r.relay
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case r.behind:
		return 0, nil, errBehind
	case r.pos < l.head:
		at := r.pos % int64(len(l.ring))
		n = copy(p, l.ring[at:min(at+l.head-r.pos, int64(len(l.ring)))])
		r.pos += int64(n)
		return n, nil, nil
	case l.err != nil:
		return 0, nil, l.err
	}
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return 0, l.changed, nil
}

// follower reads a stretch of a blob by way of relays: where it cannot keep up
// with one it goes on in the next.
type follower struct {
	blob    *blob
	ctx     context.Context //nolint:containedctx // the request's: the reader lives in it
	at, end int64           // the next byte, and the stretch's end or forever
	in      *relayReader
	moved   bool // it was in others before in
	before  int  // requests to upstream that those cost
}

// followPast reads length bytes from at, or to the end if length is negative. It
// returns when the first byte is there.
func (b *blob) followPast(ctx context.Context, at, length int64, begun bool) (*follower, error) {
	f := &follower{blob: b, ctx: ctx, at: at, end: forever}
	if length >= 0 {
		f.end = at + length
	}
	var err error
	if f.in, err = b.join(ctx, f.at, f.end, begun); err != nil {
		return nil, err
	}
	if err := f.in.await(ctx); err != nil && !errors.Is(err, errBehind) && !errors.Is(err, io.EOF) {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *follower) Read(p []byte) (int, error) {
	for {
		if f.at >= f.end {
			return 0, io.EOF
		}
		n, err := f.in.read(f.ctx, p[:min(int64(len(p)), f.end-f.at)])
		f.at += int64(n)
		if !errors.Is(err, errBehind) {
			return n, err
		}
		f.before = f.spent()
		in, err := f.blob.join(f.ctx, f.at, f.end, true)
		if err != nil {
			return 0, err
		}
		f.in, f.moved = in, true
	}
}

// doubt tells upstream that what it gave is wrong, if all of it came by one relay, and
// so by one handle.
func (f *follower) doubt() {
	if f.moved {
		return
	}
	f.in.mu.Lock()
	up := f.in.up
	f.in.mu.Unlock()
	if up, ok := up.(oci.Doubtful); ok {
		up.Wrong()
	}
}

// size is the blob's; -1 while unknown.
func (f *follower) size() int64 {
	f.in.mu.Lock()
	defer f.in.mu.Unlock()
	return f.in.relay.size
}

// spent is how many requests to upstream were made for this reader.
func (f *follower) spent() int {
	if !f.in.first {
		return f.before
	}
	f.in.mu.Lock()
	defer f.in.mu.Unlock()
	return f.before + f.in.relay.spent
}

func (f *follower) Close() error {
	f.blob.c.relays.leave(f.in)
	return nil
}
