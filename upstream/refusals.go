package upstream

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"
)

// RefusedLogin is an account whose credentials an upstream refuses: all that it is
// for is asked for anonymously until they are accepted.
type RefusedLogin struct {
	Upstream string
	Host     string    // that refuses them: the registry, or its token service
	Account  string    // as in Call
	Since    time.Time // when it first did
	Next     time.Time // until then they are not tried again
}

// refusals are the accounts whose credentials a site refuses, for operators. What
// is done about it is up to accounts.
type refusals struct {
	mu        sync.Mutex // guards byAccount
	byAccount map[string]*refusal
}

type refusal struct {
	id    credentialID // of the last password that was tried
	host  string
	since time.Time
}

func (r *refusals) add(cred credential, host string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.byAccount[cred.account()]
	if known == nil {
		if len(r.byAccount) >= maxAccounts {
			clear(r.byAccount) // what goes on is noted again
		}
		known = &refusal{since: now}
		r.byAccount[cred.account()] = known
	}
	known.id, known.host = cred.id, host
}

// remove is for an account whose password, perhaps another one, is accepted.
func (r *refusals) remove(account string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byAccount, account)
}

// refusedLogins lists them by account.
func (s *site) refusedLogins() []RefusedLogin {
	s.refusals.mu.Lock()
	defer s.refusals.mu.Unlock()
	var all []RefusedLogin
	for account, r := range s.refusals.byAccount {
		if next := s.accounts.heldUntil(r.id); !next.IsZero() { // else it was accepted since, or is to be tried again
			all = append(all, RefusedLogin{s.cfg.Name, r.host, account, r.since, next})
		}
	}
	slices.SortFunc(all, func(a, b RefusedLogin) int { return strings.Compare(a.Account, b.Account) })
	return all
}

// RefusedLogins are the accounts that the upstream's addresses refuse now.
func (c *Client) RefusedLogins() []RefusedLogin {
	var all []RefusedLogin
	for _, s := range c.sites {
		all = append(all, s.refusedLogins()...)
	}
	return all
}

// RefusedLogins are those of all upstreams, by upstream and account.
func (s *Set) RefusedLogins() []RefusedLogin {
	var all []RefusedLogin
	for _, c := range s.clients {
		all = append(all, c.RefusedLogins()...)
	}
	slices.SortStableFunc(all, func(a, b RefusedLogin) int {
		return cmp.Or(strings.Compare(a.Upstream, b.Upstream), strings.Compare(a.Account, b.Account))
	})
	return all
}

// refusedLogin is told of every question that goes on anonymously although there
// are credentials. heldBack says that nothing is tried with them for a while; else
// they were refused for one repository.
func (s *site) refusedLogin(cred credential, host string, heldBack bool) {
	detail := "the password of " + cred.account() + " was refused for a repository, which is asked for anonymously"
	if heldBack {
		s.refusals.add(cred, host, s.now())
		detail = "the password of " + cred.account() + " is refused: what it is for is asked for anonymously until it is tried again"
	}
	s.warnOf(CredentialsRefused, host, cred.account(), detail)
}

// acceptedLogin is told of every answer that a credential was good for.
func (s *site) acceptedLogin(cred credential) { s.refusals.remove(cred.account()) }
