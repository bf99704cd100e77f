package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"entrepot/admin"
	"entrepot/words"
)

// Checking tags at once, whatever is remembered of their upstream.

const refreshHelp = `Usage: entrepot refresh [--all] <reference>...

Checks now what tags name, by HEAD, which Docker Hub does not count, and says
what came of it: unchanged, moved, new, gone, or unconfirmed and why. That an
upstream refused or did not have something is forgotten first, so that a new
password or a new image counts at once. alpine:3.20 is one tag, held or not;
'alpine:3.*' are those that are held. With --all it checks every held tag of
repositories: alpine, 'docker.io/*'. It needs a running server. The exit code is
1 if a tag is gone or could not be confirmed.

  --all              whole repositories
` + liveHelp

func refresh(ctx context.Context, in Invocation) (err error) {
	o := newOperation(in, "refresh")
	defer o.end(&err)
	all := o.flags.Bool("all", false, "")
	if err := o.begin(ctx, 1, -1); err != nil {
		return err
	}
	var targets []admin.Target
	for _, arg := range o.args {
		found, err := o.refreshed(ctx, arg, *all)
		if err != nil {
			return err
		}
		targets = append(targets, found...)
	}
	var failed []error
	for _, t := range targets {
		raw, err := o.client.Post(ctx, "refresh", t, nil)
		var r admin.Refreshed
		if err == nil {
			err = json.Unmarshal(raw, &r)
		}
		switch {
		case ctx.Err() != nil:
			return errors.Join(append(failed, context.Cause(ctx))...)
		case err != nil:
			failed = append(failed, fmt.Errorf("refresh %s: %w", t, o.explain(err, t)))
			continue
		case r.Outcome == admin.Gone, r.Outcome == admin.Unconfirmed:
			failed = append(failed, fmt.Errorf("refresh %s: %s: %s", t, words.Printable(r.Outcome), words.Printable(r.Why)))
		}
		if err := o.showRefreshed(t, r, raw); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

// refreshed are the tags that an argument names.
func (o *operation) refreshed(ctx context.Context, arg string, all bool) (targets []admin.Target, err error) {
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
		return []admin.Target{sel.target()}, nil
	}
	err = o.images(ctx, sel, func(im admin.Image, _ json.RawMessage) error {
		if im.Tag != "" {
			targets = append(targets, admin.Target{Repository: im.Repository, Reference: im.Tag})
		}
		return nil
	})
	return o.some(targets, arg, err)
}

// showRefreshed writes one line; what failed is told at the end.
func (o *operation) showRefreshed(t admin.Target, r admin.Refreshed, raw json.RawMessage) error {
	if o.json {
		return o.writeLine(raw)
	}
	var err error
	switch r.Outcome {
	case admin.Unchanged, admin.Added:
		_, err = fmt.Fprintf(o.in.Stdout, "%s %s, %s\n", t, r.Outcome, words.Digest(r.After))
	case admin.Moved:
		_, err = fmt.Fprintf(o.in.Stdout, "%s moved from %s to %s\n", t, words.Digest(r.Before), words.Digest(r.After))
	}
	return err
}
