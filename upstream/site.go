package upstream

import (
	"container/list"
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"entrepot/oci"
	"entrepot/ratelimit"
)

// site is one address of an upstream: the primary, or a mirror of it. Each has
// its own connections, login, limits and breakers.
type site struct {
	cfg         *Config // of the upstream
	credentials Credentials
	endpoint    *url.URL
	origin      origin // of endpoint
	ca          func() ([]byte, error)
	dialer      dialer
	transports  atomic.Pointer[transports]
	limiter     *ratelimit.Limiter
	connections *connections
	accounts    *accounts
	tokens      *tokens
	breakers    *breakers
	demands     *demands
	warnings    *warnings
	now         func() time.Time // of tokens and refusals
	standing    standing
}

// newSite makes a site of an upstream whose cfg has its defaults.
func newSite(cfg *Config, at Mirror, d dialer, now func() time.Time) (*site, error) {
	endpoint, err := parseEndpoint(cfg.Name, at.URL)
	if err != nil {
		return nil, err
	}
	d.guard, d.timeout = newGuard(endpoint.Hostname(), at.AllowPrivate), cfg.Timeouts.Dial
	d.other = cfg.Dial
	s := &site{
		cfg:         cfg,
		credentials: at.Credentials,
		endpoint:    endpoint,
		ca:          at.CA,
		dialer:      d,
		origin:      originOf(endpoint),
		accounts:    newAccounts(now),
		demands:     &demands{byOrigin: map[origin]demand{}},
		warnings:    &warnings{now: now, last: map[occasion]time.Time{}},
		now:         now,
	}
	known := cfg.Name
	if at.URL != "" { // what is known of a registry holds for its own address
		known = oci.FoldHost(endpoint.Host)
	}
	limits := cfg.Limits.For(known, at.Credentials != nil)
	s.limiter, s.connections = ratelimit.New(limits), &connections{limits: limits, used: map[line]int{}}
	s.breakers = newBreakers(s.probe, s.hostChanged)
	t, err := s.connect()
	if err != nil {
		return nil, err
	}
	s.transports.Store(t)
	s.tokens = &tokens{
		now:      now,
		accounts: s.accounts,
		life:     cfg.Timeouts.Token,
		begin:    s.begin,
		fetch:    s.fetchToken,
		refused:  s.refusedLogin,
		silent:   s.hear,
		entries:  map[tokenKey]*list.Element{},
		order:    list.New(),
		running:  map[*refresh]context.CancelFunc{},
	}
	return s, nil
}

// connect makes connections that trust whom the site's CA names now.
func (s *site) connect() (*transports, error) {
	t, err := newTransports(s.cfg, s.ca, s.dialer)
	if err != nil {
		return nil, fmt.Errorf("upstream %s: %w", s.cfg.Name, err)
	}
	return t, nil
}

// reconnect has t carry the requests to come; those on their way go on. Whoever
// was not trusted until now is asked at once.
func (s *site) reconnect(t *transports) {
	s.transports.Swap(t).closeIdle()
	s.breakers.probeNow()
}

func (s *site) forget(ctx context.Context, repo oci.Repository) {
	if cred, _, err := s.credential(ctx, repo); err == nil {
		s.accounts.forget(cred.id)
	}
	s.tokens.forget(repo.Path)
	s.breakers.forget(ctx, repo.Path)
	s.standing.forgetLacks(repo.Path)
}

func (s *site) close() {
	s.tokens.close()
	s.breakers.close()
	s.transports.Load().closeIdle()
}

// url is the address of a path of the distribution API.
func (s *site) url(r oci.Request) *url.URL {
	u := *s.endpoint
	u.Path = strings.TrimSuffix(u.Path, "/") + r.Path()
	return &u
}

// demands remembers what origins want of who asks them.
type demands struct {
	mu       sync.Mutex // guards byOrigin
	byOrigin map[origin]demand
}

func (d *demands) of(o origin) (demand, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, ok := d.byOrigin[o]
	return known, ok
}

// learn keeps what holds for all repositories of an origin. The upstream's own
// is never dropped for others.
func (d *demands) learn(o origin, want demand, own origin) {
	want.scopes, want.challenged = nil, false
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.byOrigin[o]; !known && len(d.byOrigin) >= maxDemands {
		for other := range d.byOrigin {
			if other != own {
				delete(d.byOrigin, other)
				break
			}
		}
	}
	d.byOrigin[o] = want
}

// warnings lets each kind through once a minute for each host and account.
type warnings struct {
	now  func() time.Time
	mu   sync.Mutex // guards last
	last map[occasion]time.Time
}

type occasion struct {
	trouble Trouble
	host    string
	account string
}

const (
	warningInterval = time.Minute
	// maxOccasions bounds what is remembered: redirects name hosts.
	maxOccasions = 256
)

func (w *warnings) pass(o occasion) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	if last, ok := w.last[o]; ok && now.Sub(last) < warningInterval {
		return false
	}
	if len(w.last) >= maxOccasions {
		clear(w.last)
	}
	w.last[o] = now
	return true
}

func (s *site) warn(t Trouble, host, detail string) {
	s.tell(Warning{Trouble: t, Host: host, Detail: detail})
}

// tell warns, unless it did so of the same a moment ago.
func (s *site) tell(w Warning) {
	if s.warnings.pass(occasion{w.Trouble, w.Host, w.Account}) {
		w.Upstream = s.cfg.Name
		s.cfg.Warn(w)
	}
}

// hear finds out, if the registry has not answered since a time, whether it does.
// What cuts off its token service may cut off the registry, too: whoever waited in
// vain for the one waits for this, so that nobody else does.
func (s *site) hear(ctx context.Context, since time.Time) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeouts.headers())
	defer cancel()
	s.breakers.hear(ctx, target{url: s.url(oci.Request{Kind: oci.Ping})}, since)
}

// hostChanged tells that a host stopped answering, or with nil that it does
// again.
func (s *site) hostChanged(host string, down error) {
	if down == nil {
		s.warn(HostUp, host, "it answers again")
		return
	}
	s.warn(HostDown, host, detail(down)+": until it answers again, what is held is served and all else fails at once")
}
