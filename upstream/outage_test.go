package upstream

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// tokenRequests counts what a hub's token service saw.
func tokenRequests(hub *ocitest.Hub) int { return hub.Count(ocitest.Match{Role: ocitest.Token}) }

// An hour of pulls with a wrong password costs a token service, or a
// registry that takes the password itself, sixty requests with it at most, whatever
// it answers and however many repositories are asked for. What everybody may read
// costs the anonymous tokens that a login's would; what nobody may read without it
// costs one for each repository, and one a minute for all of them.
func TestAWrongPasswordForAnHour(t *testing.T) {
	tests := []struct {
		name    string
		habits  ocitest.Habits
		private bool
	}{
		{"public", ocitest.Habits{}, false},
		{"private, a token without rights (Docker Hub)", ocitest.Habits{}, true},
		{"private, 401 of the token service (GHCR)", ocitest.Habits{DenyToken: 401}, true},
		{"private, 403 of the token service", ocitest.Habits{DenyToken: 403}, true},
		{"private, tokens of a minute", ocitest.Habits{NoExpiresIn: true}, true},
		{"private, tokens of eight seconds", ocitest.Habits{TokenLife: 8 * time.Second}, true},
		{"the password itself", ocitest.Habits{Auth: ocitest.BasicAuth}, true},
	}
	for _, tt := range tests {
		for _, repos := range []int{1, 100} {
			t.Run(fmt.Sprint(tt.name, ", ", repos), func(t *testing.T) {
				most := repos + 60
				if !tt.private {
					most, _ = hourOfLogins(t, tt.habits, tt.private, repos, "secret")
				}
				with, without := hourOfLogins(t, tt.habits, tt.private, repos, "wrong")
				if with < 5 || with > 60 {
					t.Errorf("%d requests with a wrong password, want at most 60", with)
				}
				if without > most {
					t.Errorf("%d tokens were asked for without it, want at most %d", without, most)
				}
			})
		}
	}
}

// hourOfLogins asks for so many repositories, one after the other, for an hour, and
// counts the requests with a password and those for tokens without. The right
// password counts at once after that.
func hourOfLogins(t *testing.T, habits ocitest.Habits, private bool, repos int, signIn string) (with, without int) {
	t.Helper()
	simulate(t, ocitest.Config{Habits: habits}, func(w *world) {
		t, hub := w.t, w.hub
		hub.AddUser("me", "secret")
		path := func(i int) string { return fmt.Sprint("library/app", i%repos) }
		for i := range repos {
			hub.Push(path(i), "latest", ocitest.RandomImage(1, 100))
			if private {
				hub.Private(path(i), "me")
			}
		}
		var password atomic.Value
		password.Store(signIn)
		c := w.connect(func(cfg *Config) {
			cfg.Credentials = PasswordFrom("me", func() (string, error) { return password.Load().(string), nil })
		})
		for i := range 1200 {
			if err := resolveAt(t, c, path(i)); private && signIn != "secret" {
				wantCode(t, err, oci.Denied)
			} else if err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Second)
		}
		with, without = logins(hub)
		password.Store("secret")
		for i := range repos {
			if err := resolveAt(t, c, path(i)); err != nil {
				t.Errorf("with the right password: %v", err)
			}
		}
	})
	return with, without
}

// logins counts a hub's requests with a password, and those for tokens without.
func logins(hub *ocitest.Hub) (with, without int) {
	for _, r := range hub.Requests() {
		switch {
		case strings.HasPrefix(r.Header.Get("Authorization"), "Basic "):
			with++
		case r.Role == ocitest.Token:
			without++
		}
	}
	return with, without
}

