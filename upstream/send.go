package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"entrepot/oci"
	"entrepot/ratelimit"
)

const (
	// maxStart is how much is kept of a body that is no content, maxDrain how
	// much of one is read so that its connection can be used again, and
	// drainTime how long that may take.
	maxStart  = 8 << 10
	maxDrain  = 64 << 10
	drainTime = 2 * time.Second
)

// question is one call of a Source's method: whatever requests it takes.
type question struct {
	repo  oci.Repository
	ask   oci.Ask
	ping  bool    // of no repository: repo tells whose login is tried
	spent int     // requests sent, those for tokens included
	let   bool    // its first request has a place, though it was not sent yet
	next  request // that it is about to send

	attempt *attempt // nil: there is no other address

	account string // by whose credentials it is asked, those that led to where it is now
	why     string // of the Outcome, in a few words
}

func (q *question) outcome() oci.Outcome {
	return oci.Outcome{Cache: oci.Miss, Checked: time.Now(), Why: q.why, Spent: q.spent}
}

// begun reports whether a part of what the client asked for was answered, or will be
// asked for in any case.
func (q *question) begun() bool { return q.ask.Begun || q.let || q.spent > 0 }

// target is where a request goes that the question leads to.
func (q *question) target(r request) target {
	// Of lists something is held, mostly, and a token may be for whatever.
	cold := !q.ask.Held && r.class != ratelimit.List && r.class != ratelimit.Token
	return target{r.url, q.repo.Path, r.class == ratelimit.Redirect, r.resumed && !q.ask.Background, cold}
}

// fork is the question as it is put to one of several addresses.
func (q *question) fork(a *attempt) *question {
	one := *q
	one.ask.Begun, one.spent, one.why, one.attempt = q.begun(), 0, "", a
	return &one
}

// waits begins a wait for leave to send; isBusy reports whether it is for a connection.
func (q *question) waits(isBusy func() bool) (done func()) {
	if q.attempt == nil {
		return func() {}
	}
	q.attempt.silence.pause(isBusy)
	return q.attempt.silence.resume
}

// failed is the Outcome beside an error.
func (q *question) failed() oci.Outcome { return oci.Outcome{Cache: oci.Miss, Spent: q.spent} }

// request is one HTTP request.
type request struct {
	kind     Kind
	class    ratelimit.Class
	method   string
	url      *url.URL
	accept   string
	rang     string     // Range
	form     url.Values // the body of a POST
	transfer bool       // the answer is a blob's body
	resumed  bool       // it goes on with one

	redirected bool // it goes where the answer to another one led

	anonymous bool         // no challenge is answered
	within    foreignHosts // set: redirects lead to these hosts only
}

// answer is what came back. The body is open only where content can be: a 2xx
// to another method than HEAD. Of any other, start is what was read of it.
type answer struct {
	status  int
	header  http.Header
	url     *url.URL // that answered
	length  int64    // Content-Length; -1 if it was not sent
	body    *body
	start   []byte
	paused  time.Duration // how long requests like this one are to wait
	without bool          // it is to nobody's request, since a login that is set was refused
	hidden  bool          // it is a 401 to a login that was not refused itself
}

func (a *answer) close() {
	if a.body != nil {
		_ = a.body.Close()
	}
}

// send is the one door through which requests leave: here they are kept from
// hosts that do not answer, limited, bounded in time, counted and shown. It
// follows and repeats nothing. Errors: as Source says, beside context.Canceled.
func (s *site) send(ctx context.Context, q *question, r request, l login) (*answer, error) {
	q.attempt.asks(false) // whatever came before is over
	at := q.target(r)
	if err := s.breakers.check(ctx, at); err != nil {
		return nil, err
	}
	pass, err := s.leave(ctx, q, r, l)
	if err != nil {
		return nil, err
	}
	// Others may have found out while this one waited for its turn.
	if err := s.breakers.admit(ctx, at); err != nil {
		pass.Release()
		return nil, err
	}
	q.attempt.asks(true)
	began := time.Now()
	a, err := s.transmit(ctx, q, r, l, pass.Release)
	if err != nil {
		s.breakers.note(at, began, failureOutcome(ctx, err), 0, err)
		q.attempt.asks(false)
		return nil, err
	}
	if a.paused = pass.Answered(a.status, a.header, a.start); a.paused > 0 && a.status == http.StatusTooManyRequests {
		s.warnOfLimit(q, r, a.paused)
	}
	noted := func(err error) {
		if o := bodyOutcome(ctx, err); o != answered {
			s.breakers.note(at, began, o, 0, err)
			return
		}
		s.breakers.note(at, began, a.outcome(), a.paused, a.trouble())
	}
	switch {
	case a.body == nil:
		noted(nil)
		q.attempt.asks(false)
	case r.transfer:
		noted(nil) // a body may take hours, and is looked after by who reads it
	default: // small as it is, it is the answer
		a.body.ended = noted
	}
	return a, s.checkEncoding(a)
}

