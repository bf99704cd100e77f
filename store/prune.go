package store

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"entrepot/oci"
)

// Pruned is what pruning removed.
type Pruned struct {
	Blobs   int // that no repository has, or that were not used for long
	Fills   int // not finished, and not gone on with for long
	Records int // markers of content that is not held any more
	Bytes   int64

	Recent      int // blobs that no repository has and that stay, since they came or were used within PruneAfter
	RecentBytes int64
}

// Pruning says what Prune is to do.
type Pruning struct {
	Unused   time.Duration      // above 0: also what was not used for as long
	Progress func(done float64) // if not nil, is told which part of the work is done
	Would    func(Prunable)     // if not nil, is told what would be removed, and nothing is
}

// Prunable is one thing that pruning removes.
type Prunable struct {
	Digest  oci.Digest
	Kind    string // blob, fill or record
	Bytes   int64  // that it takes on disk
	LastUse time.Time
	Why     string
}

// PruneAfter protects what is only just coming in, unless Unused is less: content is
// kept before it is marked.
const PruneAfter = time.Hour

// Prune removes content that no repository has any more and, if Unused is above
// zero, all that was not used for as long; idle fills and the markers of content
// that is gone as well, then. What is pinned or open stays. Where Would is set it
// counts what would be removed. What the disk does not remove is an error, once
// all else has gone.
func (d *Disk) Prune(ctx context.Context, ask Pruning) (Pruned, error) {
	progress := ask.Progress
	if progress == nil {
		progress = func(float64) {}
	}
	repos, err := d.repaired(ctx)
	if err != nil {
		return Pruned{}, err
	}
	if err := d.findPinned(ctx); err != nil {
		return Pruned{}, err
	}
	p := pruning{Pruning: ask, d: d, repos: repos, now: time.Now()}
	buckets, err := d.buckets()
	if err != nil {
		return Pruned{}, err
	}
	for i, bucket := range buckets {
		if err := p.bucket(ctx, bucket); err != nil {
			return p.done, err
		}
		progress(float64(i+1) / float64(len(buckets)+1))
	}
	if ask.Unused > 0 {
		if err := p.rest(ctx); err != nil {
			return p.done, err
		}
	}
	progress(1)
	return p.end()
}

// repaired are all repositories, after markers that a crash lost were derived:
// content must not go because of those.
func (d *Disk) repaired(ctx context.Context) ([]oci.Repository, error) {
	names, _, err := d.Repositories("", -1)
	if err != nil {
		return nil, err
	}
	var repos []oci.Repository
	for _, name := range names {
		repo, err := oci.ParseRepository(name)
		if err != nil {
			continue
		}
		if err := d.derive(ctx, repo); err != nil {
			return nil, err
		}
		repos = append(repos, repo)
	}
	return repos, nil
}

// buckets are the directories of blobs, below blobs/.
func (d *Disk) buckets() (buckets []string, err error) {
	algorithms, err := d.readDir(blobsDir)
	if err != nil {
		return nil, err
	}
	for _, algorithm := range algorithms {
		entries, err := d.readDir(path.Join(blobsDir, algorithm.Name()))
		if err != nil && !isGone(err) {
			return nil, err
		}
		for _, e := range entries {
			buckets = append(buckets, path.Join(algorithm.Name(), e.Name()))
		}
	}
	return buckets, nil
}

// pruning goes through the blobs bucket by bucket, so that it remembers no more
// than the digests of one.
type pruning struct {
	Pruning
	d     *Disk
	repos []oci.Repository
	now   time.Time
	done  Pruned

	failed int   // things that should have gone, and did not
	why    error // of the first
}

// fail notes that the disk did not remove something. The rest goes on.
func (p *pruning) fail(err error) {
	if err != nil {
		p.failed++
		p.why = cmp.Or(p.why, err)
	}
}

// end is what was done, and an error if not all could be.
func (p *pruning) end() (Pruned, error) {
	if p.failed > 0 {
		return p.done, fmt.Errorf("%d could not be removed, the first because of: %w", p.failed, p.why)
	}
	return p.done, nil
}

func (p *pruning) bucket(ctx context.Context, bucket string) error {
	owned := make(map[string]bool)
	for _, repo := range p.repos {
		if err := ctx.Err(); err != nil {
			return err
		}
		marked, err := p.d.readDir(path.Join(repoDir(repo), contentDir, bucket))
		if err != nil {
			return err
		}
		for _, e := range marked {
			owned[e.Name()] = true
		}
	}
	entries, err := p.d.readDir(path.Join(blobsDir, bucket))
	if err != nil {
		return err
	}
	for _, f := range entries {
		info, err := f.Info()
		if err != nil {
			continue // gone meanwhile
		}
		e := entry{dir: path.Join(blobsDir, bucket), name: f.Name(), when: info.ModTime(), blocks: allocated(info)}
		if dg, ok := digestAt(blobsDir, e); ok {
			p.blob(candidate{entry: e, digest: dg}, owned[e.name])
		}
	}
	return nil
}

