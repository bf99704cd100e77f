package upstream

import (
	"context"
	"net/http"
	"net/url"

	"entrepot/oci"
	"entrepot/ratelimit"
)

// maxHops bounds the redirects of one request; registries need one or two.
const maxHops = 5

// maxLocation bounds a redirect's target; signed URLs have one or two KiB.
const maxLocation = 16 << 10

// follow sends a request and follows redirects. Each hop is asked with what its
// own origin wants: the upstream's credentials stay with the upstream.
func (s *site) follow(ctx context.Context, q *question, r request) (*answer, error) {
	own := r.class
	for range maxHops + 1 {
		a, err := s.exchange(ctx, q, r)
		if err != nil || !isRedirect(a.status) {
			return a, err
		}
		if r.url, err = redirectTarget(a); err == nil {
			err = r.within.mayLead(a.url, r.url)
		}
		if err != nil {
			return nil, err
		}
		r.redirected = true
		if r.class = own; originOf(r.url) != s.origin {
			r.class = ratelimit.Redirect
		}
	}
	return nil, oci.Errorf(oci.BadUpstream, "%s redirects more than %d times", s.endpoint.Host, maxHops)
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// redirectTarget reads where an answer leads. Its text stays out of errors: it
// may be signed.
func redirectTarget(a *answer) (*url.URL, error) {
	location := a.header.Get("Location")
	if location == "" || len(location) > maxLocation {
		return nil, oci.Errorf(oci.BadUpstream, "%s redirects without a usable Location", a.url.Host)
	}
	u, err := a.url.Parse(location)
	switch {
	case err != nil, u.Hostname() == "", u.Scheme != "http" && u.Scheme != "https", u.User != nil:
		return nil, oci.Errorf(oci.BadUpstream, "%s redirects to what is no http(s) URL", a.url.Host)
	case a.url.Scheme == "https" && u.Scheme != "https":
		return nil, oci.Errorf(oci.BadUpstream, "%s redirects to %s, which would be spoken to in clear", a.url.Host, u.Host)
	}
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}
