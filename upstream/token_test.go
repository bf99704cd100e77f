package upstream

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

const (
	headLatest = "registry HEAD manifest library/alpine:latest"
	askToken   = "token GET token library/alpine"
)

// newHub is a hub with library/alpine:latest, on the test's clock.
func newHub(t *testing.T, ck *clock, habits ocitest.Habits) *ocitest.Hub {
	t.Helper()
	hub := ocitest.NewHub(t, ocitest.Config{Habits: habits, Now: ck.now})
	hub.Push("library/alpine", "latest", ocitest.RandomImage(1, 100))
	return hub
}

func resolve(t *testing.T, c *Client) error {
	t.Helper()
	return resolveAt(t, c, alpine.Path)
}

// resolveAt asks for another repository's latest.
func resolveAt(t *testing.T, c *Client, path string) error {
	t.Helper()
	_, _, err := c.Resolve(t.Context(), oci.Repository{Host: alpine.Host, Path: path}, "latest", oci.Ask{})
	return err
}

func mustResolve(t *testing.T, c *Client) {
	t.Helper()
	if err := resolve(t, c); err != nil {
		t.Fatal(err)
	}
}

func TestTheNextTokenIsFetchedUpFront(t *testing.T) {
	ck := newClock()
	hub := newHub(t, ck, ocitest.Habits{})
	hub.Push("library/other", "latest", ocitest.RandomImage(2, 100))
	c := connectAt(t, hub.URL(), ck.now)
	mustResolve(t, c)
	saw(t, hub, headLatest, askToken, headLatest)
	mustResolve(t, c)
	saw(t, hub, headLatest)
	// Another repository: its own token, but no 401 to learn that.
	if _, _, err := c.Resolve(t.Context(), oci.Repository{Host: "docker.io", Path: "library/other"}, "latest", oci.Ask{}); err != nil {
		t.Fatal(err)
	}
	saw(t, hub, "token GET token library/other", "registry HEAD manifest library/other:latest")
}

func TestTokensAreReplacedBeforeTheyEnd(t *testing.T) {
	tests := []struct {
		name        string
		habits      ocitest.Habits
		good, renew time.Duration
	}{
		{"300 s", ocitest.Habits{}, 269 * time.Second, 271 * time.Second},
		{"no expires_in is 60 s", ocitest.Habits{NoExpiresIn: true}, 44 * time.Second, 46 * time.Second},
		{"8 s", ocitest.Habits{TokenLife: 8 * time.Second}, 5 * time.Second, 7 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ck := newClock()
			hub := newHub(t, ck, tt.habits)
			c := connectAt(t, hub.URL(), ck.now)
			mustResolve(t, c)
			hub.Reset()
			ck.advance(tt.good)
			mustResolve(t, c)
			saw(t, hub, headLatest)
			ck.advance(tt.renew - tt.good)
			mustResolve(t, c)
			saw(t, hub, askToken, headLatest)
		})
	}
}

func TestA401InMidLifeCostsOneTokenAndOneRetry(t *testing.T) {
	ck := newClock()
	hub := newHub(t, ck, ocitest.Habits{})
	c := connectAt(t, hub.URL(), ck.now)
	mustResolve(t, c)
	hub.ExpireTokens()
	hub.Reset()
	mustResolve(t, c)
	saw(t, hub, headLatest, askToken, headLatest)

	// A registry that refuses whatever token: one more try, then the truth.
	hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry}, Effect: ocitest.Effect{
		Do: "answer", Status: 401, Body: "{}",
		Header: http.Header{"Www-Authenticate": {fmt.Sprintf(`Bearer realm="%s/token",service="registry.docker.io",scope="repository:library/alpine:pull",error="invalid_token"`, hub.TokenURL())}},
	}})
	wantCode(t, resolve(t, c), oci.Denied)
	saw(t, hub, headLatest, askToken, headLatest)
	// That new token never worked, so the next question does not try a newer.
	wantCode(t, resolve(t, c), oci.Denied)
	saw(t, hub, headLatest)
	ck.advance(minDenied)
	wantCode(t, resolve(t, c), oci.Denied)
	saw(t, hub, headLatest, askToken, headLatest)
}

