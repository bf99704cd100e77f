package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"entrepot/cache"
	"entrepot/oci"
	"entrepot/words"
)

// Checking tags at once, whatever is remembered of their upstream.

const refreshHelp = `Usage: entrepot refresh [--all] <reference>...

Checks now what tags name, by HEAD, which Docker Hub does not count, and says what came
of it: unchanged, moved, new, gone, or unconfirmed and why. That an upstream refused or
did not have something is forgotten first, so that a new password or a new image counts
at once. alpine:3.20 is one tag, held or not; 'alpine:3.*' are those that are held.
With --all it checks every held tag of repositories: alpine, 'docker.io/*'. It needs a
running server. The exit code is 1 if a tag is gone or could not be confirmed.

  --all              whole repositories
` + liveHelp

// refreshedJSON is what came of a forced check.
type refreshedJSON struct {
	Repository string     `json:"repository"`
	Reference  string     `json:"reference"`
	Outcome    string     `json:"outcome"`         // unchanged, moved, new, gone, unconfirmed
	Before     oci.Digest `json:"before,omitzero"` // what was held
	After      oci.Digest `json:"after,omitzero"`  // what clients get now
	Why        string     `json:"why,omitempty"`   // of gone and unconfirmed
}

// The outcomes of a forced check.
const (
	unchanged   = "unchanged"
	moved       = "moved"
	isNew       = "new"
	gone        = "gone"
	unconfirmed = "unconfirmed"
)

// upstreamTarget reads what is to be asked of an upstream.
func (x *adminExchange) upstreamTarget(t targetJSON) (oci.Repository, error) {
	repo, err := t.parse()
	switch {
	case err != nil:
	case t.All:
		err = badRequest("want a tag or a digest, and not all of %s", repo)
	case x.api.live.upstreams.Client(repo.Host) == nil:
		err = badRequest("%s is not an upstream of this server", words.Quote(repo.Host))
	}
	return repo, err
}

func (x *adminExchange) refresh() error {
	var t targetJSON
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
	held := x.api.live.cache
	before := held.Record(repo, t.Reference)
	held.ForgetOf(repo)
	x.api.live.upstreams.Forget(repo.Host)
	res, out, err := held.Resolve(x.r.Context(), repo, t.Reference, oci.Ask{Refresh: true, Client: "refresh"})
	if x.r.Context().Err() != nil {
		return context.Cause(x.r.Context())
	}
	return x.result(newRefreshedJSON(t, before, res, out, err))
}

// newRefreshedJSON compares what was known of a tag with what a check brought.
func newRefreshedJSON(t targetJSON, before *cache.Record, res oci.Resolved, out oci.Outcome, err error) refreshedJSON {
	r := refreshedJSON{Repository: t.Repository, Reference: t.Reference, After: res.Digest}
	if before != nil {
		r.Before = before.Digest
	}
	switch {
	case err != nil:
		r.Outcome, r.Why = unconfirmed, ownText(err)
		if oci.IsUnknown(err) {
			r.Outcome = gone
		}
	case out.Cache == oci.Stale:
		r.Outcome, r.Why = unconfirmed, out.Why
		if out.Why == cache.WhyDeleted {
			r.Outcome = gone
		}
	case before == nil:
		r.Outcome = isNew
	case !out.Checked.After(before.Checked): // nobody was asked
		r.Outcome, r.Why = unconfirmed, out.Why
	case before.Digest == res.Digest:
		r.Outcome = unchanged
	default:
		r.Outcome = moved
	}
	return r
}

func refresh(ctx context.Context, in invocation) (err error) {
	o := newOperation(in, "refresh")
	defer o.end(&err)
	all := o.flags.Bool("all", false, "")
	if err := o.begin(ctx, 1, -1); err != nil {
		return err
	}
	var targets []targetJSON
	for _, arg := range o.args {
		found, err := o.refreshed(ctx, arg, *all)
		if err != nil {
			return err
		}
		targets = append(targets, found...)
	}
	var failed []error
	for _, t := range targets {
		raw, err := o.client.post(ctx, "refresh", t, nil)
		var r refreshedJSON
		if err == nil {
			err = json.Unmarshal(raw, &r)
		}
		switch {
		case ctx.Err() != nil:
			return errors.Join(append(failed, context.Cause(ctx))...)
		case err != nil:
			failed = append(failed, fmt.Errorf("refresh %s: %w", t, o.explain(err, t)))
			continue
		case r.Outcome == gone, r.Outcome == unconfirmed:
			failed = append(failed, fmt.Errorf("refresh %s: %s: %s", t, words.Printable(r.Outcome), words.Printable(r.Why)))
		}
		if err := o.showRefreshed(t, r, raw); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

// refreshed are the tags that an argument names.
func (o *operation) refreshed(ctx context.Context, arg string, all bool) (targets []targetJSON, err error) {
	sel, err := o.selectArgument(arg)
	switch {
	case err != nil:
		return nil, err
	case !sel.digest.IsZero():
		return nil, o.misused("%s: what a digest names cannot change", words.Quote(arg))
	case all && sel.tag != "":
		return nil, o.misused("%s names tags, and --all whole repositories", words.Quote(arg))
	case !all && sel.tag == "" && isPattern(sel.repository):
		return nil, o.misused("%s names repositories: add --all, or tags, such as %s:*", words.Quote(arg), arg)
	case all:
		sel.tag = "*"
	case sel.tag == "":
		sel.tag = "latest"
	}
	if !isPattern(sel.repository) && !isPattern(sel.tag) {
		return []targetJSON{sel.target()}, nil
	}
	err = o.images(ctx, sel, func(im imageJSON, _ json.RawMessage) error {
		if im.Tag != "" {
			targets = append(targets, targetJSON{Repository: im.Repository, Reference: im.Tag})
		}
		return nil
	})
	return o.some(targets, arg, err)
}

// showRefreshed writes one line; what failed is told at the end.
func (o *operation) showRefreshed(t targetJSON, r refreshedJSON, raw json.RawMessage) error {
	if o.json {
		return o.writeLine(raw)
	}
	var err error
	switch r.Outcome {
	case unchanged, isNew:
		_, err = fmt.Fprintf(o.in.stdout, "%s %s, %s\n", t, r.Outcome, words.Digest(r.After))
	case moved:
		_, err = fmt.Fprintf(o.in.stdout, "%s moved from %s to %s\n", t, words.Digest(r.Before), words.Digest(r.After))
	}
	return err
}

// ownText is the causes of err without what was being done, for who has just named
// it.
func ownText(err error) string {
	if e, ok := errors.AsType[*oci.Error](err); ok {
		return oci.Causes(e)
	}
	return oci.Causes(err)
}