// While a password is refused, what comes to be given to everybody is found all the
// same, a minute after the other.
func TestWhatIsGivenToEverybodyIsFoundInsteadOfALogin(t *testing.T) {
	for _, deny := range []int{0, 401} {
		simulate(t, ocitest.Config{Habits: ocitest.Habits{DenyToken: deny}}, func(w *world) {
			t, hub := w.t, w.hub
			hub.AddUser("me", "secret")
			c := w.connect(func(cfg *Config) { cfg.Credentials = Password("me", "wrong") })
			paths := []string{"library/a", "library/b", "library/c", "library/d", "library/e"}
			askAll := func() (denied int) {
				for _, path := range paths {
					if err := resolveAt(t, c, path); err != nil {
						wantCode(t, err, oci.Denied)
						denied++
					}
				}
				time.Sleep(5 * time.Second)
				return denied
			}
			for _, path := range paths {
				hub.Push(path, "latest", ocitest.RandomImage(1, 100))
				hub.Private(path, "me")
			}
			for start := time.Now(); time.Since(start) < maxDenied; {
				if n := askAll(); n < len(paths) {
					t.Fatalf("%d are refused, want all", n)
				}
			}
			for _, path := range paths {
				hub.Private(path, "") // but everybody
			}
			start := time.Now()
			for askAll() > 0 && time.Since(start) < time.Hour {
			}
			if took := time.Since(start); took > maxDenied+time.Duration(len(paths)+1)*minRenewal {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// However many ask, from the first moment on, for what the account may not have, or
// what is not there, it gets what it may: a 403 is no word about the password, nor is a
// 401 unless the password is refused by itself. Each of the others costs a token
// request now and then.
func TestAGoodPasswordSurvivesForbiddenRepositoriesFromTheStart(t *testing.T) {
	for _, auth := range []ocitest.Auth{ocitest.TokenAuth, ocitest.BasicAuth} {
		for _, deny := range []int{401, 403} {
			t.Run(fmt.Sprint(auth, deny), func(t *testing.T) {
				simulate(t, ocitest.Config{Habits: ocitest.Habits{Auth: auth, DenyToken: deny}}, func(w *world) {
					t, hub := w.t, w.hub
					hub.AddUser("me", "secret")
					hub.Private("library/alpine", "me")
					c := w.connect(func(cfg *Config) { cfg.Credentials = Password("me", "secret") })
					var forbidden []oci.Repository
					for i := range 5 {
						repo := oci.Repository{Host: "docker.io", Path: fmt.Sprint("library/missing", i)}
						hub.Private(repo.Path, "somebody")
						if auth == ocitest.BasicAuth {
							hub.Inject(&ocitest.Fault{Match: ocitest.Match{Repo: repo.Path}, Effect: ocitest.Answer(deny)})
						}
						forbidden = append(forbidden, repo)
					}
					for range 360 {
						for _, repo := range forbidden {
							_, _, err := c.Resolve(t.Context(), repo, "latest", oci.Ask{})
							wantCode(t, err, oci.Denied)
						}
						mustResolve(t, c)
						time.Sleep(10 * time.Second)
					}
					for _, repo := range forbidden {
						if n := hub.Count(ocitest.Match{Role: ocitest.Token, Repo: repo.Path}); n > 20 {
							t.Errorf("%d token requests in an hour for %s", n, repo)
						}
					}
				})
			})
		}
	}
}

// Whether a password is refused by itself may be what nobody says, for as long as it
// likes: where a token service gives no token for nothing, or is in trouble with that.
// It is asked once a minute, however many repositories are refused meanwhile.
func TestWhatNobodySaysOfAPasswordIsAskedOnceAMinute(t *testing.T) {
	for name, effect := range map[string]ocitest.Effect{"400": ocitest.Answer(400), "403": ocitest.Answer(403), "503": ocitest.Answer(503)} {
		t.Run(name, func(t *testing.T) {
			simulate(t, ocitest.Config{}, func(w *world) {
				t, hub := w.t, w.hub
				hub.AddUser("me", "secret")
				path := func(i int) string { return fmt.Sprint("library/app", i%100) }
				for i := range 100 {
					hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Token, Repo: path(i)}, Effect: ocitest.Answer(401)})
				}
				byItself := hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Token}, Effect: effect})
				c := w.connect(func(cfg *Config) { cfg.Credentials = Password("me", "secret") })
				for i := range 1200 {
					wantCode(t, resolveAt(t, c, path(i)), oci.Denied)
					time.Sleep(3 * time.Second)
				}
				if n := byItself.Hits(); n == 0 || n > 60 {
					t.Errorf("it was asked %d times in an hour, want once a minute at most", n)
				}
			})
		})
	}
}

// A login for the repositories below a path is tried by itself: the path is none of
// them, and a token for it would be refused.
func TestALoginIsTriedForNoRepository(t *testing.T) {
	for _, deny := range []int{401, 403} {
		simulate(t, ocitest.Config{Habits: ocitest.Habits{DenyToken: deny}}, func(w *world) {
			w.hub.AddUser("me", "secret")
			c := w.connect(func(cfg *Config) {
				cfg.Credentials = Password("me", "secret")
				cfg.Warn = func(warning Warning) { w.t.Errorf("%d: warned of %v", deny, warning) }
			})
			for _, p := range append(c.Ping(w.t.Context()), c.PingAs(w.t.Context(), "my-org")) {
				if p.Err != nil || p.Account != "me" || p.Status != http.StatusOK {
					w.t.Errorf("%d: as %q %d, %v", deny, p.Account, p.Status, p.Err)
				}
			}
		})
	}
}