func TestConcurrent401sMakeOneTokenRequest(t *testing.T) {
	ck := newClock()
	hub := newHub(t, ck, ocitest.Habits{})
	c := connectAt(t, hub.URL(), ck.now)
	for round := range 3 {
		hub.Reset()
		hub.ExpireTokens()
		// All requests are out before the first is answered.
		hang := hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry}, Effect: ocitest.Hang(), Times: 20})
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if err := resolve(t, c); err != nil {
					t.Error(err)
				}
			})
		}
		if err := hub.Await(t.Context(), ocitest.Match{Role: ocitest.Registry}, 20); err != nil {
			t.Fatal(err)
		}
		hang.Release()
		wg.Wait()
		if n := hub.Count(ocitest.Match{Role: ocitest.Token}); n != 1 {
			t.Errorf("round %d: %d token requests, want 1", round, n)
		}
		if n := hub.Count(ocitest.Match{Role: ocitest.Registry}); n != 40 {
			t.Errorf("round %d: %d registry requests, want 40", round, n)
		}
	}
}

func TestALeavingWaiterDoesNotEndTheRefresh(t *testing.T) {
	ck := newClock()
	hub := newHub(t, ck, ocitest.Habits{})
	c := connectAt(t, hub.URL(), ck.now)
	hang := hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Token}, Effect: ocitest.Hang()})
	ctx, leave := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, _, err := c.Resolve(ctx, alpine, "latest", oci.Ask{})
		first <- err
	}()
	if err := hub.Await(t.Context(), ocitest.Match{Role: ocitest.Token}, 1); err != nil {
		t.Fatal(err)
	}
	go func() { second <- resolve(t, c) }()
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the leaving one got %v, want context.Canceled", err)
	}
	hang.Release()
	if err := <-second; err != nil {
		t.Errorf("the staying one got %v", err)
	}
	if n := hub.Count(ocitest.Match{Role: ocitest.Token}); n != 1 {
		t.Errorf("%d token requests, want 1", n)
	}
}

func TestTokenTroubles(t *testing.T) {
	big := `{"token":"` + strings.Repeat("x", 70<<10) + `"}`
	tests := []struct {
		name   string
		effect ocitest.Effect
		code   oci.Code
		after  time.Duration
	}{
		{"429 with a time", ocitest.RetryLater(429, "42"), oci.TooManyRequests, 42 * time.Second},
		{"503", ocitest.RetryLater(503, "7"), oci.Unavailable, 7 * time.Second},
		{"500", ocitest.Answer(500), oci.Unavailable, 0},
		{"400", ocitest.Answer(400), oci.BadUpstream, 0},
		{"404", ocitest.Answer(404), oci.BadUpstream, 0},
		{"405", ocitest.Answer(405), oci.BadUpstream, 0},
		{"401", ocitest.Answer(401), oci.Denied, 0},
		{"403 for a missing repository (GHCR)", ocitest.Answer(403), oci.Denied, 0},
		{"HTML", ocitest.HTML(200), oci.BadUpstream, 0},
		{"no token", ocitest.Effect{Do: "answer", Status: 200, Body: `{}`}, oci.BadUpstream, 0},
		{"a token that cannot be sent", ocitest.Effect{Do: "answer", Status: 200, Body: `{"token":"a\r\nX-Evil: b"}`}, oci.BadUpstream, 0},
		{"too long", ocitest.Effect{Do: "answer", Status: 200, Body: big}, oci.BadUpstream, 0},
		{"redirect", ocitest.Effect{Do: "answer", Status: 302, Header: http.Header{"Location": {"http://localhost:1/"}}, Body: "x"}, oci.BadUpstream, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			hub := newHub(t, newClock(), ocitest.Habits{})
			c := connect(t, hub)
			hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Token}, Effect: tt.effect, Times: 1})
			err := resolve(t, c)
			wantCode(t, err, tt.code)
			if got := oci.RetryAfter(err); got > tt.after || got < tt.after-time.Second {
				t.Errorf("retry after %v, want %v", got, tt.after)
			}
			saw(t, hub, headLatest, askToken)
		})
	}
}

