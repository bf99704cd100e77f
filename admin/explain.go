package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"entrepot/cache"
	"entrepot/oci"
	"entrepot/upstream"
)

// Rule is a cache rule.
type Rule struct {
	Target  string `json:"target"`
	Source  string `json:"source"`
	Account string `json:"account,omitempty"` // of its own
}

func (x *exchange) rules() error {
	for _, r := range x.api.cfg.Rules {
		if err := x.item(r); err != nil {
			return err
		}
	}
	return x.result(Count{len(x.api.cfg.Rules)})
}

// Explanation is what would become of a pull.
type Explanation struct {
	Asked      string     `json:"asked"`
	Note       string     `json:"note,omitempty"` // on how it was read
	Upstream   string     `json:"upstream"`
	Repository string     `json:"repository"` // path form
	Reference  string     `json:"reference"`
	Rule       *Rule      `json:"rule"` // null: the name means what it says
	Who        string     `json:"who"`
	Account    string     `json:"account,omitempty"` // that upstream is asked as, unless Login says otherwise
	Login      *Login     `json:"login,omitempty"`   // that account, where it is refused: it is asked anonymously
	Policy     string     `json:"policy,omitempty"`  // its verdict, in words
	Denied     bool       `json:"denied,omitempty"`  // by that; such a pull costs nothing, and pulls are empty
	Digest     oci.Digest `json:"digest,omitzero"`   // if it is known
	Held       bool       `json:"held"`              // that manifest
	Fresh      string     `json:"fresh"`             // in words
	Checked    time.Time  `json:"checked,omitzero"`
	TTLSeconds int64      `json:"ttlSeconds"` // -1: never checked again
	Retry      time.Time  `json:"retry,omitzero"`
	Pulls      []Pull     `json:"pulls"`
	Hosts      []Breaker  `json:"hosts"`  // of the upstream, that were asked; none at rest
	Quotas     []Quota    `json:"quotas"` // of the upstream, that its account has or, where that is not known, any; none at rest
}

// Meaning is what the settings say of a name.
type Meaning struct {
	Repository oci.Repository
	Reference  string
	Note       string // on how it was read
	Rule       *Rule  // nil: the name means what it says
	Who        string // may read the repository
	Account    string // that upstream is asked as, as far as it is set here: a running server knows of others
	Policy     string // its verdict, in words
	Denied     bool   // by that
}

// Pull is what a pull costs for one platform.
type Pull struct {
	Platform  string `json:"platform,omitempty"`
	Heads     int    `json:"heads"`     // not counted by registries
	Manifests int    `json:"manifests"` // GETs, which Docker Hub counts
	Blobs     int    `json:"blobs"`
	Bytes     int64  `json:"bytes"`
	AtLeast   bool   `json:"atLeast"` // there is more that only upstream can tell

	Refused  string `json:"refused,omitempty"`  // what a client is told instead now, since upstream would not be asked for all of it
	Expected string `json:"expected,omitempty"` // what a client is told once upstream was asked, unless it has changed its mind
}

func (x *exchange) explain() error {
	query := x.r.URL.Query()
	asked := query.Get("name")
	m, err := x.api.cfg.Meaning(x.r.Context(), asked, query.Get("ns"))
	if unknown, ok := errors.AsType[oci.UnknownUpstream](err); ok {
		return x.api.noUpstream(string(unknown))
	}
	if err != nil {
		return badRequest("%s", oci.Reason(err))
	}
	found, outlook, err := x.foresee(m)
	if err != nil {
		return err
	}
	out := Explanation{
		Asked: asked, Note: m.Note, Upstream: m.Repository.Host, Repository: m.Repository.String(), Reference: m.Reference,
		Rule: m.Rule, Who: m.Who, Account: m.Account, Policy: m.Policy, Denied: m.Denied,
		Digest: found.Digest, Held: found.Held, Fresh: freshText(found, outlook), Retry: found.Retry,
		TTLSeconds: int64(found.TTL / time.Second), Pulls: []Pull{}, Hosts: []Breaker{}, Quotas: []Quota{},
	}
	if found.TTL == cache.Never {
		out.TTLSeconds = -1
	}
	if found.Tag != nil {
		out.Checked = found.Tag.Checked
	}
	if live := x.api.cfg.Live; live != nil {
		out.Hosts = slices.DeleteFunc(live.breakers(x.r.Context()), func(b Breaker) bool {
			return b.Upstream != out.Upstream || b.Repo != "" && b.Repo != m.Repository.Path
		})
		out.Account, out.Login = live.signedIn(x.r.Context(), m.Repository)
		out.Quotas = slices.DeleteFunc(live.quotas(x.r.Context()), func(q Quota) bool {
			switch {
			case q.Upstream != out.Upstream:
				return true
			case out.Login != nil:
				return q.Account != ""
			}
			return out.Account != "" && q.Account != out.Account
		})
	}
	if m.Denied {
		found.Pulls = nil
	}
	for _, p := range found.Pulls {
		one := Pull{p.Platform.String(), p.Heads, p.Manifests, p.Blobs, p.Bytes, p.AtLeast, refusedText(found, p, outlook), ""}
		if one.Refused == "" {
			one.Expected = expectedText(p, outlook)
		}
		out.Pulls = append(out.Pulls, one)
	}
	return x.result(out)
}