// What was refused is asked for again where that is wanted: for one question, or
// for all.
func TestRefusalsAreForgottenOnDemand(t *testing.T) {
	for name, habits := range map[string]ocitest.Habits{
		"a token without rights": {}, "no token": {DenyToken: 403}, "the password itself": {Auth: ocitest.BasicAuth},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, ocitest.Config{Habits: habits}, func(w *world) {
				t, hub := w.t, w.hub
				hub.AddUser("me", "other")
				hub.Private("library/alpine", "me")
				c := w.connect(func(cfg *Config) { cfg.Credentials = Password("me", "secret") })
				for range 3 {
					wantCode(t, resolve(t, c), oci.Denied)
				}
				hub.AddUser("me", "secret") // the account's password is corrected over there
				wantCode(t, resolve(t, c), oci.Denied)
				c.Forget(t.Context(), oci.Repository{Host: "docker.io", Path: "library/other"})
				if habits.Auth != ocitest.BasicAuth && habits.DenyToken == 0 { // the account was the same
					wantCode(t, resolve(t, c), oci.Denied)
				}
				c.Forget(t.Context(), alpine)
				mustResolve(t, c)
			})
		})
	}
	simulate(t, ocitest.Config{Habits: ocitest.Habits{DenyToken: 401}}, func(w *world) {
		t, hub := w.t, w.hub
		hub.Private("library/alpine", "somebody")
		c := w.connect()
		wantCode(t, resolve(t, c), oci.Denied)
		hub.Private("library/alpine", "") // it is given to everybody
		wantCode(t, resolve(t, c), oci.Denied)
		if _, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{Refresh: true}); err != nil {
			t.Error(err)
		}
		mustResolve(t, c)
	})
}

// A token service that is down stops only what needs a new token.
func TestADeadTokenService(t *testing.T) {
	for name, effect := range map[string]ocitest.Effect{
		"silent": ocitest.Hang(), "reset": ocitest.Reset(), "503": ocitest.Answer(503), "busy": ocitest.RetryLater(503, "600"), "429": ocitest.RetryLater(429, "600"), "nonsense": ocitest.HTML(200),
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, ocitest.Config{}, func(w *world) {
				t, hub := w.t, w.hub
				c := w.connect()
				mustResolve(t, c) // has a token for five minutes
				hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Token}, Effect: effect})
				other := oci.Repository{Host: "docker.io", Path: "library/other"}
				hub.Push(other.Path, "latest", ocitest.RandomImage(2, 100))
				ask := func() error {
					_, _, err := c.Resolve(t.Context(), other, "latest", oci.Ask{})
					return err
				}
				start := time.Now()
				for time.Since(start) < 4*time.Minute+55*time.Second {
					if err := ask(); err == nil || !oci.IsRetryable(err) {
						t.Fatalf("what needs a token got %v", err)
					}
					mustResolve(t, c)
					time.Sleep(time.Second)
				}
				if n := tokenRequests(hub); n > 40 {
					t.Errorf("%d token requests in five minutes", n)
				}
				time.Sleep(10 * time.Second)
				if err := resolve(t, c); err == nil || !oci.IsRetryable(err) {
					t.Errorf("after the token has ended: %v", err)
				}
				hub.ClearFaults()
				time.Sleep(10*time.Minute + time.Minute)
				mustResolve(t, c)
				if err := ask(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// For a registry that is known to be down no token is asked for, and nobody waits for
// a token service that is as silent. One that may be tried is tried with a token.
func TestNoTokenIsAskedForWhileTheRegistryIsDown(t *testing.T) {
	registry := ocitest.Match{Role: ocitest.Registry}
	simulate(t, ocitest.Config{}, func(w *world) {
		t, hub := w.t, w.hub
		c := w.connect()
		mustResolve(t, c)
		hub.Inject(&ocitest.Fault{Match: registry, Effect: ocitest.Hang()})
		wantCode(t, resolve(t, c), oci.Timeout)
		time.Sleep(doubtWait)
		hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Token}, Effect: ocitest.Hang()})
		hub.Reset()
		for i := range 100 {
			took, err := timed(func() error { return resolveAt(t, c, fmt.Sprint("library/other", i)) })
			if wantCode(t, err, oci.Unavailable); took > 0 {
				t.Errorf("it took %v", took)
			}
			time.Sleep(time.Second)
		}
		if n := tokenRequests(hub); n > 0 {
			t.Errorf("%d tokens were asked for", n)
		}
	})
	simulate(t, ocitest.Config{}, func(w *world) {
		t, hub := w.t, w.hub
		c := w.connect()
		mustResolve(t, c)
		broken := hub.Inject(&ocitest.Fault{Match: registry, Effect: ocitest.Answer(500)})
		for i := range tripAfter {
			wantCode(t, resolveAt(t, c, fmt.Sprint("library/broken", i)), oci.Unavailable)
		}
		broken.Remove()
		hub.Push("library/other", "latest", ocitest.RandomImage(2, 100))
		if err := resolveAt(t, c, "library/other"); err != nil {
			t.Errorf("a trial: %v", err)
		}
	})
}

