package store

import (
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
	changes uint64        // of the disk, before it was looked for
	until   time.Duration // as of the marker, in memory
}

// recall spares the manifests that a fleet asks for all day two looks each, with
// their locks, for marker and bytes. What it knows is believed as long as the
// marker is, unless something that it may be about changes before. A digest has
// one place, which another one may take.
type recall struct {
	seed    maphash.Seed
	changes atomic.Uint64 // goes up after a marker, or something in memory, has changed or gone
	places  [recallPlaces]atomic.Pointer[recalled]
}

const (
	recallPlaces = 512
	maxRecalled  = 8 << 10 // bytes of content, which the memory tier may have dropped already
)

func newRecall() *recall { return &recall{seed: maphash.MakeSeed()} }

func (r *recall) place(dg oci.Digest) *atomic.Pointer[recalled] {
	return &r.places[maphash.String(r.seed, dg.String())%recallPlaces]
}

// Recall gives what Remember was told of content that is small and asked for
// often: its marker, and its bytes, never to be changed.
func (d *Disk) Recall(repo oci.Repository, dg oci.Digest) (Marker, []byte, bool) {
	known, now := d.recall.place(dg).Load(), time.Now()
	if known == nil || known.digest != dg || known.repo != repo || known.changes != d.recall.changes.Load() || now.Sub(d.markers.since) > known.until {
		return Marker{}, nil, false
	}
	d.touchFromMemory(dg, known.held, now)
	return known.marker, known.held.content, true
}

// Remember is told that content was served by its marker. It believes neither:
// what is remembered is what is known here of both, if that is so.
func (d *Disk) Remember(repo oci.Repository, dg oci.Digest, served Marker) {
	changes := d.recall.changes.Load()
	var room nameRoom
	m, until, ok := look(d.markers, appendMarkerName(room[:0], repo, dg))
	if !ok || m != served {
		return
	}
	if e := d.memory.get(dg); e != nil && len(e.content) <= maxRecalled {
		d.recall.place(dg).Store(&recalled{repo, dg, m, e, changes, until})
	}
}

// forgetMarker has a marker looked for anew: its file has changed or gone.
func (d *Disk) forgetMarker(name string) {
	d.markers.forget(name)
	d.recall.changes.Add(1)
}

// forgetContent drops what is in memory of content whose file goes.
func (d *Disk) forgetContent(dg oci.Digest) {
	d.memory.drop(dg)
	d.recall.changes.Add(1)
}
