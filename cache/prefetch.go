package cache

import (
	"context"
	"slices"
	"sync"

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

// prefetch fills a manifest's other layers once a client takes one of them whole:
// a manifest or a config alone is asked for by tools, too, and by clients that
// look at every platform. It gives way: at most a few of its fills run at once,
// none begins while its upstream is busy with others, and each manifest leads to
// it once. What has begun is asked for like anything else, since the client that
// will want it may be there in a moment.
type prefetch struct {
	slots chan struct{} // fills at once; nil turns prefetching off
	ahead chan struct{} // manifests at once, the waiting ones too

	mu     sync.Mutex // guards layers and what they lead to
	layers map[membership]*siblings
}

// siblings are the layers of one manifest. A layer of several manifests, as
// platforms share them, does not tell which of them a client is pulling, and
// leads to none.
type siblings struct {
	layers    []oci.Digest
	ambiguous bool
	taken     bool // a client has taken one of them
}

// membership is a layer in a repository.
type membership struct {
	repo  oci.Repository
	layer oci.Digest
}

// remember notes which layers belong together.
func (p *prefetch) remember(repo oci.Repository, links *oci.Links) {
	if p.slots == nil || len(links.Layers) < 2 || len(links.Layers) > maxNamed {
		return
	}
	group := &siblings{layers: make([]oci.Digest, len(links.Layers))}
	for i, l := range links.Layers {
		if len(l.URLs) == 0 {
			group.layers[i] = l.Digest
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.layers == nil || len(p.layers)+len(group.layers) > maxRemembered {
		p.layers = make(map[membership]*siblings) // forgetting costs a prefetch
	}
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

// take returns the layers that belong to one that a client takes, once.
func (p *prefetch) take(repo oci.Repository, layer oci.Digest) []oci.Digest {
	p.mu.Lock()
	defer p.mu.Unlock()
	group := p.layers[membership{repo, layer}]
	if group == nil || group.taken {
		return nil
	}
	group.taken = true
	return group.layers
}

// prefetchWith fills what belongs to a layer that a client takes whole. Who takes
// it is who spends what that costs.
func (c *Cache) prefetchWith(ctx context.Context, repo oci.Repository, layer oci.Digest, client string) {
	if c.prefetch.slots == nil || c.without(repo.Host) {
		return
	}
	siblings := c.prefetch.take(repo, layer)
	if len(siblings) == 0 {
		return
	}
	life := oci.CarrySpan(ctx, c.ctx)
	select {
	case c.prefetch.ahead <- struct{}{}:
	default:
		return
	}
	c.spawn(func() { // or nobody will want the place again
		defer func() { <-c.prefetch.ahead }()
		var fills sync.WaitGroup
		defer fills.Wait()
		for _, d := range siblings {
			if d.IsZero() || d == layer {
				continue
			}
			select {
			case c.prefetch.slots <- struct{}{}:
			case <-life.Done():
				return
			}
			fills.Go(func() {
				defer func() { <-c.prefetch.slots }()
				c.fillAhead(life, repo, d, client)
			})
		}
	})
}

// fillAhead fills a blob that nobody has asked for yet, unless it is held. What goes wrong is told to the client that asks for it.
func (c *Cache) fillAhead(ctx context.Context, repo oci.Repository, d oci.Digest, client string) {
	if _, err := c.disk.Size(d); err == nil || c.fills.of(repo.Host) >= busy {
		return
	}
	b := &blob{c: c, repo: repo, dg: d, ask: oci.Ask{Client: client}, marker: store.Marker{Size: -1}}
	if marker, err := c.disk.Marker(repo, d); err == nil {
		b.marker, b.known = marker, true
	}
	f, _ := c.joinOrStart(ctx, b)
	if f == nil {
		return
	}
	f.wantWhole()
	select {
	case <-f.done:
	case <-ctx.Done():
	}
}
