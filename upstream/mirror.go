package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"entrepot/oci"
	"entrepot/ratelimit"
)

const (
	// A site that failed is asked after the others for so long, one whose body
	// stalled for longer: that cost more time.
	ailingAfterFailure = 5 * time.Second
	ailingAfterStall   = 30 * time.Second
	// maxServed bounds the blobs of which it is remembered who gave them.
	maxServed = 256
)

// health sorts what may be asked.
type health int

const (
	well   health = iota
	ailing        // it failed a moment ago, or wants to be left alone for a moment
	down          // its breaker is open
)

// health tells how the site, or another host that it leads to, is off for a call.
func (s *site) health(call ratelimit.Call) health {
	switch {
	case s.breakers.isOpen(call.Host):
		return down
	case time.Now().UnixNano() < s.ailing.Load(), s.limiter.Paused(call) > 0:
		return ailing
	}
	return well
}

// fared notes how a question went. A refusal is no sickness, and what limits
// keep away they know themselves.
func (s *site) fared(err error) {
	switch {
	case err == nil, !oci.IsRetryable(err):
		s.ailing.Store(0)
	case oci.CodeOf(err) != oci.TooManyRequests && oci.CodeOf(err) != oci.Internal:
		s.ails(ailingAfterFailure)
	}
}

func (s *site) ails(d time.Duration) { s.ailing.Store(time.Now().Add(d).UnixNano()) }

// inOrder asks one site after the other, those that are well first, until one
// has an answer. That there is none is only the primary's to say, and its error
// is the one that counts.
func inOrder[T any](ctx context.Context, c *Client, q *question, class ratelimit.Class, ask func(*site) (T, error)) (T, error) {
	var none T
	var verdict error
	for _, s := range c.order(ctx, q, class) {
		q.why = ""
		v, err := ask(s)
		s.fared(err)
		switch {
		case err == nil:
			q.note(s, c)
			return v, nil
		case ctx.Err() != nil:
			return none, err
		case s != c.primary:
		case !oci.IsRetryable(err):
			return none, err
		default:
			verdict = err
		}
	}
	return none, verdict
}

// note says in the Outcome that a mirror answered.
func (q *question) note(s *site, c *Client) {
	if s == c.primary {
		return
	}
	if q.why != "" {
		q.why += ", "
	}
	q.why += "from mirror " + s.endpoint.Host
}

// order is the order in which sites are asked now.
func (c *Client) order(ctx context.Context, q *question, class ratelimit.Class) []*site {
	if len(c.sites) == 1 {
		return c.sites
	}
	state := map[*site]health{}
	for _, s := range c.sites {
		state[s] = s.health(s.call(ctx, q, class))
	}
	return slices.SortedStableFunc(slices.Values(c.sites), func(a, b *site) int { return cmp.Compare(state[a], state[b]) })
}

// call is what limits look at of a question that a site would be asked.
func (s *site) call(ctx context.Context, q *question, class ratelimit.Class) ratelimit.Call {
	call := ratelimit.Call{Host: s.endpoint.Host, Class: class, Background: q.ask.Background, Held: q.ask.Held}
	if class == ratelimit.Pull {
		cred, _, err := s.credential(ctx, q.repo)
		if err == nil {
			call.Account = cred.account()
		}
	}
	return call
}

// Withheld is how long upstream is known to give out no manifest of a repository to
// who asks in the background, by its limits and its quota; 0 if it may be asked. It
// asks nobody.
func (c *Client) Withheld(ctx context.Context, repo oci.Repository) time.Duration {
	return c.withheld(ctx, &question{repo: repo, ask: oci.Ask{Background: true}})
}

// withheld is how long no site that could be asked now would give out a manifest;
// 0 if one does.
func (c *Client) withheld(ctx context.Context, q *question) time.Duration {
	least := time.Duration(0)
	for _, s := range c.sites {
		call := s.call(ctx, q, ratelimit.Pull)
		if s.breakers.isOpen(call.Host) {
			continue
		}
		wait := s.limiter.Paused(call)
		if wait <= 0 {
			return 0
		}
		if least == 0 || wait < least {
			least = wait
		}
	}
	return least
}

// copies is a handle on a blob that may be had at several addresses. Each Open
// may lead to another: the bytes are the same.
type copies struct {
	client  *Client
	blobs   []*blob // in the order in which they are asked while all are well
	foreign bool    // none of them is final

	mu    sync.Mutex // guards what follows
	size  int64      // -1 while unknown
	fails map[*blob]int
}

var _ oci.Blob = (*copies)(nil)

