package upstream

import (
	"container/list"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"entrepot/oci"
	"entrepot/ratelimit"
)

const (
	// maxTokenBody bounds an answer of a token service, maxToken the token in
	// it: servers refuse headers far smaller than that.
	maxTokenBody = 64 << 10
	maxToken     = 16 << 10
	// maxTokens bounds the tokens that are kept.
	maxTokens = 1024
	// A token whose answer names no life lives for 60 s (distribution token
	// specification, "expires_in").
	defaultTokenLife = 60 * time.Second
	maxTokenLife     = 24 * time.Hour
	// maxTokenMargin is how long before its end a token is replaced; a quarter
	// of a short life.
	maxTokenMargin = 30 * time.Second
	// A repository for which no token is given, or one without rights, is not
	// asked for again at first for a minute, then for twice as long each time.
	minDenied  = time.Minute
	maxDenied  = 10 * time.Minute
	maxUseless = 5 * time.Minute
	// While a login is refused, what it is for is asked for anonymously. If that is
	// refused, too, one repository of all of them is asked for again in minRenewal,
	// however many there are.
	minRenewal = time.Minute
	// A token service that answers nonsense is left alone for a second, then
	// for twice as long each time.
	minNonsense = time.Second
	maxNonsense = 30 * time.Second
	// staleRetry is how long a token is used on whose successor could not be had.
	staleRetry = 5 * time.Second
)

// token is a bearer token as it was given.
type token struct {
	value   string
	want    demand
	fetched time.Time
	renew   time.Time     // when to get another
	ends    time.Time     // when it is refused
	hold    time.Duration // for how long no other is asked for, if it is useless
	worked  atomic.Bool   // some answer to it was no 401
	refused atomic.Bool   // it was refused when it was new
}

// isUseless tells a token without the rights from one that has ended: the former
// never worked, for nobody, and was refused when it was new. For a while another
// would be no better.
func (t *token) isUseless(now time.Time) bool {
	return t.neverWorked() && now.Sub(t.fetched) < t.hold
}

func (t *token) neverWorked() bool { return t.refused.Load() && !t.worked.Load() }

// answers reports whether t was asked for with all that d wants.
func (t *token) answers(d demand) bool {
	if t.want.realm.String() != d.realm.String() || t.want.service != d.service {
		return false
	}
	for _, scope := range d.scopes {
		if !slices.Contains(t.want.scopes, scope) {
			return false
		}
	}
	return true
}

// tokenKey is what a token is good for.
type tokenKey struct {
	origin origin
	cred   credentialID
	repo   string // path
}

// tokens keeps the tokens of one upstream, the most recently used ones, and
// gets new ones: one request at a time for each key, however many wait.
type tokens struct {
	now      func() time.Time
	accounts *accounts
	life     time.Duration // bound on getting one
	begin    func(ctx context.Context, q *question, realm *url.URL, account string) error
	fetch    func(ctx context.Context, q *question, d demand, cred credential) (*token, verdict, error)
	refused  func(cred credential, host, path string, heldBack bool)
	silent   func(ctx context.Context, since time.Time) // a token service was

	wg sync.WaitGroup // of the goroutines that get them

	mu      sync.Mutex // guards what follows, and adding to wg
	closed  bool
	renewal time.Time // from then on one that was refused may be asked for again instead of a login
	entries map[tokenKey]*list.Element
	order   *list.List // of *tokenEntry, the most recently used first
	running map[*refresh]context.CancelFunc
}

type tokenEntry struct {
	key        tokenKey
	token      *token        // the last one; nil: none
	scopes     []string      // what a challenge last asked for
	challenged bool          // the repository is not given out without a token
	held       error         // why none is asked for; nil: it is
	until      time.Time     // then held is over
	wait       time.Duration // how long that was; 0 after a success
	useless    time.Duration // likewise for tokens without rights
	refresh    *refresh      // nil: none is running
}

// hold remembers a failure. Each in a row is remembered for longer.
func (e *tokenEntry) hold(err error, now time.Time, least, most time.Duration) {
	e.wait = min(max(least, 2*e.wait), most)
	e.held, e.until = err, now.Add(e.wait)
}

// wasRefused reports whether the last token, if there was one, gave no rights.
func (e *tokenEntry) wasRefused(last *token) bool {
	return last != nil && last.neverWorked() || oci.CodeOf(e.held) == oci.Denied
}