func TestTokenLife(t *testing.T) {
	for raw, want := range map[string]time.Duration{
		"": time.Minute, "null": time.Minute, "0": time.Minute, "-5": time.Minute, `"x"`: time.Minute, "NaN": time.Minute,
		"300": 300 * time.Second, `"300"`: 300 * time.Second, "1.5": 1500 * time.Millisecond, "1e300": 24 * time.Hour,
	} {
		if got := tokenLife([]byte(raw)); got != want {
			t.Errorf("tokenLife(%s) = %v, want %v", raw, got, want)
		}
	}
}

func TestTokensAreBounded(t *testing.T) {
	c := connectAt(t, "http://localhost:1", time.Now)
	s := c.primary.tokens
	s.mu.Lock()
	defer s.mu.Unlock()
	busy := s.entryLocked(tokenKey{repo: "busy"})
	busy.refresh = &refresh{}
	for i := range 2 * maxTokens {
		s.entryLocked(tokenKey{repo: fmt.Sprint(i)})
	}
	if len(s.entries) > maxTokens || s.order.Len() != len(s.entries) {
		t.Errorf("%d entries are kept, %d in order, want at most %d", len(s.entries), s.order.Len(), maxTokens)
	}
	if s.entryLocked(tokenKey{repo: "busy"}) != busy {
		t.Error("an entry whose token is on its way was dropped")
	}
}

func TestSigningIn(t *testing.T) {
	basic := base64.StdEncoding.EncodeToString([]byte("me:secret"))
	tests := []struct {
		name   string
		habits ocitest.Habits
		auth   func(*ocitest.Hub) authn.AuthConfig
		saw    []string
	}{
		{
			"password for a token",
			ocitest.Habits{},
			func(*ocitest.Hub) authn.AuthConfig { return authn.AuthConfig{Username: "me", Password: "secret"} },
			[]string{headLatest, askToken, headLatest},
		},
		{
			"both in auth",
			ocitest.Habits{},
			func(*ocitest.Hub) authn.AuthConfig { return authn.AuthConfig{Auth: basic} },
			[]string{headLatest, askToken, headLatest},
		},
		{
			"identity token",
			ocitest.Habits{},
			func(h *ocitest.Hub) authn.AuthConfig { return authn.AuthConfig{IdentityToken: h.IdentityToken("me")} },
			[]string{headLatest, "token POST token", headLatest},
		},
		{"identity token as helpers give it", ocitest.Habits{}, func(h *ocitest.Hub) authn.AuthConfig {
			return authn.AuthConfig{Username: "<token>", Password: h.IdentityToken("me")}
		}, []string{headLatest, "token POST token", headLatest}},
		{
			"basic",
			ocitest.Habits{Auth: ocitest.BasicAuth},
			func(*ocitest.Hub) authn.AuthConfig { return authn.AuthConfig{Username: "me", Password: "secret"} },
			[]string{headLatest, headLatest},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			hub := newHub(t, newClock(), tt.habits)
			hub.AddUser("me", "secret")
			hub.Private("library/alpine", "me")
			c := connect(t, hub, func(cfg *Config) {
				cfg.Credentials = func(context.Context, oci.Repository) (authn.AuthConfig, error) { return tt.auth(hub), nil }
			})
			mustResolve(t, c)
			saw(t, hub, tt.saw...)
			mustResolve(t, c)
			saw(t, hub, headLatest)
		})
	}
}

