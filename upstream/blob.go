package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"entrepot/oci"
	"entrepot/ratelimit"
)

// Blob returns a handle that asks nothing until it is used.
func (c *Client) Blob(_ context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Blob, error) {
	blobs := make([]*blob, len(c.sites))
	for i, s := range c.sites {
		blobs[i] = &blob{
			site: s, repo: repo, digest: d, ask: ask, size: -1,
			home: s.url(oci.Request{Kind: oci.BlobKind, Name: repo.Path, Digest: d}),
		}
	}
	if len(blobs) == 1 {
		return blobs[0], nil
	}
	return newCopies(c, blobs), nil
}

// blob is a handle on a blob at one address. It keeps where the registry redirected
// to, so that the many Opens of one transfer cost the registry one request; one
// Open at a time asks the registry while the others wait for what it learns.
type blob struct {
	site   *site
	repo   oci.Repository
	digest oci.Digest
	ask    oci.Ask
	home   *url.URL // where it is asked for first

	within foreignHosts // set: home is no registry of ours, nobody signs in there, and redirects lead to these hosts only

	begun atomic.Bool // bytes have come: what is asked for next goes on with them

	mu        sync.Mutex  // guards what follows
	size      int64       // -1 while unknown
	target    *url.URL    // where the content is; nil while unknown
	account   string      // by whose credentials it was found there
	direct    bool        // the registry itself has it
	resolving *resolution // nil: nobody asks the registry now
}

// resolution is a question to the registry that others wait for.
type resolution struct {
	done chan struct{} // closed when err is set
	err  error         // that holds for those who wait, too
}

var _ oci.Blob = (*blob)(nil)

// Descriptor has no media type: upstreams give blobs none worth having.
func (b *blob) Descriptor() oci.Descriptor {
	b.mu.Lock()
	defer b.mu.Unlock()
	return oci.Descriptor{Digest: b.digest, Size: b.size}
}

// Stat asks by HEAD; where that is refused or tells no length, for one byte. The
// size is -1 where upstream names no length at all.
func (b *blob) Stat(ctx context.Context) (oci.Descriptor, oci.Outcome, error) {
	q := &question{repo: b.repo, ask: b.ask}
	if err := b.stat(ctx, q); err != nil {
		return oci.Descriptor{}, q.failed(), fmt.Errorf("stat %s@%s: %w", b.repo, b.digest, err)
	}
	return b.Descriptor(), q.outcome(), nil
}

func (b *blob) stat(ctx context.Context, q *question) error {
	r := b.request(http.MethodHead, 0, -1)
	registry := r.url
	a, err := b.site.follow(ctx, q, r)
	if err != nil {
		return err
	}
	switch {
	case a.status == http.StatusOK:
		if err := checkDigest(a, b.digest); err != nil {
			return err
		}
		// Some servers write a length of nothing beside the body that HEAD
		// leaves out.
		if a.length > 0 {
			return b.learnSize(a.length)
		}
	case a.status == http.StatusMethodNotAllowed, a.status == http.StatusNotImplemented:
	case a.url != registry && isRefusedTarget(a.status):
		// A signed URL may be good for GET alone.
	default:
		return b.refusal(a)
	}
	return b.statByGet(ctx, q)
}

// statByGet asks for the first byte, to see of how many. An empty blob has none.
func (b *blob) statByGet(ctx context.Context, q *question) error {
	a, err := b.get(ctx, q, 0, 1)
	if err != nil {
		return err
	}
	defer a.close()
	if a.status == http.StatusRequestedRangeNotSatisfiable {
		return b.learnSize(0)
	}
	s, err := b.stretchOf(a, 0, 1)
	if err != nil {
		return err
	}
	if a.status == http.StatusPartialContent {
		readStart(a.body) // one byte, and the connection can be used again
	}
	return b.learnSize(s.total)
}