// signedIn is whom a repository's upstream is asked as, and how that is refused; nil
// if it is not.
func (l *Live) signedIn(ctx context.Context, repo oci.Repository) (account string, refused *Login) {
	account, r := l.Upstreams.SignedIn(ctx, repo)
	if r != nil {
		login := l.newLogin(*r)
		refused = &login
	}
	return account, refused
}

// foresee is what would become of a pull, and what would be said in upstream's place.
// At rest only that it is set to be offline is known of that.
func (x *exchange) foresee(m Meaning) (found cache.Explanation, o upstream.Outlook, err error) {
	if live := x.api.cfg.Live; live != nil {
		if o, err = live.Upstreams.Outlook(x.r.Context(), m.Repository, m.Reference); err != nil {
			return found, o, err
		}
	}
	found, err = x.api.cfg.Explain(x.r.Context(), m.Repository, m.Reference, o.Check != nil)
	if found.Offline {
		never := oci.Errorf(oci.Unavailable, "its upstream is set to be offline")
		o = upstream.Outlook{Check: never, Moved: never, Manifest: never, Blob: never}
	}
	return found, o, err
}

// freshText says whether a tag is believed, and what becomes of it if not.
func freshText(x cache.Explanation, o upstream.Outlook) string {
	switch {
	case x.Tag == nil && x.Rung.Serve == cache.Ours:
		return "a digest is for ever"
	case x.Missing != nil:
		return "no: it has moved, and is served as it was, since what it names now cannot be had: " + oci.Reason(x.Missing)
	case x.Rung.Serve == cache.Ours && (x.Offline || x.Rung.Mark == oci.Stale):
		return "no, but upstream is not asked now: it is served as it is held"
	case x.Rung.Serve == cache.Ours:
		return "yes: upstream is not asked"
	case x.Offline:
		return "not held, and its upstream is set to be offline"
	case x.Rung.Serve == cache.Error:
		return "not held, and upstream refused it a moment ago: that is repeated"
	case x.Tag == nil && o.Check != nil:
		return "not held, and upstream is not asked now"
	case x.Tag == nil:
		return "not held: upstream is asked"
	case o.Check != nil:
		return "no, but upstream is not asked now: it is served as it is held, since " + oci.Reason(o.Check)
	case x.Held && o.Moved != nil:
		return "no: upstream is asked, by HEAD, whether it has moved; if so, it is served as it is held, since " + oci.Reason(o.Moved)
	}
	return "no: upstream is asked, by HEAD, whether it has moved"
}

// refusedText is what a client is told first of what upstream is not asked for now;
// empty if it is asked, or need not be.
func refusedText(x cache.Explanation, p cache.Pull, o upstream.Outlook) string {
	if x.Rung.Serve == cache.Error {
		return answerText(cmp.Or(x.Refusal, o.Check))
	}
	confirmed := p.Heads // of what is here
	if x.Rung.Serve == cache.Ask {
		confirmed--
	}
	for _, step := range []struct {
		taken   bool
		refusal error
	}{
		{x.Rung.Serve == cache.Ask && x.Tag == nil || confirmed > 0, o.Check},
		{p.Manifests > 0, o.Manifest},
		{p.Blobs > 0, o.Blob},
	} {
		if step.taken && step.refusal != nil {
			return answerText(step.refusal)
		}
	}
	return ""
}

// expectedText is what a client is told, as things are, after upstream was asked; empty
// for an image.
func expectedText(p cache.Pull, o upstream.Outlook) string {
	if p.Manifests == 0 || o.Spent == nil {
		return ""
	}
	return answerText(o.Spent)
}

// answerText is how a client is told of a refusal.
func answerText(err error) string {
	if err == nil {
		return ""
	}
	return fmt.Sprintf("%d: %s", oci.CodeOf(err).Row().Status, oci.Reason(err))
}