// While a registry has asked to be left alone no token is got for it, whatever else may
// be asked for there.
func TestNoTokenIsAskedForInAPauseOfTheRegistry(t *testing.T) {
	simulate(t, ocitest.Config{}, func(w *world) {
		t, hub := w.t, w.hub
		c := w.connect()
		mustResolve(t, c)
		hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry}, Effect: ocitest.RetryLater(429, "60")})
		wantCode(t, resolve(t, c), oci.TooManyRequests)
		hub.Reset()
		for i := range 30 {
			took, err := timed(func() error { return resolveAt(t, c, fmt.Sprint("library/other", i)) })
			if wantCode(t, err, oci.TooManyRequests); took > 0 || oci.RetryAfter(err) <= 0 {
				t.Errorf("after %v: %v", took, err)
			}
		}
		if lines := hub.Lines(); len(lines) > 0 {
			t.Errorf("it cost %q", lines)
		}
	})
}

// A token service that gives no answer has its registry asked, once for all who wait,
// whether it gives one; who finds that neither does is refused at once from then on.
func TestASilentTokenServiceHasItsRegistryAsked(t *testing.T) {
	asked := ocitest.Match{Role: ocitest.Registry, Method: http.MethodHead}
	for _, both := range []bool{false, true} {
		simulate(t, ocitest.Config{}, func(w *world) {
			t, hub := w.t, w.hub
			c := w.connect()
			mustResolve(t, c)
			match := ocitest.Match{Role: ocitest.Token}
			if both {
				match = ocitest.Match{}
			}
			time.Sleep(time.Hour)
			hub.Inject(&ocitest.Fault{Match: match, Effect: ocitest.Hang()})
			hub.Reset()
			var asking sync.WaitGroup
			for i := range 10 {
				hub.Push(fmt.Sprint("library/private", i), "latest", ocitest.RandomImage(1, 100))
				asking.Go(func() {
					if err := resolveAt(t, c, fmt.Sprint("library/private", i)); err == nil || !oci.IsRetryable(err) {
						t.Errorf("without a token: %v", err)
					}
				})
			}
			time.Sleep(c.cfg.Timeouts.ResponseHeader + time.Millisecond)
			if n := hub.Count(asked); both && n != 1 {
				t.Errorf("the registry was asked %d times, want once for all", n)
			}
			asking.Wait()
			if s := stateOf(t, c, hub.URL()); (s.State != BreakerClosed) != both {
				t.Errorf("both hang: %v; %+v", both, s)
			}
			took, err := timed(func() error { return resolveAt(t, c, "library/other") })
			if err == nil || took > 0 {
				t.Errorf("both hang: %v; %v after %v", both, err, took)
			}
		})
	}
	simulate(t, ocitest.Config{}, func(w *world) {
		t, hub := w.t, w.hub
		c := w.connect()
		mustResolve(t, c)
		time.Sleep(time.Hour)
		inject(ocitest.Hang())(hub)
		go func() { _ = resolve(t, c) }()
		time.Sleep(c.cfg.Timeouts.ResponseHeader + time.Second)
		if took, _ := timed(func() error { c.Close(); return nil }); took > 0 {
			t.Errorf("Close took %v", took)
		}
	})
}

