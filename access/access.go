// Package access decides who may ask what. It reads credentials from requests,
// gives out tokens, and stands before a Source as a guard. It knows no caches
// and no upstreams.
//
// Start with Gate.Admit, then Session, which is the guard. What users exist says
// users.go, what they may rules.go, how tokens look token.go.
package access

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"entrepot/oci"

	"golang.org/x/sync/singleflight"
)

// Config is what New needs.
type Config struct {
	// Source and Catalog are what is guarded. Required.
	Source  oci.Source
	Catalog oci.Catalog
	// Names tells which repository a name in a token's scope means. Required.
	Names *oci.Names
	// ReadUsers reads the htpasswd file; nil: nobody has a password.
	ReadUsers func() ([]byte, error)
	// ReadRules reads the access file; nil: everybody who can say who they are
	// may read everything, there are no tokens, and clients log in by password
	// with each request.
	ReadRules func() ([]byte, error)
	// Key is what tokens are signed with now, MinKey bytes or more; whoever has it
	// can make some.
	// Required where there are rules.
	Key func() (string, error)
	// Trusts reports whether a handshake would now accept the client's certificate
	// that it has accepted before; nil: it would.
	Trusts func(*tls.ConnectionState) bool
	// URL is how clients reach us, such as https://cache.example; empty: as they
	// did with the request at hand.
	URL string
	// Proxy tells which forward proxy leads to an issuer of OIDC tokens; nil for
	// none. ReadFile reads the authorities to trust there.
	Proxy    func(*http.Request) (*url.URL, error)
	ReadFile func(path string) ([]byte, error)
	// Turn waits until a client may have an answer of the token service: a user, or
	// an address where none has proved to be one; an error is its answer. Nil means
	// that nobody waits.
	Turn func(ctx context.Context, client string) error
	// Failed is told of every login that failed. Nil means that nobody listens.
	Failed func(client, user string, err error)
}

// Gate is the one place where requests become sessions.
type Gate struct {
	cfg       Config
	users     atomic.Pointer[userTable]
	rules     atomic.Pointer[rules] // nil pointer in it: there is no access file
	tokens    *tokens
	anonymous *Session
	mask      []byte // keys what we remember of passwords; made at start, never stored
	known     recent // sessions by credential
	checks    singleflight.Group
	slots     chan struct{} // bounds how many passwords are compared at once
	failures  failures
	forgeries failures // bounds what is told of forged tokens, and refuses nobody
}

// New reads the files. Its errors name the place in them.
func New(cfg Config) (*Gate, error) {
	g := &Gate{cfg: cfg, mask: make([]byte, sha256.Size), slots: make(chan struct{}, max(1, min(runtime.GOMAXPROCS(0)/2, triesAtOnce)))}
	_, _ = rand.Read(g.mask) // never fails
	g.tokens = &tokens{read: cfg.Key}
	g.anonymous = &Session{gate: g}
	g.users.Store(new(userTable))
	if err := g.ReloadUsers(); err != nil {
		return nil, err
	}
	return g, g.ReloadRules()
}

// ReloadUsers reads the users again. After an error they are as they were.
func (g *Gate) ReloadUsers() error {
	if g.cfg.ReadUsers == nil {
		return nil
	}
	content, err := g.cfg.ReadUsers()
	if err != nil {
		return err
	}
	table, err := parseUsers(content)
	if err != nil {
		return err
	}
	g.users.Store(table)
	return nil
}

// ReloadRules reads the rules again. After an error they are as they were.
func (g *Gate) ReloadRules() error {
	if g.cfg.ReadRules == nil {
		return nil
	}
	content, err := g.cfg.ReadRules()
	if err != nil {
		return err
	}
	r, err := readRules(content, &g.cfg)
	if err != nil {
		return err
	}
	g.rules.Store(r)
	return nil
}

// RulesFiles are the files that the access file names, as it is now.
func (g *Gate) RulesFiles() (paths []string) {
	for _, i := range g.rules.Load().issuers {
		if i.caFile != "" {
			paths = append(paths, i.caFile)
		}
	}
	return paths
}

