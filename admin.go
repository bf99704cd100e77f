package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"entrepot/cache"
	"entrepot/ledger"
	"entrepot/oci"
	"entrepot/store"
	"entrepot/upstream"
	"entrepot/words"

	"github.com/rs/zerolog"
)

// adminAPI is what operators can ask of a data directory, over HTTP. The
// commands for operators are its clients, also where no server runs: the command
// then serves it to itself. Who may ask is adminGuard's business.
type adminAPI struct {
	disk   *store.Disk
	live   *live // nil at rest
	about  aboutJSON
	cfg    *Config
	budget int64 // as it is set, though the store need not be held to it now
	memory int64 // likewise, of the memory tier

	asked chan struct{}            // bounds what is answered at once
	alone map[string]chan struct{} // by route: work of which one at a time is enough
}

// live is what only a running server has. Routes for which nothing else will do
// are marked notAtRest.
type live struct {
	cache     *cache.Cache
	upstreams *upstream.Set
	ledger    *ledger.Ledger
	warming   *warming
	began     time.Time
}

const adminPrefix = "/admin/v1/"

// The bounds of one request.
const (
	maxAdminRequests = 16
	maxAdminBody     = 64 << 10
	adminLineTimeout = 30 * time.Second       // for the client to take a line
	progressEvery    = 100 * time.Millisecond // at most
)