// leave waits until a request may be sent. Errors: as Limiter.Acquire, and as Source
// says where ctx has ended.
func (s *site) leave(ctx context.Context, q *question, r request, l login) (*pass, error) {
	where := line{r.url.Host, r.transfer}
	defer q.waits(func() bool { return s.connections.areBusy(where) })()
	p, err := s.limiter.Acquire(ctx, q.call(r, l.account))
	switch {
	case err == nil:
		return &pass{p, s.connections.take(where)}, nil
	case ctx.Err() != nil:
		err = failure(ctx, r.url.Host, err, nil)
	}
	return nil, err
}

// call is what limits look at of a request.
func (q *question) call(r request, account string) ratelimit.Call {
	return ratelimit.Call{
		Host: r.url.Host, Class: r.class, Account: account, Repository: q.repo.Path, Client: q.ask.Client, Transfer: r.transfer, Background: q.ask.Background,
		Held: q.ask.Held, Since: q.ask.Since, Begun: q.begun(), What: q.repo.Path + r.url.Path,
	}
}

// begin waits for the place of a question whose token is to be got first. Who waits for
// nothing can lose one.
func (s *site) begin(ctx context.Context, q *question, realm *url.URL, account string) error {
	if q.begun() || q.ask.Background {
		return nil
	}
	more := 0
	if realm.Host == q.next.url.Host {
		more++
	}
	defer q.waits(func() bool { return false })()
	if err := s.limiter.Begin(ctx, q.call(q.next, account), more); err != nil {
		if ctx.Err() != nil {
			err = failure(ctx, q.next.url.Host, err, nil)
		}
		return err
	}
	q.let = true
	return nil
}

// warnOfLimit tells of a 429. Where redirects lead nobody signs in.
func (s *site) warnOfLimit(q *question, r request, wait time.Duration) {
	s.tell(Warning{
		Trouble: HostLimits, Host: r.url.Host, Account: q.account, Anonymous: q.account == "" && r.class != ratelimit.Redirect,
		Detail: fmt.Sprintf("it answers 429: requests like this one wait for %s, and what is held is served meanwhile", wait.Round(time.Second)),
	})
}

// transmit sends a request that may be sent; release is called when its answer is done
// with.
func (s *site) transmit(ctx context.Context, q *question, r request, l login, release func()) (*answer, error) {
	q.spent++
	caller := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	overdue := time.AfterFunc(s.cfg.Timeouts.headers(), func() { cancel(errNoHeaders) })
	if r.class != ratelimit.Redirect && r.class != ratelimit.Token {
		q.account = l.account
	}
	call := Call{
		Upstream: s.cfg.Name, Host: r.url.Host, Repository: q.repo.Path, Account: q.account, Client: q.ask.Client, Kind: r.kind, Method: r.method, Redirected: r.redirected,
	}
	_, span := oci.BeginSpan(ctx, "upstream request", "entrepot.upstream", call.Upstream, "server.address", call.Host,
		"http.request.method", call.Method, "entrepot.kind", string(call.Kind), "entrepot.repository", call.Repository)
	start := time.Now()
	var connected, reused atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { connected.Store(true); reused.Store(c.Reused) }})
	resp, err := s.transports.Load().roundTrip(s.newRequest(traced, r, l.header), r.transfer) //nolint:bodyclose // newBody takes it over
	overdue.Stop()
	call.Duration = time.Since(start)
	if err != nil {
		err = failure(caller, r.url.Host, err, context.Cause(ctx))
		if connected.Load() && oci.CodeOf(err) == oci.Timeout {
			err = &hungError{err}
			if reused.Load() {
				s.transports.Load().closeIdle()
			}
		}
		call.Err = err
		oci.EndSpan(span, err)
		s.cfg.Observe(call)
		if refused, ok := errors.AsType[*refusedAddress](err); ok {
			s.warn(AddressRefused, refused.host, refused.Error())
		}
		cancel(nil)
		release()
		return nil, err
	}
	call.Status = resp.StatusCode
	oci.EndSpan(span, nil, "http.response.status_code", call.Status)
	s.cfg.Observe(call)
	a := &answer{status: resp.StatusCode, header: resp.Header, url: r.url, length: resp.ContentLength}
	b := newBody(resp.Body, s.cfg.Timeouts.of(r.kind), cancel, release, func(err error) error {
		cause := context.Cause(ctx)
		if reused.Load() && errors.Is(cause, errStalled) {
			s.transports.Load().closeIdle()
		}
		return bodyFailure(caller, r.url.Host, err, cause)
	})
	a.body = b
	if r.kind != BlobKind {
		b.endIn(s.cfg.Timeouts.Body, cancel)
	}
	if a.status < 300 && (r.kind == ManifestKind || r.kind == BlobKind) {
		b.received = func(n int64) { s.cfg.Received(call, n) }
	}
	if a.status >= 300 || r.method == http.MethodHead {
		drain := time.AfterFunc(drainTime, func() { cancel(nil) })
		a.start = readStart(a.body)
		drain.Stop()
		_ = a.body.Close()
		a.body = nil
	}
	return a, nil
}

