package upstream

import (
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
)

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