// A registry that wants a token for some repositories may give others to
// everybody: those are asked for without one while its token service is down.
func TestWithoutTokensWhereNoneIsWanted(t *testing.T) {
	simulate(t, ocitest.Config{}, func(w *world) {
		t, hub := w.t, w.hub
		c := w.connect()
		mustResolve(t, c)
		hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Token}, Effect: ocitest.Hang()})
		public := oci.Repository{Host: "docker.io", Path: "library/public"}
		hub.Push(public.Path, "latest", ocitest.RandomImage(2, 100))
		hub.Set(func(h *ocitest.Habits) { h.Auth = ocitest.NoAuth })
		for range 10 {
			if _, _, err := c.Resolve(t.Context(), public, "latest", oci.Ask{}); err != nil {
				t.Fatal(err)
			}
		}
		hub.Set(func(h *ocitest.Habits) { h.Auth = ocitest.TokenAuth })
		hub.Reset()
		for range 10 {
			_, _, err := c.Resolve(t.Context(), public, "latest", oci.Ask{})
			wantCode(t, err, oci.Unavailable)
		}
		if n := hub.Count(ocitest.Match{Role: ocitest.Registry}); n != 1 {
			t.Errorf("the registry was asked %d times, want once to see that it wants a token", n)
		}
	})
}

// The account whose quota a request costs is the one that it is sent as.
func TestQuotaIsKeptPerAccount(t *testing.T) {
	simulate(t, ocitest.Config{Habits: ocitest.Habits{PullLimit: 5}}, func(w *world) {
		t, hub := w.t, w.hub
		image := ocitest.RandomImage(1, 100)
		for _, name := range []string{"alice", "bob"} {
			hub.AddUser(name, "secret")
			hub.Push(name+"/x", "latest", image)
		}
		hub.Push("open/x", "latest", image)
		c := w.connect(func(cfg *Config) {
			cfg.Credentials = ByPrefix([]PrefixCredential{
				{Prefix: "alice", Credentials: Password("alice", "secret")},
				{Prefix: "bob", Credentials: Password("bob", "secret")},
			})
		})
		pull := func(path string) error {
			_, _, err := c.Manifest(t.Context(), oci.Repository{Host: "docker.io", Path: path}, image.Digest, oci.Ask{})
			return err
		}
		for range 5 {
			if err := pull("alice/x"); err != nil {
				t.Fatal(err)
			}
		}
		if err := pull("bob/x"); err != nil {
			t.Fatal(err)
		}
		wantCode(t, pull("alice/x"), oci.TooManyRequests)
		for _, path := range []string{"bob/x", "open/x"} {
			if err := pull(path); err != nil {
				t.Errorf("%s after another's quota is spent: %v", path, err)
			}
		}
		got := ""
		for _, q := range c.Quotas() {
			got += fmt.Sprintf("%q %d of %d, ", q.Account, q.Left, q.Limit)
		}
		if want := `"" 4 of 5, "alice" 0 of 5, "bob" 3 of 5, `; got != want {
			t.Errorf("quotas %s, want %s", got, want)
		}
	})
}

func TestByPrefix(t *testing.T) {
	login := ByPrefix([]PrefixCredential{
		{Prefix: "", Credentials: Password("all", "x")},
		{Prefix: "team", Credentials: Password("team", "x")},
		{Prefix: "team/app", Credentials: Password("app", "x")},
		{Prefix: "team/open/", Credentials: nil},
		{Prefix: "/other", Credentials: Password("other", "x")},
		{Prefix: "team/app", Exact: true, Credentials: Password("alone", "x")},
		{Prefix: "team/app/y", Exact: true, Credentials: Password("y", "x")},
	})
	for path, want := range map[string]string{
		"library/alpine": "all", "teams": "all", "team": "team", "team/x": "team", "team/app": "alone", "team/app/x": "app", "team/app/y": "y", "team/app/y/z": "app",
		"team/apple": "team", "team/open": "", "team/open/x": "", "team/opened": "team", "other/x": "other",
	} {
		a, err := login(t.Context(), oci.Repository{Host: "docker.io", Path: path})
		if err != nil || a.Username != want {
			t.Errorf("%s: signs in as %q, %v; want %q", path, a.Username, err, want)
		}
	}
	if a, err := ByPrefix(nil)(t.Context(), alpine); err != nil || a != (authn.AuthConfig{}) {
		t.Errorf("without any: %v, %v", a, err)
	}
}

func TestPasswordFrom(t *testing.T) {
	var text string
	var bad error
	login := PasswordFrom("me", func() (string, error) { return text, bad })
	read := func(want string) {
		t.Helper()
		a, err := login(t.Context(), alpine)
		if got := a.Username + ":" + a.Password; got != want || !errors.Is(err, bad) {
			t.Errorf("got %q and %v, want %q and %v", got, err, want, bad)
		}
	}
	bad = errors.New("no such file")
	read(":")
	text, bad = "one", nil
	read("me:one")
	text, bad = "", errors.New("no such file")
	read("me:one") // the last one, and why it is that
	text = "two"   // which is what there is, though something is wrong with it
	read("me:two")
	text, bad = "three", nil
	read("me:three")
}
