package store

import (
	"context"
	"hash/maphash"
	"sync/atomic"
	"time"

	"entrepot/oci"
)

// recalled is what a repository's content was found to be a moment ago.
type recalled struct {
	repo    oci.Repository
	digest  oci.Digest
	marker  Marker
	held    *inMemory
	changes uint64 // of the disk, before it was looked for
	until   time.Time
}

// recall spares a busy fleet's manifests the two lookups, and their locks, that
// each takes. What it knows is believed as long as a marker is, and no longer
// than nothing that could matter has changed. Each has the one place that its
// digest leads to.
type recall struct {
	seed    maphash.Seed
	changes atomic.Uint64 // goes up when a marker or something in memory changes or goes
	places  [recallPlaces]atomic.Pointer[recalled]
}

const (
	recallPlaces = 1024
	maxRecalled  = 8 << 10 // bytes of content, which the memory tier may have dropped already
)

func newRecall() *recall { return &recall{seed: maphash.MakeSeed()} }

func (r *recall) place(dg oci.Digest) *atomic.Pointer[recalled] {
	return &r.places[maphash.String(r.seed, dg.String())%recallPlaces]
}

func (r *recall) find(repo oci.Repository, dg oci.Digest, now time.Time) *recalled {
	known := r.place(dg).Load()
	if known == nil || known.digest != dg || known.repo != repo || known.changes != r.changes.Load() || now.After(known.until) {
		return nil
	}
	return known
}

// changed is told after a marker, or something in memory, has changed or gone.
func (r *recall) changed() { r.changes.Add(1) }

// ReadIn gives small content of a repository, whole, with its marker: what Marker
// and Read do one after the other, and their errors.
func (d *Disk) ReadIn(ctx context.Context, repo oci.Repository, dg oci.Digest, limit int64) (Marker, []byte, error) {
	now := time.Now()
	if known := d.recall.find(repo, dg, now); known != nil {
		d.touchFromMemory(dg, known.held, now)
		return known.marker, known.held.content, nil
	}
	changes := d.recall.changes.Load()
	m, err := d.Marker(repo, dg)
	if err != nil {
		return Marker{}, nil, err
	}
	content, err := d.Read(ctx, dg, limit)
	if err != nil {
		return Marker{}, nil, err
	}
	if e := d.memory.get(dg); e != nil && len(content) <= maxRecalled {
		d.recall.place(dg).Store(&recalled{repo, dg, m, e, changes, now.Add(recheck)})
	}
	return m, content, nil
}