// outcome is what an answer tells of its host: that it is well, unless it says
// otherwise itself. A refusal to do what it does not implement is an answer.
func (a *answer) outcome() outcome {
	if a.status >= 500 && a.status != http.StatusNotImplemented && a.status != http.StatusHTTPVersionNotSupported {
		return erred
	}
	return answered
}

// trouble is an answer's own word that its host is not well; nil if it is.
func (a *answer) trouble() error {
	if a.outcome() == answered {
		return nil
	}
	return oci.Errorf(oci.Unavailable, "%s answers %d", a.url.Host, a.status)
}

// bodyOutcome is what a body that is the answer tells of its host: one that stalls is as
// good as none. What else becomes of it is no matter of the host's.
func bodyOutcome(ctx context.Context, err error) outcome {
	switch {
	case err == nil:
		return answered
	case ctx.Err() != nil:
		return unsaid
	case errors.Is(err, errStalled):
		return hung
	}
	return answered
}

// failureOutcome is what a request that got no answer tells of its host. Who
// leaves, even because of a deadline of its own, says nothing.
func failureOutcome(ctx context.Context, err error) outcome {
	_, refused := errors.AsType[*refusedAddress](err)
	_, hangs := errors.AsType[*hungError](err)
	switch {
	case ctx.Err() != nil, refused, errors.Is(err, errProxy):
		return unsaid
	case hangs:
		return hung
	case oci.CodeOf(err) == oci.Timeout:
		return silent
	}
	return failed
}

