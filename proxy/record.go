package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime/debug"
	"time"

	"entrepot/oci"
)

// A Record is what a log or a metric wants to know of one request. Every string
// but Kind comes from a stranger.
type Record struct {
	Method     string
	Kind       string         // oci.Kind as a word; "none" for a path that is no route
	Client     string         // address without port
	User       string         // who asked; empty for nobody in particular
	UserAgent  string         // at most 200 bytes of it
	Repository oci.Repository // zero if the route has none, or the name led nowhere
	Reference  string         // tag or digest; empty for a list
	Outcome    oci.Outcome    // of the question that decided the answer, of no Cache if that is an error; Spent is of all
	Status     int            // as sent; StatusClientGone if the client left before that; 0 if the connection was cut before it
	Bytes      int64          // of the body, as far as the connection took them
	Duration   time.Duration
	Err        error // why it went wrong, or was cut; nil for a complete answer
}

// StatusClientGone stands in a Record whose client was not answered because it
// had left. It never goes out.
const StatusClientGone = 499

// ErrClientGone is in the chain of a Record's error if the client went away
// before its answer was complete. Clients that fetch a layer in pieces do that
// on purpose: it is no failure of ours.
var ErrClientGone = errors.New("client gone")

// ErrStopping is the cause with which a server ends the context of its requests
// when it cuts them. It is in the chain of a Record's error if that is why the
// answer is not complete, whatever its connection said afterwards.
var ErrStopping = errors.New("the server is stopping")

