package cache

import (
	"context"
	"errors"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// maxNamed bounds the markers that one manifest can make us write. Images have
// at most 127 layers, indexes a few dozen platforms; what a hostile manifest
// lists beyond that is confirmed by upstream when somebody asks for it.
const maxNamed = 1000

// Manifest returns a manifest by digest: for ever from the disk once it is
// held, else by one GET that equal questions share.
func (c *Cache) Manifest(ctx context.Context, repo oci.Repository, dg oci.Digest, ask oci.Ask) (oci.Manifest, oci.Outcome, error) {
	m, out, err := c.heldManifest(ctx, repo, dg)
	if !errors.Is(err, store.ErrNotHeld) {
		return m, out, err
	}
	facts := Case{Kind: DigestKind, Forced: ask.Refresh, Background: ask.Background}
	if c.confirmFirst(repo, dg) {
		facts.Held = Unproven
	}
	rung, failed := c.decide(ctx, repo, func() string { return manifestKey(repo, dg) }, facts)
	switch {
	case failed != nil:
		return oci.Manifest{}, oci.Outcome{Why: "upstream said so a moment ago"}, failed
	case rung.Serve == Error:
		return oci.Manifest{}, oci.Outcome{}, offline(repo.String() + "@" + dg.String())
	case rung.Serve == Confirm:
		_, spent, err := c.confirmManifest(ctx, repo, dg, ask)
		if err != nil {
			return oci.Manifest{}, oci.Outcome{Spent: spent}, err
		}
		if m, out, err = c.heldManifest(ctx, repo, dg); !errors.Is(err, store.ErrNotHeld) {
			if err == nil {
				c.name(repo, m)
			}
			out.Spent, out.Why = spent, "confirmed by upstream"
			return m, out, err
		}
	}
	return c.fetchManifest(ctx, repo, dg, ask)
}

// heldManifest answers from the disk; ErrNotHeld where the disk does not hold
// the bytes, or does not know that they belong to repo.
func (c *Cache) heldManifest(ctx context.Context, repo oci.Repository, dg oci.Digest) (oci.Manifest, oci.Outcome, error) {
	marker, content, recalled, err := c.readMarked(ctx, repo, dg)
	if errors.Is(err, store.ErrNotHeld) {
		if m, ok := c.unkeptManifest(repo, dg); ok {
			return m, oci.Outcome{Cache: oci.Hit, Why: "held in memory, since the disk does not take it"}, nil
		}
	}
	if err != nil {
		return oci.Manifest{}, oci.Outcome{}, err
	}
	m := oci.Manifest{Descriptor: oci.Descriptor{MediaType: marker.MediaType, Digest: dg, Size: int64(len(content))}, Content: content}
	if marker.State != store.Proven || !oci.IsManifestType(marker.MediaType) {
		m, err = oci.NewManifest(content, marker.MediaType, dg)
		if err != nil || !oci.IsManifestType(m.MediaType) {
			return oci.Manifest{}, oci.Outcome{}, oci.Errorf(oci.ManifestUnknown, "%s in %s is not a manifest", dg, repo)
		}
	}
	if !recalled && !c.prefetch.knows(repo, dg) { // it came before a restart
		if links, err := oci.ParseLinks(content); err == nil {
			c.prefetch.remember(repo, dg, links)
		}
	}
	return m, oci.Outcome{Cache: oci.Hit, Why: "held"}, nil
}

// readMarked reads what is held, and belongs to repo. recalled says that it was
// read a moment ago, too.
func (c *Cache) readMarked(ctx context.Context, repo oci.Repository, dg oci.Digest) (marker store.Marker, content []byte, recalled bool, err error) {
	marker, content, recalled = c.disk.Recall(repo, dg)
	if !recalled {
		if marker, err = c.marker(ctx, repo, dg); err != nil {
			return store.Marker{}, nil, false, err
		}
	}
	switch {
	case marker.State == store.Named && c.cfg.Private:
		return store.Marker{}, nil, false, store.ErrNotHeld
	case recalled:
		return marker, content, true, nil
	}
	content, err = c.disk.Read(ctx, dg, c.cfg.MaxManifest)
	if err == nil {
		c.disk.Remember(repo, dg, marker)
	}
	return marker, content, false, err
}

// confirmFirst says that a HEAD, which no registry counts as a pull, is better
// than a GET: we have the bytes and only miss the right to serve them, or what
// we know of the digest says that it is a blob.
func (c *Cache) confirmFirst(repo oci.Repository, dg oci.Digest) bool {
	if c.has(dg) {
		return true
	}
	marker, err := c.disk.Marker(repo, dg)
	return err == nil && marker.MediaType != "" && !oci.IsManifestType(marker.MediaType)
}

// confirmManifest asks upstream by HEAD whether repo has a manifest.
func (c *Cache) confirmManifest(ctx context.Context, repo oci.Repository, dg oci.Digest, ask oci.Ask) (oci.Descriptor, int, error) {
	found, first, err := do(ctx, c, &c.checks, manifestKey(repo, dg), ask, questionBound, func(ctx context.Context) (resolution, error) {
		res, out, err := c.upstream.Resolve(ctx, repo, dg.String(), ask)
		c.heard(repo.Host, out, err, res.Manifest != nil)
		if err != nil {
			c.noteManifestFailure(ctx, repo, dg, ask, err)
			return resolution{spent: out.Spent}, err
		}
		if res.Manifest != nil {
			c.keepManifest(repo, *res.Manifest)
		} else {
			c.mark(repo, dg, store.Marker{MediaType: res.MediaType, Size: res.Size, State: store.Proven})
		}
		return resolution{desc: res.Descriptor, spent: out.Spent}, nil
	})
	if !first {
		found.spent = 0
	}
	return found.desc, found.spent, err
}

// fetched is what a GET brought.
type fetched struct {
	manifest oci.Manifest
	spent    int
}

func (c *Cache) fetchManifest(ctx context.Context, repo oci.Repository, dg oci.Digest, ask oci.Ask) (oci.Manifest, oci.Outcome, error) {
	out := oci.Outcome{Cache: oci.Joined, Checked: time.Now(), Why: "asked upstream together with others"}
	got, first, err := do(ctx, c, &c.manifests, manifestKey(repo, dg), ask, questionBound, func(ctx context.Context) (fetched, error) {
		if m, _, err := c.heldManifest(ctx, repo, dg); err == nil { // somebody has just finished
			return fetched{manifest: m}, nil
		}
		if err := c.tooLarge(repo, c.known(repo, dg)); err != nil {
			return fetched{}, err
		}
		m, out, err := c.upstream.Manifest(ctx, repo, dg, ask)
		c.heard(repo.Host, out, err, err == nil || saidBy(err).isFinal())
		if err == nil {
			c.keepManifest(repo, m)
			c.failures.forget(manifestKey(repo, dg))
		} else {
			c.noteManifestFailure(ctx, repo, dg, ask, err)
		}
		return fetched{m, out.Spent}, err
	})
	if first {
		out.Cache, out.Why, out.Spent = oci.Miss, "not held", got.spent
	}
	return got.manifest, out, err
}

// noteManifestFailure remembers why upstream did not give a manifest.
func (c *Cache) noteManifestFailure(ctx context.Context, repo oci.Repository, dg oci.Digest, ask oci.Ask, err error) {
	c.noteFailure(ctx, repo, manifestKey(repo, dg), Case{Kind: DigestKind, Background: ask.Background}, err)
	if _, unnamed := c.disk.Marker(repo, dg); unnamed == nil {
		c.doubt(repo, lost{dg, true, err}, ask)
	}
}

// known is what upstream has told of a manifest.
func (c *Cache) known(repo oci.Repository, dg oci.Digest) oci.Descriptor {
	desc := oci.Descriptor{Digest: dg, Size: -1}
	if m, err := c.disk.Marker(repo, dg); err == nil && m.State == store.Proven && oci.IsManifestType(m.MediaType) {
		desc.MediaType, desc.Size = m.MediaType, m.Size
	}
	return desc
}

// keepManifest takes a manifest in and marks what it lists. A disk that cannot take it does not keep the client from it.
func (c *Cache) keepManifest(repo oci.Repository, m oci.Manifest) {
	c.doubts.settle(membership{repo, m.Digest})
	if err := c.disk.PutFrom(m.Digest, m.Content, repo.Host); err != nil {
		c.cfg.Warn("a manifest could not be kept", repo, err)
		c.unkeptManifests.put(manifestKey(repo, m.Digest), m, len(m.Content), time.Now().Add(stopgapFor))
		c.understand(repo, m)
		return
	}
	c.unkeptManifests.drop(manifestKey(repo, m.Digest))
	c.mark(repo, m.Digest, store.Marker{MediaType: m.MediaType, Size: m.Size, State: store.Proven})
	c.name(repo, m)
}

// understand remembers what a manifest of repo tells of its layers. It returns
// nil for one that is not of our kind: it names nothing that we understand.
func (c *Cache) understand(repo oci.Repository, m oci.Manifest) *oci.Links {
	links, err := oci.ParseLinks(m.Content)
	if err != nil {
		return nil
	}
	c.prefetch.remember(repo, m.Digest, links)
	c.foreign.remember(repo, links)
	return links
}

// name marks what a manifest of repo lists.
func (c *Cache) name(repo oci.Repository, m oci.Manifest) {
	links := c.understand(repo, m)
	if links == nil {
		return
	}
	named := links.Blobs()
	for _, child := range links.Manifests {
		named = append(named, child.Descriptor)
	}
	for _, desc := range named[:min(len(named), maxNamed)] {
		c.mark(repo, desc.Digest, store.Marker{MediaType: desc.MediaType, Size: desc.Size, State: store.Named})
	}
}

// manifestKey tells a manifest from a blob of the same digest: upstream may have
// the one and not the other.
func manifestKey(repo oci.Repository, dg oci.Digest) string {
	return repo.String() + " manifest " + dg.String()
}

// marker tells whether content belongs to repo. Markers are never synced: of
// what is held, one that is missing may have been lost in a crash, and is looked
// for in the manifests that list it.
func (c *Cache) marker(ctx context.Context, repo oci.Repository, dg oci.Digest) (store.Marker, error) {
	m, err := c.disk.Marker(repo, dg)
	if !errors.Is(err, store.ErrNotHeld) {
		return m, err
	}
	if _, held := c.disk.Size(dg); held != nil {
		return m, err
	}
	return c.disk.Derive(ctx, repo, dg)
}

// mark notes that content belongs to repo. What cannot be noted is confirmed
// again later.
func (c *Cache) mark(repo oci.Repository, dg oci.Digest, m store.Marker) {
	if err := c.disk.Mark(repo, dg, m); err != nil {
		c.cfg.Warn("a marker could not be written", repo, err)
	}
}
