package main

import (
	"context"

	"entrepot/oci"
	"entrepot/policy"
	"entrepot/store"
)

// leadFinder finds the tags that lead to a manifest, in the records.
type leadFinder struct{ disk *store.Disk }

// maxLeads bounds the tags of one repository that are looked at.
const maxLeads = 2000

// find looks for tags that name d, and then for indexes that list it. What
// no record of the repository has no tag leads to, and it costs no look at each
// of them.
func (f leadFinder) find(ctx context.Context, repo oci.Repository, d oci.Digest) []policy.Lead {
	if _, err := f.disk.Marker(repo, d); err != nil {
		return nil
	}
	tags, err := f.disk.Tags(repo)
	if err != nil {
		return nil
	}
	var direct, listed []policy.Lead
	for _, tag := range tags[:min(len(tags), maxLeads)] {
		rec, err := f.disk.Tag(repo, tag)
		switch {
		case err != nil:
		case rec.Digest == d:
			direct = append(direct, policy.Lead{Tag: tag, Changed: rec.Changed})
		case len(direct) == 0 && ctx.Err() == nil:
			for _, child := range f.disk.Links(ctx, rec.Digest).Manifests {
				if child.Digest == d {
					listed = append(listed, policy.Lead{Tag: tag, Changed: rec.Changed, Platform: child.Platform})
				}
			}
		}
	}
	return append(direct, listed...)
}
