package cache

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"entrepot/oci"
)

// listQuestion is a question about a list.
type listQuestion[T any] struct {
	repo  oci.Repository
	key   string
	facts Case // what is known before it is asked
	ask   oci.Ask
	work  func(context.Context) (T, error)
}

// askList finds the rung of a list, asking upstream if need be. Equal questions
// share the answer. Beside a list that is held stands why upstream did not give
// its own: none, if upstream may not be asked. first says that this call asked.
func askList[T any](ctx context.Context, c *Cache, fs *flights[T], q listQuestion[T]) (list T, rung Rung, first bool, err error) {
	q.facts.Forced, q.facts.Background = q.ask.Refresh, q.ask.Background
	rung, err = c.decide(ctx, q.repo, func() string { return q.key }, q.facts)
	if rung.Serve != Ask {
		return list, rung, false, err
	}
	wait, cancel := waitFor(ctx, rung.Wait)
	defer cancel()
	list, first, err = do(wait, c, fs, q.key, q.ask, questionBound, func(ctx context.Context) (T, error) {
		began := c.mutes.asked(q.key, q.ask)
		list, err := q.work(ctx)
		c.mutes.heard(q.repo.Host, began, q.ask, err)
		c.mutes.ended(q.key, isAnswer(err, q.ask))
		if err != nil && c.noteFailure(ctx, q.repo, q.key, q.facts, err).Record == Drop {
			c.ForgetReferrers(q.repo)
		}
		return list, err
	})
	if ctx.Err() != nil {
		return list, Rung{Serve: Error}, first, err
	}
	facts := q.facts
	switch {
	case errors.Is(err, errCheckSlow):
		facts.Said = Slow
		if rung.Wait > 0 {
			c.mutes.gaveUp(q.repo.Host, q.key)
		}
	case err != nil:
		facts.Said, facts.Retry = saidBy(err), oci.RetryAfter(err)
	default:
		facts.Said = Changed
	}
	return list, c.ladder(q.repo.Host).Climb(facts), first, err
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
	facts := Case{Kind: TagsKind}
	if len(held) > 0 {
		facts.Held = Whole
	}
	found, rung, first, err := askList(ctx, c, &c.lists, listQuestion[tagPage]{
		repo: repo, key: repo.String() + " tags " + page.Last, facts: facts,
		ask: ask, work: func(ctx context.Context) (tagPage, error) {
			list, out, err := c.upstream.Tags(ctx, repo, oci.Page{N: -1, Last: page.Last}, ask)
			c.spoke(repo.Host, out, err)
			return tagPage{list, out.Spent}, err
		},
	})
	if !first {
		found.spent = 0
	}
	if err == nil && rung.Serve != Theirs {
		err = offline("the tag list of " + repo.String())
	}
	out := oci.Outcome{Cache: rung.Mark, Spent: found.spent}
	switch rung.Serve {
	case Theirs:
		out.Checked, out.Why = time.Now(), "asked upstream"
		return page.Of(found.list.Tags), out, nil
	case Ours:
		out.Why = "only the tags that are held: " + oci.Reason(err)
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
	list, out, rung, err := c.apiReferrers(ctx, repo, d, artifactType, ask)
	if rung.Serve != Fallback {
		return list, out, err
	}
	list, out, err = c.fallbackReferrers(ctx, repo, d, artifactType, ask)
	if err != nil {
		return c.keptReferrers(referrersKey(repo, d, artifactType), repo, out, err)
	}
	return list, out, nil
}

// keptReferrers answers where there is no API, and the fallback tag failed with err,
// by what the API told of when it was there. Without that a digest has no referrers
// where it has no such tag.
func (c *Cache) keptReferrers(key string, repo oci.Repository, out oci.Outcome, err error) (oci.ReferrerList, oci.Outcome, error) {
	facts := Case{Kind: ReferrersKind, Said: saidBy(err)}
	kept, isKept := c.kept.get(key)
	if isKept {
		facts.Held = Whole
	}
	rung := c.ladder(repo.Host).Climb(facts)
	switch {
	case rung.Serve == Ours:
		out.Cache, out.Why = rung.Mark, whyStale(err)
		return kept, out, nil
	case rung.Record == Drop:
		c.ForgetReferrers(repo)
	}
	if facts.Said != Gone {
		return oci.ReferrerList{}, out, err
	}
	return oci.ReferrerList{}, out, nil
}

func referrersKey(repo oci.Repository, d oci.Digest, artifactType string) string {
	return repo.String() + " referrers " + d.String() + " " + artifactType
}

// apiReferrers asks upstream's API, unless its rung is Fallback: there is none.
func (c *Cache) apiReferrers(ctx context.Context, repo oci.Repository, d oci.Digest, artifactType string, ask oci.Ask) (oci.ReferrerList, oci.Outcome, Rung, error) {
	if _, err := c.refusal(ctx, &c.noAPI, repo, repo.String()); err != nil {
		rung := c.ladder(repo.Host).Climb(Case{Kind: ReferrersKind, Said: NoAPI, Remembered: true})
		return oci.ReferrerList{}, oci.Outcome{}, rung, err
	}
	key := referrersKey(repo, d, artifactType)
	facts := Case{Kind: ReferrersKind}
	kept, isKept := c.kept.get(key)
	if _, err := c.disk.Tag(repo, d.FallbackTag()); isKept || err == nil {
		facts.Held = Whole
	}
	found, rung, first, err := askList(ctx, c, &c.referrers, listQuestion[referrerPage]{
		repo: repo, key: key, facts: facts,
		ask: ask, work: func(ctx context.Context) (referrerPage, error) {
			list, out, err := c.upstream.Referrers(ctx, repo, d, artifactType, ask)
			c.spoke(repo.Host, out, err)
			if err == nil {
				c.kept.put(key, list)
			}
			return referrerPage{list, out.Spent}, err
		},
	})
	if !first {
		found.spent = 0
	}
	out := oci.Outcome{Cache: rung.Mark, Spent: found.spent}
	switch {
	case rung.Serve == Theirs:
		out.Checked, out.Why = time.Now(), "asked upstream"
		return found.list, out, rung, nil
	case rung.Serve == Ours && isKept:
		out.Why = whyStale(err)
		return kept, out, rung, nil
	case rung.Serve == Ours:
		list, out, err := c.heldReferrers(ctx, repo, d, artifactType, ask, rung, err)
		return list, out, rung, err
	}
	return oci.ReferrerList{}, out, rung, err
}

// heldReferrers answers from the fallback tag while upstream's API is in trouble.
func (c *Cache) heldReferrers(ctx context.Context, repo oci.Repository, d oci.Digest, artifactType string, ask oci.Ask, rung Rung, trouble error) (oci.ReferrerList, oci.Outcome, error) {
	list, out, err := c.fallbackReferrers(ctx, repo, d, artifactType, ask)
	if err != nil {
		return oci.ReferrerList{}, out, trouble
	}
	out.Cache, out.Why = rung.Mark, whyStale(trouble)
	return list, out, nil
}

func (c *Cache) fallbackReferrers(ctx context.Context, repo oci.Repository, d oci.Digest, artifactType string, ask oci.Ask) (oci.ReferrerList, oci.Outcome, error) {
	res, out, err := c.Resolve(ctx, repo, d.FallbackTag(), ask)
	if err != nil {
		return oci.ReferrerList{}, out, err
	}
	ask.Begun = out.Cache == oci.Miss
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
