package access

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"entrepot/oci"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

// foreignAlgorithms are what an issuer may sign with: it alone has the key.
var foreignAlgorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}

// issuerEntry is a CI system whose tokens tell who a client is.
type issuerEntry struct {
	Issuer     string          `yaml:"issuer"`
	Audience   string          `yaml:"audience"`
	CAFile     string          `yaml:"ca_file"`
	Identities []identityEntry `yaml:"identities"`
}

type identityEntry struct {
	Claims map[string]string `yaml:"claims"`
	User   string            `yaml:"user"`
	Groups []string          `yaml:"groups"`
}

// issuer is one of them as it is used. What it publishes is fetched when the
// first token comes.
type issuer struct {
	url, audience, caFile string
	identities            []claimRule
	client                *http.Client
	down                  atomic.Bool // it gave no answer when it was asked last

	mu     sync.Mutex // guards what follows; held across a fetch, for which all who have such a token wait
	keys   *oidc.RemoteKeySet
	failed error
	again  time.Time
}

// claimRule says who somebody is whose claims are these.
type claimRule struct {
	claims map[string]*regexp.Regexp
	who    Identity
}

// The bounds of asking an issuer.
const (
	issuerTimeout = 10 * time.Second
	issuerRetry   = 10 * time.Second
	issuerAnswer  = 1 << 20
)

func (e *issuerEntry) compile() (*issuer, error) {
	u, err := url.Parse(e.Issuer)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("issuer %q: want its https:// URL, as its tokens have it", clip(e.Issuer, 100))
	case e.Audience == "":
		return nil, errors.New("audience must be there: a token that was made for another service is not for us")
	case len(e.Identities) == 0:
		return nil, errors.New("identities must be there, and not empty: they say whose tokens are taken")
	}
	i := &issuer{url: e.Issuer, audience: e.Audience, caFile: e.CAFile}
	for n, entry := range e.Identities {
		if err := checkName(entry.User); err != nil {
			return nil, fmt.Errorf("identity %d: user: %w", n+1, err)
		}
		if len(entry.Claims) == 0 {
			return nil, fmt.Errorf("identity %d: claims must be there, and not empty: anybody may have a token of a public issuer", n+1)
		}
		one := claimRule{who: Identity{entry.User, entry.Groups}, claims: map[string]*regexp.Regexp{}}
		for _, group := range entry.Groups {
			if err := checkGroup(group); err != nil {
				return nil, fmt.Errorf("identity %d: %w", n+1, err)
			}
		}
		for name, pattern := range entry.Claims {
			one.claims[name] = regexp.MustCompile(`\A` + strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, `(?s:.*)`) + `\z`)
		}
		i.identities = append(i.identities, one)
	}
	return i, nil
}

// isOpenEnded reports whether a claim's pattern fits other names of the first level
// than the one that it spells: acme* fits acme-evil. Below that level names are
// given out by who has it, as in acme/app* and refs/tags/v*.
func isOpenEnded(pattern string) bool {
	first, _, _ := strings.Cut(pattern, "/")
	for i := 1; i < len(first); i++ {
		if first[i] == '*' && isLetterOrDigit(first[i-1]) {
			return true
		}
	}
	return false
}

func isLetterOrDigit(b byte) bool {
	return b >= '0' && b <= '9' || b >= 'A' && b <= 'Z' || b >= 'a' && b <= 'z'
}

// prepare makes the client that asks the issuer: with nobody's credentials, and
// nowhere else than where it says itself.
func (i *issuer) prepare(cfg *Config) error {
	transport := &http.Transport{Proxy: cfg.Proxy, TLSClientConfig: new(tls.Config), TLSHandshakeTimeout: issuerTimeout, MaxIdleConnsPerHost: 1, IdleConnTimeout: issuerRetry, ForceAttemptHTTP2: true}
	if i.caFile != "" {
		pem, err := cfg.ReadFile(i.caFile)
		if err != nil {
			return fmt.Errorf("oidc: %s: ca_file: %w", i.url, err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return fmt.Errorf("oidc: %s: ca_file: %q holds no certificate: want PEM", i.url, i.caFile)
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	i.client = &http.Client{
		Transport: bounded{transport, &i.down}, Timeout: issuerTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("it redirects elsewhere") },
	}
	return nil
}

// bounded asks over https alone, and gives no more of an answer than any honest
// one has.
type bounded struct {
	over http.RoundTripper
	down *atomic.Bool
}

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		b.down.Store(true)
		return nil, errors.New("it names an address without TLS")
	}
	resp, err := b.over.RoundTrip(r)
	b.down.Store(err != nil || resp.StatusCode != http.StatusOK)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, issuerAnswer), resp.Body}
	}
	return resp, err
}