// Open reads from upstream; ctx governs the transfer until the Reader is closed.
// Where a range was asked for and the whole is sent, that is what the Reader reads.
// A body that ends before what its headers promised ends in
// io.ErrUnexpectedEOF; one that goes on behind it in a BadUpstream error.
func (b *blob) Open(ctx context.Context, offset, length int64) (oci.Reader, error) {
	q := &question{repo: b.repo, ask: b.ask}
	r, err := b.open(ctx, q, offset, length)
	if err != nil {
		return nil, fmt.Errorf("open %s@%s from %d: %w", b.repo, b.digest, offset, err)
	}
	return r, nil
}

func (b *blob) open(ctx context.Context, q *question, offset, length int64) (*reader, error) {
	if offset < 0 {
		return nil, oci.Errorf(oci.RangeInvalid, "offset %d is negative", offset)
	}
	if length == 0 {
		return b.openNothing(ctx, q, offset)
	}
	if length > 0 && offset+length < offset {
		length = -1
	}
	a, err := b.get(ctx, q, offset, length)
	if err != nil {
		return nil, err
	}
	s, err := b.stretchOf(a, offset, length)
	if err == nil {
		err = b.learnSize(s.total)
	}
	if err != nil {
		a.close()
		if a.status < 300 {
			b.forget(a.url) // it sends what was not asked for
		}
		return nil, err
	}
	r := &reader{body: a.body, stretch: s, host: a.url.Host, outcome: q.outcome()}
	r.outcome.Whole, r.outcome.From = s.whole, b.home.Host
	if err := r.readFirst(); err != nil {
		a.close()
		return nil, brokenAnswer(a.url.Host, err)
	}
	b.begun.Store(true)
	return r, nil
}

// openNothing answers a read of no bytes, which no Range can ask for.
func (b *blob) openNothing(ctx context.Context, q *question, offset int64) (*reader, error) {
	if b.Descriptor().Size < 0 {
		if err := b.stat(ctx, q); err != nil {
			return nil, err
		}
	}
	size := b.Descriptor().Size
	if size >= 0 && offset > size {
		return nil, oci.Errorf(oci.RangeInvalid, "offset %d lies behind the end of %d bytes", offset, size)
	}
	return &reader{body: http.NoBody, stretch: stretch{offset: offset, total: size}, outcome: q.outcome()}, nil
}

func (b *blob) request(method string, offset, length int64) request {
	r := request{
		kind:     BlobKind,
		class:    ratelimit.Blob,
		method:   method,
		url:      b.home,
		rang:     rangeHeader(offset, length),
		transfer: method == http.MethodGet,
		resumed:  b.begun.Load(),
	}
	if b.within != nil {
		r.class, r.anonymous, r.within = ratelimit.Redirect, true, b.within
	}
	return r
}

// get asks the place where the content is, or the registry for it. A target
// that refuses has expired: it is resolved anew, once.
func (b *blob) get(ctx context.Context, q *question, offset, length int64) (*answer, error) {
	r := b.request(http.MethodGet, offset, length)
	var refused *url.URL
	for {
		target, resolved, err := b.locate(ctx, refused)
		if err != nil {
			return nil, err
		}
		if target == nil {
			a, err := b.site.follow(ctx, q, r)
			b.mu.Lock()
			b.account = q.account
			b.mu.Unlock()
			resolved(ctx, a, err)
			return a, err
		}
		b.mu.Lock()
		q.account = b.account
		b.mu.Unlock()
		again := r
		again.url, again.class = target, ratelimit.Redirect
		a, err := b.site.follow(ctx, q, again)
		switch {
		case err != nil:
			// Another place may be alive where this one is not; one that
			// we leave alone for a while is.
			if ctx.Err() == nil && oci.CodeOf(err) != oci.TooManyRequests {
				b.forget(target)
			}
			return nil, err
		case a.status >= 500:
			b.forget(target)
			return a, nil
		case !isRefusedTarget(a.status):
			return a, nil
		case refused != nil: // and this one is new
			b.forget(target)
			return a, nil
		}
		refused = target
	}
}