// Another token counts at once, whatever came of the one before.
func TestRegistryTokenNeedsNoExchange(t *testing.T) {
	var got []string
	token := "old"
	c := connectAt(t, listen(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Header.Get("Authorization"))
		if r.Header.Get("Authorization") != "Bearer given" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token"`)
			w.WriteHeader(401)
			return
		}
		w.Header().Set("Docker-Content-Digest", oci.Sum(nil).String())
	}), time.Now, func(cfg *Config) {
		cfg.Credentials = func(context.Context, oci.Repository) (authn.AuthConfig, error) {
			return authn.AuthConfig{RegistryToken: token}, nil
		}
	})
	for range 2 {
		wantCode(t, resolve(t, c), oci.Denied)
	}
	token, got = "given", nil
	mustResolve(t, c)
	mustResolve(t, c)
	if diff := cmp.Diff([]string{"Bearer given", "Bearer given"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestIdentityTokenFallsBackToGet(t *testing.T) {
	hub := newHub(t, newClock(), ocitest.Habits{})
	hub.AddUser("me", "secret")
	hub.Private("library/alpine", "me")
	hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Token, Method: "POST"}, Effect: ocitest.Answer(404)})
	c := connect(t, hub, func(cfg *Config) {
		cfg.Credentials = func(context.Context, oci.Repository) (authn.AuthConfig, error) {
			return authn.AuthConfig{Username: "me", Password: "secret", IdentityToken: "refresh-me"}, nil
		}
	})
	mustResolve(t, c)
	saw(t, hub, headLatest, "token POST token", askToken, headLatest)
}

func TestAWrongPassword(t *testing.T) {
	for _, auth := range []ocitest.Auth{ocitest.TokenAuth, ocitest.BasicAuth} {
		t.Run("auth "+string(auth), func(t *testing.T) {
			ck := newClock()
			hub := newHub(t, ck, ocitest.Habits{Auth: auth})
			hub.AddUser("me", "secret")
			var rec recorder
			var password atomic.Value
			password.Store("wrong")
			c := connectAt(t, hub.URL(), ck.now, rec.attach, func(cfg *Config) {
				cfg.Credentials = func(context.Context, oci.Repository) (authn.AuthConfig, error) {
					return authn.AuthConfig{Username: "me", Password: password.Load().(string)}, nil
				}
			})
			attempts := func() (n int) {
				for _, r := range hub.Requests() {
					if strings.HasPrefix(r.Header.Get("Authorization"), "Basic ") {
						n++
					}
				}
				return n
			}
			// Five repositories at once, every ten seconds for an hour.
			for range 360 {
				var wg sync.WaitGroup
				for i := range 5 {
					wg.Go(func() {
						repo := oci.Repository{Host: "docker.io", Path: fmt.Sprintf("library/a%d", i)}
						_, _, _ = c.Resolve(t.Context(), repo, "latest", oci.Ask{})
					})
				}
				wg.Wait()
				ck.advance(10 * time.Second)
			}
			if n := attempts(); n < 10 || n > 20 {
				t.Errorf("%d requests in an hour, want those of about ten attempts, for a repository and by itself", n)
			}
			if n := len(rec.troubles()); n != 60 || rec.troubles()[0] != CredentialsRefused {
				t.Errorf("%d warnings in an hour, want one a minute: %v", n, rec.troubles())
			}
			// Public content goes on, without the password.
			if auth == ocitest.TokenAuth {
				mustResolve(t, c)
			}
			// A changed one counts at once.
			password.Store("secret")
			hub.Private("library/alpine", "me")
			mustResolve(t, c)
			for _, w := range rec.warnings {
				if strings.Contains(fmt.Sprint(w), "wrong") || strings.Contains(fmt.Sprint(w), "me:") {
					t.Errorf("a warning shows the password: %+v", w)
				}
			}
		})
	}
}

