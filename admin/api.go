// Package admin lets operators ask things of a data directory: API answers over
// HTTP, Client asks a server or, where none runs, an API in its own process.
//
// Start with the table of routes. What is said stands in wire.go, and beside the
// questions that need a server or the settings: status.go, explain.go, refresh.go,
// warm.go. Who may ask is decided by Guard. What the settings mean is handed over
// in Config: this package reads none.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"entrepot/cache"
	"entrepot/ledger"
	"entrepot/oci"
	"entrepot/store"
	"entrepot/upstream"
	"entrepot/warm"
	"entrepot/words"
)

// API is what operators can ask of a data directory, over HTTP. The commands for
// operators are its clients, also where no server runs: the command then serves it
// to itself. Who may ask is Guard's business.
type API struct {
	cfg   Config
	about About

	asked chan struct{}            // bounds what is answered at once
	alone map[string]chan struct{} // by route: work of which one at a time is enough
	jobs  chan struct{}            // places of images that are fetched for operators
}

// Config is what an API tells of.
type Config struct {
	Disk    *store.Disk
	Live    *Live // nil at rest
	Version string
	Data    string // the data directory, absolute
	Budget  int64  // as it is set, though the store need not be held to it now; 0 for none
	Memory  int64  // likewise, of the memory tier
	Rules   []Rule // in the order in which they are tried

	Upstreams []string // their names

	// Meaning says what a client means by a name, which has sent ns beside it.
	Meaning func(ctx context.Context, name, ns string) (Meaning, error)
	// Explain says what is held of it, and what a pull would cost; muted, where upstream
	// would not be asked what a tag names.
	Explain func(ctx context.Context, repo oci.Repository, reference string, muted bool) (cache.Explanation, error)
}

// Live is what only a running server has. Routes for which nothing else will do
// are marked notAtRest.
type Live struct {
	Cache     *cache.Cache
	Upstreams *upstream.Set
	Ledger    *ledger.Ledger
	Puller    *warm.Puller
	List      *warm.List     // of what is kept warm
	Platforms warm.Platforms // of that list
	Offline   []string       // upstreams that are set not to be asked
	Since     time.Time
	Unread    func() []Unread // files that cannot be read as they are now

	SettingOf func(upstream, account string) string // the settings that an account comes from
	SignIn    func(upstream, host string) string    // what to do about limits on who asks without a login; empty for nothing
}

// New makes the API of a data directory.
func New(cfg Config) *API {
	api := &API{
		cfg: cfg, about: About{cfg.Version, cfg.Data, os.Getpid()},
		asked: make(chan struct{}, maxRequests), alone: map[string]chan struct{}{}, jobs: make(chan struct{}, MaxWarmJobs),
	}
	for name, route := range routes() {
		if route.marks.has(alone) {
			api.alone[name] = make(chan struct{}, 1)
		}
	}
	return api
}

// Prefix begins the path of each question.
const Prefix = "/admin/v1/"

// The bounds of one request.
const (
	maxRequests   = 16
	maxBody       = 64 << 10
	bodyTimeout   = 5 * time.Second        // for the client to send it
	lineTimeout   = 30 * time.Second       // for the client to take a line
	progressEvery = 100 * time.Millisecond // at most
)

// route is one question. Those of POST change something.
type route struct {
	method string
	serve  func(*exchange) error
	marks  routeMarks
	takes  string // query or body, for the document
	doc    string
}

// routeMarks say when a route is not answered.
type routeMarks uint8

const (
	alone     routeMarks = 1 << iota // while it is being answered to somebody else
	notAtRest                        // at rest: it needs what is live
)

func (m routeMarks) has(one routeMarks) bool { return m&one != 0 }

