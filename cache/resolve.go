package cache

import (
	"context"
	"errors"
	"strings"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// questionBound is how long a question to upstream about a name or a manifest
// may take; upstream's own timeouts are shorter for each part of it.
const questionBound = time.Minute

// resolution is what a check found out.
type resolution struct {
	desc     oci.Descriptor
	manifest *oci.Manifest // where it was read to find out
	spent    int
}

// Resolve answers what a tag names: from its record while that is fresh, else
// by one HEAD to upstream, which equal questions share. Where upstream cannot
// confirm a record, or does not give what it tells of instead, the record is served as
// stale.
func (c *Cache) Resolve(ctx context.Context, repo oci.Repository, reference string, ask oci.Ask) (oci.Resolved, oci.Outcome, error) {
	if strings.IndexByte(reference, ':') >= 0 {
		return c.resolveDigest(ctx, repo, reference, ask)
	}
	held, err := c.record(repo, reference)
	if err != nil && !errors.Is(err, store.ErrNotHeld) {
		return oci.Resolved{}, oci.Outcome{}, err
	}
	q := tagQuestion{repo: repo, tag: reference, ask: ask}
	facts := c.tagFacts(ctx, &q, &held, err == nil)
	facts.Said = c.unasked(repo.Host)
	if !facts.Doubted && facts.Said == Unasked && c.ladder(repo.Host).Climb(facts).Serve == Ours { // the hot path ends here
		return resolved(&held), oci.Outcome{Cache: oci.Hit, Checked: held.Checked, Why: "fresh"}, nil
	}
	if err == nil {
		rec := held // which a hit must not move to the heap
		q.rec = &rec
		q.ask.Held = !isUrgent(ask) && c.has(c.image(ctx, &q, nil).Digest)
		c.retryMissing(repo, q.missing)
	}
	rung, failed := c.decide(ctx, repo, q.key, facts)
	switch {
	case rung.Serve == Ask:
		return c.revalidate(ctx, q, facts, rung.Wait)
	case rung.Serve == Error && failed == nil:
		return oci.Resolved{}, oci.Outcome{}, offline(q.key())
	case rung.Serve == Error:
		return oci.Resolved{}, oci.Outcome{Why: "upstream said so a moment ago"}, failed
	case failed == nil && c.without(repo.Host):
		image := c.image(ctx, &q, nil)
		return resolved(image), oci.Outcome{Cache: rung.Mark, Checked: image.Checked, Why: "offline"}, nil
	}
	return c.answer(ctx, &q, rung, resolution{}, failed)
}

// isUrgent reports a client who wants upstream's word, and what that leads to,
// whatever is held.
func isUrgent(ask oci.Ask) bool { return ask.Refresh && !ask.Background }

// tagFacts is what an answer to q depends on, as long as nobody was asked.
func (c *Cache) tagFacts(ctx context.Context, q *tagQuestion, rec *store.Tag, held bool) Case {
	facts := Case{
		Kind: TagKind, TTL: c.cfg.ttlOf(q.repo, q.tag), Forced: q.ask.Refresh, Background: q.ask.Background,
	}
	if held {
		facts.Held, facts.Age = Whole, time.Since(rec.Checked)
		if rec.Former != nil && !q.ask.Background {
			q.missing = c.missing(ctx, q.repo, rec)
			facts.Doubted = len(q.missing) > 0
		}
	}
	return facts
}

// tagQuestion is what a tag names, and what we hold of it.
type tagQuestion struct {
	repo oci.Repository
	tag  string
	ask  oci.Ask
	rec  *store.Tag // nil if nothing is held

	missing []lost // what cannot be had of what it names now, where rec has what is served instead
}

func (q *tagQuestion) key() string { return q.repo.String() + ":" + q.tag }

// waitFor bounds how long a client waits for upstream; below 0 not at all.
func waitFor(ctx context.Context, wait time.Duration) (context.Context, context.CancelFunc) {
	if wait < 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, wait, errCheckSlow)
}

// revalidate asks upstream. A client waits for the answer only so long; the check
// goes on behind it.
func (c *Cache) revalidate(ctx context.Context, q tagQuestion, facts Case, patience time.Duration) (oci.Resolved, oci.Outcome, error) {
	wait, cancel := waitFor(ctx, patience)
	defer cancel()
	found, first, err := do(wait, c, &c.checks, q.key(), q.ask, questionBound, func(ctx context.Context) (resolution, error) {
		return c.check(ctx, q, facts)
	})
	if !first {
		found.spent = 0
	}
	if ctx.Err() != nil {
		return oci.Resolved{}, oci.Outcome{Spent: found.spent}, err
	}
	if patience > 0 && errors.Is(err, errCheckSlow) {
		c.mutes.gaveUp(q.repo.Host, q.key())
	}
	answered := facts // of which the check behind has its own
	answered.Said, answered.Retry = q.said(found.desc.Digest, err), oci.RetryAfter(err)
	return c.answer(ctx, &q, c.ladder(q.repo.Host).Climb(answered), found, err)
}

