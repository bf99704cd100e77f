package upstream

import (
	"net"
	"net/url"
	"strings"

	"golang.org/x/net/publicsuffix"

	"entrepot/oci"
)

// origin is a scheme, host and port: what a credential is bound to.
type origin string

func originOf(u *url.URL) origin {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return origin(u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port))
}

// kin are token services that belong to a registry of another domain.
var kin = map[string]string{
	"lscr.io": "ghcr.io", // a name in front of GHCR
}

// parseRealm checks the token service that a challenge from u names. Errors:
// BadUpstream for one that is not to be asked at all.
func parseRealm(from *url.URL, realm string) (*url.URL, error) {
	u, err := url.Parse(realm)
	switch {
	case err != nil, u.Hostname() == "", u.Scheme != "http" && u.Scheme != "https", u.User != nil:
		return nil, oci.Errorf(oci.BadUpstream, "%s names a token service that is no http(s) URL", from.Host)
	case from.Scheme == "https" && u.Scheme != "https":
		return nil, oci.Errorf(oci.BadUpstream, "%s names a token service that would be spoken to in clear", from.Host)
	}
	u.Fragment = ""
	return u, nil
}

// related reports whether a token service may see the registry's credentials:
// same host, same registrable domain, or known to belong to it. An address has
// no domain, which publicsuffix knows.
func related(registry, realm string) bool {
	registry, realm = strings.ToLower(registry), strings.ToLower(realm)
	if registry == realm || kin[registry] == realm {
		return true
	}
	a, errA := publicsuffix.EffectiveTLDPlusOne(registry)
	b, errB := publicsuffix.EffectiveTLDPlusOne(realm)
	return errA == nil && errB == nil && a == b
}