// refresh is a token on its way. It goes on when those who wait for it leave.
type refresh struct {
	done  chan struct{} // closed when what follows is set
	token *token
	spent int
	err   error
}

// get finds or gets a token. drop is a token that was refused, and is not
// returned again. fresh says that the token was got for this call. Errors:
// Denied if the token service refuses; else as for any request.
func (s *tokens) get(ctx context.Context, q *question, key tokenKey, d demand, cred credential, drop *token) (t *token, fresh bool, err error) {
	if ctx.Err() != nil { // for whom none is to be got
		return nil, false, failure(ctx, d.realm.Host, ctx.Err(), nil)
	}
	r, t, started, err := s.find(ctx, q, key, d, cred, drop)
	if errors.Is(err, errNotBegun) { // a token is no use to who is then refused by the registry's rate
		if err := s.begin(ctx, q, d.realm, cred.account()); err != nil {
			return nil, false, err
		}
		r, t, started, err = s.find(ctx, q, key, d, cred, drop)
	}
	if err != nil || t != nil {
		return t, false, err
	}
	select {
	case <-r.done:
		if started {
			q.spent += r.spent
		}
		return r.token, true, r.err
	case <-ctx.Done():
		return nil, false, failure(ctx, d.realm.Host, ctx.Err(), nil)
	}
}

// find returns a token that is there, or the refresh that brings one. Errors: as get,
// and errNotBegun for a question that has to begin before one is got for it.
func (s *tokens) find(ctx context.Context, q *question, key tokenKey, d demand, cred credential, drop *token) (r *refresh, t *token, started bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, now := s.entryLocked(key), s.now()
	last := e.token
	if last == drop {
		e.token = nil
	}
	switch {
	case e.token != nil && now.Before(last.renew):
		return nil, last, false, nil
	case e.refresh != nil:
		return e.refresh, nil, false, nil
	case s.closed:
		return nil, nil, false, errClosed
	case q.ask.Refresh:
	case e.token != nil && last.isUseless(now):
		return nil, nil, false, errDenied(d.realm.Host)
	case e.until.After(now) && e.token != nil && now.Before(last.ends):
		return nil, last, false, nil
	case e.until.After(now):
		return nil, nil, false, e.held
	case d.instead && e.wasRefused(last) && now.Before(s.renewal):
		e.token = last
		return nil, nil, false, errDenied(d.realm.Host)
	}
	if !q.begun() && !q.ask.Background {
		return nil, nil, false, errNotBegun
	}
	if d.instead && e.wasRefused(last) {
		s.renewal = now.Add(minRenewal)
	}
	e.useless = 0
	if last != nil && last.neverWorked() {
		e.useless = last.hold
	}
	if d.challenged {
		e.scopes = d.scopes
	} else if e.scopes != nil {
		d.scopes = e.scopes
	}
	r = &refresh{done: make(chan struct{})}
	e.refresh = r
	// The context is not the caller's: others may come to wait as well.
	ctx, cancel := context.WithCancel(oci.CarrySpan(ctx, context.Background()))
	s.running[r] = cancel
	ask := oci.Ask{Background: q.ask.Background, Client: q.ask.Client, Since: q.ask.Since, Begun: q.begun()}
	s.wg.Go(func() { s.run(ctx, e, r, d, cred, ask) })
	return r, nil, true, nil
}

var errNotBegun = errors.New("the question has not begun")

// errClosed answers who asks while the program ends.
var errClosed error = &oci.Error{Code: oci.Unavailable, Detail: "shutting down"}

func errDenied(host string) error {
	return oci.Errorf(oci.Denied, "the token service %s refuses access", host)
}

func (s *tokens) entryLocked(key tokenKey) *tokenEntry {
	if el, ok := s.entries[key]; ok {
		s.order.MoveToFront(el)
		return el.Value.(*tokenEntry)
	}
	if len(s.entries) >= maxTokens {
		s.forgetLocked()
	}
	e := &tokenEntry{key: key}
	s.entries[key] = s.order.PushFront(e)
	return e
}

// forgetLocked drops the entry unused for longest. One whose token is on its
// way stays: its key would get a second request otherwise.
func (s *tokens) forgetLocked() {
	for el := s.order.Back(); el != nil; el = el.Prev() {
		if e := el.Value.(*tokenEntry); e.refresh == nil {
			delete(s.entries, e.key)
			s.order.Remove(el)
			return
		}
	}
}

