package upstream

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"entrepot/oci"
	"entrepot/ratelimit"
)

// maxDemands bounds the origins whose challenge is remembered: redirects name
// them.
const maxDemands = 64

// Bounds on the scopes of one challenge.
const (
	maxScopes = 4
	maxScope  = 512
)

// login is what one request carries to say who asks.
type login struct {
	header  string     // Authorization; empty: nothing
	account string     // whom that makes us; empty: nobody
	token   *token     // that header holds, if it is ours
	fresh   bool       // token was got for this question
	cred    credential // that header stands for, if it is sent by itself
	without bool       // nobody's, since a login that is set was refused
	full    bool       // token is what the configuration has us be there: no login was refused, or is missing
	settle  settlement
}

// exchange sends a request with what its origin is known to want, of which nothing is
// got for what is not asked now. A 401 is answered: by a new token where one had
// expired or none was sent, or by the password. A 401 to that is answered as nobody
// would, and no other a second time.
func (s *site) exchange(ctx context.Context, q *question, r request) (*answer, error) {
	var l login
	q.next = r
	if r.anonymous {
		return s.sendAs(ctx, q, r, l)
	}
	if d, known := s.demands.of(originOf(r.url)); known {
		err := s.breakers.check(ctx, q.target(r))
		if err != nil {
			return nil, err
		}
		l, err = s.signIn(ctx, q, r.url, d, nil, false)
		if err != nil && !s.mayGoWithout(ctx, q, r.url, err) {
			return nil, err
		}
	}
	a, err := s.sendAs(ctx, q, r, l)
	for again := true; again && err == nil && a.status == http.StatusUnauthorized; {
		var next login
		if next, again, err = s.answerChallenge(ctx, q, r.url, l, a.header); again {
			l = next
			a, err = s.sendAs(ctx, q, r, l)
			again = l.settle != nil
		}
	}
	if err != nil {
		return nil, err
	}
	a.hidden = a.status == http.StatusUnauthorized && l.full && !refusesToken(a.header)
	return a, nil
}

// refusesToken reports a challenge to the token itself (RFC 6750, section 3.1), which
// tells nothing about what was asked for.
func refusesToken(h http.Header) bool {
	return slices.ContainsFunc(parseChallenges(h), func(c challenge) bool { return c.params["error"] == "invalid_token" })
}

// mayGoWithout reports whether it is worth asking without a token, since the
// token service is in trouble: a registry that wants one for some repositories
// may give out others to everybody.
func (s *site) mayGoWithout(ctx context.Context, q *question, u *url.URL, trouble error) bool {
	return ctx.Err() == nil && oci.IsRetryable(trouble) && !errors.Is(trouble, errClosed) && !s.tokens.isChallenged(originOf(u), q.repo.Path)
}

// sendAs sends a request and notes what the answer says about its credential.
func (s *site) sendAs(ctx context.Context, q *question, r request, l login) (*answer, error) {
	a, err := s.send(ctx, q, r, l)
	if l.settle != nil {
		v := unclear
		if err == nil {
			v = passwordVerdict(a.status)
		}
		heldBack := l.settle(v, func() verdict { return s.signInVerdict(ctx, q, l) })
		if v == rejected || heldBack {
			s.refusedLogin(l.cred, r.url.Host, q.repo.Path, heldBack)
		}
	}
	if err == nil {
		a.without = l.without
	}
	switch {
	case err != nil || l.token == nil:
	case a.status != http.StatusUnauthorized:
		l.token.worked.Store(true)
	case l.fresh:
		l.token.refused.Store(true)
	}
	return a, err
}

// signInVerdict is what the registry says of a login by itself.
func (s *site) signInVerdict(ctx context.Context, q *question, l login) verdict {
	r := request{kind: ProbeKind, class: ratelimit.List, method: http.MethodGet, url: s.url(oci.Request{Kind: oci.Ping})}
	a, err := s.send(ctx, q, r, login{header: l.header, account: l.account})
	if err != nil {
		return unclear
	}
	a.close()
	return passwordVerdict(a.status)
}

// passwordVerdict reads the answer to a request that carried the password
// itself. Trouble tells nothing.
func passwordVerdict(status int) verdict {
	switch {
	case status == http.StatusUnauthorized:
		return rejected
	case status == http.StatusForbidden:
		return forbidden
	case status < 400, status == http.StatusNotFound, status == http.StatusRequestedRangeNotSatisfiable:
		return accepted
	}
	return unclear
}

// answerChallenge decides how to ask once more after a 401 to l; again is false
// where that is useless.
func (s *site) answerChallenge(ctx context.Context, q *question, u *url.URL, l login, h http.Header) (next login, again bool, err error) {
	d, ok, err := readDemand(u, h)
	if err != nil || !ok {
		return login{}, false, err
	}
	s.demands.learn(originOf(u), d, s.origin)
	if !d.basic {
		s.tokens.challenge(originOf(u), q.repo.Path)
	}
	refused := l.settle != nil // the password, or a token from the configuration
	if t := l.token; t != nil && !d.basic && !q.ask.Refresh && t.answers(d) && t.isUseless(s.now()) {
		return login{}, false, nil
	}
	next, err = s.signIn(ctx, q, u, d, l.token, refused)
	if err != nil {
		return login{}, false, err
	}
	next.without = next.without || refused
	if next.header == l.header {
		if next.settle != nil {
			next.settle(unclear, nil)
		}
		return login{}, false, nil
	}
	return next, true, nil
}