func routes() map[string]route {
	const get, post = http.MethodGet, http.MethodPost
	const removal, reference = "`repository`, and `reference` or `all`; `dryRun`", "`repository`, `reference`"
	return map[string]route{
		"about":        {get, (*exchange).tellAbout, 0, "", "Which server this is: version, data directory, process"},
		"status":       {get, (*exchange).status, notAtRest, "`hours`, 1 to 24; `top`, 0 to 100", "What goes on: hosts, quotas, fills, disk and memory, and who and what spent most in the last hours"},
		"rules":        {get, (*exchange).rules, 0, "", "An item for each cache rule, in the order in which they are tried"},
		"explain":      {get, (*exchange).explain, 0, "`name`, and `ns` if the client sends it", "What a name means, what is held of it, what a pull would cost, how its upstream fares and what is left of the quota; nobody is asked"},
		"repositories": {get, (*exchange).repositories, 0, "", "An item for each repository that is held"},
		"images":       {get, (*exchange).images, 0, "`repository`", "An item for each of its tags, and for each manifest that no tag leads to"},
		"pins":         {get, (*exchange).pins, 0, "", "An item for each pin"},
		"usage":        {get, (*exchange).usage, alone, "", "What the data directory takes, and for which upstream"},
		"evictions":    {get, (*exchange).evictions, alone, "`n`, 1 to 1000", "An item for each thing that eviction would take next, and why"},
		"pin":          {post, (*exchange).pin, 0, reference, "Protects what a tag or digest names, now and later"},
		"unpin":        {post, (*exchange).unpin, 0, reference, "Takes a pin away"},
		"remove":       {post, (*exchange).remove, 0, removal, "Forgets a tag, a manifest that nothing else leads to, or a repository with all that it has; or only says whether it would"},
		"prune":        {post, (*exchange).prune, alone, "`unusedSeconds`, `dryRun`", "Removes what no repository has, and, above 0, what was not used for so long; or has an item for each thing that it would remove"},
		"refresh":      {post, (*exchange).refresh, notAtRest, "`repository`, `reference`", "Forgets what its upstream refused of the repository or did not have, and checks now what a tag names; a pause that a 429 asked for is kept"},
		"warm":         {post, (*exchange).warm, notAtRest, "`repository`, `reference`, and `platforms`, `waitSeconds`", "Fetches an image, for these platforms or those of the server's list, in the background, and waits for its upstream so long; leaving ends it"},
		"warmlist":     {get, (*exchange).warmList, notAtRest, "", "An item for each image that is kept warm, and how it is; the result has the error of a list that cannot be read, partial where that is about some of its lines"},
		"verify":       {post, (*exchange).verify, alone, "", "Compares all that is held with its digests, and drops what is damaged"},
	}
}

// Route is a question, for a document.
type Route struct {
	Method string
	Path   string
	Takes  string // query or body
	Doc    string
}

// Routes are all questions, in the order of their methods and names.
func Routes() (all []Route) {
	for name, r := range routes() {
		doc := r.doc
		if r.marks.has(alone) {
			doc += "; one at a time"
		}
		if r.marks.has(notAtRest) {
			doc += "; not at rest"
		}
		all = append(all, Route{r.method, Prefix + name, r.takes, doc})
	}
	slices.SortFunc(all, func(a, b Route) int { return strings.Compare(a.Method+a.Path, b.Method+b.Path) })
	return all
}

// statusOf is the status of each error's code.
func statusOf(code string) int {
	switch code {
	case "BAD_REQUEST":
		return http.StatusBadRequest
	case "TOKEN":
		return http.StatusUnauthorized
	case "FORBIDDEN":
		return http.StatusForbidden
	case "NOT_FOUND", "NOT_HELD":
		return http.StatusNotFound
	case "METHOD":
		return http.StatusMethodNotAllowed
	case "PINNED", "LED_TO", "BUSY":
		return http.StatusConflict
	case "NOT_RUNNING":
		return http.StatusServiceUnavailable
	case "NO_ROOM":
		return http.StatusInsufficientStorage
	case "UPSTREAM":
		return http.StatusBadGateway
	}
	return http.StatusInternalServerError
}

// asError finds the code of what went wrong. Operators may read its text.
func asError(err error) *Error {
	known, ok := errors.AsType[*Error](err)
	led, isLed := errors.AsType[store.LedTo](err)
	switch {
	case ok:
		return known
	case isLed:
		return &Error{"LED_TO", led.Error()}
	case errors.Is(err, store.ErrPinned):
		return &Error{"PINNED", err.Error()}
	case errors.Is(err, store.ErrNotHeld):
		return &Error{"NOT_HELD", err.Error()}
	case errors.Is(err, store.ErrNoRoom):
		return &Error{"NO_ROOM", err.Error()}
	}
	return &Error{"INTERNAL", err.Error()}
}

