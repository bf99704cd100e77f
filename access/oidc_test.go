package access

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"entrepot/oci"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// ciSystem is an issuer of tokens, over TLS.
type ciSystem struct {
	*httptest.Server
	key   *ecdsa.PrivateKey
	fetch atomic.Int64 // of its keys
	fault atomic.Pointer[http.HandlerFunc]
}

func newCISystem(t *testing.T) *ciSystem {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := &ciSystem{key: key}
	mux := http.NewServeMux()
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fault := s.fault.Load(); fault != nil {
			(*fault)(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": s.URL, "jwks_uri": s.URL + "/keys", "id_token_signing_alg_values_supported": []string{"ES256"}})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		s.fetch.Add(1)
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "1", Algorithm: "ES256", Use: "sig"}}})
	})
	return s
}

func (s *ciSystem) token(t *testing.T, signWith any, change func(map[string]any)) string {
	t.Helper()
	claims := map[string]any{"iss": s.URL, "aud": "entrepot", "sub": "repo:acme/app:ref:refs/heads/main", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(), "protected": true, "roles": []string{"x", "build"}}
	if change != nil {
		change(claims)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: signWith, KeyID: "1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// gate trusts the CI system.
func (s *ciSystem) gate(t *testing.T) *Gate {
	t.Helper()
	ca := t.TempDir() + "/ca.crt"
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	rules := fmt.Sprintf(`
rules: [{who: ["group:builders"], repositories: ["ghcr.io/acme/**"]}]
oidc:
  - issuer: %s
    audience: entrepot
    ca_file: %s
    identities:
      - {claims: {sub: "repo:acme/*", protected: "true", roles: build}, user: ci-acme, groups: [builders]}
      - {claims: {sub: "repo:other/*"}, user: ci-other}
`, s.URL, ca)
	g, err := New(Config{
		Source: new(nothing), Names: testNames, ReadFile: os.ReadFile, Key: func() (string, error) { return testKey, nil },
		ReadRules: func() ([]byte, error) { return []byte(rules), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, i := range g.rules.Load().issuers {
			i.client.CloseIdleConnections()
		}
	})
	return g
}

func TestTokensOfACISystem(t *testing.T) {
	s := newCISystem(t)
	g := s.gate(t)
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set := func(name string, value any) func(map[string]any) { return func(c map[string]any) { c[name] = value } }
	for name, row := range map[string]struct {
		text string
		want string // the user; empty for a refusal
	}{
		"good":             {s.token(t, s.key, nil), "ci-acme"},
		"another identity": {s.token(t, s.key, set("sub", "repo:other/x")), "ci-other"},
		"claims of nobody": {s.token(t, s.key, set("sub", "repo:acmex/app")), ""},
		"one claim short":  {s.token(t, s.key, set("protected", false)), ""},
		"claim missing":    {s.token(t, s.key, func(c map[string]any) { delete(c, "roles") }), ""},
		"another audience": {s.token(t, s.key, set("aud", "other")), ""},
		"ended":            {s.token(t, s.key, set("exp", time.Now().Add(-time.Minute).Unix())), ""},
		"another key":      {s.token(t, stranger, nil), ""},
		"another issuer":   {s.token(t, s.key, set("iss", "https://evil.test")), ""},
	} {
		for way, authorization := range map[string]string{"as it is": "Bearer " + row.text, "as a password": basic("oidc", row.text)} {
			g.failures = failures{}
			session, err := g.Admit(request(t, authorization), oci.Ping)
			got := ""
			if err == nil {
				got = session.Name()
			} else if oci.CodeOf(err) != oci.Unauthorized {
				t.Errorf("%s, %s: %v", name, way, err)
			}
			if got != row.want {
				t.Errorf("%s, %s: %q, want %q (%v)", name, way, got, row.want, err)
			}
		}
	}
	before := s.fetch.Load()
	session, err := g.Admit(request(t, "Bearer "+s.token(t, s.key, nil)), oci.Ping)
	if err != nil {
		t.Fatal(err)
	}
	if err := session.may(oci.Repository{Host: "ghcr.io", Path: "acme/x"}, readContent, oci.BlobKind); err != nil {
		t.Errorf("it may not what its group may: %v", err)
	}
	if s.fetch.Load() != before {
		t.Error("the issuer's keys were fetched once more")
	}
}

// What the file says of who a token's claims are holds at once, for tokens that
// are known already too.
func TestClaimsThatAreNobodysAnyMore(t *testing.T) {
	s := newCISystem(t)
	g := s.gate(t)
	r := request(t, "Bearer "+s.token(t, s.key, nil))
	if _, err := g.Admit(r, oci.Ping); err != nil {
		t.Fatal(err)
	}
	before, err := g.cfg.ReadRules()
	if err != nil {
		t.Fatal(err)
	}
	first := g.rules.Load().issuers[0]
	defer first.client.CloseIdleConnections()
	g.cfg.ReadRules = func() ([]byte, error) {
		return []byte(strings.Replace(string(before), "repo:acme/*", "repo:acme/other:*", 1)), nil
	}
	if err := g.ReloadRules(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Admit(r, oci.Ping); oci.CodeOf(err) != oci.Unauthorized {
		t.Errorf("after the change: %v, want UNAUTHORIZED", err)
	}
}

// An issuer that cannot be asked, or wants to lead us elsewhere, is trouble, and
// no login.
func TestIssuerInTrouble(t *testing.T) {
	var elsewhere atomic.Int64
	count := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) })
	other, plain := httptest.NewTLSServer(count), httptest.NewServer(count)
	defer other.Close()
	defer plain.Close()
	for name, fault := range map[string]http.HandlerFunc{
		"down":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) },
		"redirects": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) },
		"is somebody else": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"issuer": "https://evil.test", "jwks_uri": %q}`, other.URL)
		},
		"has its keys where there is no TLS": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"issuer": "https://%s", "jwks_uri": %q}`, r.Host, plain.URL)
		},
		"says too much": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"issuer": "https://%[1]s", "jwks_uri": "https://%[1]s/keys"%[2]s}`, r.Host, strings.Repeat(" ", issuerAnswer))
		},
		"never ends": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"issuer": "%s`, strings.Repeat("a", 2*issuerAnswer))
		},
	} {
		s := newCISystem(t)
		g := s.gate(t)
		s.fault.Store(&fault)
		if _, err := g.Admit(request(t, "Bearer "+s.token(t, s.key, nil)), oci.Ping); oci.CodeOf(err) != oci.Unavailable {
			t.Errorf("%s: %v, want UNAVAILABLE", name, err)
		}
	}
	if elsewhere.Load() > 0 {
		t.Error("somebody else was asked")
	}
}

