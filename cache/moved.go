package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// A tag moves with the first word of it, by whomever that was asked for, and what it
// names then can be had from upstream alone. So its record tells of the image that it
// named before, too, as long as that is whole and its successor is not: that is what
// is left when upstream goes away before anybody has pulled the new one.

// hopelessFor is how long a tag is not asked for that has moved to what is no
// manifest: it will not become one, and each try costs a pull. It is the longest, too,
// that content is left alone that is not there, or is wrong.
const hopelessFor = 15 * time.Minute

// errUnfetched is in the chain of why a tag is served as it was.
var errUnfetched = errors.New("it has moved, and what it names now cannot be had")

// image is what the record of q is served as while upstream cannot be relied on, for
// why: as it is where that is no trouble of upstream's, or it has no other.
func (c *Cache) image(ctx context.Context, q *tagQuestion, why error) *store.Tag {
	rec, old := q.rec, q.rec.Former
	if old == nil || len(q.missing) == 0 && (errors.Is(why, oci.ErrCrowded) || c.replaces(ctx, q.repo, rec.Digest, old.Digest)) || !c.isWhole(ctx, q.repo, old.Digest) {
		return rec
	}
	return &store.Tag{Digest: old.Digest, MediaType: old.MediaType, Size: old.Size, Checked: old.Checked}
}

// former is what the next record of a tag tells of what it named before: the last
// image that is whole, or else the last, which may become so.
func (c *Cache) former(ctx context.Context, q *tagQuestion, next oci.Digest) *store.Former {
	rec := q.rec
	if rec == nil || rec.Digest == next && rec.Former == nil {
		return nil
	}
	last, old := store.Former{Digest: rec.Digest, MediaType: rec.MediaType, Size: rec.Size, Checked: rec.Checked}, rec.Former
	switch {
	case rec.Digest != next && c.isWhole(ctx, q.repo, rec.Digest):
		old = &last
	case old != nil && c.isWhole(ctx, q.repo, old.Digest):
	case rec.Digest != next && c.has(rec.Digest):
		old = &last
	default:
		return nil
	}
	if c.replaces(ctx, q.repo, next, old.Digest) && (rec.Digest != next || len(q.missing) == 0) {
		return nil
	}
	return old
}

// isWhole reports whether an image can be pulled from what is held, by who may have what
// is repo's.
func (c *Cache) isWhole(ctx context.Context, repo oci.Repository, image oci.Digest) bool {
	return c.disk.IsWhole(ctx, image, c.hasOf(repo))
}

// replaces reports whether that can be done with one image for whatever it can be with
// another.
func (c *Cache) replaces(ctx context.Context, repo oci.Repository, image, other oci.Digest) bool {
	return c.disk.Replaces(ctx, image, other, c.hasOf(repo))
}

// hasOf tells what is here, and may be served under repo.
func (c *Cache) hasOf(repo oci.Repository) store.Has {
	if !c.cfg.Private {
		return c.has
	}
	return func(d oci.Digest) bool { return c.has(d) && c.isMember(repo, d) }
}

// Holds reports whether content is here and, where rights are in play, may be served under
// repo without a word to upstream.
func (c *Cache) Holds(repo oci.Repository, d oci.Digest) bool { return c.hasOf(repo)(d) }

// wantsPulls reports that there is an image to serve instead of what a tag names now,
// of which more is to be pulled: it is an index, and no platform's manifest is here.
func (c *Cache) wantsPulls(ctx context.Context, q *tagQuestion, now oci.Digest) bool {
	old := c.former(ctx, q, now)
	if old == nil || !c.isWhole(ctx, q.repo, old.Digest) {
		return false
	}
	children := c.disk.Links(ctx, now).Manifests
	return len(children) > 0 && !slices.ContainsFunc(children[:min(len(children), maxNamed)], func(child oci.Child) bool { return c.has(child.Digest) })
}

// fetchMoved gets what a tag has moved to, unless the quota has no more than it keeps
// for others. out is what finding it out took, and adds up.
func (c *Cache) fetchMoved(ctx context.Context, repo oci.Repository, desc oci.Descriptor, ask oci.Ask, out *oci.Outcome) (*oci.Manifest, error) {
	if out.Withheld > 0 {
		kept := &oci.Error{Code: oci.TooManyRequests, Detail: "no pull is to be had for it now that is not kept for what is not held", RetryAfter: out.Withheld}
		return nil, fmt.Errorf("%w: %w", errUnfetched, kept)
	}
	if err := c.tooLarge(repo, desc); err != nil {
		return nil, unfetched(err)
	}
	ask.Begun = true
	m, got, err := c.Manifest(ctx, repo, desc.Digest, ask)
	out.Spent += got.Spent
	if err != nil {
		return nil, unfetched(err)
	}
	return &m, nil
}

// unfetched is why a tag is served as it was.
func unfetched(err error) error {
	if again, ok := errors.AsType[*shunned](err); ok {
		err = again.err // with which no time is told that is over soon
	}
	if e, ok := errors.AsType[*oci.Error](err); ok && e.Code == oci.BadUpstream && !isBroken(err) {
		hopeless := *e
		hopeless.RetryAfter, err = hopelessFor, &hopeless
	}
	return fmt.Errorf("%w: %w", errUnfetched, err)
}

// tooLarge returns why a manifest of a known size is not taken in; nil if it may be.
func (c *Cache) tooLarge(repo oci.Repository, desc oci.Descriptor) error {
	if desc.Size <= c.cfg.MaxManifest {
		return nil
	}
	return oci.Errorf(oci.BadUpstream, "manifest %s of %s has %d bytes, more than the %d that are taken in", desc.Digest, repo, desc.Size, c.cfg.MaxManifest)
}