// isRefusedTarget reports whether a status is how a signed URL ends: 403 at most,
// 400 at GCS, 401, 404 or 410 at others.
func isRefusedTarget(status int) bool {
	switch status {
	case http.StatusRequestedRangeNotSatisfiable, http.StatusTooManyRequests, http.StatusRequestTimeout:
		return false
	}
	return status >= 400 && status < 500
}

// locate returns where the content is, other than refused. A nil target means
// that the caller is to ask the registry, and to call resolved with the answer.
func (b *blob) locate(ctx context.Context, refused *url.URL) (target *url.URL, resolved func(context.Context, *answer, error), err error) {
	for {
		b.mu.Lock()
		if refused != nil && b.target == refused {
			b.target = nil
		}
		target, direct, busy := b.target, b.direct, b.resolving
		if target == nil && !direct && busy == nil {
			b.resolving = &resolution{done: make(chan struct{})}
		}
		b.mu.Unlock()
		switch {
		case target != nil:
			return target, nil, nil
		case direct:
			return nil, func(context.Context, *answer, error) {}, nil
		case busy == nil:
			return nil, b.resolved, nil
		}
		select {
		case <-busy.done:
			if busy.err != nil {
				return nil, nil, busy.err
			}
		case <-ctx.Done():
			return nil, nil, failure(ctx, b.home.Host, ctx.Err(), nil)
		}
	}
}

// resolved notes where the registry's answer came from, and lets those who wait
// for that go on. A failure is theirs as well, unless the asker just left (ctx
// is its): then the next of them asks.
func (b *blob) resolved(ctx context.Context, a *answer, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case err != nil && ctx.Err() != nil:
	case err != nil:
		b.resolving.err = err
	case a.status == http.StatusOK, a.status == http.StatusPartialContent, a.status == http.StatusRequestedRangeNotSatisfiable:
		if originOf(a.url) == originOf(b.home) {
			b.direct = true
		} else {
			b.target = a.url
		}
	default:
		b.resolving.err = b.refusal(a)
	}
	close(b.resolving.done)
	b.resolving = nil
}

func (b *blob) forget(target *url.URL) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.target == target {
		b.target = nil
	}
}

// refusal is what an answer means that is no content. Who sends us elsewhere says
// that the blob is there: a host that then refuses us, or has nothing, is upstream's
// trouble, no verdict on our rights or on the blob. Only a registry that speaks of
// blobs may say there that there is none: some are but signposts to others.
func (b *blob) refusal(a *answer) error {
	e := b.site.refusal(a, oci.BlobUnknown)
	if originOf(a.url) != originOf(b.home) && !oci.IsRetryable(e) && e.Code != oci.RangeInvalid && !deniesBlob(a) {
		e.Code = oci.BadUpstream
		e.Detail = fmt.Sprintf("%s, where upstream has its blobs, answered %d", a.url.Host, a.status)
	}
	if b.within != nil && e.Code == oci.NameUnknown { // the name is not one that anybody asked us for
		e.Code = oci.BlobUnknown
	}
	return e
}

// deniesBlob reports a 404 in the words that a registry has for blobs.
func deniesBlob(a *answer) bool {
	switch oci.ReadError(a.status, a.header, a.start, oci.NotFound, time.Time{}).Code {
	case oci.BlobUnknown, oci.NameUnknown:
		return true
	}
	return false
}