// Keys that cannot be fetched, though the issuer could be asked before, say
// nothing of a token: it is not refused, and its sender is not slowed down. A
// wrong one is refused again once they can.
func TestIssuerInTroubleLater(t *testing.T) {
	s := newCISystem(t)
	g := s.gate(t)
	if _, err := g.rules.Load().issuers[0].ready(); err != nil {
		t.Fatal(err)
	}
	fault := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	s.fault.Store(&fault)
	right, wrong := request(t, "Bearer "+s.token(t, s.key, nil)), request(t, "Bearer "+s.token(t, s.key, func(c map[string]any) { c["aud"] = "other" }))
	for range triesAtOnce + 1 {
		if _, err := g.Admit(right, oci.Ping); oci.CodeOf(err) != oci.Unavailable {
			t.Fatalf("without keys: %v, want UNAVAILABLE", err)
		}
	}
	s.fault.Store(nil)
	// The library gives a fetch's failure to those who come just behind it too.
	for began := time.Now(); time.Since(began) < 10*time.Second; {
		if _, err := g.Admit(wrong, oci.Ping); oci.CodeOf(err) != oci.Unavailable {
			break
		}
	}
	if _, err := g.Admit(wrong, oci.Ping); oci.CodeOf(err) != oci.Unauthorized {
		t.Errorf("for another audience: %v, want UNAUTHORIZED", err)
	}
	if _, err := g.Admit(right, oci.Ping); err != nil {
		t.Errorf("when they can be fetched again: %v", err)
	}
}

