package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"entrepot/admin"
	"entrepot/oci"
	"entrepot/proxy"
	"entrepot/words"

	"github.com/rs/zerolog"
)

// The bounds of a connection. There is none on writing an answer: a blob over a
// slow line takes as long as it takes, and the proxy cuts who takes nothing.
const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 32 << 10 // a token of a cloud's registry has 8 KiB
	bodyTimeout       = 5 * time.Second
)

// operatorConnections bounds each listener of operators and scrapers. What they
// take is not for clients to do without.
const operatorConnections Bound = 500

// server is one listener and the HTTP server on it.
type server struct {
	name string // "registry", for messages
	http *http.Server
	tls  bool                    // as it was set up: net/http gives a plain server a TLSConfig, too
	cut  context.CancelCauseFunc // ends the context of every request, as far as somebody waits on it
	work sync.WaitGroup          // accepting, and each connection until its last handler is done
	all  crowd

	// first has the connections over TLS, by net.Conn, and of each the *time.Timer
	// until when its first request may come; nil where that bounds itself. Requests
	// look here, so they take no lock that they share.
	first sync.Map

	mu      sync.Mutex // guards what follows
	streams int        // handlers of HTTP/2, which may outlive their connection
	idle    chan struct{}
}

// listen takes an address. variable is its setting, for the error.
func listen(ctx context.Context, variable string, a Address) (net.Listener, error) {
	lc := proxy.ListenConfig()
	l, err := lc.Listen(ctx, "tcp", string(a))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s: %s is in use by another program: stop that, or set another port", variable, a)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%s: not allowed to listen on %s: ports below 1024 need privileges", variable, a)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", variable, err)
	}
	return proxy.Listener{Listener: l}, nil
}

// reports are who hears what becomes of a server, beside its clients.
type reports struct {
	log     zerolog.Logger
	failed  func(error)                         // no more connections can be taken; told once at most
	crowded func(listener, client, what string) // a client was turned away, what says how; may be nil
}

// startServer answers on l with the registry's API until stop; over TLS, and then
// HTTP/2 as well, unless secure is nil. most bounds its connections; 0 does not.
func startServer(name string, l net.Listener, h http.Handler, secure *tls.Config, most Bound, to reports) *server {
	s := newServer(name, h, secure, most, to)
	s.http.ConnContext = proxy.ConnContext
	s.start(l, to.failed)
	return s
}

// startOperators is startServer for operators and scrapers.
func startOperators(name string, l net.Listener, h http.Handler, to reports) *server {
	s := newServer(name, h, nil, operatorConnections, to)
	s.start(l, to.failed)
	return s
}

func newServer(name string, h http.Handler, secure *tls.Config, most Bound, to reports) *server {
	ctx, cut := context.WithCancelCause(context.Background())
	s := &server{name: name, tls: secure != nil, cut: cut, all: crowd{most: int64(most)}}
	if to.crowded != nil {
		s.all.turned = func(client, what string) { to.crowded(name, client, what) }
	}
	h = endsAfterChunks(s.all.guard(h))
	if s.tls {
		h = s.counted(h)
	}
	s.http = &http.Server{
		Handler:                      h,
		TLSConfig:                    secure,
		ReadHeaderTimeout:            readHeaderTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(serverLog{to.log}, "", 0),
		BaseContext:                  func(net.Listener) context.Context { return ctx },
		ConnState:                    s.count,
	}
	s.all.http = s.http
	return s
}

func (s *server) start(l net.Listener, failed func(error)) {
	serve := func() error { return s.http.Serve(l) }
	if s.tls {
		serve = func() error { return s.http.ServeTLS(l, "", "") }
	}
	s.work.Go(func() {
		if err := serve(); !errors.Is(err, http.ErrServerClosed) {
			failed(fmt.Errorf("%s listener: %w", s.name, err))
		}
	})
}

// count adds a connection from the accept loop, which is part of work itself,
// and takes it off from its own goroutine after its last handler.
func (s *server) count(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.work.Add(1)
		s.all.enter(conn)
	case http.StateClosed, http.StateHijacked:
		s.all.leave()
		s.work.Done()
	}
	if s.tls {
		s.boundFirst(conn, state)
	}
}

