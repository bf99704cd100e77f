package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"entrepot/admin"
	"entrepot/oci"
	"entrepot/words"
)

// What is held: its images, and which of them stay.

const lsHelp = `Usage: entrepot ls [pattern]

Without a pattern: the repositories that are held. With the name of one: its
images, by tag; manifests that were pulled by digest come after them. A pattern
has * for any characters: 'docker.io/*' is all repositories of an upstream,
'alpine:3.*' some tags of one. Names mean what they do to clients: alpine is
docker.io/library/alpine.
` + operatorHelp

const rmHelp = `Usage: entrepot rm [--all] [--dry-run] <reference>...

Forgets tags: alpine:3.20, 'alpine:3.*'. The next client that asks for one has
it checked with its upstream. By digest, alpine@sha256:..., it forgets one
manifest, and what that alone leads to; a manifest that a tag or another one
leads to is refused. With --all it forgets repositories with all that they have:
alpine, 'docker.io/*'. Content goes by and by, as room is needed, or by entrepot
prune, but for what came within the last hour. What is pinned is refused:
entrepot unpin comes first.

  --all              whole repositories
  --dry-run          only say what would be removed, or refused, as things are
                     now
` + operatorHelp

const pinHelp = `Usage: entrepot pin [<reference>...]

Protects images from eviction and removal: what a tag names now and what it will
name later, or one digest, with all that it leads to. It need not be held yet;
that it is pinned does not fetch it. Without a reference: the pins there are.
` + operatorHelp

const unpinHelp = `Usage: entrepot unpin <reference>...

Takes pins away, as entrepot pin lists them.
` + operatorHelp

func list(ctx context.Context, in Invocation) (err error) {
	o := newOperation(in, "ls")
	defer o.end(&err)
	if err := o.begin(ctx, 0, 1); err != nil {
		return err
	}
	sel := selection{repository: "*"}
	if len(o.args) == 1 {
		if sel, err = o.selectArgument(o.args[0]); err != nil {
			return err
		}
	}
	if isPattern(sel.repository) && sel.tag == "" && sel.digest.IsZero() {
		return o.listRepositories(ctx, sel)
	}
	return o.listImages(ctx, sel)
}

func (o *operation) listRepositories(ctx context.Context, sel selection) error {
	t := o.newTable("REPOSITORY", "TAGS", "BLOBS", "SIZE", "LAST USE", "PINNED")
	err := each(ctx, o, "repositories", nil, func(r admin.Repository, raw json.RawMessage) error {
		if !oci.Matches(sel.repository, r.Repository) {
			return nil
		}
		return t.row(raw, r.Repository, strconv.Itoa(r.Tags), strconv.Itoa(r.Blobs), words.Bytes(r.Bytes), words.Ago(r.LastUse), mark(r.Pinned))
	})
	if err != nil {
		return err
	}
	return t.end("nothing is held" + o.suchAs(sel))
}

func (o *operation) listImages(ctx context.Context, sel selection) error {
	t := o.newTable("REPOSITORY", "TAG", "DIGEST", "PLATFORMS", "SIZE", "LAST USE", "CHECKED", "PINNED")
	err := o.images(ctx, sel, func(im admin.Image, raw json.RawMessage) error {
		tag := im.Tag
		if tag == "" {
			tag = "-"
		}
		return t.row(raw, im.Repository, tag, words.Digest(im.Digest), platformsText(im.Platforms), words.Bytes(im.Bytes), words.Ago(im.LastUse), words.Ago(im.Checked), mark(im.Pinned))
	})
	if err != nil {
		return err
	}
	if err := t.end("no image is held" + o.suchAs(sel)); err != nil || o.json || t.rows == 0 || o.leftOver(sel.repository) == "" {
		return err
	}
	_, err = fmt.Fprintln(o.in.Stdout, "\n"+o.leftOver(sel.repository))
	return err
}

// leftOver says of a repository that its upstream is not configured any more, as far as
// the command's own settings tell; empty if it is.
func (o *operation) leftOver(repository string) string {
	repo, err := oci.ParseRepository(repository)
	if o.server != "" || err != nil || slices.Contains(o.settings.Names.Upstreams, repo.Host) {
		return ""
	}
	return repo.Host + " is not an upstream any more: what is held of it stays as long as there is room, and clients do not get it"
}

// suchAs names what was asked for.
func (o *operation) suchAs(sel selection) string {
	if len(o.args) == 0 {
		return ""
	}
	text := " of " + sel.repository
	if sel.tag != "" {
		text += ":" + sel.tag
	}
	return text
}

func remove(ctx context.Context, in Invocation) (err error) {
	o := newOperation(in, "rm")
	defer o.end(&err)
	all, dry := o.flags.Bool("all", false, ""), o.flags.Bool("dry-run", false, "")
	if err := o.begin(ctx, 1, -1); err != nil {
		return err
	}
	var targets []admin.Target
	for _, arg := range o.args {
		found, err := o.removals(ctx, arg, *all)
		if err != nil {
			return err
		}
		targets = append(targets, found...)
	}
	verb := "removed"
	if *dry {
		verb = "would remove"
	}
	return o.forEach(ctx, targets, "remove", verb, *dry)
}

