package upstream

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"entrepot/oci"
)

// RefusedLogin is an account whose credentials an upstream refuses: all that they
// are for is asked for anonymously until they are accepted.
type RefusedLogin struct {
	Upstream string
	Host     string    // that refuses them: the registry, or its token service
	Account  string    // as in Call
	Since    time.Time // when it first did
	Next     time.Time // until then they are not tried again
}

// toldFor is how long a refusal is told of that nobody has met again: what has
// become of the credential since then is not known.
const toldFor = time.Hour

// refusal is what operators are told of a credential that is held back.
type refusal struct {
	account string
	host    string // that refuses it
	path    string // of the repository that wanted it last
	since   time.Time
	until   time.Time // it is held back
}

// refuse notes who it is that is held back, unless it was accepted meanwhile.
func (a *accounts) refuse(cred credential, host, path string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	acc := a.byID[cred.id]
	if acc == nil || acc.until.IsZero() {
		return
	}
	if acc.refused == nil {
		acc.refused = &refusal{since: a.now()}
	}
	acc.refused.account, acc.refused.host, acc.refused.path = cred.account(), host, path
}

// refusals are those that are told of now.
func (a *accounts) refusals() map[credentialID]refusal {
	a.mu.Lock()
	defer a.mu.Unlock()
	all, now := map[credentialID]refusal{}, a.now()
	for id, acc := range a.byID {
		if acc.refused == nil || acc.until.IsZero() || now.Sub(acc.until) >= toldFor && now.Sub(acc.used) >= toldFor {
			continue
		}
		one := *acc.refused
		one.until = acc.until
		all[id] = one
	}
	return all
}

func (s *site) newRefusedLogin(r refusal) RefusedLogin {
	return RefusedLogin{Upstream: s.cfg.Name, Host: r.host, Account: r.account, Since: r.since, Next: r.until}
}

// refusedLogins leaves out what has been replaced: whether another password is
// good nobody knows before it is tried. One whose successor cannot be read is
// replaced all the same, if that is what is used.
func (s *site) refusedLogins(ctx context.Context) []RefusedLogin {
	var all []RefusedLogin
	for id, r := range s.accounts.refusals() {
		cred, sure, err := s.credential(ctx, oci.Repository{Host: s.cfg.Name, Path: r.path})
		isUsed := sure || !cred.anonymous()
		if err == nil && isUsed && cred.id != id {
			continue
		}
		all = append(all, s.newRefusedLogin(r))
	}
	return all
}

// RefusedLogins are the accounts that the upstream's addresses refuse now, by name.
// Of one account that a host refuses with several passwords it tells once: since
// when it refuses the first of them, and when the first is tried again.
func (c *Client) RefusedLogins(ctx context.Context) []RefusedLogin {
	var all []RefusedLogin
	for _, s := range c.sites {
		for _, l := range s.refusedLogins(ctx) {
			i := slices.IndexFunc(all, func(known RefusedLogin) bool { return known.Host == l.Host && known.Account == l.Account })
			if i < 0 {
				all = append(all, l)
				continue
			}
			all[i].Since, all[i].Next = earlier(all[i].Since, l.Since), earlier(all[i].Next, l.Next)
		}
	}
	slices.SortFunc(all, func(a, b RefusedLogin) int {
		return cmp.Or(strings.Compare(a.Account, b.Account), strings.Compare(a.Host, b.Host))
	})
	return all
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// RefusedLogins are those of all upstreams, by upstream and account.
func (s *Set) RefusedLogins(ctx context.Context) []RefusedLogin {
	var all []RefusedLogin
	for _, c := range s.clients { // in this order
		all = append(all, c.RefusedLogins(ctx)...)
	}
	return all
}

// SignedIn is whom a repository's registry is asked as, mirrors left aside, and how
// that login is refused; nil if it is not, as far as is known.
func (s *Set) SignedIn(ctx context.Context, repo oci.Repository) (account string, refused *RefusedLogin) {
	c := s.Client(repo.Host)
	if c == nil {
		return "", nil
	}
	cred, _, err := c.primary.credential(ctx, repo)
	if err != nil {
		return "", nil
	}
	if r, ok := c.primary.accounts.refusals()[cred.id]; ok {
		login := c.primary.newRefusedLogin(r)
		refused = &login
	}
	return cred.account(), refused
}

// refusedLogin is told of every question about a repository that goes on anonymously
// although there are credentials. heldBack says that nothing is tried with them for
// a while; else they were refused for that repository.
func (s *site) refusedLogin(cred credential, host, path string, heldBack bool) {
	detail := cred.String() + " was refused for a repository, which is asked for anonymously"
	if heldBack {
		s.accounts.refuse(cred, host, path)
		detail = cred.String() + " is refused: what it is for is asked for anonymously until it is tried again"
	}
	s.tell(Warning{Trouble: CredentialsRefused, Host: host, Account: cred.account(), Detail: detail})
}
