package upstream

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"entrepot/oci"
	"entrepot/ratelimit"
)

// Set is an oci.Source over several upstreams: the repository's host says
// which. The set is closed: any other host is NameUnknown, never a dial.
type Set struct {
	clients []*Client // by name

	mu    sync.Mutex // guards saved
	saved []byte     // the state that was saved or loaded last

	waits waits
}

var _ oci.Source = (*Set)(nil)

// NewSet makes a Set. Of two clients of one name the first counts.
func NewSet(clients ...*Client) *Set {
	sorted := slices.Clone(clients)
	slices.SortStableFunc(sorted, byName)
	return &Set{clients: slices.CompactFunc(sorted, func(a, b *Client) bool { return byName(a, b) == 0 })}
}

func byName(a, b *Client) int { return strings.Compare(a.Name(), b.Name()) }

// Client is the upstream of that name, nil if there is none.
func (s *Set) Client(name string) *Client {
	i, ok := slices.BinarySearchFunc(s.clients, name, func(c *Client, name string) int { return strings.Compare(c.Name(), name) })
	if !ok {
		return nil
	}
	return s.clients[i]
}

func (s *Set) pick(repo oci.Repository) (*Client, error) {
	if c := s.Client(repo.Host); c != nil {
		return c, nil
	}
	return nil, oci.Errorf(oci.NameUnknown, "%q is not an upstream of this registry", repo.Host)
}

// HasCredentials reports whether that upstream may be signed in to.
func (s *Set) HasCredentials(host string) bool {
	c := s.Client(host)
	return c != nil && c.HasCredentials()
}

// Login names what the upstream is signed in to with for a repository, without
// telling it: another name means another credential, and none anonymously.
func (s *Set) Login(ctx context.Context, repo oci.Repository) string {
	if c := s.Client(repo.Host); c != nil {
		return c.Login(ctx, repo)
	}
	return ""
}

// Quota is what is known of the quota of one account at an upstream.
type Quota struct {
	Upstream string
	Host     string // the address of it that counts
	ratelimit.Quota
}

// Withheld is the Client's, of the upstream that the repository names.
func (s *Set) Withheld(ctx context.Context, repo oci.Repository) time.Duration {
	c, err := s.pick(repo)
	if err != nil {
		return 0
	}
	return c.Withheld(ctx, repo)
}

// Quotas lists what upstreams told of their quotas, by upstream and account.
func (s *Set) Quotas() []Quota {
	var all []Quota
	for _, c := range s.clients {
		all = append(all, c.Quotas()...)
	}
	return all
}

// Breakers lists how the upstreams' hosts answer, by upstream and host.
func (s *Set) Breakers() []Breaker {
	var all []Breaker
	for _, c := range s.clients {
		all = append(all, c.Breakers()...)
	}
	return all
}

// Waiting lists the upstreams that have not answered for a while what they were asked
// for clients, of manifests and lists, by name.
func (s *Set) Waiting() []Waiting { return s.waits.list() }

// Forget is the Client's, of the upstream that the repository names.
func (s *Set) Forget(ctx context.Context, repo oci.Repository) {
	if c := s.Client(repo.Host); c != nil {
		c.Forget(ctx, repo)
	}
}

// Close closes every client.
func (s *Set) Close() {
	for _, c := range s.clients {
		c.Close()
	}
}

// Resolve asks the upstream that the repository names.
func (s *Set) Resolve(ctx context.Context, repo oci.Repository, tag string, ask oci.Ask) (oci.Resolved, oci.Outcome, error) {
	c, err := s.pick(repo)
	if err != nil {
		return oci.Resolved{}, oci.Outcome{}, err
	}
	defer s.waits.begin(c.Name(), ask)()
	return c.Resolve(ctx, repo, tag, ask)
}

// Manifest asks the upstream that the repository names.
func (s *Set) Manifest(ctx context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Manifest, oci.Outcome, error) {
	c, err := s.pick(repo)
	if err != nil {
		return oci.Manifest{}, oci.Outcome{}, err
	}
	defer s.waits.begin(c.Name(), ask)()
	return c.Manifest(ctx, repo, d, ask)
}

// Blob asks the upstream that the repository names.
func (s *Set) Blob(ctx context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Blob, error) {
	c, err := s.pick(repo)
	if err != nil {
		return nil, err
	}
	return c.Blob(ctx, repo, d, ask)
}

// Tags asks the upstream that the repository names.
func (s *Set) Tags(ctx context.Context, repo oci.Repository, page oci.Page, ask oci.Ask) (oci.TagList, oci.Outcome, error) {
	c, err := s.pick(repo)
	if err != nil {
		return oci.TagList{}, oci.Outcome{}, err
	}
	defer s.waits.begin(c.Name(), ask)()
	return c.Tags(ctx, repo, page, ask)
}

// Referrers asks the upstream that the repository names.
func (s *Set) Referrers(ctx context.Context, repo oci.Repository, d oci.Digest, artifactType string, ask oci.Ask) (oci.ReferrerList, oci.Outcome, error) {
	c, err := s.pick(repo)
	if err != nil {
		return oci.ReferrerList{}, oci.Outcome{}, err
	}
	defer s.waits.begin(c.Name(), ask)()
	return c.Referrers(ctx, repo, d, artifactType, ask)
}

// Foreign asks for a layer that the manifest of a repository places elsewhere.
func (s *Set) Foreign(ctx context.Context, repo oci.Repository, d oci.Digest, urls []string, ask oci.Ask) (oci.Blob, error) {
	c, err := s.pick(repo)
	if err != nil {
		return nil, err
	}
	return c.Foreign(ctx, repo, d, urls, ask)
}
