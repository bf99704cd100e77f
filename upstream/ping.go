package upstream

import (
	"context"
	"net/http"
	"time"

	"entrepot/oci"
	"entrepot/ratelimit"
)

// Ping is how one address of an upstream answers.
type Ping struct {
	Host    string
	Account string        // whom it was asked as; empty: nobody
	Status  int           // 401 says that it lets nobody in without a login; 0 if no answer came
	Clock   time.Time     // by its Date; zero if it did not tell
	Took    time.Duration // token and all
	Err     error         // why no answer came, or none that a registry gives
}

// Ping asks each address whether a registry is there (distribution spec, end-1),
// and signs in where that wants it. It moves no content and costs no quota. A
// login that is refused is told to Config.Warn, and the answer is then nobody's.
func (c *Client) Ping(ctx context.Context) []Ping {
	var all []Ping
	for _, s := range c.sites {
		all = append(all, s.ping(ctx, ""))
	}
	return all
}

// PingAs is a Ping of the primary with the login that is for the repository of that
// path.
func (c *Client) PingAs(ctx context.Context, path string) Ping { return c.primary.ping(ctx, path) }

func (s *site) ping(ctx context.Context, path string) Ping {
	p := Ping{Host: s.endpoint.Host}
	q := &question{repo: oci.Repository{Host: s.cfg.Name, Path: path}, ask: oci.Ask{Refresh: true}, ping: true}
	began := time.Now()
	a, err := s.exchange(ctx, q, request{kind: ProbeKind, class: ratelimit.List, method: http.MethodGet, url: s.url(oci.Request{Kind: oci.Ping})})
	p.Took, p.Account = time.Since(began), q.account
	if err != nil {
		p.Err = err
		return p
	}
	defer a.close()
	p.Status = a.status
	if date, err := http.ParseTime(a.header.Get("Date")); err == nil {
		p.Clock = date
	}
	if a.status != http.StatusOK && a.status != http.StatusUnauthorized {
		p.Err = s.refusal(a, oci.NotFound)
	}
	return p
}