var errCheckSlow = errors.New("upstream is slow to confirm")

// said sorts what a check found.
func (q *tagQuestion) said(found oci.Digest, err error) Said {
	switch {
	case errors.Is(err, errCheckSlow):
		return Slow
	case err != nil:
		return saidBy(err)
	case q.rec != nil && q.rec.Digest == found:
		return Confirmed
	}
	return Changed
}

// whyStale is what is said of something that is held, and was not confirmed for err.
func whyStale(err error) string {
	switch saidBy(err) {
	case Gone:
		return WhyDeleted
	case Hidden:
		return WhyHidden
	case Unfetched:
		return errUnfetched.Error() + ": " + oci.Reason(err)
	}
	return "upstream cannot confirm it: " + oci.Reason(err)
}

// answer is what the client of q gets who stands on a rung.
func (c *Cache) answer(ctx context.Context, q *tagQuestion, r Rung, found resolution, err error) (oci.Resolved, oci.Outcome, error) {
	out := oci.Outcome{Cache: r.Mark, Spent: found.spent}
	switch r.Serve {
	case Theirs:
		out.Checked, out.Why = time.Now(), "asked upstream"
		if r.Mark == oci.Hit {
			out.Why = "revalidated"
		}
		return oci.Resolved{Descriptor: found.desc, Manifest: found.manifest}, out, nil
	case Ours:
		if err == nil {
			err = q.missing[0].err
		}
		image := c.image(ctx, q, err)
		out.Checked, out.Why, out.When = image.Checked, whyStale(err), oci.When(err)
		return resolved(image), out, nil
	}
	return oci.Resolved{}, out, err
}

// check asks upstream what a tag names, and records the answer. What it has moved to
// is fetched before, where what it named is here: clients who are told of a manifest
// by HEAD go on to get that, and would have nothing if it could not be had.
func (c *Cache) check(ctx context.Context, q tagQuestion, facts Case) (resolution, error) {
	ask := q.ask
	ask.Refresh = false // who forces a check forces no other pause: those of a refused password, say
	began := c.mutes.asked(q.key(), ask)
	res, out, err := c.upstream.Resolve(ctx, q.repo, q.tag, ask)
	c.mutes.heard(q.repo.Host, began, ask, err)
	heard := time.Now()
	c.heard(q.repo.Host, out, err, err == nil && (res.Manifest != nil || ask.Held && (out.Withheld == 0 || out.Reserved)))
	if err == nil && (c.climbTo(ctx, &q, res, facts).Serve == Fetch || out.Withheld > 0 && c.wantsPulls(ctx, &q, res.Digest)) {
		res.Manifest, err = c.fetchMoved(ctx, q.repo, res.Descriptor, ask, &out)
	}
	c.mutes.ended(q.key(), isAnswer(err, ask))
	if err != nil {
		if c.noteFailure(ctx, q.repo, q.key(), facts, err).Record == Drop && !c.isOvertaken(&q, heard) {
			c.dropTag(q.repo, q.tag)
		}
		return resolution{spent: out.Spent}, err
	}
	c.failures.forget(q.key())
	return resolution{c.putTag(ctx, &q, res, heard), res.Manifest, out.Spent}, nil
}

// climbTo finds the rung of an answer, whose manifest is kept if it came along.
func (c *Cache) climbTo(ctx context.Context, q *tagQuestion, res oci.Resolved, facts Case) Rung {
	if res.Manifest != nil {
		c.keepManifest(q.repo, *res.Manifest)
	}
	facts.Said = q.said(res.Digest, nil)
	if facts.Said == Changed && res.Manifest == nil && !c.has(res.Digest) {
		facts.Said = Moved
	}
	if q.rec != nil && !c.has(c.image(ctx, q, nil).Digest) {
		facts.Held = Nothing
	}
	return c.ladder(q.repo.Host).Climb(facts)
}

// putTag records what upstream said of a tag at a time, and returns what is known
// then.
func (c *Cache) putTag(ctx context.Context, q *tagQuestion, res oci.Resolved, heard time.Time) oci.Descriptor {
	next := store.Tag{Digest: res.Digest, MediaType: res.MediaType, Size: res.Size, Checked: heard, Changed: heard}
	if q.rec != nil && q.rec.Digest == res.Digest {
		next.Changed = q.rec.Changed
		if res.MediaType == "" {
			next.MediaType = q.rec.MediaType
		}
		if res.Size < 0 {
			next.Size = q.rec.Size
		}
	}
	if c.isOvertaken(q, heard) {
		return resolved(&next).Descriptor
	}
	next.Former = c.former(ctx, q, next.Digest)
	if res.Manifest == nil {
		c.mark(q.repo, res.Digest, store.Marker{MediaType: next.MediaType, Size: next.Size, State: store.Proven})
	}
	c.putRecord(ctx, q, next)
	return resolved(&next).Descriptor
}

