package cache

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// A manifest may place a layer elsewhere, by the urls of its descriptor, as it
// did for the base layers of Windows images. The registry is asked first all the
// same: most such layers can be had there by now. Where it does not have one, the
// urls are tried, by a fill like any other.
//
// What those places say proves nothing about membership: whoever may push a
// manifest chooses the urls. So an answer from there marks nothing; only the
// bytes do, once they are proven. And their unproven bytes do not mix with the
// registry's: they come from another upstream, in effect, and are named so.

// foreignHost stands for all places that layers come from which no registry has.
// No upstream can have that name.
const foreignHost = "foreign layers"

const (
	// maxForeign bounds the layers of which the urls are remembered.
	maxForeign = 1024
	// maxURLs and maxURL bound those of one layer: manifests have one or two.
	maxURLs = 8
	maxURL  = 2 << 10
	// lookElsewhereEvery is how long after the manifests of a repository were
	// looked through for urls that is not worth it: new ones tell theirs when
	// they come.
	lookElsewhereEvery = 10 * time.Second
	// astrayFor is how long a place is not asked again that gave other bytes than
	// the digest names, or led where nothing is fetched from: such layers have
	// gigabytes, and clients come again at once.
	astrayFor = 5 * time.Minute
)

// foreignLayer is a layer that its manifest places elsewhere.
type foreignLayer struct {
	desc oci.Descriptor
	urls []string
}

// foreignLayers remembers where manifests place their layers.
type foreignLayers struct {
	mu     sync.Mutex // guards what follows
	layers map[membership]foreignLayer
	looked map[oci.Repository]time.Time
}

// remember notes the layers of a manifest that are elsewhere.
func (fl *foreignLayers) remember(repo oci.Repository, links *oci.Links) {
	for _, l := range links.Layers[:min(len(links.Layers), maxNamed)] {
		urls := slices.DeleteFunc(slices.Clone(l.URLs), func(u string) bool { return len(u) > maxURL })
		if len(urls) > 0 {
			fl.put(membership{repo, l.Digest}, foreignLayer{l.Descriptor, urls[:min(len(urls), maxURLs)]})
		}
	}
}

func (fl *foreignLayers) put(key membership, l foreignLayer) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if fl.layers == nil || len(fl.layers) >= maxForeign {
		fl.layers = map[membership]foreignLayer{} // forgetting costs a look
	}
	fl.layers[key] = l
}

func (fl *foreignLayers) get(key membership) (foreignLayer, bool) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	l, ok := fl.layers[key]
	return l, ok
}

// mayLook reports whether it is time to look through a repository's manifests.
func (fl *foreignLayers) mayLook(repo oci.Repository) bool {
	now := time.Now()
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if now.Sub(fl.looked[repo]) < lookElsewhereEvery {
		return false
	}
	if fl.looked == nil || len(fl.looked) >= maxForeign {
		fl.looked = map[oci.Repository]time.Time{}
	}
	fl.looked[repo] = now
	return true
}

// elsewhere finds where a manifest of repo places a layer; ok is false for none.
func (c *Cache) elsewhere(ctx context.Context, repo oci.Repository, dg oci.Digest) (foreignLayer, bool) {
	key := membership{repo, dg}
	if l, ok := c.foreign.get(key); ok {
		return l, true
	}
	_, _, _ = do(ctx, c, &c.looks, repo.String(), oci.Ask{}, questionBound, func(ctx context.Context) (struct{}, error) {
		if c.foreign.mayLook(repo) {
			c.lookElsewhere(ctx, repo)
		}
		return struct{}{}, nil
	})
	return c.foreign.get(key)
}

// lookElsewhere looks through the manifests of repo.
func (c *Cache) lookElsewhere(ctx context.Context, repo oci.Repository) {
	err := c.disk.EachLinks(ctx, repo, func(links *oci.Links) { c.foreign.remember(repo, links) })
	if err != nil {
		c.cfg.Warn("the manifests of a repository could not be read", repo, err)
	}
}

// elsewhere is where a manifest places the layer, after upstream has answered with
// err that it does not have it; ok is false if there is no such place.
func (b *blob) elsewhere(ctx context.Context, err error) (foreignLayer, bool) {
	if _, ok := b.c.upstream.(oci.ForeignSource); !ok || b.isElsewhere() || !saysMissing(err) {
		return foreignLayer{}, false
	}
	return b.c.elsewhere(ctx, b.repo, b.dg)
}

// saysMissing reports that upstream said that it does not have a blob, be it to nobody since
// it refused our login: who lists such a layer has others for it.
func saysMissing(err error) bool {
	e, ok := errors.AsType[*oci.Error](err)
	return ok && (oci.IsUnknown(e) || oci.IsUnknown(e.Err))
}

// turnElsewhere has the handle lead there.
func (b *blob) turnElsewhere(ctx context.Context, err error) bool {
	layer, ok := b.elsewhere(ctx, err)
	if !ok {
		return false
	}
	b.foreign, b.urls = b.c.upstream.(oci.ForeignSource), layer.urls
	if !b.known { // the marker was lost
		b.marker, b.known = store.Marker{MediaType: layer.desc.MediaType, Size: layer.desc.Size, State: store.Named}, true
		b.c.mark(b.repo, b.dg, b.marker)
	}
	return true
}

// isElsewhere reports that the bytes come from where a manifest places them.
func (b *blob) isElsewhere() bool { return b.foreign != nil }

// place is the repository that unproven bytes come from.
func (b *blob) place() oci.Repository {
	if b.isElsewhere() {
		return elsewhereOf(b.repo)
	}
	return b.repo
}

// elsewhereOf is the place of the layers of repo that are elsewhere.
func elsewhereOf(repo oci.Repository) oci.Repository {
	return oci.Repository{Host: foreignHost, Path: repo.String()}
}

// remote makes the handle of the bytes' source.
func (b *blob) remote(ctx context.Context, ask oci.Ask) (oci.Blob, error) {
	if b.isElsewhere() {
		return b.foreign.Foreign(ctx, b.repo, b.dg, b.urls, ask)
	}
	return b.c.upstream.Blob(ctx, b.repo, b.dg, ask)
}
