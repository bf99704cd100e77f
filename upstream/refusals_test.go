package upstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// refusedNow are the logins that are refused, as "account at host".
func refusedNow(t *testing.T, c *Client) []string {
	t.Helper()
	all := []string{}
	for _, l := range c.RefusedLogins(t.Context()) {
		if l.Upstream != "docker.io" || l.Since.After(time.Now()) || !l.Next.After(l.Since) {
			t.Errorf("impossible: %+v", l)
		}
		all = append(all, l.Account+" at "+l.Host)
	}
	return all
}

func wantRefused(t *testing.T, when string, c *Client, want ...string) {
	t.Helper()
	if diff := cmp.Diff(append([]string{}, want...), refusedNow(t, c)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", when, diff)
	}
}

// simulateLogins has a hub that knows the user me, by the password secret, whatever
// way it wants to hear it.
func simulateLogins(t *testing.T, f func(w *world, refuses string)) {
	t.Helper()
	for _, auth := range []ocitest.Auth{ocitest.TokenAuth, ocitest.BasicAuth} {
		t.Run("auth "+string(auth), func(t *testing.T) {
			simulate(t, ocitest.Config{Habits: ocitest.Habits{Auth: auth}}, func(w *world) {
				w.hub.AddUser("me", "secret")
				for _, path := range []string{"a/x", "b/x", "c/x"} {
					w.hub.Push(path, "latest", ocitest.RandomImage(1, 100))
				}
				refuses := w.hub.TokenURL()
				if auth == ocitest.BasicAuth {
					refuses = w.hub.URL()
				}
				_, host, _ := strings.Cut(refuses, "://")
				f(w, host)
			})
		})
	}
}

// Of two passwords of one user the one that is refused is told of for as long as it
// is, whatever is pulled with the other.
func TestARefusedLoginOutlastsAnotherOfItsName(t *testing.T) {
	simulateLogins(t, func(w *world, host string) {
		c := w.connect(func(cfg *Config) {
			cfg.Credentials = ByPrefix([]PrefixCredential{
				{Prefix: "a", Credentials: Password("me", "secret")},
				{Prefix: "b", Credentials: Password("me", "wrong")},
				{Prefix: "c", Credentials: Password("me", "wrong, too")},
			})
		})
		began := time.Now()
		for range 3 {
			_ = resolveAt(w.t, c, "b/x")
			if err := resolveAt(w.t, c, "a/x"); err != nil {
				w.t.Fatal(err)
			}
			wantRefused(w.t, "after pulls with both", c, "me at "+host)
			time.Sleep(10 * time.Minute) // the good one is asked for a token again
		}
		_ = resolveAt(w.t, c, "c/x")
		wantRefused(w.t, "two of one name", c, "me at "+host)
		if l := c.RefusedLogins(w.t.Context())[0]; l.Since.Sub(began) > time.Second || l.Next.After(time.Now().Add(minRefusal)) {
			w.t.Errorf("since %s, next in %s: want those of the first", l.Since.Sub(began), time.Until(l.Next))
		}
		set := NewSet(c)
		for path, want := range map[string]bool{"a/x": false, "a/never": false, "b/x": true, "b/never": true} {
			account, refused := set.SignedIn(w.t.Context(), oci.Repository{Host: "docker.io", Path: path})
			if account != "me" || (refused != nil) != want {
				w.t.Errorf("%s is asked for as %s, refused %+v", path, account, refused)
			}
		}
	})
}

// A mirror refuses its own login: the registry's, of the same name, is as good as it is.
func TestAMirrorsRefusedLoginIsItsOwn(t *testing.T) {
	simulateLogins(t, func(w *world, _ string) {
		mirror := w.another(ocitest.Habits{Auth: ocitest.BasicAuth})
		c := w.connect(func(cfg *Config) {
			cfg.Credentials = Password("me", "secret")
			cfg.Mirrors = []Mirror{{URL: mirror.URL(), Credentials: Password("me", "secret"), First: true}}
		})
		for range 3 {
			mustResolve(w.t, c)
			time.Sleep(10 * time.Second)
		}
		_, host, _ := strings.Cut(mirror.URL(), "://")
		wantRefused(w.t, "by the mirror", c, "me at "+host)
		if account, refused := NewSet(c).SignedIn(w.t.Context(), alpine); account != "me" || refused != nil {
			w.t.Errorf("asked as %s, refused %+v", account, refused)
		}
	})
}