// A PanicError is in the chain of a Record's error if answering the request
// panicked.
type PanicError struct {
	Value any
	Stack []byte // of the goroutine that panicked
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// fail is where a request that went wrong ends. After headers are out, and
// towards a client that has left, the only honest answer is a cut connection: an
// empty return would be a clean end, even a 200. What is told instead of content
// came from nowhere, whatever was found before.
func (x *exchange) fail(err error) {
	x.err = x.classify(err)
	if x.status == 0 {
		x.outcome.Cache = ""
		delete(x.Header(), markHeader)
		delete(x.Header(), "Warning")
	}
	switch {
	case x.status != 0:
		x.cut = true
	case errors.Is(x.err, ErrClientGone):
		x.status, x.cut = StatusClientGone, true
	case errors.Is(x.err, http.ErrAbortHandler):
		x.cut = true
	default:
		x.refuse()
	}
}

// refuse tells the client what went wrong. What does not exist has no referrers,
// and no registry tells it apart from what nothing refers to: behind a Refuse, which
// hides what exists, the answer to all of them is the same empty list.
func (x *exchange) refuse() {
	err := x.refusal()
	if x.h.cfg.Refuse == nil || x.at == nil || x.req.Kind != oci.ReferrersKind || !oci.IsUnknown(err) {
		oci.WriteError(whole{&x.answer}, x.about(err))
		return
	}
	x.outcome.Why, x.err = oci.Causes(x.err), nil
	if err := x.sendReferrers(nil); err != nil {
		x.err, x.cut = x.classify(err), true
	}
}

// refusal is what the client is told of what went wrong.
func (x *exchange) refusal() error {
	if x.h.cfg.Refuse == nil {
		return x.err
	}
	return x.h.cfg.Refuse(x.r, x.req, x.err, x.Header())
}

// about names in err what was asked for. Which repository a name means is told where
// nothing is hidden: a rule may lead to one that not everybody is to know of.
func (x *exchange) about(err error) error {
	switch {
	case x.req.Name == "":
		return err
	case x.at != nil && x.h.cfg.Refuse == nil:
		return oci.About(x.req.Full(x.at.repo.String()), err)
	}
	return oci.About(x.req.Full(x.req.Name), err)
}

// classify says whose fault err is, where only the exchange can know: the
// source sees no more than a context that ended.
func (x *exchange) classify(err error) error {
	switch {
	case x.refused || errors.Is(err, ErrClientGone):
		return err
	case errors.Is(x.gone, os.ErrDeadlineExceeded):
		return fmt.Errorf("client took no bytes for %v: %w", x.h.cfg.StallTimeout, x.gone)
	case x.ctx.isStopped() && (x.gone != nil || x.r.Context().Err() != nil || isContextError(err)):
		return &oci.Error{Code: oci.Unavailable, Err: fmt.Errorf("%w: %w", ErrStopping, err)}
	case x.gone != nil:
		return fmt.Errorf("%w: %w", ErrClientGone, x.gone)
	case x.r.Context().Err() != nil:
		return fmt.Errorf("%w: %w", ErrClientGone, err)
	}
	if _, coded := errors.AsType[*oci.Error](err); coded {
		return err
	}
	switch {
	case x.ctx.hasExpired() && isContextError(err):
		return &oci.Error{Code: oci.Timeout, Detail: fmt.Sprintf("no answer from upstream within %v", x.h.cfg.HeaderTimeout), Err: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &oci.Error{Code: oci.Timeout, Err: err}
	case errors.Is(err, context.Canceled):
		return &oci.Error{Code: oci.Unavailable, Err: err} // the source is going away
	}
	return err
}

func isContextError(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// end runs once per request, whatever happened: it reports, and then cuts the
// connection if that is what is left to do.
func (x *exchange) end() {
	if p := recover(); p != nil {
		x.fail(panicked(p))
	}
	unused := x.ctx.end()
	if x.h.cfg.Observe != nil {
		x.h.cfg.Observe(x.r.Context(), x.record())
	}
	if x.cut {
		panic(http.ErrAbortHandler)
	}
	if unused {
		x.retire()
	}
}

// retire gives the exchange to a later request. Its headers, which a middleware
// may still read, are not part of it.
func (x *exchange) retire() {
	pool := &x.h.exchanges
	*x = exchange{}
	pool.Put(x)
}

func panicked(p any) error {
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		return err
	}
	return &PanicError{Value: p, Stack: debug.Stack()}
}

func (x *exchange) record() Record {
	var repo oci.Repository
	if x.at != nil {
		repo = x.at.repo
	}
	return Record{
		Method:     clip(x.r.Method, 20),
		Kind:       x.kind,
		Client:     x.ask.Client,
		User:       x.pass.User,
		UserAgent:  clip(x.r.UserAgent(), 200),
		Repository: repo,
		Reference:  x.req.Reference(),
		Outcome:    x.outcome,
		Status:     x.status,
		Bytes:      x.bytes,
		Duration:   time.Since(x.start),
		Err:        x.err,
	}
}

// clip bounds what a stranger's text may add to a log or an error.
func clip(s string, most int) string { return s[:min(len(s), most)] }

// learn adds the outcome of one more question to the exchange's. The worst one
// is the answer's: a tag that is stale makes the answer stale although the
// manifest behind it is a hit.
func (x *exchange) learn(out oci.Outcome) {
	spent := x.outcome.Spent + out.Spent
	if gravity(out.Cache) > gravity(x.outcome.Cache) {
		checked := x.outcome.Checked
		x.outcome = out
		if out.Checked.IsZero() {
			x.outcome.Checked = checked
		}
	}
	x.outcome.Spent = spent
}

// served makes out, of the reader that gives the bytes, the exchange's outcome;
// what was asked before only found them.
func (x *exchange) served(out oci.Outcome) {
	x.before = x.outcome.Spent
	out.Spent += x.before
	x.outcome = out
}

// spentBy takes over what the reader's bytes have cost by now: a transfer may
// need more requests after its first byte.
func (x *exchange) spentBy(rd oci.Reader) { x.outcome.Spent = x.before + rd.Outcome().Spent }

func gravity(c oci.CacheStatus) int {
	switch c {
	case oci.Hit:
		return 1
	case oci.Joined:
		return 2
	case oci.Miss:
		return 3
	case oci.Bypass:
		return 4
	case oci.Stale:
		return 5
	}
	return 0
}