// run gets a token and gives it to all who wait.
func (s *tokens) run(ctx context.Context, e *tokenEntry, r *refresh, d demand, cred credential, ask oci.Ask) {
	q := &question{repo: oci.Repository{Path: e.key.repo}, ask: ask}
	began := time.Now()
	getting, cancel := context.WithTimeout(ctx, s.life)
	t, v, err := s.attempt(getting, q, d, cred)
	cancel()
	if oci.CodeOf(err) == oci.Timeout {
		s.silent(ctx, began)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running[r]()
	delete(s.running, r)
	if s.closed {
		t, err = nil, errClosed
	}
	e.refresh = nil
	r.token, r.err = e.took(t, v, err, s.now())
	r.spent = q.spent
	close(r.done)
}

// took keeps what came of a request for a token: it, or why there is none. A
// token that has not ended serves on where its successor cannot be had.
func (e *tokenEntry) took(t *token, v verdict, err error, now time.Time) (*token, error) {
	last := e.token
	e.token = t
	switch {
	case err == nil:
		t.hold = min(max(minDenied, 2*e.useless), maxUseless)
		e.held, e.until, e.wait = nil, time.Time{}, 0
		return t, nil
	case v == rejected || v == forbidden:
		e.hold(err, now, minDenied, maxDenied)
		return nil, err
	case oci.CodeOf(err) == oci.BadUpstream:
		e.hold(err, now, minNonsense, maxNonsense)
	}
	if last != nil && now.Before(last.ends) && oci.IsRetryable(err) && !errors.Is(err, errClosed) {
		last.renew = now.Add(staleRetry)
		if last.renew.After(last.ends) {
			last.renew = last.ends
		}
		e.token = last
		return last, nil
	}
	return nil, err
}

// challenge notes that a repository is not given out without a token.
func (s *tokens) challenge(o origin, repo string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entryLocked(tokenKey{origin: o, repo: repo}).challenged = true
}

// isChallenged reports whether that is known.
func (s *tokens) isChallenged(o origin, repo string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	el := s.entries[tokenKey{origin: o, repo: repo}]
	return el != nil && el.Value.(*tokenEntry).challenged
}

// forget lets what was refused for a repository be asked for again.
func (s *tokens) forget(repo string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for el := s.order.Front(); el != nil; el = el.Next() {
		e := el.Value.(*tokenEntry)
		if e.key.repo != repo {
			continue
		}
		e.held, e.until, e.wait = nil, time.Time{}, 0
		if e.token != nil && e.token.neverWorked() {
			e.token = nil
		}
	}
}

// attempt asks for a token, if the credential is not held back.
func (s *tokens) attempt(ctx context.Context, q *question, d demand, cred credential) (*token, verdict, error) {
	if cred.anonymous() {
		return s.fetch(ctx, q, d, cred)
	}
	settle, ok, err := s.accounts.try(ctx, cred.id)
	switch {
	case err != nil:
		return nil, unclear, failure(ctx, d.realm.Host, err, nil)
	case !ok:
		return nil, unclear, errDenied(d.realm.Host)
	}
	t, v, err := s.fetch(ctx, q, d, cred)
	heldBack := settle(v, func() verdict { // of a token for nothing, as docker login asks for
		d.scopes = nil
		_, v, _ := s.fetch(ctx, q, d, cred)
		return v
	})
	if v == rejected || heldBack {
		s.refused(cred, d.realm.Host, q.repo.Path, heldBack)
	}
	return t, v, err
}

// close ends the requests for tokens and waits for them.
func (s *tokens) close() {
	s.mu.Lock()
	s.closed = true // no goroutine starts after this
	for _, cancel := range s.running {
		cancel()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// fetchToken asks a token service once; twice where it has no POST.
func (s *site) fetchToken(ctx context.Context, q *question, d demand, cred credential) (*token, verdict, error) {
	start := s.now()
	q.account = cred.account()
	r := request{kind: TokenKind, class: ratelimit.Token, method: http.MethodGet, url: withQuery(d.realm, d.query())}
	var l login
	if cred.identity != "" {
		post := r
		post.method, post.url, post.form = http.MethodPost, d.realm, d.form(cred)
		a, err := s.send(ctx, q, post, login{})
		if err != nil {
			return nil, unclear, err
		}
		if a.status != http.StatusNotFound && a.status != http.StatusMethodNotAllowed {
			return s.readToken(a, d, start)
		}
	}
	if !cred.anonymous() {
		l.header = cred.basic()
	}
	a, err := s.send(ctx, q, r, l)
	if err != nil {
		return nil, unclear, err
	}
	return s.readToken(a, d, start)
}

// readToken makes a token of an answer. start is when it was asked for.
func (s *site) readToken(a *answer, d demand, start time.Time) (*token, verdict, error) {
	if a.status != http.StatusOK {
		a.close()
		return nil, tokenVerdict(a.status), s.tokenRefusal(a)
	}
	body, err := io.ReadAll(io.LimitReader(a.body, maxTokenBody+1))
	a.close()
	if err != nil {
		return nil, unclear, brokenAnswer(a.url.Host, err)
	}
	nonsense := func(what string) (*token, verdict, error) {
		return nil, unclear, oci.Errorf(oci.BadUpstream, "token service %s: %s", a.url.Host, what)
	}
	if len(body) > maxTokenBody {
		return nonsense("the answer is too long")
	}
	var w struct {
		Token       string          `json:"token"`
		AccessToken string          `json:"access_token"`
		ExpiresIn   json.RawMessage `json:"expires_in"`
	}
	if json.Unmarshal(body, &w) != nil {
		return nonsense("the answer is not JSON")
	}
	value := w.Token
	if value == "" {
		value = w.AccessToken
	}
	if !isBearer(value) {
		return nonsense("the answer holds no token that could be sent")
	}
	life := tokenLife(w.ExpiresIn)
	ends := start.Add(life)
	return &token{value: value, want: d, fetched: start, renew: ends.Add(-min(life/4, maxTokenMargin)), ends: ends}, accepted, nil
}

func tokenVerdict(status int) verdict {
	switch status {
	case http.StatusUnauthorized:
		return rejected
	case http.StatusForbidden:
		return forbidden
	}
	return unclear
}

// tokenRefusal maps what is no token. A 404 of a token service says nothing
// about a repository.
func (s *site) tokenRefusal(a *answer) error {
	e := s.refusal(a, oci.BadUpstream)
	switch e.Code {
	case oci.Denied:
		return errDenied(a.url.Host)
	case oci.TooManyRequests, oci.Unavailable, oci.Timeout:
	default:
		e.Code = oci.BadUpstream
	}
	e.Detail = "token service " + a.url.Host + ": " + e.Detail
	return e
}

// tokenLife reads expires_in, which is a number of seconds and was seen as a
// string.
func tokenLife(raw json.RawMessage) time.Duration {
	seconds, err := strconv.ParseFloat(strings.Trim(string(raw), `"`), 64)
	if err != nil || !(seconds > 0) {
		return defaultTokenLife
	}
	return time.Duration(min(seconds, maxTokenLife.Seconds()) * float64(time.Second))
}

// isBearer reports whether s can stand in an Authorization header.
func isBearer(s string) bool {
	if s == "" || len(s) > maxToken {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// demand is what an origin wants of who asks it.
type demand struct {
	basic      bool     // a name and password with each request; else a token:
	realm      *url.URL // of whom to get one
	service    string
	scopes     []string
	challenged bool // scopes are a challenge's, not our guess
	instead    bool // anonymously, since the login is refused
}

func (d demand) query() url.Values {
	v := url.Values{}
	if d.service != "" {
		v.Set("service", d.service)
	}
	if len(d.scopes) > 0 {
		v["scope"] = d.scopes
	}
	return v
}

// form is the body of the OAuth 2 exchange (distribution, spec/auth/oauth.md).
func (d demand) form(cred credential) url.Values {
	v := url.Values{
		"grant_type":    {"refresh_token"},
		"client_id":     {defaultUserAgent},
		"refresh_token": {cred.identity},
		"service":       {d.service},
	}
	if len(d.scopes) > 0 {
		v.Set("scope", strings.Join(d.scopes, " "))
	}
	return v
}

// withQuery adds to the query that u has.
func withQuery(u *url.URL, add url.Values) *url.URL {
	v := u.Query()
	maps.Copy(v, add)
	copied := *u
	copied.RawQuery = v.Encode()
	return &copied
}
