package main

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"entrepot/ledger"
	"entrepot/oci"
	"entrepot/policy"
	"entrepot/proxy"
	"entrepot/upstream"

	"github.com/rs/zerolog"
)

// observer turns what the parts report into the log, the metrics and the ledger,
// which only this package knows.
type observer struct {
	log      zerolog.Logger
	metrics  *metrics
	ledger   *ledger.Ledger
	throttle *throttle
	traces   bool // requests have spans
	access   bool // each request has a line at info

	settingOf func(upstream, account string) string // that the account comes from
	signIn    func(upstream, host string) string    // what to do about limits on who asks without a login
}

// repeatInterval is how often the same trouble is logged above debug.
const repeatInterval = time.Minute

func newObserver(log zerolog.Logger, m *metrics, l *ledger.Ledger) *observer {
	return &observer{
		log: log, metrics: m, ledger: l, throttle: newThrottle(repeatInterval),
		settingOf: func(string, string) string { return "" }, signIn: func(string, string) string { return "" },
	}
}

// request hears of every request of a client. It is on the path of every hit.
func (o *observer) request(ctx context.Context, r proxy.Record) {
	o.metrics.request(&r)
	served(o.ledger, &r)
	if o.traces {
		tellSpan(oci.SpanOf(ctx), &r)
	}
	if level := o.levelOf(&r); level > zerolog.DebugLevel || o.log.GetLevel() <= zerolog.DebugLevel {
		o.logRequest(level, &r)
	}
}

// tellSpan ends a request's span with what became of it, in the words of
// OpenTelemetry's conventions where they have one.
func tellSpan(span oci.Span, r *proxy.Record) {
	if span == nil {
		return
	}
	span.Tell("http.request.method", r.Method, "entrepot.kind", r.Kind, "client.address", r.Client, "user_agent.original", r.UserAgent,
		"entrepot.upstream", r.Repository.Host, "entrepot.repository", r.Repository.Path, "entrepot.reference", r.Reference,
		"entrepot.outcome", string(r.Outcome.Cache), "entrepot.why", r.Outcome.Why, "entrepot.spent", r.Outcome.Spent,
		"http.response.status_code", r.Status, "http.response.body.size", r.Bytes)
	if levelOf(r) > zerolog.DebugLevel {
		span.End(errors.New(oci.Causes(r.Err)))
		return
	}
	span.End(nil)
}

// traceFailure hears of spans that did not arrive.
func (o *observer) traceFailure(err error) {
	o.metrics.tracesLost.Inc()
	held, ok := o.throttle.pass("traces")
	if !ok {
		return
	}
	e := o.log.Warn().Str("error", oci.Causes(err))
	if held > 0 {
		e.Int("held_back", held)
	}
	e.Msg("traces are lost: the collector cannot take them")
}

// levelOf is levelOf, or info where each request is to have a line.
func (o *observer) levelOf(r *proxy.Record) zerolog.Level {
	level := levelOf(r)
	if o.access {
		level = max(level, zerolog.InfoLevel)
	}
	return level
}

// levelOf: a request is for debugging, unless we or an upstream failed it.
func levelOf(r *proxy.Record) zerolog.Level {
	switch {
	case r.Err == nil || errors.Is(r.Err, proxy.ErrClientGone):
		return zerolog.DebugLevel
	case isPanic(r.Err):
		return zerolog.ErrorLevel
	case r.Status >= http.StatusInternalServerError || r.Status == http.StatusTooManyRequests || wasCut(r):
		if oci.CodeOf(r.Err) == oci.Internal {
			return zerolog.ErrorLevel
		}
		return zerolog.WarnLevel
	}
	return zerolog.DebugLevel
}

func isPanic(err error) bool {
	_, ok := errors.AsType[*proxy.PanicError](err)
	return ok
}

// wasCut reports whether an answer began well and was not let end.
func wasCut(r *proxy.Record) bool {
	return r.Err != nil && r.Status != 0 && r.Status < 400 && !errors.Is(r.Err, proxy.ErrClientGone)
}

// logRequest writes the line of one request. Where not every request has one,
// trouble that repeats is held back.
func (o *observer) logRequest(level zerolog.Level, r *proxy.Record) {
	held := 0
	if o.log.GetLevel() > zerolog.DebugLevel && !o.access && !isPanic(r.Err) {
		var ok bool
		if held, ok = o.throttle.pass(r.Repository.Host + " " + http.StatusText(r.Status)); !ok {
			return
		}
	}
	e := o.log.WithLevel(level)
	addFields(e, "method", r.Method, "kind", r.Kind,
		"upstream", r.Repository.Host, "repository", r.Repository.Path, "reference", r.Reference,
		"outcome", string(r.Outcome.Cache), "why", r.Outcome.Why)
	e.Int("status", r.Status).Int64("bytes", r.Bytes).Float64("duration_seconds", r.Duration.Seconds()).Int("spent", r.Outcome.Spent)
	addFields(e, "client", r.Client, "user", r.User, "user_agent", r.UserAgent)
	if held > 0 {
		e.Int("held_back", held)
	}
	if r.Err != nil {
		e.Str("error", oci.Causes(r.Err))
	}
	if p, ok := errors.AsType[*proxy.PanicError](r.Err); ok {
		e.Bytes("stack", p.Stack)
	}
	e.Msg("request")
}

