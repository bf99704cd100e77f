package cache

import (
	"context"
	"errors"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// Explanation is what would become of a pull that began now.
type Explanation struct {
	Tag     *store.Tag // the tag's record; nil if there is none, or a digest was asked for
	TTL     time.Duration
	Rung    Rung       // where a pull stands now
	Offline bool       // its upstream is never asked
	Retry   time.Time  // when upstream is asked again after a failure; zero: now
	Digest  oci.Digest // what is pulled; zero if only upstream knows
	Held    bool       // that manifest, by this repository
	Refusal error      // upstream's, which is repeated where the rung is Error; nil: it is not asked at all
	Missing error      // why a tag is served as it was, though it has moved; nil: it is not for want of what it names now
	Pulls   []Pull     // for each platform that is known; one for all where none is
}

// Pull is what one costs, as far as what is held tells.
type Pull struct {
	Platform  oci.Platform // zero if it is not known, or there is only one
	Heads     int          // which no registry counts
	Manifests int          // GETs, which Docker Hub counts as pulls
	Blobs     int          // GETs of blobs
	Bytes     int64        // of blobs, as far as their sizes are known
	AtLeast   bool         // there is more that only upstream can tell
}

// Explain tells what would become of a pull. It asks nobody, and leaves no trace
// of a use. muted says that upstream would not be asked what a tag names, though it is
// to be.
func (c *Cache) Explain(ctx context.Context, repo oci.Repository, reference string, muted bool) (Explanation, error) {
	x := Explanation{TTL: c.cfg.ttlOf(repo, reference), Offline: c.without(repo.Host)}
	var cost Pull
	if d, err := oci.ParseDigest(reference); err == nil {
		x.Digest, x.Rung = d, c.ladder(repo.Host).Climb(Case{Kind: DigestKind, Held: Whole})
	} else if err := c.explainTag(ctx, repo, reference, muted, &x); err != nil {
		return Explanation{}, err
	}
	switch x.Rung.Serve {
	case Ask:
		cost.Heads++
	case Error:
		x.Pulls = []Pull{cost}
		return x, nil
	}
	if x.Digest.IsZero() {
		cost.Manifests, cost.AtLeast = 1, true
		x.Pulls = []Pull{cost}
		return x, nil
	}
	x.Held = c.explainManifest(repo, x.Digest, &cost)
	links := c.disk.Links(ctx, x.Digest)
	c.explainBlobs(repo, links.Blobs(), &cost)
	for _, child := range links.Manifests {
		if !child.Platform.Runs() {
			continue
		}
		one := cost
		one.Platform = child.Platform
		c.explainManifest(repo, child.Digest, &one)
		c.explainBlobs(repo, c.disk.Links(ctx, child.Digest).Blobs(), &one)
		x.Pulls = append(x.Pulls, one)
	}
	if len(x.Pulls) == 0 {
		x.Pulls = []Pull{cost}
	}
	return x, ctx.Err()
}

func (c *Cache) explainTag(ctx context.Context, repo oci.Repository, tag string, muted bool, x *Explanation) error {
	rec, err := c.record(repo, tag)
	switch {
	case err == nil:
		x.Tag, x.Digest = &rec, rec.Digest
	case !errors.Is(err, store.ErrNotHeld):
		return err
	}
	q := tagQuestion{repo: repo, tag: tag}
	x.Retry, _ = c.refusal(ctx, &c.failures, repo, q.key())
	facts := c.tagFacts(ctx, &q, &rec, err == nil)
	rung, why := c.decide(ctx, repo, q.key, facts)
	x.Rung = rung
	if rung.Serve == Error {
		x.Refusal = why
	}
	if facts.Doubted {
		x.Missing = q.missing[0].err
	}
	if q.rec = x.Tag; x.Rung.Serve == Ours && (x.Offline || x.Rung.Mark == oci.Stale) || x.Tag != nil && x.Rung.Serve == Ask && (muted || facts.Doubted) {
		x.Digest = c.image(ctx, &q, why).Digest
	}
	return nil
}

// explainManifest adds what a manifest costs that repo is asked for.
func (c *Cache) explainManifest(repo oci.Repository, d oci.Digest, cost *Pull) (held bool) {
	_, missing := c.disk.Size(d)
	switch {
	case missing != nil:
		cost.Manifests++
		cost.AtLeast = true
	case !c.isMember(repo, d):
		cost.Heads++
	}
	return missing == nil
}

func (c *Cache) explainBlobs(repo oci.Repository, blobs []oci.Descriptor, cost *Pull) {
	seen := map[oci.Digest]bool{}
	for _, b := range blobs {
		if seen[b.Digest] {
			continue
		}
		seen[b.Digest] = true
		switch _, missing := c.disk.Size(b.Digest); {
		case missing != nil:
			cost.Blobs++
			cost.Bytes += max(0, b.Size)
			cost.AtLeast = cost.AtLeast || b.Size < 0
		case !c.isMember(repo, b.Digest):
			cost.Heads++
		}
	}
}

// isMember reports whether content that is here may be served under repo without
// a word to upstream, as far as its marker says: one that a crash lost is not
// looked for.
func (c *Cache) isMember(repo oci.Repository, d oci.Digest) bool {
	b := blob{c: c}
	if marker, err := c.disk.Marker(repo, d); err == nil {
		b.marker, b.known = marker, true
	}
	return b.member()
}