// removals are what an argument of rm names.
func (o *operation) removals(ctx context.Context, arg string, all bool) (targets []admin.Target, err error) {
	sel, err := o.selectArgument(arg)
	switch {
	case err != nil:
		return nil, err
	case all && (sel.tag != "" || !sel.digest.IsZero()):
		return nil, o.misused("%s names tags or a digest, and --all whole repositories", words.Quote(arg))
	case sel.tag != "" && !sel.digest.IsZero():
		return nil, o.misused("%s names a tag and a digest: name one of them", words.Quote(arg))
	case !all && sel.tag == "" && sel.digest.IsZero() && isPattern(sel.repository):
		return nil, o.misused("%s names repositories: add --all, or tags, such as %s:*", words.Quote(arg), arg)
	case all:
		names, err := o.repositories(ctx, sel)
		for _, name := range names {
			targets = append(targets, admin.Target{Repository: name, All: true})
		}
		return o.some(targets, arg, err)
	case !isPattern(sel.repository) && !isPattern(sel.tag):
		return []admin.Target{sel.target()}, nil
	}
	err = o.images(ctx, sel, func(im admin.Image, _ json.RawMessage) error {
		t := selection{im.Repository, im.Tag, sel.digest}.target()
		if (im.Tag != "" || !sel.digest.IsZero()) && !slices.Contains(targets, t) {
			targets = append(targets, t)
		}
		return nil
	})
	return o.some(targets, arg, err)
}

func (o *operation) some(targets []admin.Target, arg string, err error) ([]admin.Target, error) {
	if err == nil && len(targets) == 0 {
		err = fmt.Errorf("%s: nothing that is held matches %s; entrepot ls shows what is", o.name, words.Quote(arg))
	}
	return targets, err
}

// forEach does something to each target, and goes on after one that is refused.
func (o *operation) forEach(ctx context.Context, targets []admin.Target, route, verb string, dry bool) error {
	var failed []error
	for _, t := range targets {
		var ask any = t
		if dry {
			ask = admin.Removal{Target: t, DryRun: true}
		}
		raw, err := o.client.Post(ctx, route, ask, nil)
		if ctx.Err() != nil {
			return errors.Join(append(failed, context.Cause(ctx))...)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s %s: %w", o.name, t, o.explain(err, t)))
			continue
		}
		if o.json {
			err = o.writeLine(raw)
		} else {
			_, err = fmt.Fprintf(o.in.Stdout, "%s %s%s\n", verb, t, notYet(route, raw))
		}
		if gone := o.leftOver(t.Repository); err == nil && route == "pin" && !o.json && gone != "" {
			_, err = fmt.Fprintln(o.in.Stdout, gone)
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

// notYet says of a pin that it protects nothing yet.
func notYet(route string, raw json.RawMessage) string {
	var p admin.Pin
	switch {
	case route != "pin" || json.Unmarshal(raw, &p) != nil:
		return ""
	case p.Digest.IsZero() || p.Bytes == 0:
		return ", of which nothing is held yet"
	case p.Missing > 0:
		return fmt.Sprintf(", of which not all is held yet: %s", words.Count(p.Missing, "digest"))
	}
	return ""
}

func pin(ctx context.Context, in Invocation) (err error) {
	o := newOperation(in, "pin")
	defer o.end(&err)
	if err := o.begin(ctx, 0, -1); err != nil {
		return err
	}
	if len(o.args) == 0 {
		return o.listPins(ctx)
	}
	targets, err := o.pinned()
	if err != nil {
		return err
	}
	return o.forEach(ctx, targets, "pin", "pinned", false)
}

func unpin(ctx context.Context, in Invocation) (err error) {
	o := newOperation(in, "unpin")
	defer o.end(&err)
	if err := o.begin(ctx, 1, -1); err != nil {
		return err
	}
	targets, err := o.pinned()
	if err != nil {
		return err
	}
	return o.forEach(ctx, targets, "unpin", "unpinned", false)
}

// pinned are the arguments as pins name things: one each.
func (o *operation) pinned() (targets []admin.Target, err error) {
	for _, arg := range o.args {
		sel, err := o.selectArgument(arg)
		if err != nil {
			return nil, err
		}
		if isPattern(sel.repository) || isPattern(sel.tag) {
			return nil, o.misused("%s is a pattern: a pin is for one tag or digest, and may be for what is not held yet", words.Quote(arg))
		}
		targets = append(targets, sel.target())
	}
	return targets, nil
}

func (o *operation) listPins(ctx context.Context) error {
	t := o.newTable("PIN", "DIGEST", "HELD", "MISSING", "SINCE")
	err := each(ctx, o, "pins", nil, func(p admin.Pin, raw json.RawMessage) error {
		missing := strconv.Itoa(p.Missing)
		if p.Missing < 0 {
			missing = "all"
		}
		return t.row(raw, admin.Target{Repository: p.Repository, Reference: p.Reference}.String(), words.Digest(p.Digest), words.Bytes(p.Bytes), missing, words.Ago(p.Since))
	})
	if err != nil {
		return err
	}
	return t.end("nothing is pinned")
}
