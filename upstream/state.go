package upstream

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"entrepot/ratelimit"
)

// What upstreams said of how much they may be asked, as it is kept across restarts:
// JSON, of this version. It is advice: what cannot be understood is left behind. Of
// credentials it has the names of accounts, and nothing else.

const stateVersion = 1

// MaxState bounds what Save writes and Load reads, in bytes.
const MaxState = 4 << 20

type setState struct {
	Version int         `json:"version"`
	Sites   []siteState `json:"sites"`
}

type siteState struct {
	Upstream string   `json:"upstream"`
	URL      string   `json:"url"`
	Accounts []string `json:"accounts,omitempty"` // that it was signed in to with
	ratelimit.State
}

// Save gives the state to keep; changed is false if it is what it was at the last time.
func (s *Set) Save() (state []byte, changed bool) {
	all := setState{Version: stateVersion, Sites: []siteState{}}
	for _, c := range s.clients {
		for _, at := range c.sites {
			if one := at.state(); len(one.Quotas) > 0 || len(one.Pauses) > 0 {
				all.Sites = append(all.Sites, one)
			}
		}
	}
	state, err := json.Marshal(all)
	s.mu.Lock()
	defer s.mu.Unlock()
	isNone := s.saved == nil && len(all.Sites) == 0
	if err != nil || isNone || len(state) > MaxState || bytes.Equal(state, s.saved) {
		return nil, false
	}
	s.saved = state
	return state, true
}

// Load takes over what another Set saved, as far as that is still true, into one that
// was not asked yet. Of a damaged entry nothing is taken over, and the error tells of the
// first; where the whole cannot be read there is nothing else.
func (s *Set) Load(state []byte) error {
	var all setState
	if err := json.Unmarshal(state, &all); err != nil {
		return err
	}
	if all.Version != stateVersion {
		return fmt.Errorf("it is of version %d, and not %d", all.Version, stateVersion)
	}
	s.mu.Lock()
	s.saved = state
	s.mu.Unlock()
	var damage error
	for _, c := range s.clients {
		for _, at := range c.sites {
			i := slices.IndexFunc(all.Sites, func(one siteState) bool { return one.Upstream == c.Name() && one.URL == at.endpoint.String() })
			if i >= 0 {
				damage = cmp.Or(damage, at.restore(all.Sites[i]))
			}
		}
	}
	return damage
}

// state leaves out tokens without a name: another one has a quota of its own, and could
// not be told from it.
func (s *site) state() siteState {
	one := siteState{s.cfg.Name, s.endpoint.String(), s.cfg.Accounts, s.limiter.State()}
	one.Quotas = slices.DeleteFunc(one.Quotas, func(q ratelimit.KeptQuota) bool { return q.Account == tokenAccount })
	return one
}

// restore leaves out the quotas of accounts that are no longer signed in to, and where
// others are, the pauses too: who signs in may be let in by who asked others to wait. Its
// error tells of what is damaged, and left out too.
func (s *site) restore(one siteState) error {
	one.Quotas = slices.DeleteFunc(one.Quotas, func(q ratelimit.KeptQuota) bool {
		return q.Account != "" && !slices.Contains(s.cfg.Accounts, q.Account)
	})
	if !slices.Equal(one.Accounts, s.cfg.Accounts) {
		one.Pauses = nil
	}
	err := one.Sift()
	s.limiter.Restore(one.State)
	if err != nil {
		return fmt.Errorf("%s at %s: %w", s.cfg.Name, s.endpoint, err)
	}
	return nil
}