// blob takes a blob that may go, and counts one that would, were it older.
func (p *pruning) blob(c candidate, owned bool) {
	switch {
	case p.isOld(c.when, owned):
		why := whyUnused
		if !owned {
			why = "no repository has it"
		}
		if freed := p.take(c, why); freed > 0 {
			p.done.Blobs++
			p.done.Bytes += freed
		}
	case !owned && p.d.isEvictable(c):
		p.done.Recent++
		p.done.RecentBytes += c.blocks
	}
}

// whyUnused is the reason for what is old enough.
const whyUnused = "it was not used for so long"

// isOld reports that a blob was not used for long enough to go.
func (p *pruning) isOld(used time.Time, owned bool) bool {
	age := p.now.Sub(used)
	if owned {
		return p.Unused > 0 && age >= p.Unused
	}
	return age >= min(PruneAfter, cmp.Or(p.Unused, PruneAfter))
}

// take removes a candidate that may go, or says that it would.
func (p *pruning) take(c candidate, why string) (freed int64) {
	switch {
	case p.Would == nil:
		freed, err := p.d.evict(c)
		p.fail(err)
		return freed
	case !p.d.isEvictable(c):
		return 0
	}
	kind := "blob"
	if c.fill {
		kind = "fill"
	}
	p.Would(Prunable{c.digest, kind, c.blocks, c.when, why})
	return c.blocks
}

// rest removes idle fills, and the markers of content that is gone.
func (p *pruning) rest(ctx context.Context) error {
	var fills []candidate
	var markers []entry
	err := p.d.count(ctx, func(e entry) {
		if p.now.Sub(e.when) < p.Unused {
			return
		}
		if dg, ok := digestAt(fillsDir, e); ok {
			fills = append(fills, candidate{entry: e, digest: dg, fill: true})
		} else if dg, ok := digestOfMarker(e); ok && len(markers) < maxCandidates && (p.d.isOrphan(e) || p.goes(dg)) {
			markers = append(markers, e)
		}
	})
	if err != nil {
		return err
	}
	for _, c := range fills {
		if freed := p.take(c, whyUnused); freed > 0 {
			p.done.Fills++
			p.done.Bytes += freed
		}
	}
	if p.Would != nil {
		for _, e := range markers {
			dg, _ := digestOfMarker(e)
			p.Would(Prunable{dg, "record", e.blocks, e.when, "what it is about is not held"})
			p.done.Records++
			p.done.Bytes += e.blocks
		}
		return ctx.Err()
	}
	n, freed := p.d.removeMarkers(ctx, markers, p.fail)
	p.done.Records += n
	p.done.Bytes += freed
	return ctx.Err()
}

// goes reports that a blob some repository has would have been removed by now, had
// this not been a question alone.
func (p *pruning) goes(dg oci.Digest) bool {
	if p.Would == nil {
		return false
	}
	name := blobName(dg)
	info, err := p.d.root.Lstat(name)
	return err == nil && p.isOld(info.ModTime(), true) &&
		p.d.isEvictable(candidate{entry: entry{dir: path.Dir(name), name: path.Base(name), when: info.ModTime()}, digest: dg})
}

// digestOfMarker is what a marker is about; false for what is none.
func digestOfMarker(e entry) (oci.Digest, bool) {
	if !strings.HasPrefix(e.dir, reposDir+"/") || !strings.Contains(e.dir, "/"+contentDir+"/") {
		return oci.Digest{}, false
	}
	algorithm := path.Base(path.Dir(e.dir))
	dg, err := oci.ParseDigest(algorithm + ":" + e.name)
	return dg, err == nil
}

// isOrphan reports that e is a marker of content that is not held.
func (d *Disk) isOrphan(e entry) bool {
	dg, ok := digestOfMarker(e)
	if !ok {
		return false
	}
	_, err := d.root.Lstat(blobName(dg))
	return isGone(err)
}

// removeMarkers removes markers, and directories that are empty then. Upstream
// is asked again by whoever needs one. fail is told of those that stay.
func (d *Disk) removeMarkers(ctx context.Context, markers []entry, fail func(error)) (removed int, freed int64) {
	for _, e := range markers {
		if ctx.Err() != nil {
			break
		}
		n, err := d.remove(e.path())
		d.forgetMarker(e.path())
		if err != nil {
			fail(present(err))
			continue
		}
		removed++
		freed += n
		d.removeEmpty(e.dir, reposDir)
	}
	return removed, freed
}

// maxRecords is the part of the budget that records may take before the markers
// of content that is gone are removed, oldest first.
const maxRecords = 8

// trimRecords keeps markers, which eviction leaves, from using up the budget.
func (d *Disk) trimRecords(ctx context.Context, records int64) (freed int64) {
	need := records - d.account.budget/maxRecords
	if need <= 0 {
		return 0
	}
	old := &pile{need: need + need/4, most: maxCandidates}
	now := time.Now()
	err := d.count(ctx, func(e entry) {
		if age := now.Sub(e.when).Seconds(); old.wants(age) && d.isOrphan(e) {
			old.add(candidate{entry: e, score: age})
		}
	})
	if err != nil {
		return 0
	}
	var markers []entry
	for _, c := range old.sorted() {
		markers = append(markers, c.entry)
	}
	_, freed = d.removeMarkers(ctx, markers, func(error) {})
	return freed
}