func (s *site) newRequest(ctx context.Context, r request, authorization string) *http.Request {
	req := (&http.Request{
		Method: r.method,
		URL:    r.url,
		Host:   r.url.Host,
		Proto:  "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		// A header that holds Accept-Encoding keeps net/http from asking for gzip,
		// and from decoding it: a body that is decoded has another digest.
		Header: http.Header{"Accept-Encoding": {"identity"}, "User-Agent": {s.cfg.UserAgent}},
	}).WithContext(ctx)
	for name, value := range map[string]string{"Accept": r.accept, "Range": r.rang, "Authorization": authorization} {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	if r.form != nil {
		form := r.form.Encode()
		req.Body, req.ContentLength = io.NopCloser(strings.NewReader(form)), int64(len(form))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return req
}

// checkEncoding refuses content that was encoded although identity was asked
// for: its bytes are not what the digest names.
func (s *site) checkEncoding(a *answer) error {
	encoding := a.header.Get("Content-Encoding")
	if a.status >= 300 || encoding == "" || strings.EqualFold(encoding, "identity") {
		return nil
	}
	a.close()
	return oci.Errorf(oci.BadUpstream, "%s sent content encoded as %.20q although identity was asked for", a.url.Host, encoding)
}

// isPage reports an answer of something before a registry, which is for people.
func isPage(h http.Header) bool {
	kind, _, _ := mime.ParseMediaType(h.Get("Content-Type"))
	return kind == "text/html"
}

// refusal is the error that an answer stands for; unknown is what a 404 means.
// What we asked was well formed: an upstream that says otherwise means that
// there can be no such name, or makes no sense. What is not there for nobody may
// well be for the login that was refused: that is a Denied, whose cause is what was
// said.
func (s *site) refusal(a *answer, unknown oci.Code) *oci.Error {
	e := oci.ReadError(a.status, a.header, a.start, unknown, time.Now())
	if row := e.Code.Row(); e.Detail == row.Message && !oci.IsUnknown(e) {
		// An answer to HEAD gives no reason. Clients leave out what says no more
		// than the code, and people then look for the trouble here.
		e.Detail = fmt.Sprintf("%s answers %d", a.url.Host, a.status)
	}
	switch e.Code {
	case oci.Denied:
		if a.hidden {
			e.Err = oci.ErrHidden
		}
	case oci.TooManyRequests, oci.Unavailable:
		e.RetryAfter = max(e.RetryAfter, a.paused)
		if e.Code == oci.Unavailable { // by then it is probed
			e.RetryAfter = min(e.RetryAfter, idleProbeWait)
		}
	case oci.NameInvalid:
		e.Code = oci.NameUnknown
	case oci.BlobUnknown, oci.ManifestUnknown: // which of them is ours to say
		if e.Code = unknown; unknown == oci.ManifestUnknown && isPage(a.header) {
			e.Code, e.Detail = oci.BadUpstream, fmt.Sprintf("%s answers %d with a web page, as no registry does", a.url.Host, a.status)
		}
	case oci.DigestInvalid, oci.ManifestInvalid, oci.PageInvalid:
		e.Code = oci.BadUpstream
	}
	if a.without && isLack(e) {
		return &oci.Error{Code: oci.Denied, Detail: e.Detail + withoutLogin, Err: e}
	}
	return e
}

// readStart reads what a connection needs read to be used again, and keeps the
// start of it.
func readStart(r io.Reader) []byte {
	var start bytes.Buffer
	_, _ = io.CopyN(&start, r, maxStart)
	_, _ = io.CopyN(io.Discard, r, maxDrain-maxStart)
	return start.Bytes()
}

// body is an answer's body. A Read that brings nothing for too long cuts the
// connection; time between Reads does not count.
type body struct {
	io.ReadCloser
	wait    time.Duration // for the next byte
	stall   time.Duration // for those after it
	timer   *time.Timer
	whole   *time.Timer // of all of it; nil: it may take as long as it comes
	failure func(error) error
	free    func()      // called once: gives the place back, ends the timer's use
	ended   func(error) // is told once what became of it, with nil of its end, or of who left it; nil: nobody is

	received func(int64) // is told what came, now and then; nil: nobody is
	untold   int64
}

// tellEvery is how many bytes come until somebody is told.
const tellEvery = 1 << 20

func newBody(rc io.ReadCloser, t Timeouts, cancel context.CancelCauseFunc, release func(), failure func(error) error) *body {
	b := &body{ReadCloser: rc, wait: t.FirstByte, stall: t.Stall, failure: failure}
	b.timer = time.AfterFunc(b.wait, func() { cancel(errStalled) })
	b.timer.Stop()
	b.free = sync.OnceFunc(func() {
		b.timer.Stop()
		if b.whole != nil {
			b.whole.Stop()
		}
		cancel(nil)
		release()
	})
	return b
}

// endIn bounds the time until the body's end, whatever comes.
func (b *body) endIn(d time.Duration, cancel context.CancelCauseFunc) {
	b.whole = time.AfterFunc(d, func() { cancel(errTooLong) })
}

func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(b.wait)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	b.wait = b.stall
	if b.untold += int64(n); b.untold >= tellEvery || err != nil {
		b.tell()
	}
	switch {
	case errors.Is(err, io.EOF):
		b.end(nil)
	case err != nil:
		err = b.failure(err)
		b.end(err)
	}
	return n, err
}

func (b *body) end(err error) {
	if ended := b.ended; ended != nil {
		b.ended = nil
		ended(err)
	}
}

func (b *body) tell() {
	if b.received != nil && b.untold > 0 {
		b.received(b.untold)
	}
	b.untold = 0
}

func (b *body) Close() error {
	b.tell()
	err := b.ReadCloser.Close()
	b.end(nil)
	b.free()
	return err
}
