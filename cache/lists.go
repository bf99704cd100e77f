package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"entrepot/oci"
)

// noAPIFor is how long a repository without a referrers API is not asked again
// whether it has one. (Not the upstream: what it says of one repository, which
// may not exist, must not change the answers about others.)
const noAPIFor = time.Hour

// listQuestion is a question about a list.
type listQuestion[T any] struct {
	repo oci.Repository
	key  string
	held bool // there is something to answer with where upstream cannot
	ask  oci.Ask
	work func(context.Context) (T, error)
}

// askList asks upstream, unless that failed a moment ago. Equal questions share
// the answer; where something is held it is not waited for long. first says that
// this call asked.
func askList[T any](ctx context.Context, c *Cache, fs *flights[T], q listQuestion[T]) (list T, first bool, said Said, err error) {
	if _, err := c.refusal(ctx, q.repo, q.key); err != nil && (q.held || isFinal(err)) {
		return list, false, saidBy(err), err
	}
	wait := ctx
	if q.held {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeoutCause(ctx, c.checkWait(q.repo.Host), errCheckSlow)
		defer cancel()
	}
	list, first, err = do(wait, c, fs, q.key, q.ask, questionBound, func(ctx context.Context) (T, error) {
		list, err := q.work(ctx)
		if err != nil && !errors.Is(err, oci.ErrUnsupported) {
			c.noteFailure(ctx, q.repo, q.key, q.ask, c.ladder(q.repo.Host).Climb(q.held, saidBy(err), oci.RetryAfter(err)), err)
		}
		return list, err
	})
	switch {
	case errors.Is(err, errCheckSlow):
		said = Slow
	case err != nil:
		said = saidBy(err)
	default:
		said = Changed
	}
	return list, first, said, err
}

// tagPage is what upstream said of a page of tags.
type tagPage struct {
	list  oci.TagList
	spent int
}

// Tags asks upstream; equal questions share the answer. Where upstream cannot
// say, or is slow to, the tags that are held are listed instead, as stale.
func (c *Cache) Tags(ctx context.Context, repo oci.Repository, page oci.Page, ask oci.Ask) (oci.TagList, oci.Outcome, error) {
	held, err := c.disk.Tags(repo)
	if err != nil {
		return oci.TagList{}, oci.Outcome{}, err
	}
	if c.without(repo.Host) {
		if len(held) == 0 {
			return oci.TagList{}, oci.Outcome{}, offline("the tag list of " + repo.String())
		}
		return page.Of(held), oci.Outcome{Cache: oci.Stale, Why: "only the tags that are held: offline"}, nil
	}
	found, first, said, err := askList(ctx, c, &c.lists, listQuestion[tagPage]{
		repo: repo, key: repo.String() + " tags " + page.Last, held: len(held) > 0,
		ask: ask, work: func(ctx context.Context) (tagPage, error) {
			list, out, err := c.upstream.Tags(ctx, repo, oci.Page{N: -1, Last: page.Last}, ask)
			return tagPage{list, out.Spent}, err
		},
	})
	if !first {
		found.spent = 0
	}
	rung := c.ladder(repo.Host).Climb(len(held) > 0 && ctx.Err() == nil, said, oci.RetryAfter(err))
	out := oci.Outcome{Cache: rung.Mark, Spent: found.spent}
	switch rung.Serve {
	case Theirs:
		out.Checked, out.Why = time.Now(), "asked upstream"
		return page.Of(found.list.Tags), out, nil
	case Ours:
		out.Why = fmt.Sprintf("only the tags that are held: %v", err)
		return page.Of(held), out, nil
	}
	return oci.TagList{}, out, err
}

// referrerPage is what upstream's API said of a subject's referrers.
type referrerPage struct {
	list  oci.ReferrerList
	spent int
}