// signIn makes what a request to u carries. drop is a token that was refused.
// Credentials go to the upstream's own origin alone; every other is asked
// anonymously, as is all where anonymous is set.
func (s *site) signIn(ctx context.Context, q *question, u *url.URL, d demand, drop *token, anonymous bool) (login, error) {
	o := originOf(u)
	full := o == s.origin && !anonymous
	var cred credential
	if full {
		var err error
		if cred, full, err = s.credential(ctx, q.repo); err != nil {
			return login{}, err
		}
	}
	if d.basic || cred.registry != "" {
		return s.signInDirectly(ctx, q, u, cred)
	}
	if !cred.anonymous() && !related(u.Hostname(), d.realm.Hostname()) {
		s.warn(CredentialsWithheld, d.realm.Host, "the token service is of another domain than the registry: the password is kept from it, and all is asked anonymously")
		cred, full = credential{}, false
	}
	if o == s.origin && !q.ping { // a prefix is no repository, and many refuse a token for what is none
		if own := "repository:" + q.repo.Path + ":pull"; !slices.Contains(d.scopes, own) {
			d.scopes = append(slices.Clip(d.scopes), own)
		}
	}
	key, without := tokenKey{o, cred.id, q.repo.Path}, anonymous
	t, fresh, err := s.tokens.get(ctx, q, key, d, cred, drop)
	if oci.CodeOf(err) == oci.Denied && !cred.anonymous() {
		heldBack, _ := s.accounts.state(s.accounts.get(cred.id))
		s.refusedLogin(cred, d.realm.Host, q.repo.Path, heldBack)
		cred, key.cred, full, without = credential{}, credentialID{}, false, true
		d.instead = heldBack
		t, fresh, err = s.tokens.get(ctx, q, key, d, credential{}, drop)
	}
	if without && oci.CodeOf(err) == oci.Denied {
		err = oci.Errorf(oci.Denied, "%s%s", detail(err), withoutLogin)
	}
	if full && oci.CodeOf(err) == oci.Denied { // nobody's password can be what is wrong
		err = errHidden(err)
	}
	if err != nil {
		return login{}, err
	}
	return login{header: "Bearer " + t.value, account: cred.account(), token: t, fresh: fresh, full: full, without: without}, nil
}

// signInDirectly makes a login that needs no token service.
func (s *site) signInDirectly(ctx context.Context, q *question, u *url.URL, cred credential) (login, error) {
	if cred.anonymous() {
		return login{}, nil
	}
	waiting, cancel := context.WithTimeout(ctx, s.cfg.Timeouts.Token)
	defer cancel()
	settle, ok, err := s.accounts.try(waiting, cred.id)
	if err != nil {
		return login{}, failure(waiting, u.Host, err, nil)
	}
	if !ok {
		s.refusedLogin(cred, u.Host, q.repo.Path, true)
		return login{without: true}, nil
	}
	l := login{header: cred.basic(), account: cred.account(), cred: cred, settle: settle}
	if cred.registry != "" {
		l.header = "Bearer " + cred.registry
	}
	return l, nil
}

// credential looks up who we are to a repository. Trouble with that is no
// reason not to ask, with the last login or anonymously; sure says that there
// was none.
func (s *site) credential(ctx context.Context, repo oci.Repository) (cred credential, sure bool, err error) {
	if s.credentials == nil {
		return credential{}, true, nil
	}
	looking, cancel := context.WithTimeout(ctx, s.cfg.Timeouts.Token)
	defer cancel()
	auth, err := s.credentials(looking, repo)
	cred = newCredential(auth)
	if err != nil {
		if ctx.Err() != nil {
			return credential{}, false, failure(ctx, s.endpoint.Host, err, nil)
		}
		what := "asking anonymously"
		if !cred.anonymous() {
			what = "using the last ones"
		}
		s.warn(CredentialsMissing, s.endpoint.Host, err.Error()+": "+what)
	}
	return cred, err == nil, nil
}

// errHidden marks a refusal as what is said of the repository alone.
func errHidden(err error) error {
	return &oci.Error{Code: oci.Denied, Detail: detail(err), Err: oci.ErrHidden}
}

// withoutLogin is said to clients beside a refusal: without it they would look for
// the trouble in their own login. Whose password it is only operators are told.
const withoutLogin = "; it was asked anonymously, since the password that this cache has for it was refused: its operator can find out more"

// readDemand picks the challenge that can be answered: a token service before a
// password, as that travels less often. ok is false if there is none.
func readDemand(from *url.URL, h http.Header) (d demand, ok bool, err error) {
	for _, ch := range parseChallenges(h) {
		switch ch.scheme {
		case "bearer":
			realm, bad := parseRealm(from, ch.params["realm"])
			if bad != nil {
				err = bad
				continue
			}
			scopes := readScopes(ch.params["scope"])
			return demand{realm: realm, service: ch.params["service"], scopes: scopes, challenged: len(scopes) > 0}, true, nil
		case "basic":
			d, ok = demand{basic: true}, true
		}
	}
	if ok {
		err = nil
	}
	return d, ok, err
}

func readScopes(s string) []string {
	var scopes []string
	for scope := range strings.FieldsSeq(s) {
		if len(scopes) < maxScopes && len(scope) <= maxScope {
			scopes = append(scopes, scope)
		}
	}
	return scopes
}
