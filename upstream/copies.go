package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"entrepot/oci"
	"entrepot/ratelimit"
)

// copies is a handle on a blob that may be had at several addresses. Each Open
// may lead to another: the bytes are the same. Of a blob that was wrong so all come
// from one, whichever has the first.
type copies struct {
	client  *Client
	blobs   []*blob // in the order in which they are asked while all are well
	foreign bool    // none of them is final

	mu      sync.Mutex // guards what follows
	size    int64      // -1 while unknown
	fails   map[*blob]int
	refused map[*blob]bool // those that do not have it, or do not give it
	gave    map[*blob]bool // those that gave bytes
	opened  bool
	mixture *mixture // that earlier handles gave, when the first Open was; nil: each Open may lead elsewhere
	only    *blob    // where there was one: who has the first bytes
}

var _ oci.Blob = (*copies)(nil)

func newCopies(client *Client, blobs []*blob) *copies {
	return &copies{client: client, blobs: blobs, size: -1, fails: map[*blob]int{}, refused: map[*blob]bool{}, gave: map[*blob]bool{}}
}

func (c *copies) Descriptor() oci.Descriptor {
	c.mu.Lock()
	defer c.mu.Unlock()
	return oci.Descriptor{Digest: c.blobs[0].digest, Size: c.size}
}

// Stat asks until a place has the blob.
func (c *copies) Stat(ctx context.Context) (oci.Descriptor, oci.Outcome, error) {
	q := c.question()
	l, err := inCopies(ctx, c, q, ratelimit.Check, c.order(q), func(ctx context.Context, q *question, b *blob) (struct{}, error) {
		if err := b.stat(ctx, q); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, c.agree(b, b.Descriptor().Size)
	}, nil)
	if err != nil {
		return oci.Descriptor{}, q.failed(), fmt.Errorf("stat %s@%s: %w", q.repo, c.blobs[0].digest, err)
	}
	l.release()
	return c.Descriptor(), q.outcome(), nil
}

// Open reads from the first place that has the blob. If that breaks off, or comes
// too slowly, the next Open leads elsewhere, unless all is to come from one place.
func (c *copies) Open(ctx context.Context, offset, length int64) (oci.Reader, error) {
	q := c.question()
	c.recall()
	l, err := c.open(ctx, q, offset, length)
	if err == nil && !c.keepsTo(l.place) { // another Open has the first bytes from elsewhere
		l.value.body.Close()
		l.release()
		l, err = c.open(ctx, q, offset, length)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s@%s from %d: %w", q.repo, c.blobs[0].digest, offset, err)
	}
	opened := &copiesReader{reader: l.value, caller: ctx, attempt: l.attempt, copies: c, blob: l.place, outcome: q.outcome()}
	opened.outcome.Whole, opened.outcome.From = opened.whole, l.place.home.Host
	opened.idle = time.AfterFunc(c.leaveAfter(), opened.leave)
	opened.idle.Stop()
	return opened, nil
}

func (c *copies) open(ctx context.Context, q *question, offset, length int64) (*leg[*blob, *reader], error) {
	return inCopies(ctx, c, q, ratelimit.Blob, c.order(q), func(ctx context.Context, q *question, b *blob) (*reader, error) {
		r, err := b.open(ctx, q, offset, length)
		if err != nil {
			return nil, err
		}
		if err := c.agree(b, r.Size()); err != nil {
			r.body.Close()
			return nil, err
		}
		return r, nil
	}, func(r *reader) { r.body.Close() })
}

// recall looks up, once, whether all has to come from one place.
func (c *copies) recall() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.opened && !c.foreign {
		c.mixture = c.client.mixtures.of(c.blobs[0].digest)
	}
	c.opened = true
}

// keepsTo reports whether the handle may give what a place has: where all has to come
// from one, that is the first that has any.
func (c *copies) keepsTo(b *blob) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.mixture == nil:
		return true
	case c.only == nil:
		c.only = b
		c.mixture.begins(b.site)
	case c.only == b:
		c.mixture.goesOn(b.site)
	}
	return c.only == b
}

// leaveAfter is how long a body may bring nothing where another place may go on.
func (c *copies) leaveAfter() time.Duration { return c.client.cfg.Timeouts.Stall / 4 }

