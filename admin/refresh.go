package admin

import (
	"context"
	"time"

	"entrepot/cache"
	"entrepot/oci"
)

// Checking tags at once, whatever is remembered of their upstream.

// Refreshed is what came of a forced check.
type Refreshed struct {
	Repository string     `json:"repository"`
	Reference  string     `json:"reference"`
	Outcome    string     `json:"outcome"`         // unchanged, moved, new, gone, unconfirmed
	Before     oci.Digest `json:"before,omitzero"` // what was held
	After      oci.Digest `json:"after,omitzero"`  // what clients get now
	Why        string     `json:"why,omitempty"`   // of gone and unconfirmed; the latter, too, where it has moved and clients do not get that
}

// The outcomes of a forced check.
const (
	Unchanged   = "unchanged"
	Moved       = "moved"
	Added       = "new"
	Gone        = "gone"
	Unconfirmed = "unconfirmed"
)

// upstreamTarget reads what is to be asked of an upstream.
func (x *exchange) upstreamTarget(t Target) (oci.Repository, error) {
	repo, err := t.parse()
	switch {
	case err != nil:
	case t.All:
		err = badRequest("want a tag or a digest, and not all of %s", repo)
	case !x.api.hasUpstream(repo):
		err = x.api.noUpstream(repo.Host)
	}
	return repo, err
}

func (x *exchange) refresh() error {
	var t Target
	if err := x.body(&t); err != nil {
		return err
	}
	repo, err := x.upstreamTarget(t)
	if err != nil {
		return err
	}
	if !oci.ValidTag(t.Reference) {
		return badRequest("a tag can have moved, and a digest not")
	}
	held := x.api.cfg.Live.Cache
	before := held.Record(repo, t.Reference)
	held.ForgetOf(repo)
	x.api.cfg.Live.Upstreams.Forget(x.r.Context(), repo)
	res, out, err := held.Resolve(x.r.Context(), repo, t.Reference, oci.Ask{Refresh: true, Client: "refresh"})
	if x.r.Context().Err() != nil {
		return context.Cause(x.r.Context())
	}
	r := newRefreshed(t, before, res, out, err)
	if err == nil {
		waiting, cancel := context.WithTimeout(x.r.Context(), retryWait)
		defer cancel()
		if instead, missing := held.Retry(waiting, repo, t.Reference); missing != nil {
			r.Outcome, r.After, r.Why = Unconfirmed, instead, "it has moved to "+res.Digest.String()+", of which not all can be had, so that clients get it as it was: "+oci.Reason(missing)
		}
	}
	return x.result(r)
}

// retryWait is how long a forced check waits for what a tag has moved to and could not
// be had.
const retryWait = 10 * time.Second

// newRefreshed compares what was known of a tag with what a check brought.
func newRefreshed(t Target, before *cache.Record, res oci.Resolved, out oci.Outcome, err error) Refreshed {
	r := Refreshed{Repository: t.Repository, Reference: t.Reference, After: res.Digest}
	if before != nil {
		r.Before = before.Digest
	}
	switch {
	case err != nil:
		r.Outcome, r.Why = Unconfirmed, oci.Why(err)
		if oci.IsUnknown(err) {
			r.Outcome = Gone
		}
	case out.Cache == oci.Stale:
		r.Outcome, r.Why = Unconfirmed, out.Why
		if out.Why == cache.WhyDeleted {
			r.Outcome = Gone
		}
	case before == nil:
		r.Outcome = Added
	case !out.Checked.After(before.Checked): // nobody was asked
		r.Outcome, r.Why = Unconfirmed, out.Why
	case before.Digest == res.Digest:
		r.Outcome = Unchanged
	default:
		r.Outcome = Moved
	}
	return r
}
