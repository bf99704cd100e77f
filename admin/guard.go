package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"entrepot/words"
)

// Guard lets to the admin API, and to what else is for operators, who may use it:
// whoever has the token or, while there is none, whoever is on this machine.
type Guard struct {
	Handler  http.Handler                        // what it stands before
	Loopback bool                                // only this machine reaches the listener
	Names    []string                            // with or without port, by which this machine is known; no name server of a stranger's decides about them
	Token    func() (string, error)              // asked each time, since it may stand in a file; nil for none
	Refused  func(client string, refusal *Error) // hears of who was not let in

	origins http.CrossOriginProtection
}

func (g *Guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refusal := g.check(r)
	if refusal == nil {
		g.Handler.ServeHTTP(w, r)
		return
	}
	g.Refused(r.RemoteAddr, refusal)
	if refusal.Code == "TOKEN" {
		w.Header().Set("WWW-Authenticate", `Bearer realm="entrepot"`)
	}
	x := &exchange{w: w, r: r, control: http.NewResponseController(w)}
	x.fail(refusal)
}

// check says why a request is refused. That the listener is on loopback does not
// keep out web pages that a browser here has open: one may not come from another
// origin, nor under a name that somebody else has pointed at this machine. A page
// sees no answer to a plain GET of its own, but what the answer sets in motion and
// how long it takes are no business of its, either.
func (g *Guard) check(r *http.Request) *Error {
	unsafe := *r
	unsafe.Method = http.MethodPost // methods that only read would be let pass
	if err := g.origins.Check(&unsafe); err != nil {
		return &Error{"FORBIDDEN", "the request comes from a web page of another origin"}
	}
	switch {
	case g.Token != nil:
		token, err := g.Token()
		if err != nil && token == "" || !hasToken(r, token) {
			return &Error{"TOKEN", "want Authorization: Bearer, with the value of ENTREPOT_ADMIN_TOKEN"}
		}
	case !g.Loopback:
		return &Error{"FORBIDDEN", "this address can be reached from other machines: it answers once ENTREPOT_ADMIN_TOKEN is set, or ENTREPOT_ADMIN_LISTEN is on 127.0.0.1; for metrics alone there is ENTREPOT_METRICS_LISTEN"}
	case !g.isOurName(r.Host):
		return &Error{"FORBIDDEN", "without a token this is asked as localhost, by address, or by a name of ENTREPOT_OWN_NAMES, and not as " + words.Quote(r.Host)}
	}
	return nil
}

// hasToken compares in a time that tells nothing of the token.
func hasToken(r *http.Request, token string) bool {
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	want, got := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(given))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1 && strings.EqualFold(scheme, "Bearer")
}

// isOurName reports whether a Host header is one that no stranger's name server
// decides about.
func (g *Guard) isOurName(host string) bool {
	name := withoutPort(host)
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil || strings.EqualFold(name, "localhost") {
		return true
	}
	return slices.ContainsFunc(g.Names, func(ours string) bool { return strings.EqualFold(name, withoutPort(ours)) })
}

func withoutPort(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return host
}