// A 403 for one repository must not take a good password away from the others,
// nor must a 401.
func TestAGoodPasswordSurvivesMissingRepositories(t *testing.T) {
	for _, deny := range []int{401, 403} {
		t.Run(fmt.Sprint(deny), func(t *testing.T) {
			ck := newClock()
			hub := newHub(t, ck, ocitest.Habits{DenyToken: deny})
			hub.AddUser("me", "secret")
			hub.Private("library/alpine", "me")
			hub.Private("library/forbidden", "somebody")
			c := connectAt(t, hub.URL(), ck.now, func(cfg *Config) { cfg.Credentials = Password("me", "secret") })
			ask := func(path string) error { return resolveAt(t, c, path) }
			mustResolve(t, c)
			hub.Reset()
			wantCode(t, ask("library/forbidden"), oci.Denied)
			// With the password, then without.
			saw(t, hub, "token GET token library/forbidden", "token GET token library/forbidden")
			wantCode(t, ask("library/forbidden"), oci.Denied) // as a moment ago
			saw(t, hub)
			ck.advance(5 * time.Minute)
			mustResolve(t, c)
			requests := hub.Requests()
			if r := requests[0]; r.Role != ocitest.Token || r.Account != "me" {
				t.Errorf("the good password was not used: %v", r)
			}
		})
	}
}

