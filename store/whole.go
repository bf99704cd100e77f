package store

import (
	"context"
	"slices"

	"entrepot/oci"
)

const (
	// maxNesting bounds how deep an index of indexes is looked into, and maxParts
	// how many entries of each: no image needs as many.
	maxNesting = 4
	maxParts   = 1000
)

// emptyConfig is the config of what has none (image spec, "Guidance for an Empty
// Descriptor"): clients know it without asking.
const emptyConfig = "application/vnd.oci.empty.v1+json"

// Has tells of a digest whether it is held, by whom that is asked for.
type Has func(oci.Digest) bool

// IsWhole reports whether all that a manifest leads to is held: of an index, for one
// of its platforms at least. Layers that lie elsewhere are not looked for. It leaves
// no trace of a use.
func (d *Disk) IsWhole(ctx context.Context, manifest oci.Digest, has Has) bool {
	return d.isWhole(ctx, manifest, has, maxNesting)
}

func (d *Disk) isWhole(ctx context.Context, manifest oci.Digest, has Has, depth int) bool {
	if !has(manifest) || depth == 0 || ctx.Err() != nil {
		return false
	}
	links := d.links(ctx, manifest)
	if len(links.Manifests) > 0 {
		return slices.ContainsFunc(pulled(links), func(child oci.Child) bool { return d.isWhole(ctx, child.Digest, has, depth-1) })
	}
	if c := links.Config; c != nil && c.MediaType != emptyConfig && !has(c.Digest) {
		return false
	}
	return len(links.Layers) <= maxParts && !slices.ContainsFunc(links.Layers, func(layer oci.Layer) bool {
		return len(layer.URLs) == 0 && !has(layer.Digest)
	})
}

// Replaces reports whether one image is as good as another, as far as they are held: it is
// whole for each platform that the other one is whole for, unless it is not for that.
func (d *Disk) Replaces(ctx context.Context, image, other oci.Digest, has Has) bool {
	if !d.IsWhole(ctx, image, has) {
		return false
	}
	platforms := map[string]bool{} // of image, and whether it is whole for them
	for _, child := range pulled(d.links(ctx, image)) {
		name := child.Platform.String()
		platforms[name] = platforms[name] || d.isWhole(ctx, child.Digest, has, maxNesting-1)
	}
	return !slices.ContainsFunc(pulled(d.links(ctx, other)), func(child oci.Child) bool {
		isWhole, known := platforms[child.Platform.String()]
		return known && !isWhole && d.isWhole(ctx, child.Digest, has, maxNesting-1)
	})
}

// pulled are the children of an index that a machine may pull: those for a platform, or
// all if there are none.
func pulled(links *oci.Links) []oci.Child {
	children := links.Manifests[:min(len(links.Manifests), maxParts)]
	if !slices.ContainsFunc(children, func(c oci.Child) bool { return c.Platform.Runs() }) {
		return children
	}
	return slices.DeleteFunc(slices.Clone(children), func(c oci.Child) bool { return !c.Platform.Runs() })
}

// EachPart calls f for all that pulls of a manifest lead to, as far as what is held tells,
// and for the manifest itself. Of layers elsewhere says that they are to be had from URLs.
func (d *Disk) EachPart(ctx context.Context, manifest oci.Digest, f func(part oci.Digest, elsewhere bool)) {
	d.eachPart(ctx, manifest, maxNesting, f)
}

func (d *Disk) eachPart(ctx context.Context, manifest oci.Digest, depth int, f func(part oci.Digest, elsewhere bool)) {
	f(manifest, false)
	if !d.has(manifest) || depth == 0 || ctx.Err() != nil {
		return
	}
	links := d.links(ctx, manifest)
	for _, child := range pulled(links) {
		d.eachPart(ctx, child.Digest, depth-1, f)
	}
	if links.Config != nil {
		f(links.Config.Digest, false)
	}
	for _, layer := range links.Layers[:min(len(links.Layers), maxParts)] {
		f(layer.Digest, len(layer.URLs) > 0)
	}
}

// has reports that content is held, whomever it belongs to.
func (d *Disk) has(dg oci.Digest) bool {
	_, err := d.Size(dg)
	return err == nil
}