// A password that was replaced is not refused any more, before its successor is tried.
// One that nobody wants is told of for an hour after it might have been tried again.
func TestARefusedLoginIsForgotten(t *testing.T) {
	simulateLogins(t, func(w *world, host string) {
		password, unreadable := "wrong", error(nil)
		c := w.connect(func(cfg *Config) {
			cfg.Credentials = PasswordFrom("me", func() (string, error) {
				if unreadable != nil {
					return "", unreadable
				}
				return password, nil
			})
		})
		_ = resolve(w.t, c)
		wantRefused(w.t, "at first", c, "me at "+host)
		time.Sleep(minRefusal + toldFor - time.Second)
		wantRefused(w.t, "for an hour", c, "me at "+host)
		time.Sleep(time.Second)
		wantRefused(w.t, "after an hour", c)
		_ = resolve(w.t, c)
		wantRefused(w.t, "once it is wanted", c, "me at "+host)
		password = "secret"
		wantRefused(w.t, "with another", c)
		mustResolve(w.t, c)
		wantRefused(w.t, "with the right one", c)
		unreadable = errors.New("no such file")
		mustResolve(w.t, c)
		wantRefused(w.t, "with the right one, which cannot be read any more", c)
		unreadable, password = nil, "wrong"
		c.Forget(w.t.Context(), alpine)
		wantRefused(w.t, "when it is to be tried again", c)
	})
}

// Tokens without a name are one account, however often they change: of it there is
// one quota, one line, one metric.
func TestTokensWithoutANameAreOneAccount(t *testing.T) {
	simulate(t, ocitest.Config{Habits: ocitest.Habits{PullLimit: 100}}, func(w *world) {
		identity := ""
		var rec recorder
		c := w.connect(rec.attach, func(cfg *Config) {
			cfg.Credentials = func(context.Context, oci.Repository) (authn.AuthConfig, error) {
				return authn.AuthConfig{Username: "<token>", Password: identity}, nil
			}
		})
		_, host, _ := strings.Cut(w.hub.TokenURL(), "://")
		for hour := range 5 {
			identity = fmt.Sprint("nonsense", hour)
			mustResolve(w.t, c)
			wantRefused(w.t, "a token that is refused", c, "token at "+host)
			identity = w.hub.IdentityToken(fmt.Sprint("hour", hour))
			mustResolve(w.t, c)
			wantRefused(w.t, "its successor", c)
			time.Sleep(time.Hour)
		}
		for _, call := range rec.calls {
			if call.Account != "" && call.Account != "token" {
				w.t.Errorf("a request of %q", call.Account)
			}
		}
		for _, q := range c.Quotas() {
			if q.Account != "" && q.Account != "token" {
				w.t.Errorf("a quota of %q", q.Account)
			}
		}
		if detail := rec.warnings[0].Detail; !strings.HasPrefix(detail, "the token is refused") {
			w.t.Errorf("the warning says %q", detail)
		}
	})
}

func TestAccountsAreText(t *testing.T) {
	for _, row := range []struct {
		auth authn.AuthConfig
		want string
	}{
		{authn.AuthConfig{}, ""},
		{authn.AuthConfig{Username: "me", Password: "secret"}, "me"},
		{authn.AuthConfig{Auth: "bWU6c2VjcmV0"}, "me"},
		{authn.AuthConfig{Username: "<token>", Password: "refresh"}, "token"},
		{authn.AuthConfig{IdentityToken: "refresh"}, "token"},
		{authn.AuthConfig{RegistryToken: "bearer"}, "token"},
		{authn.AuthConfig{Username: "m\xff\xfee", Password: "secret"}, "m\uFFFDe"},
	} {
		if got := newCredential(row.auth).account(); got != row.want {
			t.Errorf("%q is the account %q, want %q", row.auth.Username, got, row.want)
		}
	}
}