// Wrong is told that what the handle gave was not what its digest names. It is known
// of whom that came if all of it came from one place. Else the next handles keep to one
// each, so that what they give is right, or tells.
func (c *copies) Wrong() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.foreign:
		return
	case len(c.gave) > 1:
		c.client.mixtures.add(c.blobs[0].digest)
		return
	}
	for b := range c.gave {
		b.site.lied("blob " + b.digest.String() + " of " + b.repo.String())
	}
}

func (c *copies) question() *question { return &question{repo: c.blobs[0].repo, ask: c.blobs[0].ask} }

// inCopies asks one place after the other, as inOrder does for any question. What
// won is the caller's to release.
func inCopies[T any](ctx context.Context, c *copies, q *question, class ratelimit.Class, places []*blob, ask func(context.Context, *question, *blob) (T, error), drop func(T)) (*leg[*blob, T], error) {
	var said joint
	var refused []*blob
	r := race[*blob, T]{
		client: c.client, q: q, places: places, patience: c.client.patience(class), drop: drop,
		ask: func(ctx context.Context, q *question, b *blob) (T, error) {
			v, err := ask(ctx, q, b)
			if !c.foreign {
				b.site.answered(ctx, c.client, q, class, err)
			}
			return v, err
		},
		failed: func(b *blob, err error) bool {
			own := !c.foreign && b.site == c.client.primary
			switch {
			case own, c.foreign && weight(err) > weight(said.primary):
				said.primary = err
			case !c.foreign && len(places) == 1:
				said.primary = notFinal(b, err)
			case !c.foreign:
				said.other(b.site, err)
			}
			c.failed(b, err)
			if isLack(err) {
				refused = append(refused, b)
			}
			return own && !oci.IsRetryable(err)
		},
		overrules: func(b *blob) bool { return c.client.mayOverrule(b.site, q, b.call) },
		silent: func(b *blob) {
			if c.failed(b, nil); !c.foreign {
				b.site.ails(ailingAfterSilence)
			}
		},
		ails: func(b *blob) bool { return !c.foreign && b.site.isAiling() },
	}
	won := r.run(ctx)
	switch {
	case won == nil && ctx.Err() != nil:
		return nil, failure(ctx, c.client.cfg.Name, ctx.Err(), nil)
	case won == nil:
		return nil, said.err()
	case !c.foreign:
		for _, b := range refused {
			b.site.lacked(q.repo)
		}
		q.note(won.place.site, c.client)
	}
	return won, nil
}

// notFinal is what the failure of a mirror means that was the only one to be asked: it
// cannot say that there is no such blob.
func notFinal(b *blob, err error) error {
	if !isLack(err) {
		return err
	}
	return oci.Errorf(oci.BadUpstream, "%s, which had begun to give blob %s, does not go on: %w", b.home.Host, b.digest, err)
}

// weight is how much the failure of one foreign place tells of all of them: trouble
// may pass, and what is refused may be allowed; only else there is no such blob.
func weight(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, oci.ErrAstray), oci.CodeOf(err) == oci.Denied:
		return 2
	case oci.IsRetryable(err):
		return 3
	}
	return 1
}

// order is by health, and then by how the places did for this blob. Where all has to
// come from one place, it is that one.
func (c *copies) order(q *question) []*blob {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.only != nil {
		return []*blob{c.only}
	}
	ranks := map[*blob]rank{}
	for _, b := range c.blobs {
		r := rank{fails: c.fails[b]}
		if q.ask.Refresh {
			b.site.standing.forgetLacks(q.repo.Path)
		}
		r.health, r.rate = b.health()
		if c.mixture != nil {
			r.tries = c.mixture.rank(b.site, r.health == well)
		}
		ranks[b] = r
	}
	return slices.SortedStableFunc(slices.Values(c.blobs), func(a, b *blob) int { return ranks[a].compare(ranks[b]) })
}

// health is how a place of a blob is off.
func (b *blob) health() (health, int64) {
	return b.site.health(b.call(), b.repo)
}

// call is what limits look at of a question for the blob.
func (b *blob) call() ratelimit.Call {
	return ratelimit.Call{Host: b.home.Host, Class: ratelimit.Blob, Background: b.ask.Background}
}

func (c *copies) failed(b *blob, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fails[b]++
	if c.mixture != nil {
		c.mixture.failed(b.site)
	}
	if err != nil && !oci.IsRetryable(err) {
		c.refused[b] = true
	}
}