func newCopies(client *Client, blobs []*blob) *copies {
	c := &copies{client: client, blobs: blobs, size: -1, fails: map[*blob]int{}}
	// Whoever asks for a blob that was given out whole a moment ago had no use
	// for it: it was wrong, perhaps.
	if last := client.served.by(blobs[0]); last != nil {
		for _, b := range blobs {
			if b.site == last {
				c.fails[b]++
			}
		}
	}
	return c
}

func (c *copies) Descriptor() oci.Descriptor {
	c.mu.Lock()
	defer c.mu.Unlock()
	return oci.Descriptor{Digest: c.blobs[0].digest, Size: c.size}
}

// Stat asks until a place has the blob.
func (c *copies) Stat(ctx context.Context) (oci.Descriptor, oci.Outcome, error) {
	q := c.question()
	err := c.inOrder(ctx, q, func(b *blob) error {
		if err := b.stat(ctx, q); err != nil {
			return err
		}
		return c.agree(b, b.Descriptor().Size)
	})
	if err != nil {
		return oci.Descriptor{}, q.failed(), fmt.Errorf("stat %s@%s: %w", q.repo, c.blobs[0].digest, err)
	}
	return c.Descriptor(), q.outcome(), nil
}

// Open reads from the first place that has the blob. If that breaks off, the
// next Open leads elsewhere.
func (c *copies) Open(ctx context.Context, offset, length int64) (oci.Reader, error) {
	q := c.question()
	var opened *copiesReader
	err := c.inOrder(ctx, q, func(b *blob) error {
		r, err := b.open(ctx, q, offset, length)
		if err != nil {
			return err
		}
		if err := c.agree(b, r.Size()); err != nil {
			r.body.Close()
			return err
		}
		opened = &copiesReader{reader: r, ended: ctx.Err, copies: c, blob: b}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open %s@%s from %d: %w", q.repo, c.blobs[0].digest, offset, err)
	}
	opened.outcome = q.outcome()
	opened.outcome.Whole = opened.whole
	return opened, nil
}

func (c *copies) question() *question { return &question{repo: c.blobs[0].repo, ask: c.blobs[0].ask} }

// inOrder asks one place after the other, as for any question.
func (c *copies) inOrder(ctx context.Context, q *question, ask func(*blob) error) error {
	var verdict error
	for _, b := range c.order(q) {
		q.why = ""
		err := ask(b)
		if !c.foreign {
			b.site.fared(err)
		}
		own := !c.foreign && b.site == c.client.primary
		switch {
		case err == nil:
			if !c.foreign {
				q.note(b.site, c.client)
			}
			return nil
		case ctx.Err() != nil, own && !oci.IsRetryable(err):
			return err
		case own, c.foreign && weight(err) > weight(verdict):
			verdict = err
		}
		c.failed(b)
	}
	return verdict
}

// weight is how much the failure of one foreign place tells of all of them: trouble
// may pass, and what is refused may be allowed; only else there is no such blob.
func weight(err error) int {
	switch {
	case err == nil:
		return 0
	case oci.IsRetryable(err):
		return 3
	case oci.CodeOf(err) == oci.Denied:
		return 2
	}
	return 1
}

// order is by health, and then by how the places did for this blob.
func (c *copies) order(q *question) []*blob {
	c.mu.Lock()
	defer c.mu.Unlock()
	state := map[*blob]health{}
	for _, b := range c.blobs {
		state[b] = b.site.health(ratelimit.Call{Host: b.home.Host, Class: ratelimit.Blob, Background: q.ask.Background})
	}
	return slices.SortedStableFunc(slices.Values(c.blobs), func(a, b *blob) int {
		return cmp.Or(cmp.Compare(state[a], state[b]), cmp.Compare(c.fails[a], c.fails[b]))
	})
}

func (c *copies) failed(b *blob) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fails[b]++
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

// copiesReader notes how a body ended.
type copiesReader struct {
	*reader
	ended   func() error // by its caller
	copies  *copies
	blob    *blob
	outcome oci.Outcome
}

func (r *copiesReader) Outcome() oci.Outcome { return r.outcome }

func (r *copiesReader) Read(p []byte) (int, error) {
	n, err := r.reader.Read(p)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		r.copies.client.served.note(r.blob)
	case r.ended() == nil:
		r.copies.failed(r.blob)
		if oci.CodeOf(err) == oci.Timeout && r.blob.within == nil {
			r.blob.site.ails(ailingAfterStall)
		}
	}
	return n, err
}

// served remembers which site gave a blob last.
type served struct {
	mu   sync.Mutex // guards last
	last map[content]*site
}

type content struct {
	repo   string // path
	digest oci.Digest
}

func (s *served) by(b *blob) *site {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last[content{b.repo.Path, b.digest}]
}

func (s *served) note(b *blob) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.last) >= maxServed {
		clear(s.last) // forgetting costs a wrong body another try
	}
	s.last[content{b.repo.Path, b.digest}] = b.site
}