// Who leaves while keys are fetched has not failed.
func TestWhoLeavesHasNotFailed(t *testing.T) {
	s := newCISystem(t)
	g := s.gate(t)
	if _, err := g.rules.Load().issuers[0].ready(); err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan struct{})
	fault := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		leave()
		<-left
		w.WriteHeader(http.StatusBadGateway)
	})
	s.fault.Store(&fault)
	_, err := g.Admit(request(t, "Bearer "+s.token(t, s.key, nil)).WithContext(ctx), oci.Ping)
	close(left)
	if !errors.Is(err, context.Canceled) || len(g.failures.seen) > 0 {
		t.Errorf("%v, and %d addresses have failed", err, len(g.failures.seen))
	}
}

// A pattern that lets in whoever registers a name that begins like the one that is
// meant is warned of, by its place.
func TestOpenEndedClaimsAreWarnedOf(t *testing.T) {
	for pattern, warned := range map[string]bool{
		"repo:acme*":           true,
		"acme*":                true,
		"acme*/app":            true,
		"repo:acme9*:ref:main": true,
		"acme":                 false,
		"*":                    false,
		"repo:*":               false,
		"acme/*":               false,
		"repo:acme/*":          false,
		"acme/app*":            false,
		"refs/tags/v*":         false,
	} {
		file := fmt.Appendf(nil, "oidc:\n  - issuer: https://ci.example\n    audience: us\n    identities:\n      - {user: a, claims: {x: y}}\n      - {user: b, claims: {sub: %q}}\n", pattern)
		got := Warnings(file, testNames)
		if (len(got) == 1) != warned || len(got) > 1 {
			t.Errorf("%s: %q", pattern, got)
		}
		if warned && !strings.HasPrefix(got[0], "oidc: number 1: identity 2: claim sub: ") {
			t.Errorf("%s: the place is not named: %s", pattern, got)
		}
	}
}

// Tokens of a CI system that are refused are slowed down as passwords are, before
// anything is computed or fetched for them.
func TestRefusedTokensOfACISystemAreSlowedDown(t *testing.T) {
	s := newCISystem(t)
	g := s.gate(t)
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(n int) oci.Code {
		_, err := g.Admit(request(t, "Bearer "+s.token(t, stranger, func(c map[string]any) { c["n"] = n })), oci.Ping)
		return oci.CodeOf(err)
	}
	for n := range triesAtOnce {
		if got := ask(n); got != oci.Unauthorized {
			t.Fatalf("try %d: %v, want %v", n, got, oci.Unauthorized)
		}
	}
	fetched := s.fetch.Load()
	if got := ask(triesAtOnce); got != oci.TooManyRequests || s.fetch.Load() != fetched {
		t.Errorf("one more: %v, and keys were fetched %d times, want %v and none", got, s.fetch.Load()-fetched, oci.TooManyRequests)
	}
}

// A job that tries with a token that has ended does not shut out the others at its
// address.
func TestEndedTokensOfACISystemDoNotCount(t *testing.T) {
	s := newCISystem(t)
	g := s.gate(t)
	ended := s.token(t, s.key, func(c map[string]any) { c["exp"] = time.Now().Add(-time.Minute).Unix() })
	for range 2 * triesAtOnce {
		if _, err := g.Admit(request(t, "Bearer "+ended), oci.Ping); !errors.Is(err, errExpired) {
			t.Fatal(err)
		}
	}
	if _, err := g.Admit(request(t, "Bearer "+s.token(t, s.key, nil)), oci.Ping); err != nil {
		t.Error(err)
	}
}