// ready is what verifies the issuer's tokens, fetched if it is not there yet.
func (i *issuer) ready() (*oidc.RemoteKeySet, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.keys == nil && time.Now().After(i.again) {
		keys, err := i.discover()
		if err != nil {
			i.failed, i.again = err, time.Now().Add(issuerRetry)
		}
		i.keys = keys
	}
	if i.keys == nil {
		return nil, fmt.Errorf("issuer %s: %w", i.url, i.failed)
	}
	return i.keys, nil
}

// discover asks where the issuer's keys are.
func (i *issuer) discover() (*oidc.RemoteKeySet, error) {
	ctx, cancel := context.WithTimeout(context.Background(), issuerTimeout) // for all who wait, not for one request
	defer cancel()
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, i.client), i.url)
	if err != nil {
		return nil, err
	}
	var told struct {
		Keys string `json:"jwks_uri"`
	}
	if err := provider.Claims(&told); err != nil {
		return nil, err
	}
	return oidc.NewRemoteKeySet(oidc.ClientContext(context.Background(), i.client), told.Keys), nil
}

// signatures tells a signature that is wrong from keys that could not be fetched
// to find out, which the library does not.
type signatures struct {
	keys    *oidc.RemoteKeySet
	down    *atomic.Bool
	trouble error
}

// VerifySignature implements oidc.KeySet. It fetches the keys again unless one
// of those that are there fits.
func (s *signatures) VerifySignature(ctx context.Context, text string) ([]byte, error) {
	payload, err := s.keys.VerifySignature(ctx, text)
	if err != nil && s.down.Load() {
		s.trouble = err
	}
	return payload, err
}

// verify reads a token of the issuer's.
func (i *issuer) verify(ctx context.Context, text string) (*oidc.IDToken, error) {
	keys, trouble := i.ready()
	if trouble == nil {
		signed := &signatures{keys: keys, down: &i.down}
		var algorithms []string
		for _, a := range foreignAlgorithms {
			algorithms = append(algorithms, string(a))
		}
		token, err := oidc.NewVerifier(i.url, signed, &oidc.Config{ClientID: i.audience, SupportedSigningAlgs: algorithms}).Verify(ctx, text)
		_, expired := errors.AsType[*oidc.TokenExpiredError](err)
		switch {
		case err == nil:
			return token, nil
		case ctx.Err() != nil:
			return nil, ctx.Err() // whoever asked has left, which says nothing of the token
		case expired:
			return nil, errExpired
		case signed.trouble == nil:
			return nil, &oci.Error{Code: oci.Unauthorized, Detail: "the token is not valid here", Err: errors.Join(errToken, err)}
		}
		trouble = fmt.Errorf("issuer %s: %w", i.url, signed.trouble)
	}
	return nil, &oci.Error{Code: oci.Unavailable, Detail: "the token's issuer cannot be asked now", Err: trouble}
}

// foreign is the session of an issuer's token.
func (g *Gate) foreign(ctx context.Context, text string) (*Session, error) {
	rules := g.rules.Load()
	i := rules.issuerOf(text)
	if i == nil {
		return nil, errToken
	}
	token, err := i.verify(ctx, text)
	if err != nil {
		return nil, err
	}
	var claims map[string]any
	if err := token.Claims(&claims); err != nil {
		return nil, errToken
	}
	for n := range i.identities {
		if one := &i.identities[n]; one.fits(claims) {
			until := time.Now().Add(tokenLife)
			if token.Expiry.Before(until) {
				until = token.Expiry
			}
			return &Session{gate: g, who: one.who, until: until, rules: rules}, nil
		}
	}
	return nil, oci.Errorf(oci.Unauthorized, "the token's claims are those of nobody here")
}

func (r *claimRule) fits(claims map[string]any) bool {
	for name, want := range r.claims {
		if !fitsClaim(want, claims[name]) {
			return false
		}
	}
	return true
}

// fitsClaim: of a list one is enough.
func fitsClaim(want *regexp.Regexp, value any) bool {
	switch v := value.(type) {
	case string:
		return want.MatchString(v)
	case bool:
		return want.MatchString(strconv.FormatBool(v))
	case float64:
		return want.MatchString(strconv.FormatFloat(v, 'f', -1, 64))
	case []any:
		for _, one := range v {
			if _, nested := one.([]any); !nested && fitsClaim(want, one) {
				return true
			}
		}
	}
	return false
}