// adminRoute is one question. Those of POST change something.
type adminRoute struct {
	method string
	serve  func(*adminExchange) error
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

func adminRoutes() map[string]adminRoute {
	const get, post = http.MethodGet, http.MethodPost
	const target, reference = "`repository`, and `reference` or `all`", "`repository`, `reference`"
	return map[string]adminRoute{
		"about":        {get, (*adminExchange).tellAbout, 0, "", "Which server this is: version, data directory, process"},
		"status":       {get, (*adminExchange).status, notAtRest, "`hours`, 1 to 24; `top`, 0 to 100", "What goes on: hosts, quotas, fills, disk and memory, and who and what spent most in the last hours"},
		"rules":        {get, (*adminExchange).rules, 0, "", "An item for each cache rule, in the order in which they are tried"},
		"explain":      {get, (*adminExchange).explain, 0, "`name`, and `ns` if the client sends it", "What a name means, what is held of it, and what a pull would cost; nobody is asked"},
		"repositories": {get, (*adminExchange).repositories, 0, "", "An item for each repository that is held"},
		"images":       {get, (*adminExchange).images, 0, "`repository`", "An item for each of its tags, and for each manifest that no tag leads to"},
		"pins":         {get, (*adminExchange).pins, 0, "", "An item for each pin"},
		"usage":        {get, (*adminExchange).usage, alone, "", "What the data directory takes, and for which upstream"},
		"evictions":    {get, (*adminExchange).evictions, alone, "`n`, 1 to 1000", "An item for each thing that eviction would take next, and why"},
		"pin":          {post, (*adminExchange).pin, 0, reference, "Protects what a tag or digest names, now and later"},
		"unpin":        {post, (*adminExchange).unpin, 0, reference, "Takes a pin away"},
		"remove":       {post, (*adminExchange).remove, 0, target, "Forgets a tag, a manifest that nothing else leads to, or a repository with all that it has"},
		"prune":        {post, (*adminExchange).prune, alone, "`unusedSeconds`", "Removes what no repository has, and, above 0, what was not used for so long"},
		"refresh":      {post, (*adminExchange).refresh, notAtRest, "`repository`, `reference`", "Forgets what its upstream refused or did not have, and checks now what a tag names"},
		"warm":         {post, (*adminExchange).warm, notAtRest, "`repository`, `reference`, and `platforms`, `waitSeconds`", "Fetches an image, for these platforms or those of the server's list, in the background, and waits for its upstream so long; leaving ends it"},
		"warmlist":     {get, (*adminExchange).warmList, notAtRest, "", "An item for each image that is kept warm, and how it is"},
		"verify":       {post, (*adminExchange).verify, alone, "", "Compares all that is held with its digests, and drops what is damaged"},
	}
}

// newAdminAPI makes the API of a data directory; live is nil where no server has
// it.
func newAdminAPI(disk *store.Disk, live *live, cfg *Config, version string) *adminAPI {
	api := &adminAPI{
		disk: disk, live: live, about: aboutJSON{version, cfg.dataPath(), os.Getpid()}, cfg: cfg, budget: int64(cfg.CacheSize), memory: int64(cfg.Memory),
		asked: make(chan struct{}, maxAdminRequests), alone: map[string]chan struct{}{},
	}
	for name, route := range adminRoutes() {
		if route.marks.has(alone) {
			api.alone[name] = make(chan struct{}, 1)
		}
	}
	return api
}

// adminStatus is the status of each error's code.
func adminStatus(code string) int {
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

// asAdminError finds the code of what went wrong. Operators may read its text.
func asAdminError(err error) *adminError {
	known, ok := errors.AsType[*adminError](err)
	led, isLed := errors.AsType[store.LedTo](err)
	switch {
	case ok:
		return known
	case isLed:
		return &adminError{"LED_TO", led.Error()}
	case errors.Is(err, store.ErrPinned):
		return &adminError{"PINNED", err.Error()}
	case errors.Is(err, store.ErrNotHeld):
		return &adminError{"NOT_HELD", err.Error()}
	case errors.Is(err, store.ErrNoRoom):
		return &adminError{"NO_ROOM", err.Error()}
	}
	return &adminError{"INTERNAL", err.Error()}
}

func (api *adminAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &adminExchange{api: api, w: w, r: r, control: http.NewResponseController(w)}
	if err := x.answer(); err != nil && r.Context().Err() == nil {
		x.fail(asAdminError(err))
	}
}

// adminExchange is one request and its answer.
type adminExchange struct {
	api     *adminAPI
	w       http.ResponseWriter
	r       *http.Request
	control *http.ResponseController
	begun   bool      // a line is out
	told    time.Time // of progress, last
}

func (x *adminExchange) answer() error {
	name, _ := strings.CutPrefix(x.r.URL.Path, adminPrefix)
	route, ok := adminRoutes()[name]
	switch {
	case !ok:
		return &adminError{"NOT_FOUND", "there is no " + words.Quote(x.r.URL.Path)}
	case x.r.Method != route.method:
		x.w.Header().Set("Allow", route.method)
		return &adminError{"METHOD", words.Quote(x.r.URL.Path) + " is for " + route.method}
	case route.method == http.MethodGet && x.r.ContentLength != 0:
		x.w.Header().Set("Connection", "close") // rather than wait for it
		return badRequest("this takes no body")
	case route.marks.has(notAtRest) && x.api.live == nil:
		return &adminError{"NOT_RUNNING", "only a running server can do that"}
	}
	select {
	case x.api.asked <- struct{}{}:
		defer func() { <-x.api.asked }()
	default:
		return &adminError{"BUSY", fmt.Sprintf("%d requests are being answered already", maxAdminRequests)}
	}
	if busy := x.api.alone[name]; busy != nil {
		select {
		case busy <- struct{}{}:
			defer func() { <-busy }()
		default:
			return &adminError{"BUSY", "another " + name + " is at work"}
		}
	}
	return route.serve(x)
}

// line writes one line of the answer. An error means that the client is gone.
func (x *adminExchange) line(l adminLine[any]) error {
	if !x.begun {
		x.begun = true
		h := x.w.Header()
		h.Set("Content-Type", "application/x-ndjson")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
	}
	_ = x.control.SetWriteDeadline(time.Now().Add(adminLineTimeout)) // a pipe has none
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	_, err = x.w.Write(append(text, '\n'))
	return err
}

func (x *adminExchange) item(v any) error   { return x.line(adminLine[any]{Item: v}) }
func (x *adminExchange) result(v any) error { return x.line(adminLine[any]{Result: v}) }

// telling does long work, which tells how far it is. It is never held up by that:
// it may hold locks of the store, and the client may be slow.
func (x *adminExchange) telling(work func(tell func(any)) error) error {
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
func (x *adminExchange) progress(v any) {
	if now := time.Now(); now.Sub(x.told) >= progressEvery {
		x.told = now
		if x.line(adminLine[any]{Progress: v}) == nil {
			_ = x.control.Flush()
		}
	}
}

func (x *adminExchange) fail(e *adminError) {
	if !x.begun {
		x.w.Header().Set("Content-Type", "application/json")
		x.w.Header().Set("Cache-Control", "no-store")
		x.w.Header().Set("X-Content-Type-Options", "nosniff")
		x.w.WriteHeader(adminStatus(e.Code))
		x.begun = true
	}
	_ = x.line(adminLine[any]{Error: e})
}

// body reads the request's JSON.
func (x *adminExchange) body(v any) error {
	if kind, _, _ := mime.ParseMediaType(x.r.Header.Get("Content-Type")); kind != "application/json" {
		return badRequest("want Content-Type: application/json")
	}
	_ = x.control.SetReadDeadline(time.Now().Add(bodyTimeout))
	d := json.NewDecoder(http.MaxBytesReader(x.w, x.r.Body, maxAdminBody))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return badRequest("the request's JSON cannot be read: %v", err)
	}
	_ = x.control.SetReadDeadline(time.Time{}) // else the server takes us for left
	return nil
}

// target reads what a request is about; all says whether that may be a whole
// repository.
func (x *adminExchange) target(all bool) (targetJSON, oci.Repository, error) {
	var t targetJSON
	if err := x.body(&t); err != nil {
		return t, oci.Repository{}, err
	}
	repo, err := t.parse()
	if err == nil && t.All && !all {
		err = badRequest("a pin is for a tag or a digest")
	}
	return t, repo, err
}

func (x *adminExchange) tellAbout() error { return x.result(x.api.about) }

func (x *adminExchange) status() error {
	hours, err := x.number("hours", 1, ledger.Hours, 6)
	if err != nil {
		return err
	}
	top, err := x.number("top", 0, 100, 10)
	if err != nil {
		return err
	}
	return x.result(newStatusJSON(x.api, hours, top))
}

// number reads a parameter that may be left out.
func (x *adminExchange) number(name string, least, most, otherwise int) (int, error) {
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

func (x *adminExchange) repositories() error {
	n := 0
	err := x.api.disk.Holdings(x.r.Context(), func(h store.Holding) error {
		n++
		return x.item(newRepositoryJSON(h))
	})
	if err != nil {
		return err
	}
	return x.result(countJSON{n})
}

func (x *adminExchange) images() error {
	repo, err := oci.ParseRepository(x.r.URL.Query().Get("repository"))
	if err != nil {
		return badRequest("repository: %v", err)
	}
	images, err := x.api.disk.Images(x.r.Context(), repo)
	if err != nil {
		return err
	}
	for _, im := range images {
		if err := x.item(newImageJSON(im)); err != nil {
			return err
		}
	}
	return x.result(countJSON{len(images)})
}

func (x *adminExchange) pins() error {
	pins, err := x.api.disk.Pins(x.r.Context())
	if err != nil {
		return err
	}
	for _, p := range pins {
		if err := x.item(newPinJSON(p)); err != nil {
			return err
		}
	}
	return x.result(countJSON{len(pins)})
}

func (x *adminExchange) usage() error {
	var u store.Usage
	err := x.telling(func(tell func(any)) (err error) {
		u, err = x.api.disk.Usage(x.r.Context(), func(files int) { tell(filesJSON{files}) })
		return err
	})
	if err != nil {
		return err
	}
	u.Budget = x.api.budget
	return x.result(newUsageJSON(u))
}

func (x *adminExchange) evictions() error {
	const most = 1000
	n, err := strconv.Atoi(x.r.URL.Query().Get("n"))
	if err != nil || n < 1 || n > most {
		return badRequest("n: want a number from 1 to %d", most)
	}
	victims, err := x.api.disk.DryRun(x.r.Context(), n)
	if err != nil {
		return err
	}
	for _, v := range victims {
		if err := x.item(victimJSON{v.Digest, v.Fill, v.Bytes, v.LastUse, v.Uses, v.Upstream, v.Repositories, v.Why}); err != nil {
			return err
		}
	}
	return x.result(countJSON{len(victims)})
}

func (x *adminExchange) pin() error {
	t, repo, err := x.target(false)
	if err != nil {
		return err
	}
	if err := x.api.disk.Pin(x.r.Context(), repo, t.Reference); err != nil {
		return err
	}
	pins, err := x.api.disk.Pins(x.r.Context())
	if err != nil {
		return err
	}
	for _, p := range pins {
		if p.Repository == repo && p.Reference == t.Reference {
			return x.result(newPinJSON(p))
		}
	}
	return x.result(t) // unpinned by somebody else meanwhile
}

func (x *adminExchange) unpin() error {
	t, repo, err := x.target(false)
	if err != nil {
		return err
	}
	if err := x.api.disk.Unpin(x.r.Context(), repo, t.Reference); err != nil {
		return err
	}
	return x.result(t)
}

func (x *adminExchange) remove() error {
	t, repo, err := x.target(true)
	dg, digestErr := oci.ParseDigest(t.Reference)
	switch {
	case err != nil:
		return err
	case t.All:
		err = x.api.disk.RemoveRepository(x.r.Context(), repo)
	case digestErr == nil:
		err = x.api.disk.RemoveManifest(x.r.Context(), repo, dg)
	default:
		err = x.api.disk.RemoveTag(x.r.Context(), repo, t.Reference)
	}
	if err != nil {
		return err
	}
	return x.result(t)
}

func (x *adminExchange) prune() error {
	var ask pruneJSON
	if err := x.body(&ask); err != nil {
		return err
	}
	const most = 100 * 365 * 24 * 3600
	if ask.UnusedSeconds < 0 || ask.UnusedSeconds > most {
		return badRequest("unusedSeconds: want a number from 0 to %d", most)
	}
	var p store.Pruned
	err := x.telling(func(tell func(any)) (err error) {
		p, err = x.api.disk.Prune(x.r.Context(), time.Duration(ask.UnusedSeconds)*time.Second, func(done float64) { tell(shareJSON{done}) })
		return err
	})
	if err != nil {
		return err
	}
	return x.result(prunedJSON{p.Blobs, p.Fills, p.Records, p.Bytes})
}

func (x *adminExchange) verify() error {
	if err := x.body(&struct{}{}); err != nil {
		return err
	}
	var v store.Verified
	err := x.telling(func(tell func(any)) (err error) {
		v, err = x.api.disk.Verify(x.r.Context(), func(v store.Verified) {
			v.Dropped = nil // it grows behind our back
			tell(newVerifiedJSON(v))
		})
		return err
	})
	if err != nil {
		return err
	}
	return x.result(newVerifiedJSON(v))
}

// adminGuard lets to the admin API who may use it: whoever has the token or,
// while there is none, whoever is on this machine.
type adminGuard struct {
	api      http.Handler
	loopback bool // only this machine reaches the listener
	token    Secret
	origins  *http.CrossOriginProtection
	log      zerolog.Logger
	refused  *throttle
}

func newAdminGuard(api http.Handler, cfg *Config, logger zerolog.Logger) *adminGuard {
	return &adminGuard{
		api: api, loopback: cfg.AdminListen.isLoopback(), token: cfg.AdminToken,
		origins: http.NewCrossOriginProtection(), log: logger, refused: newThrottle(repeatInterval),
	}
}

// guardFromOutside keeps h, which only tells, for those who have the token, where
// other machines can reach the admin listener.
func guardFromOutside(h http.Handler, cfg *Config, logger zerolog.Logger) http.Handler {
	if cfg.AdminListen.isLoopback() {
		return h
	}
	return newAdminGuard(h, cfg, logger)
}

func (g *adminGuard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refusal := g.check(r)
	if refusal == nil {
		g.api.ServeHTTP(w, r)
		return
	}
	if held, ok := g.refused.pass(refusal.Code); ok {
		g.log.Warn().Str("client", r.RemoteAddr).Int("held_back", held).Str("error", refusal.Message).Msg("admin API: refused")
	}
	if refusal.Code == "TOKEN" {
		w.Header().Set("WWW-Authenticate", `Bearer realm="entrepot"`)
	}
	x := &adminExchange{w: w, r: r, control: http.NewResponseController(w)}
	x.fail(refusal)
}

// check says why a request is refused. That the listener is on loopback does not
// keep out web pages that a browser here has open: one may not come from another
// origin, nor under a name that somebody else has pointed at this machine.
func (g *adminGuard) check(r *http.Request) *adminError {
	if err := g.origins.Check(r); err != nil {
		return &adminError{"FORBIDDEN", "the request comes from a web page of another origin"}
	}
	switch {
	case g.token.IsSet():
		token, err := g.token.Value()
		if err != nil && token == "" || !hasToken(r, token) {
			return &adminError{"TOKEN", "want Authorization: Bearer, with the value of ENTREPOT_ADMIN_TOKEN"}
		}
	case !g.loopback:
		return &adminError{"FORBIDDEN", "this address can be reached from other machines: it answers once ENTREPOT_ADMIN_TOKEN is set, or ENTREPOT_ADMIN_LISTEN is on 127.0.0.1; for metrics alone there is ENTREPOT_METRICS_LISTEN"}
	case !isLocalName(r.Host):
		return &adminError{"FORBIDDEN", "without a token the admin API is asked as localhost or by address, and not as " + words.Quote(r.Host)}
	}
	return nil
}

// hasToken compares in a time that tells nothing of the token.
func hasToken(r *http.Request, token string) bool {
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	want, got := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(given))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1 && strings.EqualFold(scheme, "Bearer")
}

// isLocalName reports whether a Host header is one that no name server decides
// about.
func isLocalName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || strings.EqualFold(host, "localhost")
}