// isFaster reports whether a place could be asked that may well be faster than one
// that sends so many bytes a second. One that is known to be hardly faster, or to have
// sent nothing, is not worth the change: where everything is slow, what was asked last
// stays.
func (c *copies) isFaster(than *blob, rate int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.only == nil && slices.ContainsFunc(c.blobs, func(b *blob) bool {
		h, known := b.health()
		return b != than && !c.refused[b] && (h == well || h == slow && known > 0 && known >= 2*rate)
	})
}

// agree holds all places to one size. The primary's counts.
func (c *copies) agree(b *blob, size int64) error {
	if size < 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.size
	if known < 0 || known == size {
		c.size = size
		return nil
	}
	if !c.foreign && b.site == c.client.primary {
		c.size = size
	}
	return oci.Errorf(oci.BadUpstream, "%s gave blob %s a size of %d, another place of %d", b.home.Host, b.digest, size, known)
}

// LeastRate is what a body has to come at, in bytes a second over LeastOver of waiting
// for it, where another place could be asked. Time in which nobody reads does not
// count.
const (
	LeastRate = 64 << 10
	LeastOver = 10 * time.Second
)

// errSlow ends a body that comes too slowly, or not at all.
var errSlow = errors.New("too slow")

// copiesReader notes how a body came, and how it ended.
type copiesReader struct {
	*reader
	caller  context.Context //nolint:containedctx // of Open, which governs the transfer
	attempt *attempt        // that it comes by; nil: there is no other place
	copies  *copies
	blob    *blob
	outcome oci.Outcome

	waited time.Duration // for the bytes that came, since their rate was last looked at
	came   int64
	idle   *time.Timer // runs while a Read waits
	left   atomic.Bool // it was cut by that
}

func (r *copiesReader) Outcome() oci.Outcome { return r.outcome }

func (r *copiesReader) Close() error {
	defer r.attempt.release()
	return r.reader.Close()
}

func (r *copiesReader) Read(p []byte) (int, error) {
	began := time.Now()
	r.idle.Reset(r.copies.leaveAfter())
	n, err := r.reader.Read(p)
	r.idle.Stop()
	r.waited, r.came = r.waited+time.Since(began), r.came+int64(n)
	if n > 0 {
		r.copies.got(r.blob)
	}
	if err == nil {
		return n, r.keepsUp()
	}
	return n, r.ended(err)
}

// leave ends a Read that has waited for long, if another place may go on.
func (r *copiesReader) leave() {
	if r.copies.isFaster(r.blob, 0) {
		r.left.Store(true)
		r.attempt.cancel()
	}
}

// ended notes what a body ended in.
func (r *copiesReader) ended(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, errSlow):
		return err
	case r.caller.Err() != nil:
		return failure(r.caller, r.blob.home.Host, r.caller.Err(), nil)
	case r.left.Load():
		r.isSlow(0, true)
		return r.moves(fmt.Sprintf("sends nothing for %v", r.copies.leaveAfter()))
	case oci.CodeOf(err) == oci.Timeout:
		r.isSlow(0, r.copies.isFaster(r.blob, 0))
	}
	r.copies.failed(r.blob, nil)
	return err
}

// keepsUp looks at the rate now and then. It is an error where the body comes too
// slowly and another place may be faster.
func (r *copiesReader) keepsUp() error {
	if r.waited < LeastOver {
		return nil
	}
	rate := int64(float64(r.came) / r.waited.Seconds())
	r.waited, r.came = 0, 0
	if rate >= LeastRate {
		return nil
	}
	leaves := r.copies.isFaster(r.blob, rate)
	r.isSlow(rate, leaves)
	if !leaves {
		return nil
	}
	return r.moves(fmt.Sprintf("sends %d bytes a second", rate))
}

// isSlow notes that a body comes at a rate of bytes a second. Of foreign places nothing
// is remembered.
func (r *copiesReader) isSlow(rate int64, leaves bool) {
	if r.blob.within == nil {
		r.blob.site.isSlow(rate, leaves)
	}
}

// moves ends the body for what the place does, so that another goes on.
func (r *copiesReader) moves(does string) error {
	host := r.blob.home.Host
	r.copies.failed(r.blob, nil)
	r.err = &oci.Error{Code: oci.Timeout, Detail: host + " " + does, Err: errSlow}
	return r.err
}

// got notes that a place gave some of the bytes.
func (c *copies) got(b *blob) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gave[b] = true
}