// learnSize keeps a size that upstream named, -1 for none. Two that differ are
// both in doubt.
func (b *blob) learnSize(size int64) error {
	if size < 0 {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if known := b.size; known >= 0 && known != size {
		b.size, b.target = -1, nil
		return oci.Errorf(oci.BadUpstream, "upstream gave blob %s a size of %d, then of %d", b.digest, known, size)
	}
	b.size = size
	return nil
}

// stretch is the part of a blob that an answer carries.
type stretch struct {
	offset int64
	length int64 // bytes to give; -1: to wherever the body ends
	total  int64 // of the blob; -1 while unknown
	short  bool  // upstream gives less than was asked for
	whole  bool  // upstream gives all, though a range was asked for
}

// stretchOf checks an answer against the range that was asked for.
func (b *blob) stretchOf(a *answer, offset, length int64) (stretch, error) {
	switch a.status {
	case http.StatusOK:
		if err := checkDigest(a, b.digest); err != nil {
			return stretch{}, err
		}
		return wholeStretch(a, offset, length)
	case http.StatusPartialContent:
		if err := checkDigest(a, b.digest); err != nil {
			return stretch{}, err
		}
		return partialStretch(a, offset, length)
	}
	if a.status >= 200 && a.status < 300 {
		return stretch{}, oci.Errorf(oci.BadUpstream, "%s answered %d to a request for a blob", a.url.Host, a.status)
	}
	return stretch{}, b.refusal(a)
}

// wholeStretch is for a 200: all of the blob, also where a range was asked for.
func wholeStretch(a *answer, offset, length int64) (stretch, error) {
	if a.length >= 0 && offset > 0 && offset >= a.length {
		return stretch{}, oci.Errorf(oci.RangeInvalid, "offset %d lies behind the end of %d bytes", offset, a.length)
	}
	return stretch{length: a.length, total: a.length, whole: offset > 0 || length > 0}, nil
}

// partialStretch is for a 206, which has to start where it was asked to.
func partialStretch(a *answer, offset, length int64) (stretch, error) {
	bad := func(why string) (stretch, error) {
		return stretch{}, oci.Errorf(oci.BadUpstream, "%s answered a request for %d bytes from %d with %s (Content-Range %.60q)", a.url.Host, length, offset, why, a.header.Get("Content-Range"))
	}
	if offset == 0 && length < 0 {
		return bad("a part of the whole")
	}
	cr, ok := parseContentRange(a.header.Get("Content-Range"))
	if !ok || cr.first < 0 {
		return bad("no usable range")
	}
	n := cr.last - cr.first + 1
	switch {
	case cr.first != offset:
		return bad("another range")
	case length > 0 && n > length:
		return bad("more than that")
	case a.length >= 0 && a.length != n:
		return bad("a length that contradicts it")
	}
	s := stretch{offset: offset, length: n, total: cr.total}
	switch {
	case cr.total >= 0:
		s.short = cr.last+1 < cr.total && n != length
	default:
		s.short = length > 0 && n < length
	}
	return s, nil
}

// reader is a stretch of a blob's body on its way.
type reader struct {
	stretch
	body    io.ReadCloser
	host    string
	outcome oci.Outcome

	first []byte // read ahead by readFirst
	err   error  // what came with it
	given int64  // bytes read of body
}

var _ oci.Reader = (*reader)(nil)

func (r *reader) Offset() int64        { return r.offset }
func (r *reader) Size() int64          { return r.total }
func (r *reader) Outcome() oci.Outcome { return r.outcome }
func (r *reader) Close() error         { return r.body.Close() }

// readFirst waits for the first bytes, so that a body which never begins is an
// error of Open and not a Reader.
func (r *reader) readFirst() error {
	buf := make([]byte, 512)
	n, err := r.readBody(buf)
	r.first, r.err = buf[:n], err
	if n == 0 && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func (r *reader) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(p, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.readBody(p)
	r.err = err
	return n, err
}

// readBody reads no further than the stretch goes, and makes sure that the body
// does not either.
func (r *reader) readBody(p []byte) (int, error) {
	if r.length < 0 {
		return r.body.Read(p)
	}
	if left := r.length - r.given; left == 0 {
		return 0, r.end()
	} else if int64(len(p)) > left {
		p = p[:left]
	}
	n, err := r.body.Read(p)
	r.given += int64(n)
	if err == io.EOF && (r.short || r.given < r.length) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// end is what a stretch ends in. Reading on to the body's end lets the
// connection be used again.
func (r *reader) end() error {
	var one [1]byte
	n, err := r.body.Read(one[:])
	switch {
	case n > 0:
		return oci.Errorf(oci.BadUpstream, "%s sent more than it promised", r.host)
	case err != nil && err != io.EOF:
		return err
	case r.short:
		return io.ErrUnexpectedEOF
	}
	return io.EOF
}