func TestAccounts(t *testing.T) {
	ck := newClock()
	a := newAccounts(ck.now)
	id := credentialID{1}
	var whole verdict // what is said of the credential by itself
	asked := 0
	attempt := func(v verdict) (tried, heldBack bool) {
		t.Helper()
		settle, ok, err := a.try(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return false, true
		}
		return true, settle(v, func() verdict { asked++; return whole })
	}
	step := func(v, byItself verdict, tried, heldBack bool, wantAsked int) {
		t.Helper()
		whole, asked = byItself, 0
		if gotTried, gotHeld := attempt(v); gotTried != tried || gotHeld != heldBack || asked != wantAsked {
			t.Errorf("verdict %d: tried %v, held back %v, asked by itself %d times; want %v, %v, %d", v, gotTried, gotHeld, asked, tried, heldBack, wantAsked)
		}
	}
	step(unclear, rejected, true, false, 0)
	for range 10 {
		step(forbidden, rejected, true, false, 0) // it is the repository
	}
	for range 3 {
		step(rejected, unclear, true, false, 1) // nobody knows
		for range 10 {
			step(rejected, rejected, true, false, 0) // which was asked a moment ago
		}
		ck.advance(minRefusal)
	}
	step(rejected, rejected, true, true, 1)
	step(accepted, accepted, false, true, 0)
	ck.advance(minRefusal)
	step(forbidden, rejected, true, false, 0) // says nothing about it
	step(rejected, rejected, true, true, 1)   // the second wait is longer
	ck.advance(minRefusal)
	step(accepted, accepted, false, true, 0)
	ck.advance(minRefusal)
	step(rejected, accepted, true, false, 1) // it is the repository
	for range 10 {
		step(rejected, rejected, true, false, 0) // since it was good a moment ago
	}
	ck.advance(minRefusal)
	step(accepted, rejected, true, false, 0)
	step(rejected, rejected, true, false, 0)
	ck.advance(minRefusal)
	step(rejected, rejected, true, true, 1) // now it is no longer good
	ck.advance(minRefusal)
	step(rejected, rejected, true, true, 1)

	// However many are refused at once, one finds out; who was under way has no say.
	ck.advance(maxRefusal)
	step(accepted, rejected, true, false, 0)
	ck.advance(minRefusal)
	settle, _, _ := a.try(t.Context(), id)
	late, _, _ := a.try(t.Context(), id)
	whole, asked = rejected, 0
	if !settle(rejected, func() verdict { step(rejected, rejected, true, false, 0); return rejected }) {
		t.Error("it is not held back")
	}
	if !late(rejected, func() verdict { asked++; return accepted }) || asked != 0 {
		t.Errorf("asked %d times by who was under way", asked)
	}
	ck.advance(minRefusal)
	step(rejected, rejected, true, true, 1)

	// A waiter for the verdict can leave.
	settle, _, _ = a.try(t.Context(), credentialID{2})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := a.try(ctx, credentialID{2}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	settle(accepted, nil)

	for i := range 3 * maxAccounts {
		ck.advance(time.Millisecond)
		a.get(credentialID{3, byte(i), byte(i >> 8)})
	}
	if len(a.byID) > maxAccounts {
		t.Errorf("%d accounts are remembered, want at most %d", len(a.byID), maxAccounts)
	}
}

func TestCredentialsThatCannotBeLookedUp(t *testing.T) {
	ck := newClock()
	hub := newHub(t, ck, ocitest.Habits{})
	var rec recorder
	c := connectAt(t, hub.URL(), ck.now, rec.attach, func(cfg *Config) {
		cfg.Credentials = func(context.Context, oci.Repository) (authn.AuthConfig, error) {
			return authn.AuthConfig{}, errors.New("helper not found")
		}
	})
	mustResolve(t, c)
	mustResolve(t, c)
	if diff := cmp.Diff([]Trouble{CredentialsMissing}, rec.troubles()); diff != "" {
		t.Error(diff)
	}
	ck.advance(time.Minute)
	mustResolve(t, c)
	if n := len(rec.troubles()); n != 2 {
		t.Errorf("%d warnings after a minute, want 2", n)
	}
}

func TestChallengesDecideWhoIsAsked(t *testing.T) {
	hub := newHub(t, newClock(), ocitest.Habits{})
	tests := []struct {
		name       string
		challenges []string
		code       oci.Code
		tokens     int
	}{
		{"bearer before basic", []string{`Basic realm="x", Bearer realm="` + hub.TokenURL() + `/token"`}, 0, 1},
		{"in two lines", []string{`Negotiate`, `Bearer realm="` + hub.TokenURL() + `/token"`}, 0, 1},
		{"basic, and nobody to be", []string{`Basic realm="x"`}, oci.Denied, 0},
		{"nothing known", []string{`Negotiate abc==`, `Digest realm="x"`}, oci.Denied, 0},
		{"no realm", []string{`Bearer service="x"`}, oci.BadUpstream, 0},
		{"relative realm", []string{`Bearer realm="/token"`}, oci.BadUpstream, 0},
		{"file", []string{`Bearer realm="file:///etc/passwd"`}, oci.BadUpstream, 0},
		{"password in the realm", []string{`Bearer realm="http://a:b@localhost/token"`}, oci.BadUpstream, 0},
		{"link-local realm", []string{`Bearer realm="http://169.254.169.254/latest/meta-data/"`}, oci.BadUpstream, 0},
		{"private realm", []string{`Bearer realm="http://10.0.0.1/token"`}, oci.BadUpstream, 0},
		{"mapped realm", []string{`Bearer realm="http://[::ffff:10.0.0.1]/token"`}, oci.BadUpstream, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			hub.Reset()
			c := connectAt(t, listen(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") == "" {
					w.Header()["Www-Authenticate"] = tt.challenges
					w.WriteHeader(401)
					return
				}
				w.Header().Set("Docker-Content-Digest", oci.Sum(nil).String())
			}), time.Now)
			err := resolve(t, c)
			if tt.code == 0 && err != nil {
				t.Error(err)
			} else if tt.code != 0 {
				wantCode(t, err, tt.code)
			}
			if n := hub.Count(ocitest.Match{Role: ocitest.Token}); n != tt.tokens {
				t.Errorf("%d token requests, want %d", n, tt.tokens)
			}
		})
	}
}

