// Package proxy serves an oci.Source over HTTP: the pull side of the
// distribution API. It knows routes, headers, ranges and deadlines, and nothing
// of caches, upstreams or disks.
//
// Start with routes, then manifest.go and blob.go. A handler returns an error;
// exchange.fail is the one place that answers with it, and exchange.end the one
// place that cuts a connection.
package proxy

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"entrepot/oci"
	"entrepot/ratelimit"
)

// Config is what New needs beside the Source. The zero value of every field but
// Names is usable.
type Config struct {
	// Names tells which repository a client means. Required.
	Names *oci.Names
	// Catalog answers /v2/_catalog; nil means that there is no such route.
	Catalog oci.Catalog
	// Admit says as whom a request asks, before anything else is decided about
	// it; an error is its answer. Nil means that everybody may ask everything,
	// known by their address.
	Admit func(r *http.Request, kind oci.Kind) (Pass, error)
	// Refuse is shown every error before it is answered, and gives the one to
	// answer with. It may add to the header, as a 401 needs it. Nil means that
	// errors go out as they are. With a Refuse, an empty list of referrers does not
	// say where it is from: what does not exist has none either.
	Refuse func(r *http.Request, req oci.Request, err error, h http.Header) error
	// Observe is told of every request exactly once, when its answer is out or
	// its connection is about to be cut. It runs on the request's goroutine, and
	// gets its context. Nil means that nobody listens.
	Observe func(context.Context, Record)
	// MayRefresh says whether the "Cache-Control: no-cache" of a request by a user,
	// empty for nobody in particular, makes us ask upstream, which spends quota. Nil
	// means that no client may.
	MayRefresh func(r *http.Request, user string) bool
	// Clients bounds what each client may do; nil: nobody is bound.
	Clients *ratelimit.Clients
	// HeaderTimeout bounds how long a client waits for the headers of an answer;
	// then it is told 504. 0 means 15 s: real clients wait minutes for a mute
	// mirror and do not fall back.
	HeaderTimeout time.Duration
	// StallTimeout is how long a client may take no bytes of an answer before
	// its connection is cut, or an eighth less. 0 means 60 s. Progress shows in
	// steps: 256 KiB of a file, and what the kernel takes into its own buffer,
	// which ConnContext keeps small.
	StallTimeout time.Duration
}

// Pass is what a request may ask.
type Pass struct {
	User    string // who asks; empty for nobody in particular
	Source  oci.Source
	Catalog oci.Catalog
}

const (
	defaultHeaderTimeout = 15 * time.Second
	defaultStallTimeout  = 60 * time.Second
)

// New serves src at /v2/. Every other path is answered with a 404 in OCI JSON,
// and no path is ever cleaned or redirected.
func New(src oci.Source, cfg Config) http.Handler {
	if cfg.HeaderTimeout <= 0 {
		cfg.HeaderTimeout = defaultHeaderTimeout
	}
	if cfg.StallTimeout <= 0 {
		cfg.StallTimeout = defaultStallTimeout
	}
	return &handler{
		src: src, cfg: cfg, exchanges: sync.Pool{New: func() any { return new(exchange) }},
		meanings: &meanings{seed: maphash.MakeSeed()},
	}
}

type handler struct {
	src       oci.Source
	cfg       Config
	exchanges sync.Pool
	meanings  *meanings
}

// routes says who answers what. A route without a method only takes writes,
// which this server refuses.
var routes = [...]func(*exchange) error{
	oci.Ping:          (*exchange).ping,
	oci.ManifestKind:  (*exchange).manifest,
	oci.BlobKind:      (*exchange).blob,
	oci.TagsKind:      (*exchange).tags,
	oci.ReferrersKind: (*exchange).referrers,
	oci.CatalogKind:   (*exchange).catalog,
	oci.UploadKind:    nil,
}

// An exchange is one request and its answer: all the state there is, made once.
type exchange struct {
	answer
	h       *handler
	r       *http.Request
	start   time.Time
	ctx     patience // in which the source is asked
	kind    string   // the route's name; "none" for a path that is no route
	req     oci.Request
	at      *meaning // what req and the rest of the words mean; nil until that is known
	pass    Pass
	ask     oci.Ask
	outcome oci.Outcome
	err     error
	cut     bool     // the connection is to be cut
	refused bool     // the answer was decided without the body, whose absence ended the context
	values  []string // backs the header values that are made per request
	before  int      // requests spent before the reader was open
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	deepen(false)
	x := h.exchanges.Get().(*exchange)
	x.h, x.r, x.start, x.kind = h, r, time.Now(), "none"
	x.answer.init(w, r, h.cfg.StallTimeout)
	x.ask.Client, x.ask.Since = x.line.client(r), x.start
	x.pass = Pass{Source: h.src, Catalog: h.cfg.Catalog}
	x.ctx.init(r.Context(), x.line.server(), x.start.Add(h.cfg.HeaderTimeout))
	defer x.end()
	if err := x.serve(); err != nil {
		x.fail(err)
	}
}

// deepen has the goroutine's stack grow to what an answer needs. A connection
// begins with a small one, and to move it costs more the deeper it is in calls:
// for clients that connect for each request it is a thirtieth of a manifest's
// processor time.
//
//go:noinline
func deepen(never bool) byte {
	if !never {
		return 0
	}
	var room [4 << 10]byte // counts where the stack is measured, whether it is used or not
	rand.Read(room[:])
	return room[0]
}