// Warnings are what the access file, as it is now, lets in that its writer may not
// mean.
func (g *Gate) Warnings() []string { return g.rules.Load().warnings }

// HasTokens reports whether there is a token service.
func (g *Gate) HasTokens() bool { return g.cfg.ReadRules != nil }

// The refusals that a challenge tells apart. Their texts are for clients.
var (
	errLogin   error = oci.Errorf(oci.Unauthorized, "authentication required")
	errWrong   error = oci.Errorf(oci.Unauthorized, "the user name or the password is wrong")
	errExpired error = oci.Errorf(oci.Unauthorized, "the token has expired")
	errToken   error = oci.Errorf(oci.Unauthorized, "the token is not valid here")
	errScope   error = oci.Errorf(oci.Unauthorized, "the token is not for this")
)

// Admit says as whom a request asks. Without any credential that is nobody in
// particular, where such may ask at all; the API's root never answers them: its
// 401 is how clients find out that they can log in.
func (g *Gate) Admit(r *http.Request, kind oci.Kind) (*Session, error) {
	lines := r.Header["Authorization"]
	switch {
	case len(lines) > 1:
		return nil, oci.Errorf(oci.Unauthorized, "the request has several Authorization headers")
	case len(lines) == 1:
		return g.bearer(r, lines[0])
	}
	if s := g.certified(r); s != nil {
		return s, nil
	}
	if kind == oci.Ping || !g.rules.Load().forAnonymous() {
		return nil, errLogin
	}
	return g.anonymous, nil
}

// bearer is the session of a credential: what is known costs one hash and one
// look.
func (g *Gate) bearer(r *http.Request, line string) (*Session, error) {
	key := g.keyOf(line)
	if s := g.known.get(key); s != nil && s.isCurrent(time.Now()) {
		return s, nil
	}
	scheme, value, _ := strings.Cut(line, " ")
	value = strings.TrimLeft(value, " ")
	switch {
	case strings.EqualFold(scheme, "Bearer") && g.HasTokens():
		return g.admitToken(r, key, value)
	case strings.EqualFold(scheme, "Basic"):
		user, password, err := parseBasic(value)
		if err != nil {
			return nil, err
		}
		return g.login(r, key, user, password)
	}
	return nil, oci.Errorf(oci.Unauthorized, "there is no authentication by %q here", clip(scheme, 20))
}

// keyOf is what we remember of a credential: nothing that could be used in its
// place.
func (g *Gate) keyOf(line string) key {
	var room [2 << 10]byte // most fit
	return sha256.Sum256(append(append(room[:0], g.mask...), line...))
}

// admitToken takes a token of ours, or one of a configured issuer.
func (g *Gate) admitToken(r *http.Request, k key, text string) (*Session, error) {
	s, err := g.tokens.verify(text, time.Now())
	if errors.Is(err, errForeign) {
		return g.loginForeign(r, k, "", text)
	}
	if errors.Is(err, errToken) {
		return nil, g.forged(r, err)
	}
	if err != nil { // it has ended, and was ours
		return nil, err
	}
	s.gate = g
	g.known.put(k, s)
	return s, nil
}

// forged is the answer to a token that claims to be ours and is not. It is a failed
// login, of which as much is told as of wrong passwords; but it keeps nobody out:
// guessing at signatures leads nowhere, and honest clients come with tokens of an
// earlier key, for which they have to hear 401 to fetch another one.
func (g *Gate) forged(r *http.Request, err error) error {
	if g.forgeries.take(addressOf(r), time.Now()) == 0 {
		g.report(r, "", err)
	}
	return err
}

// turnWait bounds how long a password waits to be compared.
const turnWait = 15 * time.Second

