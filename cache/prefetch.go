package cache

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// busy is how many fills of an upstream leave no room to begin one before it is
// asked for.
const busy = 12

// maxAhead bounds the manifests whose layers are being filled ahead, or wait for
// that: of more than so many, a layer would hardly come before it is asked for.
const maxAhead = 64

// maxRemembered bounds the layers of which we know the manifest.
const maxRemembered = 16 << 10

// aheadAgain is how long after a manifest's layers were all looked after that is
// worth doing again: some may have been evicted since.
const aheadAgain = time.Minute

// prefetch fills a manifest's other layers once a client takes one of them whole:
// a manifest or a config alone is asked for by tools, too, and by clients that
// look at every platform. It gives way: at most a few of its fills run at once,
// none begins while its upstream is busy with others, and each manifest leads to
// it once at a time. What has begun is asked for like anything else, since the
// client that will want it may be there in a moment.
type prefetch struct {
	slots chan struct{} // fills at once; nil turns prefetching off
	ahead chan struct{} // manifests at once, the waiting ones too

	mu     sync.Mutex // guards what follows, and what the layers lead to
	layers map[membership]*siblings
	known  map[membership]struct{} // manifests whose layers are among them
}

// siblings are the layers of one manifest. A layer of several manifests, as
// platforms share them, does not tell which of them a client is pulling, and
// leads to none.
type siblings struct {
	layers    []oci.Digest
	ambiguous bool
	taken     bool      // a client has taken one of them, and the others are being filled
	rests     time.Time // until when that is not worth it
}

// membership is a digest in a repository.
type membership struct {
	repo   oci.Repository
	digest oci.Digest
}

// knows reports that a manifest's layers are remembered, as far as they are to be.
func (p *prefetch) knows(repo oci.Repository, manifest oci.Digest) bool {
	if p.slots == nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, known := p.known[membership{repo, manifest}]
	return known
}

// remember notes which layers belong together, by a manifest.
func (p *prefetch) remember(repo oci.Repository, manifest oci.Digest, links *oci.Links) {
	if p.slots == nil {
		return
	}
	group := siblingsOf(links)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.layers == nil || len(p.layers)+len(group.layers) > maxRemembered || len(p.known) >= maxRemembered {
		p.layers = make(map[membership]*siblings) // until their manifests are asked for again
		p.known = make(map[membership]struct{})
	}
	p.known[membership{repo, manifest}] = struct{}{}
	for _, d := range group.layers {
		key := membership{repo, d}
		switch known := p.layers[key]; {
		case known == nil:
			p.layers[key] = group
		case !known.ambiguous && !slices.Equal(known.layers, group.layers):
			p.layers[key] = &siblings{ambiguous: true}
		}
	}
}

// siblingsOf are the layers that a manifest's registry may have; none if there are
// too few or too many.
func siblingsOf(links *oci.Links) *siblings {
	group := &siblings{}
	if len(links.Layers) < 2 || len(links.Layers) > maxNamed {
		return group
	}
	group.layers = make([]oci.Digest, len(links.Layers))
	for i, l := range links.Layers {
		if len(l.URLs) == 0 {
			group.layers[i] = l.Digest
		}
	}
	return group
}

// take returns the layers that belong to one that a client takes; nil if none do,
// or they are being looked after. Whoever takes them gives them back.
func (p *prefetch) take(repo oci.Repository, layer oci.Digest) *siblings {
	p.mu.Lock()
	defer p.mu.Unlock()
	group := p.layers[membership{repo, layer}]
	if group == nil || group.ambiguous || group.taken || time.Now().Before(group.rests) {
		return nil
	}
	group.taken = true
	return group
}

// give lets layers be taken again: at once, unless all were looked after.
func (p *prefetch) give(group *siblings, all bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	group.taken = false
	if all {
		group.rests = time.Now().Add(aheadAgain)
	}
}

// prefetchWith fills what belongs to a layer that a client takes whole. Who takes
// it is who spends what that costs.
func (c *Cache) prefetchWith(ctx context.Context, repo oci.Repository, layer oci.Digest, client string) {
	if c.prefetch.slots == nil || c.without(repo.Host) {
		return
	}
	group := c.prefetch.take(repo, layer)
	if group == nil {
		return
	}
	select {
	case c.prefetch.ahead <- struct{}{}:
	default:
		c.prefetch.give(group, false)
		return
	}
	life := oci.CarrySpan(ctx, c.ctx)
	c.spawn(func() { // or nobody will want the place again
		defer func() { <-c.prefetch.ahead }()
		c.prefetch.give(group, c.fillGroup(life, repo, group.layers, layer, client))
	})
}

// fillGroup fills the layers of a manifest but the one that was asked for. It
// reports whether it came to all of them.
func (c *Cache) fillGroup(ctx context.Context, repo oci.Repository, layers []oci.Digest, but oci.Digest, client string) bool {
	var fills sync.WaitGroup
	var skipped atomic.Bool
	for _, d := range layers {
		if d.IsZero() || d == but {
			continue
		}
		select {
		case c.prefetch.slots <- struct{}{}:
		case <-ctx.Done():
			skipped.Store(true)
			continue
		}
		fills.Go(func() {
			defer func() { <-c.prefetch.slots }()
			if !c.fillAhead(ctx, repo, d, client) {
				skipped.Store(true)
			}
		})
	}
	fills.Wait()
	return !skipped.Load()
}

// fillAhead fills a blob that nobody has asked for yet, unless it is held. It
// reports whether it had the room to do so. What goes wrong is told to the client
// that asks for it.
func (c *Cache) fillAhead(ctx context.Context, repo oci.Repository, d oci.Digest, client string) bool {
	if _, err := c.disk.Size(d); err == nil {
		return true
	}
	if c.fills.of(repo.Host) >= busy {
		return false
	}
	b := &blob{c: c, repo: repo, dg: d, ask: oci.Ask{Client: client}, marker: store.Marker{Size: -1}}
	if marker, err := c.disk.Marker(repo, d); err == nil {
		b.marker, b.known = marker, true
	}
	f, _ := c.joinOrStart(ctx, b)
	if f == nil {
		return false
	}
	f.wantWhole()
	select {
	case <-f.done:
	case <-ctx.Done():
	}
	return true
}