// isOvertaken reports that what upstream said of a tag at a time is not to be
// recorded any more: it was removed here since it was asked for, or another question,
// which was answered later, is on record.
func (c *Cache) isOvertaken(q *tagQuestion, heard time.Time) bool {
	now, err := c.record(q.repo, q.tag)
	if err != nil {
		return q.rec != nil
	}
	return now.Checked.After(heard) && !now.Checked.After(time.Now()) // or a clock was wrong
}

// dropTag forgets a tag for good, and what was said to refer to it, so that no
// trouble of its upstream brings them back.
func (c *Cache) dropTag(repo oci.Repository, tag string) {
	c.ForgetReferrers(repo)
	if err := c.disk.DropTag(repo, tag); err != nil && !errors.Is(err, store.ErrNotHeld) {
		c.cfg.Warn("a tag that upstream has deleted could not be forgotten", repo, err)
	}
}

const (
	// longLimit is for how long an upstream has to give nothing out, by its own word, to
	// count as away.
	longLimit = 5 * time.Minute
	// silenceLasts is how long one that gave no answer counts as away, if nobody asks it
	// anything more.
	silenceLasts = 24 * time.Hour
)

// heard notes what an answer tells of whether manifests are to be had of an upstream:
// what cannot be fetched again is not evicted for its age. gives says that they are. An
// answer may tell neither, by HEAD to a quota that is spent, say, or a limit that soon
// ends.
func (c *Cache) heard(host string, out oci.Outcome, err error, gives bool) {
	c.spoke(host, out, err)
	var told time.Duration
	switch {
	case err == nil && !out.Reserved:
		told = out.Withheld
	case err != nil && saidBy(err) == Limited && !isOurLimit(err):
		told = oci.RetryAfter(err)
	}
	switch {
	case c.ctx.Err() != nil: // it is we who went away
	case err != nil && saidBy(err).isSilence():
		c.disk.SetAway(host, store.Silent, time.Now().Add(silenceLasts))
	case told > longLimit:
		c.disk.SetAway(host, store.Spent, time.Now().Add(told))
	case gives:
		c.disk.SetAway(host, store.Spent, time.Time{})
	}
}

// spoke notes that an upstream is not silent, if what came of asking it anything says
// so: what we say for it, asking nobody, does not.
func (c *Cache) spoke(host string, out oci.Outcome, err error) {
	if err == nil || out.Spent > 0 && !saidBy(err).isSilence() && !isOurLimit(err) {
		c.disk.SetAway(host, store.Silent, time.Time{})
	}
}

// isOurLimit reports a limit that is not upstream's.
func isOurLimit(err error) bool {
	return errors.Is(err, oci.ErrCrowded) || errors.Is(err, oci.ErrReserved)
}

// has reports whether content is here, whomever it belongs to.
func (c *Cache) has(d oci.Digest) bool {
	_, err := c.disk.Size(d)
	return err == nil
}

// resolveDigest tells whether repo has a manifest, from what is held if it can.
func (c *Cache) resolveDigest(ctx context.Context, repo oci.Repository, reference string, ask oci.Ask) (oci.Resolved, oci.Outcome, error) {
	dg, err := oci.ParseDigest(reference)
	if err != nil {
		return oci.Resolved{}, oci.Outcome{}, err
	}
	m, out, err := c.heldManifest(ctx, repo, dg)
	facts := Case{Kind: HeadKind, Forced: ask.Refresh, Background: ask.Background}
	desc := m.Descriptor
	switch {
	case err == nil:
		facts.Held = Whole
	case !errors.Is(err, store.ErrNotHeld):
		return oci.Resolved{}, out, err
	default:
		if desc = c.known(repo, dg); desc.Size >= 0 {
			facts.Held, out = Known, oci.Outcome{Why: "known"}
		}
	}
	rung, failed := c.decide(ctx, repo, func() string { return manifestKey(repo, dg) }, facts)
	switch {
	case rung.Serve == Ours:
		out.Cache = rung.Mark
		return oci.Resolved{Descriptor: desc}, out, nil
	case failed != nil:
		return oci.Resolved{}, oci.Outcome{Why: "upstream said so a moment ago"}, failed
	case rung.Serve == Error:
		return oci.Resolved{}, oci.Outcome{}, offline(repo.String() + "@" + reference)
	}
	desc, spent, err := c.confirmManifest(ctx, repo, dg, ask)
	return oci.Resolved{Descriptor: desc}, oci.Outcome{Cache: oci.Miss, Checked: time.Now(), Why: "asked upstream", Spent: spent}, err
}

func resolved(rec *store.Tag) oci.Resolved {
	return oci.Resolved{Descriptor: oci.Descriptor{MediaType: rec.MediaType, Digest: rec.Digest, Size: rec.Size}}
}
