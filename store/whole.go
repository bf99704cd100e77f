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

// IsWhole reports whether all that a manifest leads to is held: of an index, for one
// of its platforms at least. Layers that lie elsewhere are not looked for. It leaves
// no trace of a use.
func (d *Disk) IsWhole(ctx context.Context, manifest oci.Digest) bool {
	return d.isWhole(ctx, manifest, maxNesting)
}

func (d *Disk) isWhole(ctx context.Context, manifest oci.Digest, depth int) bool {
	if !d.has(manifest) || depth == 0 || ctx.Err() != nil {
		return false
	}
	links := d.links(ctx, manifest)
	if children := links.Manifests[:min(len(links.Manifests), maxParts)]; len(children) > 0 {
		runs := slices.ContainsFunc(children, func(c oci.Child) bool { return c.Platform.Runs() }) // else what it lists is for no machine
		return slices.ContainsFunc(children, func(child oci.Child) bool {
			return child.Platform.Runs() == runs && d.isWhole(ctx, child.Digest, depth-1)
		})
	}
	if c := links.Config; c != nil && c.MediaType != emptyConfig && !d.has(c.Digest) {
		return false
	}
	return len(links.Layers) <= maxParts && !slices.ContainsFunc(links.Layers, func(layer oci.Layer) bool {
		return len(layer.URLs) == 0 && !d.has(layer.Digest)
	})
}

// has reports that content is held, whomever it belongs to.
func (d *Disk) has(dg oci.Digest) bool {
	_, err := d.Size(dg)
	return err == nil
}