// login takes a password, or in its place the token of a CI system.
func (g *Gate) login(r *http.Request, k key, user, password string) (*Session, error) {
	if g.rules.Load().issuerOf(password) != nil {
		return g.loginForeign(r, k, user, password)
	}
	address := addressOf(r)
	return g.check(r, k, user, func(ctx context.Context) (*Session, error) {
		turn := time.NewTimer(turnWait)
		defer turn.Stop()
		select { // comparing is made to be slow: it must not take the processors from who pulls
		case g.slots <- struct{}{}:
			defer func() { <-g.slots }()
		case <-turn.C:
			return nil, oci.Errorf(oci.Unavailable, "too many are logging in at once")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		// Only now: many that came at once would all be let pass before the first had failed.
		if wait := g.failures.take(address, time.Now()); wait > 0 {
			return nil, tooManyFailed(wait)
		}
		table := g.users.Load()
		if !table.matches(user, password) {
			return nil, errWrong
		}
		g.failures.giveBack(address, time.Now())
		return &Session{gate: g, who: Identity{Name: user}, hash: table.hashes[user]}, nil
	})
}

// loginForeign takes the token of a CI system. Such ones cannot be guessed, so
// that those who come at once need not wait for one another.
func (g *Gate) loginForeign(r *http.Request, k key, user, text string) (*Session, error) {
	return g.check(r, k, user, func(ctx context.Context) (*Session, error) {
		s, err := g.foreign(ctx, text)
		if oci.CodeOf(err) == oci.Unauthorized && !errors.Is(err, errExpired) { // which honest jobs try too, and is of no use to others
			g.failures.take(addressOf(r), time.Now())
		}
		return s, err
	})
}

// check does what is costly for a credential that is not known: once, however
// many ask with it at once, and not for an address that has failed too often.
func (g *Gate) check(r *http.Request, k key, user string, work func(context.Context) (*Session, error)) (*Session, error) {
	for {
		made, err, _ := g.checks.Do(string(k[:]), func() (any, error) {
			if s := g.known.get(k); s != nil && s.isCurrent(time.Now()) {
				return s, nil // it was made while we waited for our turn
			}
			if wait := g.failures.wait(addressOf(r), time.Now()); wait > 0 {
				return nil, tooManyFailed(wait)
			}
			s, err := work(r.Context())
			switch {
			case err == nil:
				g.known.put(k, s)
			case oci.CodeOf(err) == oci.Unauthorized:
				g.report(r, user, err)
			}
			return s, err
		})
		if err == nil {
			return made.(*Session), nil
		}
		// The one who did it for all may have left.
		if !errors.Is(err, context.Canceled) || r.Context().Err() != nil {
			return nil, err
		}
	}
}

func tooManyFailed(wait time.Duration) error {
	return &oci.Error{Code: oci.TooManyRequests, Detail: "too many logins from this address have failed", RetryAfter: wait}
}

func (g *Gate) report(r *http.Request, user string, err error) {
	if g.cfg.Failed != nil {
		g.cfg.Failed(hostOf(r.RemoteAddr), clip(user, 64), err)
	}
}

// Refuse is shown every error before it goes out: on a 401 it tells the client
// how to log in, and it makes what a client may not see look like what does not
// exist.
func (g *Gate) Refuse(r *http.Request, req oci.Request, err error, h http.Header) error {
	code := oci.CodeOf(err)
	if code == oci.Unauthorized {
		h.Set("WWW-Authenticate", g.challenge(r, req, err))
		return err
	}
	if g.HasTokens() && req.Name != "" && (oci.IsUnknown(err) || code == oci.Denied && !errors.Is(err, oci.ErrRule)) {
		if _, _, nameless := g.repository(r, req.Name); nameless == nil {
			return unknown(req.Kind)
		}
	}
	return err
}

// unknown is what is said of what does not exist, and of what may not be seen.
func unknown(kind oci.Kind) error {
	switch kind {
	case oci.ManifestKind:
		return oci.ErrManifestUnknown
	case oci.BlobKind:
		return oci.ErrBlobUnknown
	}
	return oci.ErrNameUnknown
}

// repository is what a client's name means in this request. An empty ns is none,
// as it is for whoever answers.
func (g *Gate) repository(r *http.Request, name string) (repo oci.Repository, scoped bool, err error) {
	return g.cfg.Names.Repository(name, cmp.Or(r.URL.Query()["ns"]...), r.Host)
}

const service = "entrepot"

// challenge tells how to log in. A name that ns gave its meaning is told in
// full, since a token is asked for without ns.
func (g *Gate) challenge(r *http.Request, req oci.Request, err error) string {
	base := g.base(r)
	if !g.HasTokens() || base == "" {
		return `Basic realm="` + service + `"`
	}
	c := `Bearer realm="` + base + `/token",service="` + service + `"`
	switch {
	case req.Kind == oci.CatalogKind:
		c += `,scope="registry:catalog:*"`
	case req.Name != "":
		name := req.Name
		if repo, scoped, err := g.repository(r, name); err == nil && scoped {
			name = repo.String()
		}
		c += `,scope="repository:` + name + `:pull"`
	}
	switch {
	case errors.Is(err, errScope):
		c += `,error="insufficient_scope"`
	case errors.Is(err, errToken), errors.Is(err, errExpired):
		c += `,error="invalid_token"`
	}
	return c
}

// base is where clients reach us; empty for a Host that is none.
func (g *Gate) base(r *http.Request) string {
	if g.cfg.URL != "" {
		return g.cfg.URL
	}
	if _, err := oci.NewRepository(strings.ToLower(r.Host), "x"); err != nil {
		return ""
	}
	if r.TLS != nil {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

func clip(s string, most int) string { return s[:min(len(s), most)] }

// Identity is who somebody is; the zero Identity is nobody in particular.
type Identity struct {
	Name   string
	Groups []string // those that came with a certificate or a token of a CI system
}

// checkName keeps apart what must not be taken for one another: a name from an
// address, which accounts are kept for too, and from the words of the rules.
func checkName(name string) error {
	switch {
	case name == "" || len(name) > 128 || strings.Trim(name, nameBytes) != "":
		return fmt.Errorf("%q is not a user's name: want letters, digits and any of . _ @ + -", clip(name, 64))
	case name == anonymousWord || name == authenticatedWord:
		return fmt.Errorf("%q is not a user's name: it has a meaning in the access file", name)
	case isAddress(name):
		return fmt.Errorf("%q is not a user's name: it is an address", name)
	}
	return nil
}

const nameBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._@+-"

// certified is the session of a client's certificate, which the handshake has
// verified; nil for none.
func (g *Gate) certified(r *http.Request) *Session {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return nil
	}
	if g.cfg.Trusts != nil && !g.cfg.Trusts(r.TLS) { // a connection may outlive its authority
		return nil
	}
	leaf := r.TLS.VerifiedChains[0][0]
	k := key(sha256.Sum256(leaf.Raw))
	if s := g.known.get(k); s != nil && s.isCurrent(time.Now()) {
		return s
	}
	if checkName(leaf.Subject.CommonName) != nil || time.Now().After(leaf.NotAfter) { // a connection may outlive it
		return nil
	}
	s := &Session{gate: g, who: Identity{leaf.Subject.CommonName, leaf.Subject.Organization}, until: leaf.NotAfter}
	g.known.put(k, s)
	return s
}

// CheckUsers reports what is wrong with an htpasswd file.
func CheckUsers(content []byte) error {
	_, err := parseUsers(content)
	return err
}

// CheckRules reports what is wrong with an access file, and with the files that it
// names.
func CheckRules(content []byte, names *oci.Names, readFile func(path string) ([]byte, error)) error {
	_, err := readRules(content, &Config{Names: names, ReadFile: readFile})
	return err
}

// Warnings are what an access file lets in that its writer may not mean.
func Warnings(content []byte, names *oci.Names) []string {
	r, err := parseRules(content, names)
	if err != nil {
		return nil
	}
	return r.warnings
}

// readRules makes rules that are ready for use.
func readRules(content []byte, cfg *Config) (*rules, error) {
	r, err := parseRules(content, cfg.Names)
	if err != nil {
		return nil, err
	}
	for _, i := range r.issuers {
		if err := i.prepare(cfg); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Readers are those who may read what a repository has, in the words of an access
// file: users, group:NAME, anonymous for everybody, authenticated for all users.
func Readers(content []byte, names *oci.Names, repo oci.Repository) ([]string, error) {
	r, err := parseRules(content, names)
	if err != nil {
		return nil, err
	}
	return r.readers(repo), nil
}
