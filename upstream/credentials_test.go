package upstream

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// A credential helper that worked once and then hangs or fails does not cost the
// login, and time but once.
func TestAHelperThatHangsOrFailsLater(t *testing.T) {
	for _, trouble := range []error{nil, errors.New("helper failed")} {
		synctest.Test(t, func(t *testing.T) {
			good := authn.AuthConfig{Username: "me", Password: "secret"}
			wanted := trouble
			if wanted == nil {
				wanted = errHelperSilent
			}
			looks, hang := 0, make(chan struct{})
			k := &keychain{upstream: "a.example", resolve: func() (authn.AuthConfig, error) {
				if looks++; looks == 1 {
					return good, nil
				}
				if trouble == nil {
					<-hang
					return authn.AuthConfig{Username: "other"}, nil
				}
				return authn.AuthConfig{}, trouble
			}}
			if a, err := k.lookup(t.Context()); err != nil || a != good {
				t.Fatalf("%q, %v", a.Username, err)
			}
			time.Sleep(keychainLife)
			began := time.Now()
			for range 10 {
				if a, err := k.lookup(t.Context()); err == nil || !errors.Is(err, wanted) || a != good {
					t.Errorf("%v: %q, %v; want the last login, and why it is not newer", trouble, a.Username, err)
				}
			}
			took := time.Since(began)
			close(hang)
			synctest.Wait()
			if took > keychainGrace || looks != 2 {
				t.Errorf("%v: ten questions took %s and looked %d times", trouble, took, looks-1)
			}
			if a, err := k.lookup(t.Context()); trouble == nil && (err != nil || a.Username != "other") {
				t.Errorf("after the hang: %q, %v", a.Username, err)
			}
		})
	}
}

func TestTheLastLoginIsUsedWithAWarning(t *testing.T) {
	hub := newHub(t, newClock(), ocitest.Habits{})
	hub.AddUser("me", "secret")
	hub.Private("library/alpine", "me")
	var rec recorder
	c := connect(t, hub, rec.attach, func(cfg *Config) {
		cfg.Credentials = func(context.Context, oci.Repository) (authn.AuthConfig, error) {
			return authn.AuthConfig{Username: "me", Password: "secret"}, errors.New("helper failed")
		}
	})
	mustResolve(t, c)
	if diff := cmp.Diff([]Trouble{CredentialsMissing}, rec.troubles()); diff != "" {
		t.Error(diff)
	}
}

// Password signs in to every repository with one name and password.
func Password(username, password string) Credentials {
	return func(context.Context, oci.Repository) (authn.AuthConfig, error) {
		return authn.AuthConfig{Username: username, Password: password}, nil
	}
}