// Referrers asks upstream's API, or, where it has none, reads the fallback tag
// of the distribution spec ("Referrers Tag Schema"), which is cached like any
// tag. Where upstream cannot say, what its API said last must do, or else a
// fallback tag that is held.
func (c *Cache) Referrers(ctx context.Context, repo oci.Repository, d oci.Digest, artifactType string, ask oci.Ask) (oci.ReferrerList, oci.Outcome, error) {
	if c.without(repo.Host) {
		return c.fallbackReferrers(ctx, repo, d, artifactType, ask)
	}
	if _, _, noAPI := c.noAPI.get(repo.String(), time.Now()); noAPI == nil {
		list, out, err := c.apiReferrers(ctx, repo, d, artifactType, ask)
		if !errors.Is(err, oci.ErrUnsupported) {
			return list, out, err
		}
		c.noAPI.put(repo.String(), time.Now().Add(noAPIFor), "", err)
	}
	list, out, err := c.fallbackReferrers(ctx, repo, d, artifactType, ask)
	if oci.IsUnknown(err) { // a digest without a fallback tag has no referrers
		return oci.ReferrerList{}, out, nil
	}
	return list, out, err
}

// apiReferrers asks upstream's API: ErrUnsupported where there is none.
func (c *Cache) apiReferrers(ctx context.Context, repo oci.Repository, d oci.Digest, artifactType string, ask oci.Ask) (oci.ReferrerList, oci.Outcome, error) {
	key := repo.String() + " referrers " + d.String() + " " + artifactType
	kept, held := c.kept.get(key)
	last := held
	if !held {
		_, err := c.disk.Tag(repo, d.FallbackTag())
		held = err == nil
	}
	found, first, said, err := askList(ctx, c, &c.referrers, listQuestion[referrerPage]{
		repo: repo, key: key, held: held,
		ask: ask, work: func(ctx context.Context) (referrerPage, error) {
			list, out, err := c.upstream.Referrers(ctx, repo, d, artifactType, ask)
			if err == nil {
				c.kept.put(key, list)
			}
			return referrerPage{list, out.Spent}, err
		},
	})
	if !first {
		found.spent = 0
	}
	if errors.Is(err, oci.ErrUnsupported) {
		return oci.ReferrerList{}, oci.Outcome{}, err
	}
	rung := c.ladder(repo.Host).Climb(held && ctx.Err() == nil, said, oci.RetryAfter(err))
	out := oci.Outcome{Cache: rung.Mark, Spent: found.spent}
	switch rung.Serve {
	case Theirs:
		out.Checked, out.Why = time.Now(), "asked upstream"
		return found.list, out, nil
	case Ours:
		if last {
			out.Why = fmt.Sprintf("upstream cannot confirm it: %v", err)
			return kept, out, nil
		}
		return c.heldReferrers(ctx, repo, d, artifactType, ask, err)
	}
	return oci.ReferrerList{}, out, err
}

// heldReferrers answers from the fallback tag while upstream's API is in trouble.
func (c *Cache) heldReferrers(ctx context.Context, repo oci.Repository, d oci.Digest, artifactType string, ask oci.Ask, trouble error) (oci.ReferrerList, oci.Outcome, error) {
	list, out, err := c.fallbackReferrers(ctx, repo, d, artifactType, ask)
	if err != nil {
		return oci.ReferrerList{}, out, trouble
	}
	out.Cache, out.Why = oci.Stale, fmt.Sprintf("upstream cannot confirm it: %v", trouble)
	return list, out, nil
}

func (c *Cache) fallbackReferrers(ctx context.Context, repo oci.Repository, d oci.Digest, artifactType string, ask oci.Ask) (oci.ReferrerList, oci.Outcome, error) {
	res, out, err := c.Resolve(ctx, repo, d.FallbackTag(), ask)
	if err != nil {
		return oci.ReferrerList{}, out, err
	}
	m, mout, err := c.Manifest(ctx, repo, res.Digest, ask)
	out.Spent += mout.Spent
	if err != nil {
		return oci.ReferrerList{}, out, err
	}
	var index struct {
		Manifests []oci.Referrer `json:"manifests"`
	}
	if err := json.Unmarshal(m.Content, &index); err != nil {
		return oci.ReferrerList{}, out, oci.Errorf(oci.BadUpstream, "the fallback tag %s of %s is not an index: %w", d.FallbackTag(), repo, err)
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(r oci.Referrer) bool {
		return r.Digest.IsZero() || artifactType != "" && r.ArtifactType != artifactType
	})
	return oci.ReferrerList{Manifests: index.Manifests}, out, nil
}

// Repositories lists what is held.
func (c *Cache) Repositories(_ context.Context, page oci.Page) ([]string, bool, error) {
	return c.disk.Repositories(page.Last, page.N)
}

var _ interface {
	oci.Source
	oci.Catalog
} = (*Cache)(nil)
