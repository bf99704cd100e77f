package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"entrepot/oci"
)

// Bounds of deriving markers.
const (
	// deriveEvery is how long after a scan of a repository another is not worth
	// it: what a scan could find it has marked, and new manifests mark what they
	// list when they come.
	deriveEvery = 10 * time.Second
	// maxDerived bounds the manifests that one scan reads.
	maxDerived = 10_000
	// maxListed bounds what one manifest may list, as the cache does when the
	// manifest comes.
	maxListed = 1000
)

// Derive finds a marker that a crash lost: markers are never synced. It looks
// through the manifests of repo that are held, beginning with those that tags
// name, whose records are synced, and marks all that they list. ErrNotHeld if
// that does not say that content belongs to repo. ctx bounds the wait.
func (d *Disk) Derive(ctx context.Context, repo oci.Repository, dg oci.Digest) (Marker, error) {
	select {
	case d.deriving <- struct{}{}: // one scan at a time: what two ask for is often the same
	case <-ctx.Done():
		return Marker{}, ctx.Err()
	}
	defer func() { <-d.deriving }()
	if m, err := d.Marker(repo, dg); err == nil {
		return m, nil
	}
	if _, recently := d.derived.get(repo); recently {
		return Marker{}, ErrNotHeld
	}
	if err := d.derive(ctx, repo); err != nil {
		return Marker{}, fmt.Errorf("derive markers of %s: %w", repo, err)
	}
	d.derived.put(repo, struct{}{})
	return d.Marker(repo, dg)
}

// derive marks what the held manifests of repo list.
func (d *Disk) derive(ctx context.Context, repo oci.Repository) error {
	return d.EachLinks(ctx, repo, func(links *oci.Links) {
		for _, child := range links.Manifests[:min(len(links.Manifests), maxListed)] {
			d.remark(repo, child.Descriptor)
		}
		blobs := links.Blobs()
		for _, desc := range blobs[:min(len(blobs), maxListed)] {
			d.remark(repo, desc)
		}
	})
}

// EachLinks visits what the manifests of repo lead to that are held, as many as
// one scan reads. Each of those that tags name is marked on the way.
func (d *Disk) EachLinks(ctx context.Context, repo oci.Repository, visit func(*oci.Links)) error {
	todo, err := d.tagged(repo)
	if err != nil {
		return err
	}
	marked, err := d.markedManifests(ctx, repo)
	if err != nil {
		return err
	}
	todo = append(todo, marked...)
	seen := make(map[oci.Digest]bool)
	for len(todo) > 0 && len(seen) < maxDerived {
		dg := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[dg] {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		seen[dg] = true
		links := d.links(ctx, dg)
		for _, child := range links.Manifests[:min(len(links.Manifests), maxListed)] {
			todo = append(todo, child.Digest)
		}
		visit(links)
	}
	return nil
}

// tagged are the digests that tags of repo name. Upstream said so under the
// repository's name: their markers are proven.
func (d *Disk) tagged(repo oci.Repository) ([]oci.Digest, error) {
	tags, err := d.Tags(repo)
	if err != nil {
		return nil, err
	}
	var digests []oci.Digest
	for _, tag := range tags[:min(len(tags), maxDerived)] {
		rec, err := d.Tag(repo, tag)
		if err != nil {
			continue
		}
		digests = append(digests, rec.images()...)
		d.markNamed(repo, rec.Digest, rec.MediaType, rec.Size)
		if f := rec.Former; f != nil {
			d.markNamed(repo, f.Digest, f.MediaType, f.Size)
		}
	}
	return digests, nil
}

// markNamed marks what a tag names, if a crash lost that.
func (d *Disk) markNamed(repo oci.Repository, dg oci.Digest, mediaType string, size int64) {
	if d.unmarked(repo, dg) {
		_ = d.Mark(repo, dg, Marker{MediaType: mediaType, Size: size, State: Proven})
	}
}

// markedManifests are the manifests that markers of repo tell of.
func (d *Disk) markedManifests(ctx context.Context, repo oci.Repository) (digests []oci.Digest, err error) {
	err = d.eachMarked(ctx, repo, func(dg oci.Digest, name string) error {
		if len(digests) >= maxDerived {
			return fs.SkipAll
		}
		b, err := d.readFile(name, maxRecord)
		if err != nil {
			return nil // a marker that cannot be read tells nothing
		}
		if m, err := parseMarker(b); err == nil && oci.IsManifestType(m.MediaType) {
			digests = append(digests, dg)
		}
		return nil
	})
	return digests, err
}

// markedDigest is the digest of the marker at a place.
func markedDigest(repo oci.Repository, name string) (oci.Digest, bool) {
	algorithm := path.Base(path.Dir(path.Dir(name)))
	dg, err := oci.ParseDigest(algorithm + ":" + path.Base(name))
	return dg, err == nil && markerName(repo, dg) == name
}

// remark marks what a manifest lists, unless there is a marker.
func (d *Disk) remark(repo oci.Repository, desc oci.Descriptor) {
	if d.unmarked(repo, desc.Digest) {
		_ = d.Mark(repo, desc.Digest, Marker{MediaType: desc.MediaType, Size: desc.Size, State: Named}) // or it is derived again
	}
}

// unmarked reports that there is no marker that can be read: after a crash it
// may be there and empty.
func (d *Disk) unmarked(repo oci.Repository, dg oci.Digest) bool {
	_, err := d.Marker(repo, dg)
	return errors.Is(err, ErrNotHeld)
}
