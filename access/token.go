package access

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"entrepot/oci"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// tokenLife is short, since a token outlives the removal of its user by that
// much; what the rules say holds at once. A client that pulls for longer asks for
// another one.
const tokenLife = 5 * time.Minute

// tokenLeeway is how much the clocks of replicas may differ.
const tokenLeeway = 10 * time.Second

// tokens makes and reads tokens. They are signed by one secret key, since
// nobody but us reads them.
type tokens struct {
	read func() (string, error)

	mu       sync.Mutex // guards what follows
	text     string     // what key was made from
	key      []byte
	previous []byte // the key before; it is believed until its tokens have ended
	ends     time.Time
}

// MinKey is the least length of what tokens are signed with.
const MinKey = 32

// keys are the current key, and those that are believed too. A key that cannot
// be read gives the last one, and so does one that is short, as of a file that is
// being written: whoever has a token could find it out.
func (t *tokens) keys(now time.Time) [][]byte {
	text, _ := t.read()
	t.mu.Lock()
	defer t.mu.Unlock()
	if text != t.text && len(text) >= MinKey {
		if t.key != nil {
			t.previous, t.ends = t.key, now.Add(tokenLife+tokenLeeway)
		}
		sum := sha256.Sum256([]byte("entrepot token\n" + text))
		t.text, t.key = text, sum[:]
	}
	switch {
	case t.key == nil:
		return nil
	case t.previous != nil && now.Before(t.ends):
		return [][]byte{t.key, t.previous}
	}
	return [][]byte{t.key}
}

// claims are what a token says: who, and what it is for. What they may do with
// that is decided anew with each request.
type claims struct {
	jwt.Claims
	Groups  []string `json:"groups,omitempty"`
	Repos   []string `json:"repositories,omitempty"`
	Catalog bool     `json:"catalog,omitempty"`
}

// sign makes a token for what was asked.
func (t *tokens) sign(who Identity, asked scopes, now time.Time) (string, error) {
	keys := t.keys(now)
	if len(keys) == 0 {
		return "", errors.New("there is no key to sign tokens with")
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: keys[0]}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", err
	}
	c := claims{
		Claims: jwt.Claims{
			Issuer: service, Audience: jwt.Audience{service}, Subject: who.Name,
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(tokenLife)),
		},
		Groups: who.Groups, Catalog: asked.catalog,
	}
	for _, repo := range asked.repos {
		c.Repos = append(c.Repos, repo.String())
	}
	return jwt.Signed(signer).Claims(c).Serialize()
}

// errForeign is for a token that does not claim to be ours.
var errForeign = errors.New("the token is by somebody else")

// verify reads a token of ours: one algorithm, and no choice of the token's.
func (t *tokens) verify(text string, now time.Time) (*Session, error) {
	if issuer := issuerIn(text); issuer != service && issuer != "" {
		return nil, errForeign
	}
	parsed, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.HS256})
	if err != nil {
		return nil, errToken
	}
	var c claims
	right := false
	for _, key := range t.keys(now) {
		if c = (claims{}); parsed.Claims(key, &c) == nil {
			right = true
			break
		}
	}
	if !right || c.Expiry == nil {
		return nil, errToken
	}
	err = c.ValidateWithLeeway(jwt.Expected{Issuer: service, AnyAudience: jwt.Audience{service}, Time: now}, tokenLeeway)
	switch {
	case errors.Is(err, jwt.ErrExpired):
		return nil, errExpired
	case err != nil:
		return nil, errToken
	}
	s := &Session{who: Identity{c.Subject, c.Groups}, until: c.Expiry.Time().Add(tokenLeeway), token: true, catalog: c.Catalog}
	for _, name := range c.Repos {
		repo, ok := repositoryOf(name)
		if !ok {
			return nil, errToken
		}
		s.repos = append(s.repos, repo)
	}
	return s, nil
}

// issuerIn is the issuer that a token names; nothing is verified. Empty for
// what is no token.
func issuerIn(text string) string {
	parsed, err := jwt.ParseSigned(text, append([]jose.SignatureAlgorithm{jose.HS256}, foreignAlgorithms...))
	if err != nil {
		return ""
	}
	var c jwt.Claims
	if parsed.UnsafeClaimsWithoutVerification(&c) != nil {
		return ""
	}
	return c.Issuer
}

// scopes are what a token is asked for.
type scopes struct {
	repos   []oci.Repository
	catalog bool
}

// maxScopes bounds what goes into a token, and so into each request after it.
const maxScopes = 32

// parseScopes reads scope parameters, each with any number of
// "type:name:actions" (distribution spec, "Token Scope"). Actions are not looked
// at: a token is for reading, and what may be read is decided when it is used.
// What is not for us, or names nothing, is left out, as the spec has it.
func parseScopes(params []string, names *oci.Names) (all scopes, err error) {
	count := 0
	for _, param := range params {
		for scope := range strings.FieldsSeq(param) {
			if count++; count > maxScopes {
				return scopes{}, oci.Errorf(oci.Denied, "more than %d scopes are asked for at once", maxScopes)
			}
			kind, rest, _ := strings.Cut(scope, ":")
			i := strings.LastIndexByte(rest, ':') // a name may have a port in it
			if i < 0 {
				continue
			}
			kind, _, _ = strings.Cut(kind, "(") // a resource's class, in old versions of the spec
			switch name := rest[:i]; kind {
			case "registry":
				all.catalog = all.catalog || name == "catalog"
			case "repository":
				if repo, _, err := names.Repository(name, "", ""); err == nil {
					all.repos = append(all.repos, repo)
				}
			}
		}
	}
	return all, nil
}

// parseBasic reads the value of basic authentication (RFC 7617).
func parseBasic(value string) (user, password string, err error) {
	raw, err := base64.StdEncoding.DecodeString(value)
	user, password, ok := strings.Cut(string(raw), ":")
	if err != nil || !ok || !utf8.Valid(raw) {
		return "", "", oci.Errorf(oci.Unauthorized, "the Authorization header is malformed")
	}
	return user, password, nil
}