// The scope that a challenge asks for comes first, since some services read
// only one.
func TestScopes(t *testing.T) {
	hub := newHub(t, newClock(), ocitest.Habits{})
	c := connectAt(t, listen(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+hub.TokenURL()+`/token?a=b",service="s",scope="repository:other/name:pull,push repository:x:pull"`)
			w.WriteHeader(401)
			return
		}
		w.Header().Set("Docker-Content-Digest", oci.Sum(nil).String())
	}), time.Now)
	mustResolve(t, c)
	got := hub.Requests()[0].URI
	if want := "/token?a=b&scope=repository%3Aother%2Fname%3Apull%2Cpush&scope=repository%3Ax%3Apull&scope=repository%3Alibrary%2Falpine%3Apull&service=s"; got != want {
		t.Errorf("asked for\n%s, want\n%s", got, want)
	}
}

func TestRelated(t *testing.T) {
	tests := []struct {
		registry, realm string
		want            bool
	}{
		{"registry-1.docker.io", "auth.docker.io", true},
		{"ghcr.io", "ghcr.io", true},
		{"GHCR.io", "ghcr.IO", true},
		{"lscr.io", "ghcr.io", true},
		{"ghcr.io", "lscr.io", false},
		{"registry.gitlab.com", "gitlab.com", true},
		{"us-docker.pkg.dev", "us-docker.pkg.dev", true},
		{"registry.example.co.uk", "evil.co.uk", false},
		{"registry.docker.io", "auth.docker.io.evil.example", false},
		{"10.0.0.1", "10.0.0.1", true},
		{"10.0.0.1", "11.0.0.1", false},
		{"10.0.0.1", "11.1.0.1", false},
		{"192.0.2.1", "198.51.2.1", false},
		{"192.0.2.1", "registry.2.1", false},
		{"registry.2.1", "192.0.2.1", false},
		{"fd00::1", "fd00::2", false},
		{"localhost", "localhost", true},
		{"localhost", "otherhost", false},
		{"me.github.io", "you.github.io", false},
	}
	for _, tt := range tests {
		if got := related(tt.registry, tt.realm); got != tt.want {
			t.Errorf("related(%s, %s) = %v, want %v", tt.registry, tt.realm, got, tt.want)
		}
	}
}

// A token service of another domain gets no password. The upstream is reached as
// localhost, its token service as 127.0.0.1: same place, another host.
func TestCredentialsAreWithheldFromStrangers(t *testing.T) {
	hub := newHub(t, newClock(), ocitest.Habits{})
	hub.AddUser("me", "secret")
	hub.Set(func(h *ocitest.Habits) {
		h.Realm = strings.Replace(hub.TokenURL(), "localhost", "127.0.0.1", 1) + "/token"
	})
	var rec recorder
	c := connect(t, hub, rec.attach, func(cfg *Config) { cfg.Credentials = Password("me", "secret") })
	mustResolve(t, c)
	for _, r := range hub.Requests() {
		if r.Role == ocitest.Token && r.Header.Get("Authorization") != "" {
			t.Error("the password went to a token service of another domain")
		}
	}
	if diff := cmp.Diff([]Trouble{CredentialsWithheld}, rec.troubles()); diff != "" {
		t.Error(diff)
	}
}

func TestCredentialsAreNotPrinted(t *testing.T) {
	c := newCredential(authn.AuthConfig{Username: "me", Password: "secret", IdentityToken: "also", RegistryToken: "third"})
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(verb, c); strings.Contains(s, "secret") || strings.Contains(s, "also") || strings.Contains(s, "third") {
			t.Errorf("%s prints %s", verb, s)
		}
	}
}