// A request body means nothing here. This much of it is read away; more, or one
// that is announced by "Expect", makes net/http close the connection after the
// answer.
const (
	bodyPatience = 5 * time.Second
	bodyMost     = 256 << 10
)

// drain reads the body away. Left to itself, net/http would wait for a body
// that never comes before it answers. Where reading fails, the server has taken
// the client for gone and ended the request's context.
func (x *exchange) drain() error {
	if x.r.ContentLength == 0 {
		return nil
	}
	// The server lifts it when the body has ended; a writer without deadlines
	// has bounds of its own.
	_ = x.control.SetReadDeadline(x.start.Add(bodyPatience))
	if x.r.Header["Expect"] != nil {
		return nil // reading would invite the body
	}
	if _, err := io.CopyN(io.Discard, x.r.Body, bodyMost); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: its request body did not come: %w", ErrClientGone, err)
	}
	return nil
}

func (x *exchange) serve() error {
	handle, known, err := x.route()
	if late := x.drain(); err == nil {
		err = late
	} else if late != nil {
		x.refused = true
	}
	if err != nil {
		return x.countedOr(err)
	}
	if err := x.admit(); err != nil {
		return err
	}
	if err := x.locate(known); err != nil {
		return err
	}
	return handle(x)
}

// admit finds out who asks, and waits for their turn. That comes before names are
// looked at: what there is says nothing to strangers.
func (x *exchange) admit() (err error) {
	if x.h.cfg.Admit != nil {
		if x.pass, err = x.h.cfg.Admit(x.r, x.req.Kind); err != nil {
			return x.countedOr(err)
		}
		x.ask.Client = cmp.Or(x.pass.User, x.ask.Client)
	}
	return x.h.cfg.Clients.Admit(&x.ctx, x.ask.Client, x.start)
}

// countedOr is err, once it is the turn of the address that it goes to: a request
// that is none, or whose sender has not proved to be anybody, counts as well, and
// with the address alone. What a user sends counts with the user, wherever from.
func (x *exchange) countedOr(err error) error {
	return cmp.Or(x.h.cfg.Clients.Admit(&x.ctx, x.ask.Client, x.start), err)
}

// route finds who answers, and the meaning if it is known already. The order
// matters to clients: no such route, then a method that the route does not have,
// then what is wrong with the name.
func (x *exchange) route() (handle func(*exchange) error, known *meaning, err error) {
	isRead := x.r.Method == http.MethodGet || x.r.Method == http.MethodHead
	if known = x.h.meanings.find(x.r); known != nil && isRead {
		x.req, x.kind = known.req, known.req.Kind.String()
		return routes[x.req.Kind], known, nil
	}
	path := x.r.URL.Path
	if wouldBeCleaned(path) {
		return nil, nil, oci.Errorf(oci.NotFound, "no such route: the path has an empty, %q or %q part", ".", "..")
	}
	req, err := oci.ParseRequest(path)
	x.req = req
	if err != nil && oci.CodeOf(err) == oci.NotFound {
		return nil, nil, err
	}
	x.kind = req.Kind.String()
	handle = routes[req.Kind]
	if handle == nil || !isRead {
		x.Header()["Allow"] = allowed
		return nil, nil, oci.Errorf(oci.Unsupported, "this registry is a cache and takes no writes: %s is not answered here", clip(x.r.Method, 20))
	}
	return handle, nil, err
}

// allowed is what this server answers at all; pushing begins at a route that
// takes nothing else, so the truth there would be an empty list.
var allowed = []string{"GET, HEAD"}

// wouldBeCleaned reports whether a path has parts that other servers remove
// before they route: such a path means different things to different readers.
func wouldBeCleaned(path string) bool {
	if strings.Contains(path, "//") {
		return true
	}
	return strings.Contains(path, "/.") && // which few paths have
		(strings.Contains(path+"/", "/./") || strings.Contains(path+"/", "/../"))
}

// locate finds out which repository is meant.
func (x *exchange) locate(known *meaning) (err error) {
	if x.at = known; known == nil {
		if x.at, err = newMeaning(x.h.cfg.Names, x.r); err != nil {
			return err
		}
		x.req = x.at.req // whose parts may be kept
		if x.req.Kind == oci.ManifestKind || x.req.Kind == oci.BlobKind {
			x.h.meanings.keep(x.at)
		}
	}
	if x.at.scope != nil {
		x.Header()["Oci-Namespace"] = x.at.scope
	}
	return nil
}

var (
	jsonType   = []string{"application/json"}
	apiVersion = []string{"registry/2.0"}
)

// ping is answered without anybody's help: clients ask it first, and a cache
// must be there when its upstreams are not.
func (x *exchange) ping() error {
	x.Header()["Docker-Distribution-Api-Version"] = apiVersion
	return x.sendBytes(jsonType, []byte("{}"))
}

// sendBytes answers 200 with a body that is at hand.
func (x *exchange) sendBytes(contentType []string, body []byte) error {
	h := x.Header()
	h["Content-Type"] = contentType
	x.setInt("Content-Length", int64(len(body)))
	x.WriteHeader(http.StatusOK)
	_, err := x.send(body)
	return err
}

// clientAddress is the address of whoever opened the connection. Headers that
// name another one are a stranger's claim.
func clientAddress(r *http.Request) string {
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		return host
	}
	return r.RemoteAddr
}