func (api *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{api: api, w: w, r: r, control: http.NewResponseController(w)}
	if err := x.answer(); err != nil && r.Context().Err() == nil {
		x.fail(asError(err))
	}
}

// exchange is one request and its answer.
type exchange struct {
	api     *API
	w       http.ResponseWriter
	r       *http.Request
	control *http.ResponseController
	begun   bool      // a line is out
	told    time.Time // of progress, last
}

func (x *exchange) answer() error {
	name, _ := strings.CutPrefix(x.r.URL.Path, Prefix)
	route, ok := routes()[name]
	switch {
	case !ok:
		return &Error{"NOT_FOUND", "there is no " + words.Quote(x.r.URL.Path)}
	case x.r.Method != route.method:
		x.w.Header().Set("Allow", route.method)
		return &Error{"METHOD", words.Quote(x.r.URL.Path) + " is for " + route.method}
	case route.method == http.MethodGet && x.r.ContentLength != 0:
		x.w.Header().Set("Connection", "close") // rather than wait for it
		return badRequest("this takes no body")
	case route.marks.has(notAtRest) && x.api.cfg.Live == nil:
		return &Error{"NOT_RUNNING", "only a running server can do that"}
	}
	select {
	case x.api.asked <- struct{}{}:
		defer func() { <-x.api.asked }()
	default:
		return &Error{"BUSY", fmt.Sprintf("%d requests are being answered already", maxRequests)}
	}
	if busy := x.api.alone[name]; busy != nil {
		select {
		case busy <- struct{}{}:
			defer func() { <-busy }()
		default:
			return &Error{"BUSY", "another " + name + " is at work"}
		}
	}
	return route.serve(x)
}

// line writes one line of the answer. An error means that the client is gone.
func (x *exchange) line(l answerLine[any]) error {
	if !x.begun {
		x.begun = true
		h := x.w.Header()
		h.Set("Content-Type", "application/x-ndjson")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
	}
	_ = x.control.SetWriteDeadline(time.Now().Add(lineTimeout)) // a pipe has none
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	_, err = x.w.Write(append(text, '\n'))
	return err
}

func (x *exchange) item(v any) error   { return x.line(answerLine[any]{Item: v}) }
func (x *exchange) result(v any) error { return x.line(answerLine[any]{Result: v}) }

// telling does long work, which tells how far it is. It is never held up by that:
// it may hold locks of the store, and the client may be slow.
func (x *exchange) telling(work func(tell func(any)) error) error {
	latest := make(chan any, 1)
	var teller sync.WaitGroup
	teller.Go(func() {
		for v := range latest {
			x.progress(v)
		}
	})
	err := work(func(v any) {
		select {
		case latest <- v:
		default:
		}
	})
	close(latest)
	teller.Wait()
	return err
}

// progress writes a line now and then, and at once.
func (x *exchange) progress(v any) {
	if now := time.Now(); now.Sub(x.told) >= progressEvery {
		x.told = now
		if x.line(answerLine[any]{Progress: v}) == nil {
			_ = x.control.Flush()
		}
	}
}

func (x *exchange) fail(e *Error) {
	if !x.begun {
		x.w.Header().Set("Content-Type", "application/json")
		x.w.Header().Set("Cache-Control", "no-store")
		x.w.Header().Set("X-Content-Type-Options", "nosniff")
		x.w.WriteHeader(statusOf(e.Code))
		x.begun = true
	}
	_ = x.line(answerLine[any]{Error: e})
}

// body reads the request's JSON.
func (x *exchange) body(v any) error {
	if kind, _, _ := mime.ParseMediaType(x.r.Header.Get("Content-Type")); kind != "application/json" {
		return badRequest("want Content-Type: application/json")
	}
	_ = x.control.SetReadDeadline(time.Now().Add(bodyTimeout))
	d := json.NewDecoder(http.MaxBytesReader(x.w, x.r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return badRequest("the request's JSON cannot be read: %v", err)
	}
	_ = x.control.SetReadDeadline(time.Time{}) // else the server takes us for left
	return nil
}

// number reads a parameter that may be left out.
func (x *exchange) number(name string, least, most, otherwise int) (int, error) {
	text := x.r.URL.Query().Get(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, badRequest("%s: want a number from %d to %d", name, least, most)
	}
	return n, nil
}

func (x *exchange) tellAbout() error { return x.result(x.api.about) }