// addFields adds pairs of a name and a text, without those that have none.
func addFields(e *zerolog.Event, pairs ...string) {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			e.Str(pairs[i], pairs[i+1])
		}
	}
}

// certificateTrouble hears of a certificate that an authority did not give.
func (o *observer) certificateTrouble(err error) {
	held, ok := o.throttle.pass("certificate")
	if !ok {
		return
	}
	e := o.log.Warn().Str("error", err.Error())
	if held > 0 {
		e.Int("held_back", held)
	}
	e.Msg("no TLS certificate by ACME")
}

// crowded hears of every client that a listener turns away since it has too many
// connections, which may be hundreds a second: the log tells once a minute, also
// where each request has a line.
func (o *observer) crowded(listener, client, what string) {
	o.metrics.crowded.WithLabelValues(listener, what).Inc()
	held, ok := o.throttle.pass("crowd " + listener)
	if !ok {
		return
	}
	e := o.log.Warn().Str("listener", listener).Str("client", client).Str("what", what)
	if held > 0 {
		e.Int("held_back", held)
	}
	e.Msg("too many connections: a client was turned away")
}

// loginFailed hears of every login that failed.
func (o *observer) loginFailed(client, user string, err error) {
	o.metrics.loginsFailed.Inc()
	held, ok := o.throttle.pass("login")
	if !ok {
		return
	}
	e := o.log.Warn().Str("client", client).Str("user", user).Str("error", oci.Causes(err))
	if held > 0 {
		e.Int("held_back", held)
	}
	e.Msg("a login failed")
}

// ofUpstreams are the fields of an upstream's configuration by which o hears.
func (o *observer) ofUpstreams() upstream.Config {
	return upstream.Config{Observe: o.call, Received: o.received, Warn: o.upstreamWarning}
}

// call hears of every request to an upstream.
func (o *observer) call(c upstream.Call) {
	o.metrics.call(c)
	spentBy(o.ledger, &c)
	e := o.log.Debug()
	if e == nil {
		return
	}
	e.Str("method", c.Method).Str("kind", string(c.Kind)).
		Str("upstream", c.Upstream).Str("host", c.Host).Str("repository", c.Repository).
		Str("account", c.Account).Str("client", c.Client).
		Int("status", c.Status).Float64("duration_seconds", c.Duration.Seconds())
	if c.Err != nil {
		e.Str("error", oci.Causes(c.Err))
	}
	e.Msg("upstream request")
}

// received hears of the bytes that requests to upstreams brought.
func (o *observer) received(c upstream.Call, n int64) {
	o.metrics.received(c, n)
	o.ledger.Spent(partyOf(&c), ledger.Sum{Fetched: n})
}

// refusal hears of what the policy refuses, or would. Of one rule the log tells
// once a minute.
func (o *observer) refusal(r policy.Refusal) {
	o.metrics.refusal(r)
	message := "policy: refused"
	if r.DryRun {
		message = "policy: would be refused"
	}
	held, ok := o.throttle.pass("policy " + strconv.Itoa(r.Rule))
	if !ok {
		return
	}
	e := o.log.Warn().Int("rule", r.Rule).Str("upstream", r.Repository.Host).Str("repository", r.Repository.Path).Str("reference", r.Reference)
	if r.Reason != "" {
		e.Str("reason", r.Reason)
	}
	if held > 0 {
		e.Int("held_back", held)
	}
	e.Msg(message)
}

// upstreamWarning hears of an upstream's refusals, each kind once a minute.
func (o *observer) upstreamWarning(w upstream.Warning) {
	e := o.log.Warn().Str("upstream", w.Upstream).Str("host", w.Host)
	if w.Account != "" {
		e.Str("account", w.Account).Str("setting", o.settingOf(w.Upstream, w.Account))
	}
	if w.Anonymous {
		if remedy := o.signIn(w.Upstream, w.Host); remedy != "" {
			e.Str("remedy", remedy)
		}
	}
	e.Str("detail", w.Detail).Msg("upstream: " + string(w.Trouble))
}

// cacheWarning hears of what the cache could not do. One kind of trouble may
// come with every request, so it is held back where it repeats.
func (o *observer) cacheWarning(message string, repo oci.Repository, err error) {
	o.metrics.notKept(err)
	held, ok := o.throttle.pass(repo.Host + " " + message)
	if !ok {
		return
	}
	e := o.log.Warn().Str("upstream", repo.Host).Str("repository", repo.Path).Str("error", oci.Causes(err))
	if held > 0 {
		e.Int("held_back", held)
	}
	e.Msg(message)
}

// diskWarning hears of what is wrong with the data directory.
func (o *observer) diskWarning(message string, err error) {
	o.metrics.notKept(err)
	held, ok := o.throttle.pass("disk " + message)
	if !ok {
		return
	}
	e := o.log.Warn().Str("error", err.Error())
	if held > 0 {
		e.Int("held_back", held)
	}
	e.Msg("data directory: " + message)
}
