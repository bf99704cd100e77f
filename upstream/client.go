// Package upstream asks remote registries: a Client is an oci.Source over HTTP
// for one of them, a Set picks the Client by name.
//
// A Client makes one attempt per question at each address that its upstream has
// (mirror.go) and leaves retries to whoever knows what they are worth. What it
// does by itself is what a registry needs to be asked at all: it gets tokens and
// answers one 401 (auth.go), follows redirects (redirect.go) and resolves one
// that has expired (blob.go). Every request leaves through send.go, unless a
// breaker keeps it (breaker.go; probe.go has it asked again).
//
// It holds no content and knows nothing of the cache above it.
package upstream

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"entrepot/oci"
)

// Client is an oci.Source over HTTP for one upstream. The Outcome of each
// answer counts, in Spent, every HTTP request that was sent for it, tokens and
// redirects included; a token that several questions wait for is counted by the
// one that asked first.
type Client struct {
	cfg      Config
	primary  *site
	sites    []*site // all, in the order in which they are asked while all are well
	foreign  foreignHosts
	recent   *recentLists
	attempts *attempts
	mixtures mixtures
}

var _ oci.Source = (*Client)(nil)

// New makes a Client; it sends nothing. Close ends it. Errors are about cfg.
func New(cfg Config) (*Client, error) {
	return newClient(cfg, dialer{}, time.Now)
}

// newClient lets tests own time and name look-ups.
func newClient(cfg Config, d dialer, now func() time.Time) (*Client, error) {
	if _, err := oci.NewRepository(cfg.Name, "a"); err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	if folded := oci.FoldHost(cfg.Name); folded != cfg.Name {
		return nil, fmt.Errorf("upstream %s: its name is %s", cfg.Name, folded)
	}
	cfg.setDefaults()
	c := &Client{cfg: cfg, recent: &recentLists{lists: map[string]tagList{}}, attempts: &attempts{losers: map[*attempt]struct{}{}}}
	var err error
	if c.foreign, err = parseForeignHosts(cfg.Name, cfg.ForeignHosts); err != nil {
		return nil, err
	}
	primary := Mirror{URL: cfg.URL, Credentials: cfg.Credentials, CA: cfg.CA, AllowPrivate: cfg.AllowPrivate}
	if c.primary, err = newSite(&c.cfg, primary, d, now); err != nil {
		return nil, err
	}
	var before, after []*site
	for _, m := range cfg.Mirrors {
		if m.URL == "" {
			return nil, fmt.Errorf("upstream %s: a mirror has no URL", cfg.Name)
		}
		s, err := newSite(&c.cfg, m, d, now)
		if err != nil {
			return nil, err
		}
		if m.First {
			before = append(before, s)
		} else {
			after = append(after, s)
		}
	}
	c.sites = slices.Concat(before, []*site{c.primary}, after)
	return c, nil
}

// ReloadCAs reads the CAs of all its addresses again, for connections to come.
// After an error everything is as it was.
func (c *Client) ReloadCAs() error {
	made := make([]*transports, len(c.sites))
	for i, s := range c.sites {
		var err error
		if made[i], err = s.connect(); err != nil {
			return err
		}
	}
	for i, s := range c.sites {
		s.reconnect(made[i])
	}
	return nil
}

// Name is the upstream's name.
func (c *Client) Name() string { return c.cfg.Name }

// HasCredentials reports whether c may sign in to anything.
func (c *Client) HasCredentials() bool {
	return slices.ContainsFunc(c.sites, func(s *site) bool { return s.credentials != nil })
}

// Login names, without telling them, the credentials that a repository is asked
// for with: they have changed where another name comes back. Who leaves before
// they are known gets none.
func (c *Client) Login(ctx context.Context, repo oci.Repository) string {
	var name []byte
	for _, s := range c.sites {
		cred, _, err := s.credential(ctx, repo)
		if err != nil {
			return ""
		}
		name = append(name, cred.id[:]...)
	}
	return string(name)
}

// Breakers is how the hosts answer that belong to the upstream: the registry
// itself and its mirrors, and those that are in trouble or asked us to wait.
func (c *Client) Breakers() []Breaker {
	var all []Breaker
	for _, s := range c.sites {
		pauses := s.limiter.Pauses()
		shown := slices.Collect(maps.Keys(pauses))
		if !slices.Contains(shown, s.endpoint.Host) {
			shown = append(shown, s.endpoint.Host)
		}
		for _, b := range s.breakers.state(c.cfg.Name, shown...) {
			if b.Part == "" {
				b.Paused = pauses[b.Host]
			}
			b.SignsIn = s.signsInAt(b.Host)
			if b.Part == "" && b.Host == s.endpoint.Host {
				b.Behind, b.Why = s.standing.setBack()
			}
			all = append(all, b)
		}
	}
	return all
}

// signsInAt reports whether a host is the site's own, or that of its token service.
func (s *site) signsInAt(host string) bool {
	d, _ := s.demands.of(s.origin)
	return host == s.endpoint.Host || d.realm != nil && host == d.realm.Host
}

// Quotas is what upstream last told of what its accounts may pull: once of an account
// at a host, which may have several of its addresses.
func (c *Client) Quotas() []Quota {
	var all []Quota
	for _, s := range c.sites {
		for _, q := range s.limiter.Quotas() {
			one := Quota{c.cfg.Name, s.endpoint.Host, q}
			i := slices.IndexFunc(all, func(known Quota) bool { return known.Host == one.Host && known.Account == one.Account })
			switch {
			case i < 0:
				all = append(all, one)
			case one.Seen.After(all[i].Seen):
				all[i] = one
			}
		}
	}
	return all
}

// Forget drops what is remembered of refusals for a repository, and of the credential
// for it, so that the next question is asked. Hosts that are down are probed once,
// which may take as long as an answer may: who leaves does not wait for that, and the
// probes go on. What a 429 asked for holds.
func (c *Client) Forget(ctx context.Context, repo oci.Repository) {
	for _, s := range c.sites {
		s.forget(ctx, repo)
	}
}

// Close ends what runs in the background and the connections that are idle.
// Answers that are being read go on until they are closed.
func (c *Client) Close() {
	c.attempts.close()
	for _, s := range c.sites {
		s.close()
	}
}