// boundFirst closes a connection whose first request by HTTP/2 does not come in
// time, as net/http does by HTTP/1.1: its bound on headers is none on frames. It
// calls a connection of HTTP/2 idle when that begins, and active once a request's
// headers are all there. Later headers have the time that it may be idle, which is
// no more than a connection of HTTP/1.1 has between two requests.
func (s *server) boundFirst(conn net.Conn, state http.ConnState) {
	bound, known := s.first.Load(conn)
	timer, _ := bound.(*time.Timer)
	switch {
	case state == http.StateIdle && !known:
		if secure, ok := conn.(*tls.Conn); ok && secure.ConnectionState().NegotiatedProtocol == "h2" {
			timer = time.AfterFunc(readHeaderTimeout, func() { _ = conn.Close() })
		}
		s.first.Store(conn, timer)
		return
	case timer != nil:
		timer.Stop()
	}
	if state == http.StateClosed {
		s.first.Delete(conn)
	}
}

// counted counts the handlers of HTTP/2. Those of HTTP/1.1 end before their
// connection does.
func (s *server) counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor >= 2 {
			s.addStreams(1)
			defer s.addStreams(-1)
		}
		h.ServeHTTP(w, r)
	})
}

// endsAfterChunks closes the connection after a request that came in chunks. If it
// told a length as well, net/http has dropped that, and whatever stands before us
// may have gone by it and see another next request (RFC 9112, 6.3). No client that
// pulls sends any.
func endsAfterChunks(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TransferEncoding != nil {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}

func (s *server) addStreams(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams += n
	if s.streams == 0 && s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
}

// awaitStreams waits until no handler of HTTP/2 runs.
func (s *server) awaitStreams() {
	s.mu.Lock()
	idle := s.idle
	if s.streams > 0 && idle == nil {
		idle = make(chan struct{})
		s.idle = idle
	}
	s.mu.Unlock()
	if idle != nil {
		<-idle
	}
}

// stop takes no more connections, closes the idle ones, and lets running
// answers finish until ctx ends; then it cuts them and reports that. It returns
// when all handlers have, or grace after the cut.
func (s *server) stop(ctx context.Context, grace time.Duration) (cut bool) {
	cut = s.http.Shutdown(ctx) != nil
	s.cut(proxy.ErrStopping) // before their connections fail, which would look like clients that left
	_ = s.http.Close()
	done := make(chan struct{})
	go func() {
		s.work.Wait()
		s.awaitStreams()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(grace):
	}
	return cut
}

// serverLog takes what net/http says of connections: strangers' mistakes at
// debug, a panic of ours as the error that it is.
type serverLog struct{ log zerolog.Logger }

func (l serverLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	if strings.Contains(text, "panic serving") {
		l.log.Error().Str("stack", text).Msg("panic in a handler")
	} else {
		l.log.Debug().Msg(text)
	}
	return len(line), nil
}

// aside answers a request that is not the API's, and reports who asked, if it is
// known, and what went wrong.
type aside func(http.ResponseWriter, *http.Request) (user string, err error)

// sight has each request of a route that stands beside the API logged, counted and
// traced, under the route's name.
type sight func(kind string, serve aside) http.Handler

// The names of those routes.
const (
	tokenRoute   = "token"
	healthzRoute = "healthz"
	readyzRoute  = "readyz"
)

// registryHandler serves the API, and /healthz for those who can reach only
// this port. The API answers every other path, with OCI JSON.
func registryHandler(api http.Handler, seen sight) http.Handler {
	probe := seen(healthzRoute, healthz)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			probe.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
}

// certified refuses requests on connections that a handshake would not make any
// more, where clients have to show a certificate. It closes those, so that a client
// hears from the handshake what is wrong with its certificate.
func certified(h http.Handler, refuses func(*tls.ConnectionState) bool, seen sight) http.Handler {
	refused := seen(none, func(w http.ResponseWriter, r *http.Request) (user string, err error) {
		boundBody(w, r)
		w.Header().Set("Connection", "close")
		err = oci.Errorf(oci.Denied, "the certificate that this connection began with is not accepted any more")
		oci.WriteError(w, err)
		return "", err
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refuses(r.TLS) {
			refused.ServeHTTP(w, r)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// adminHandler is for operators on this machine. guard stands before what only
// they may see; api has its own.
func adminHandler(metrics http.Handler, ready *readiness, api http.Handler, guard func(http.Handler) http.Handler, seen sight) http.Handler {
	return muxOf(adminRoutes(metrics, ready, api, guard, seen))
}

func adminRoutes(metrics http.Handler, ready *readiness, api http.Handler, guard func(http.Handler) http.Handler, seen sight) map[string]http.Handler {
	return map[string]http.Handler{
		admin.Prefix: api,
		"/healthz":   seen(healthzRoute, healthz), "/readyz": seen(readyzRoute, ready.answer),
		"/metrics": guard(metrics), profilePrefix: guard(muxOf(profiles())),
	}
}

// muxOf answers with OCI JSON what routes has no handler for.
func muxOf(routes map[string]http.Handler) *http.ServeMux {
	mux := http.NewServeMux()
	for path, h := range routes {
		mux.Handle(path, h)
	}
	mux.HandleFunc("/", notFound)
	return mux
}

const profilePrefix = "/debug/pprof/"

func profiles() map[string]http.Handler {
	return map[string]http.Handler{
		profilePrefix:             http.HandlerFunc(pprof.Index),
		profilePrefix + "cmdline": http.HandlerFunc(pprof.Cmdline),
		profilePrefix + "profile": http.HandlerFunc(pprof.Profile),
		profilePrefix + "symbol":  http.HandlerFunc(pprof.Symbol),
		profilePrefix + "trace":   http.HandlerFunc(pprof.Trace),
	}
}

// metricsHandler is the part of it that may be reached from outside.
func metricsHandler(metrics http.Handler, ready *readiness, seen sight) http.Handler {
	return muxOf(map[string]http.Handler{"/readyz": seen(readyzRoute, ready.answer), "/metrics": metrics})
}

func notFound(w http.ResponseWriter, r *http.Request) {
	oci.WriteError(w, oci.Errorf(oci.NotFound, "no such route: %s", words.Quote(r.URL.Path)))
}

// gate leads to a handler that is not there from the start.
type gate struct {
	handler atomic.Pointer[http.Handler]
	closed  http.Handler // answers until then; nil: starting
}

func (g *gate) open(h http.Handler) { g.handler.Store(&h) }

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch h := g.handler.Load(); {
	case h != nil:
		(*h).ServeHTTP(w, r)
	case g.closed != nil:
		g.closed.ServeHTTP(w, r)
	default:
		_, _ = starting(w, r)
	}
}

// starting answers 503, and when to come again. That is as it should be, so it is
// no error to report.
func starting(w http.ResponseWriter, r *http.Request) (user string, err error) {
	boundBody(w, r)
	oci.WriteError(w, oci.Errorf(oci.Unavailable, "starting"))
	return "", nil
}

// boundBody is for an answer that needs no body, for which net/http would wait.
func boundBody(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
	}
}

// healthz says that the process runs and answers.
func healthz(w http.ResponseWriter, r *http.Request) (user string, err error) {
	answerProbe(w, r, nil)
	return "", nil
}

// readiness is whether requests can be served: from when the stack is built
// until it is being closed.
type readiness struct{ ready atomic.Bool }

func (s *readiness) answer(w http.ResponseWriter, r *http.Request) (user string, err error) {
	if !s.ready.Load() {
		err = oci.Errorf(oci.Unavailable, "starting or stopping")
	}
	answerProbe(w, r, err)
	return "", nil // what was asked was answered
}

func answerProbe(w http.ResponseWriter, r *http.Request, err error) {
	boundBody(w, r)
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		err = oci.Errorf(oci.Unsupported, "this is for GET and HEAD")
	}
	if err != nil {
		oci.WriteError(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write([]byte("ok\n"))
}