func TestDockerConfig(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("HOME", t.TempDir())
	if _, err := DockerConfig(t.Context(), dir, "docker.io"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without config.json: %v", err)
	}
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	auth := base64.StdEncoding.EncodeToString([]byte("me:secret"))
	write("config.json", `{"auths":{"https://index.docker.io/v1/":{"auth":"`+auth+`"}},"credHelpers":{"helped.example":"entrepot-test"}}`, 0o600)
	write("docker-credential-entrepot-test", "#!/bin/sh\nread host\necho '{\"ServerURL\":\"'$host'\",\"Username\":\"<token>\",\"Secret\":\"refresh\"}'\n", 0o700)
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))

	tests := []struct {
		upstream string
		want     credential
	}{
		{"docker.io", credential{username: "me", password: "secret"}},
		{"helped.example", credential{identity: "refresh"}},
		{"other.example", credential{}},
	}
	for _, tt := range tests {
		login, err := DockerConfig(t.Context(), dir, tt.upstream)
		if err != nil {
			t.Fatal(err)
		}
		if (login == nil) != (tt.want == credential{}) {
			t.Errorf("%s: a login is there: %v", tt.upstream, login != nil)
		}
		if login == nil {
			continue
		}
		a, err := login(t.Context(), oci.Repository{})
		if err != nil {
			t.Fatal(err)
		}
		got := newCredential(a)
		if got.username != tt.want.username && got.username != "<token>" || got.identity != tt.want.identity || tt.want.password != "" && got.password != tt.want.password {
			t.Errorf("%s: got another login", tt.upstream)
		}
	}
}

func TestCloseEndsARefresh(t *testing.T) {
	hub := newHub(t, newClock(), ocitest.Habits{})
	c := connect(t, hub)
	hang := hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Token}, Effect: ocitest.Hang()})
	defer hang.Release()
	done := make(chan error, 1)
	go func() { done <- resolve(t, c) }()
	if err := hub.Await(t.Context(), ocitest.Match{Role: ocitest.Token}, 1); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := <-done; !errors.Is(err, errClosed) {
		t.Errorf("got %v, want that the client is closed", err)
	}
}

func TestDemandsAreBounded(t *testing.T) {
	d := &demands{byOrigin: map[origin]demand{}}
	d.learn("http://own:80", demand{basic: true}, "http://own:80")
	for i := range 3 * maxDemands {
		d.learn(origin(fmt.Sprintf("http://cdn%d:80", i)), demand{}, "http://own:80")
	}
	if _, ok := d.of("http://own:80"); !ok || len(d.byOrigin) > maxDemands {
		t.Errorf("%d origins are remembered, the upstream's own %v", len(d.byOrigin), ok)
	}
}

// A second question about a repository without rights costs one request: its
// token is known to be useless.
func TestARepositoryWithoutRightsCostsOneRequest(t *testing.T) {
	hub := newHub(t, newClock(), ocitest.Habits{})
	hub.Private("library/alpine", "somebody")
	c := connect(t, hub)
	wantCode(t, resolve(t, c), oci.Denied)
	saw(t, hub, headLatest, askToken, headLatest)
	for range 3 {
		wantCode(t, resolve(t, c), oci.Denied)
		saw(t, hub, headLatest)
	}
}

func TestDockerConfigThatGoesAway(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("HOME", dir)
	file := filepath.Join(dir, "config.json")
	if err := os.WriteFile(file, []byte(`{"credHelpers":{"a.example":"entrepot-missing"},"auths":{"b.example":{"auth":"bWU6c2VjcmV0"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if login, err := DockerConfig(t.Context(), dir, "a.example"); err == nil || login != nil {
		t.Errorf("a helper that is not there: %v", err)
	}
	if _, err := DockerConfig(t.Context(), dir, "no host"); err == nil {
		t.Error("a name that is none was taken")
	}
	synctest.Test(t, func(t *testing.T) {
		login, err := DockerConfig(t.Context(), dir, "b.example")
		if err != nil || login == nil {
			t.Fatal(err)
		}
		look := func() string {
			t.Helper()
			a, err := login(t.Context(), oci.Repository{})
			if err != nil {
				t.Fatal(err)
			}
			return newCredential(a).username
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if got := look(); got != "me" {
			t.Errorf("within the minute: %q, want the login that was read", got)
		}
		time.Sleep(keychainLife)
		if got := look(); got != "" {
			t.Errorf("after the minute: %q, want none", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		time.Sleep(keychainLife)
		if _, err := login(ctx, oci.Repository{}); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		synctest.Wait()
	})
}
