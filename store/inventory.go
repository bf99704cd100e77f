package store

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"entrepot/oci"
)

// What operators ask about. None of it counts as a use, and none of it is on the
// way of an answer: everything is read from the files.

// Holding is what is held of a repository.
type Holding struct {
	Repository oci.Repository
	Tags       int
	Blobs      int   // held, manifests included
	Bytes      int64 // of them; content that repositories share counts in each
	LastUse    time.Time
	Pinned     bool // some of it
}

// Holdings visits the repositories that are held, in ASCII order, until visit
// returns an error.
func (d *Disk) Holdings(ctx context.Context, visit func(Holding) error) error {
	names, _, err := d.Repositories("", -1)
	if err != nil {
		return err
	}
	pins, err := d.readPins(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		repo, err := oci.ParseRepository(name)
		if err != nil {
			continue
		}
		h := Holding{Repository: repo, Pinned: slices.ContainsFunc(pins, func(p Pin) bool { return p.Repository == repo })}
		tags, err := d.Tags(repo)
		if err != nil {
			return err
		}
		h.Tags = len(tags)
		err = d.eachMarked(ctx, repo, func(dg oci.Digest, _ string) error {
			if info, err := d.root.Lstat(blobName(dg)); err == nil {
				h.Blobs++
				h.Bytes += info.Size()
				h.LastUse = later(h.LastUse, info.ModTime())
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := visit(h); err != nil {
			return err
		}
	}
	return nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b.Truncate(time.Second)
	}
	return a
}

// eachMarked visits the markers of repo.
func (d *Disk) eachMarked(ctx context.Context, repo oci.Repository, visit func(dg oci.Digest, name string) error) error {
	return fs.WalkDir(d.root.FS(), path.Join(repoDir(repo), contentDir), func(name string, e fs.DirEntry, err error) error {
		switch {
		case isGone(err):
			return nil // removed while we walk
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case !e.Type().IsRegular():
			return nil
		}
		if dg, ok := markedDigest(repo, name); ok {
			return visit(dg, name)
		}
		return nil
	})
}

// Image is a tag, or a manifest that was pulled by digest.
type Image struct {
	Repository oci.Repository
	Tag        string // empty for a manifest that no tag leads to
	Digest     oci.Digest
	MediaType  string
	Checked    time.Time // when upstream last confirmed the tag
	Changed    time.Time // when the tag was first seen to name Digest
	LastUse    time.Time // of the manifest; zero if that is not held
	Held       int64     // bytes of everything it leads to that are held
	Pinned     bool
	Platforms  []ImagePlatform // one of an index each, or the image's own; empty where that is not known
}

// ImagePlatform is what an image has for one platform.
type ImagePlatform struct {
	oci.Platform
	Digest oci.Digest
	Size   int64 // bytes of manifest, config and layers; -1 where the manifest is not held
	Held   int64 // of them
}

// Images lists the images of repo: tags in ASCII order, then manifests that no
// tag leads to.
func (d *Disk) Images(ctx context.Context, repo oci.Repository) ([]Image, error) {
	tags, err := d.Tags(repo)
	if err != nil {
		return nil, err
	}
	pins, err := d.readPins(ctx)
	if err != nil {
		return nil, err
	}
	var images []Image
	led := make(map[oci.Digest]bool)
	for _, tag := range tags {
		rec, err := d.Tag(repo, tag)
		if err != nil {
			continue
		}
		im := Image{Repository: repo, Tag: tag, Digest: rec.Digest, MediaType: rec.MediaType, Checked: rec.Checked, Changed: rec.Changed}
		d.describe(ctx, &im, led)
		led[rec.Digest] = true
		images = append(images, im)
	}
	loose, err := d.untagged(ctx, repo, led)
	images = append(images, loose...)
	for i := range images {
		images[i].Pinned = slices.ContainsFunc(pins, func(p Pin) bool { return p.protects(images[i]) })
	}
	return images, cmp.Or(err, ctx.Err())
}

// untagged are the manifests of repo that led does not have: indexes first, so
// that their children are not listed as well.
func (d *Disk) untagged(ctx context.Context, repo oci.Repository, led map[oci.Digest]bool) ([]Image, error) {
	marked, err := d.markedManifests(ctx, repo)
	if err != nil {
		return nil, err
	}
	var images []Image
	children := make(map[oci.Digest]int)
	for _, dg := range marked {
		m, err := d.Marker(repo, dg)
		if err != nil || led[dg] {
			continue
		}
		if _, err := d.root.Lstat(blobName(dg)); err == nil {
			images = append(images, Image{Repository: repo, Digest: dg, MediaType: m.MediaType})
			children[dg] = len(d.links(ctx, dg).Manifests)
		}
	}
	slices.SortFunc(images, func(a, b Image) int {
		return cmp.Or(cmp.Compare(children[b.Digest], children[a.Digest]), strings.Compare(a.Digest.String(), b.Digest.String()))
	})
	kept := images[:0]
	for _, im := range images {
		if !led[im.Digest] {
			d.describe(ctx, &im, led)
			kept = append(kept, im)
		}
	}
	return kept, nil
}

// protects reports whether the pin names the image itself.
func (p Pin) protects(im Image) bool {
	return p.Repository == im.Repository && (p.Reference == im.Tag || p.Reference == im.Digest.String())
}

// describe fills in what the files tell of an image, and notes in led all that
// it leads to.
func (d *Disk) describe(ctx context.Context, im *Image, led map[oci.Digest]bool) {
	if info, err := d.root.Lstat(blobName(im.Digest)); err == nil {
		im.LastUse = info.ModTime().Truncate(time.Second)
	}
	d.eachOf(ctx, im.Digest, func(desc oci.Descriptor) {
		led[desc.Digest] = true
		im.Held += d.heldSize(desc.Digest)
	})
	links := d.links(ctx, im.Digest)
	for _, child := range links.Manifests {
		im.Platforms = append(im.Platforms, d.platform(ctx, child.Digest, child.Platform))
	}
	if links.Config != nil && len(links.Manifests) == 0 {
		im.Platforms = append(im.Platforms, d.platform(ctx, im.Digest, d.configPlatform(ctx, links.Config.Digest)))
	}
}

func (d *Disk) heldSize(dg oci.Digest) int64 {
	info, err := d.root.Lstat(blobName(dg))
	if err != nil {
		return 0
	}
	return info.Size()
}

func (d *Disk) platform(ctx context.Context, manifest oci.Digest, p oci.Platform) ImagePlatform {
	out := ImagePlatform{Platform: p, Digest: manifest, Size: -1, Held: d.heldSize(manifest)}
	links := d.links(ctx, manifest)
	blobs := links.Blobs()
	if len(blobs) > 0 {
		out.Size = out.Held
	}
	for _, b := range blobs {
		out.Size += max(0, b.Size)
		out.Held += d.heldSize(b.Digest)
	}
	return out
}

// configPlatform is what an image's config says that it runs on.
func (d *Disk) configPlatform(ctx context.Context, config oci.Digest) (p oci.Platform) {
	b, err := d.peek(ctx, config, 1<<20)
	if err != nil || json.Unmarshal(b, &p) != nil {
		return oci.Platform{}
	}
	return p
}

// RemoveTag forgets a tag. What it named stays until it is evicted or pruned.
// ErrNotHeld if there is no such tag, ErrPinned if a pin protects it.
func (d *Disk) RemoveTag(ctx context.Context, repo oci.Repository, tag string) error {
	if err := d.spared(ctx, repo, tag); err != nil {
		return fmt.Errorf("remove %s:%s: %w", repo, tag, err)
	}
	return d.dropTag(repo, tag)
}

// CanRemoveTag returns the error that RemoveTag would, and removes nothing.
func (d *Disk) CanRemoveTag(ctx context.Context, repo oci.Repository, tag string) error {
	err := d.spared(ctx, repo, tag)
	if err == nil {
		_, err = d.root.Lstat(tagName(repo, tag))
	}
	if err != nil {
		return fmt.Errorf("remove %s:%s: %w", repo, tag, notHeld(err))
	}
	return nil
}

// spared returns ErrPinned if a tag of repo, or anything of it if tag is empty, is
// pinned by name.
func (d *Disk) spared(ctx context.Context, repo oci.Repository, tag string) error {
	pins, err := d.readPins(ctx)
	if err == nil && slices.ContainsFunc(pins, func(p Pin) bool { return p.Repository == repo && (tag == "" || p.Reference == tag) }) {
		err = ErrPinned
	}
	return err
}

// DropTag forgets a tag that its upstream does not have any more, pinned or not:
// a pin keeps content from eviction, and makes nobody's word last. It is synced,
// so that no crash brings the tag back. ErrNotHeld if there is no such tag.
func (d *Disk) DropTag(repo oci.Repository, tag string) error {
	if err := d.dropTag(repo, tag); err != nil {
		return err
	}
	return d.syncDir(path.Dir(tagName(repo, tag)))
}

func (d *Disk) dropTag(repo oci.Repository, tag string) error {
	name := tagName(repo, tag)
	_, err := d.remove(name)
	d.tags.forget(name)
	if err != nil {
		return fmt.Errorf("remove %s:%s: %w", repo, tag, notHeld(err))
	}
	d.removeEmpty(path.Dir(name), reposDir)
	return nil
}

// LedTo says that a manifest cannot be forgotten by itself: something that its
// repository holds leads to it, and would bring it back.
type LedTo struct{ By string } // a reference

func (e LedTo) Error() string { return e.By + " leads to it: remove that first" }

// RemoveManifest forgets a manifest of repo, and what it alone leads to there.
// Content stays until it is evicted or pruned. ErrNotHeld if repo has no such
// manifest, ErrPinned if a pin protects it, LedTo if a tag or another manifest of
// repo leads to it.
func (d *Disk) RemoveManifest(ctx context.Context, repo oci.Repository, dg oci.Digest) error {
	alone, err := d.removable(ctx, repo, dg)
	if err != nil {
		return err
	}
	delete(alone, dg) // the last one: until then this can be done again
	for _, one := range append(slices.Collect(maps.Keys(alone)), dg) {
		name := markerName(repo, one)
		_, err := d.remove(name)
		d.forgetMarker(name)
		if err = cmp.Or(ctx.Err(), err); err != nil && !isGone(err) {
			return fmt.Errorf("remove %s@%s: %w", repo, dg, err)
		}
		d.removeEmpty(path.Dir(name), reposDir)
	}
	return nil
}

// CanRemoveManifest returns the error that RemoveManifest would, and removes nothing.
func (d *Disk) CanRemoveManifest(ctx context.Context, repo oci.Repository, dg oci.Digest) error {
	_, err := d.removable(ctx, repo, dg)
	return err
}

// removable is a manifest of repo, and what it alone leads to there. Its errors are
// those of RemoveManifest.
func (d *Disk) removable(ctx context.Context, repo oci.Repository, dg oci.Digest) (map[oci.Digest]bool, error) {
	m, err := d.Marker(repo, dg)
	if err == nil && !oci.IsManifestType(m.MediaType) {
		err = fmt.Errorf("it is no manifest: %w", ErrNotHeld)
	}
	alone := make(map[oci.Digest]bool)
	if err == nil {
		d.eachOf(ctx, dg, func(desc oci.Descriptor) { alone[desc.Digest] = true })
		err = d.spareOthers(ctx, repo, dg, alone)
	}
	if err != nil {
		return nil, fmt.Errorf("remove %s@%s: %w", repo, dg, err)
	}
	return alone, nil
}

// spareOthers takes out of alone, which is all that manifest leads to, what else
// in repo leads to.
func (d *Disk) spareOthers(ctx context.Context, repo oci.Repository, manifest oci.Digest, alone map[oci.Digest]bool) (err error) {
	spare := func(root oci.Digest, because error) {
		d.eachOf(ctx, root, func(desc oci.Descriptor) {
			delete(alone, desc.Digest)
			if desc.Digest == manifest {
				err = cmp.Or(err, because)
			}
		})
	}
	pins, err := d.readPins(ctx)
	if err != nil {
		return err
	}
	for _, p := range pins {
		if p.Repository == repo {
			for _, dg := range d.named(repo, p.Reference) {
				spare(dg, ErrPinned)
			}
		}
	}
	tags, terr := d.Tags(repo)
	for _, tag := range tags {
		for _, dg := range d.named(repo, tag) {
			spare(dg, LedTo{repo.String() + ":" + tag})
		}
	}
	marked, merr := d.markedManifests(ctx, repo)
	for _, dg := range marked {
		if !alone[dg] { // or it goes as well, unless another of these leads to it
			spare(dg, LedTo{repo.String() + "@" + dg.String()})
		}
	}
	return cmp.Or(err, terr, merr, ctx.Err())
}

// RemoveRepository forgets a repository: its tags, and that content belongs to
// it. Content stays until it is evicted or pruned; other repositories may have
// it too. ErrNotHeld if there is no such repository, ErrPinned if a pin protects
// some of it.
func (d *Disk) RemoveRepository(ctx context.Context, repo oci.Repository) error {
	if err := d.spared(ctx, repo, ""); err != nil {
		return fmt.Errorf("remove %s: %w", repo, err)
	}
	removed := 0
	for _, part := range []string{tagsDir, contentDir} {
		n, err := d.removeBelow(ctx, path.Join(repoDir(repo), part))
		removed += n
		if err != nil {
			return fmt.Errorf("remove %s: %w", repo, err)
		}
	}
	d.removeEmpty(repoDir(repo), reposDir)
	if removed == 0 {
		return fmt.Errorf("remove %s: %w", repo, ErrNotHeld)
	}
	return nil
}

// CanRemoveRepository returns the error that RemoveRepository would, and removes
// nothing.
func (d *Disk) CanRemoveRepository(ctx context.Context, repo oci.Repository) error {
	err := d.spared(ctx, repo, "")
	held := false
	for _, part := range []string{tagsDir, contentDir} {
		if err == nil && !held {
			held, err = d.hasFileBelow(ctx, path.Join(repoDir(repo), part))
		}
	}
	if err == nil && !held {
		err = ErrNotHeld
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", repo, err)
	}
	return nil
}

func (d *Disk) hasFileBelow(ctx context.Context, dir string) (found bool, err error) {
	err = fs.WalkDir(d.root.FS(), dir, func(_ string, e fs.DirEntry, err error) error {
		switch {
		case isGone(err):
			return nil
		case err != nil:
			return err
		case !e.IsDir():
			found = true
			return fs.SkipAll
		}
		return ctx.Err()
	})
	return found, err
}

// removeBelow removes a directory of records with all that is in it.
func (d *Disk) removeBelow(ctx context.Context, dir string) (removed int, err error) {
	entries, err := d.readDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		name := path.Join(dir, e.Name())
		if e.IsDir() {
			n, err := d.removeBelow(ctx, name)
			removed += n
			if err != nil {
				return removed, err
			}
			continue
		}
		_, err := d.remove(name)
		d.tags.forget(name)
		d.forgetMarker(name)
		if err != nil && !isGone(err) {
			return removed, err
		}
		removed++
	}
	_ = d.rmdir(dir) // unless something was put there meanwhile
	return removed, nil
}

// Usage is what the data directory holds, and for whom.
type Usage struct {
	Held    int64 // allocated bytes of everything
	Budget  int64 // 0 for none
	Disk    int64 // the size of the file system
	Free    int64 // what it has left
	Filling int64 // fills that run now
	Records int64 // tags, markers, pins, state
	Pinned  int64 // blobs that pins protect

	Upstreams []UpstreamUsage // by name; content that nobody is known to have filled has an empty one
}

// UpstreamUsage is what one upstream filled, in allocated bytes.
type UpstreamUsage struct {
	Upstream     string
	Share        float64 // of the budget; 0 for none
	Blobs        int
	BlobBytes    int64
	Fills        int // not finished, idle
	FillBytes    int64
	Tags         int
	Records      int64 // tags and markers
	Repositories int
}

// Usage counts what is held. progress, if not nil, is told of the files seen so
// far, now and then.
func (d *Disk) Usage(ctx context.Context, progress func(files int)) (Usage, error) {
	if progress == nil {
		progress = func(int) {}
	}
	if err := d.findPinned(ctx); err != nil {
		return Usage{}, err
	}
	t := tally{d: d, by: make(map[owner]*UpstreamUsage), progress: progress}
	if err := d.count(ctx, t.see); err != nil {
		return Usage{}, err
	}
	progress(t.files)
	names := d.upstreamNames()
	for o, share := range d.account.shares {
		t.of(o).Share = share
	}
	for _, o := range slices.Collect(maps.Keys(t.by)) {
		if u := t.by[o]; names[o] == "" && o != 0 {
			delete(t.by, o)
			t.of(0).add(*u)
		}
	}
	for o, u := range t.by {
		u.Upstream = names[o]
		t.usage.Upstreams = append(t.usage.Upstreams, *u)
	}
	slices.SortFunc(t.usage.Upstreams, func(a, b UpstreamUsage) int { return strings.Compare(a.Upstream, b.Upstream) })
	d.account.look()
	s := d.Stats()
	t.usage.Held, t.usage.Budget, t.usage.Free = s.Held, s.Budget, s.Free
	t.usage.Disk, t.usage.Filling = d.account.size(), d.account.filling()
	return t.usage, nil
}

func (u *UpstreamUsage) add(o UpstreamUsage) {
	u.Blobs += o.Blobs
	u.BlobBytes += o.BlobBytes
	u.Fills += o.Fills
	u.FillBytes += o.FillBytes
}

// tally adds up what a walk comes by.
type tally struct {
	d        *Disk
	usage    Usage
	by       map[owner]*UpstreamUsage
	files    int
	progress func(int)
	repo     string // whose records were seen last
}

func (t *tally) of(o owner) *UpstreamUsage {
	u := t.by[o]
	if u == nil {
		u = &UpstreamUsage{}
		t.by[o] = u
	}
	return u
}

func (t *tally) see(e entry) {
	if t.files++; t.files%4096 == 0 {
		t.progress(t.files)
	}
	top, rest, _ := strings.Cut(e.dir, "/")
	switch top {
	case blobsDir:
		u := t.of(hintOf(e.when).owner)
		u.Blobs++
		u.BlobBytes += e.blocks
		if dg, ok := digestAt(blobsDir, e); ok && t.d.isPinned(dg) {
			t.usage.Pinned += e.blocks
		}
	case fillsDir:
		u := t.of(hintOf(e.when).owner)
		u.FillBytes += e.blocks
		if !strings.HasSuffix(e.name, spansSuffix) {
			u.Fills++
		}
	case reposDir:
		t.record(e, rest)
	default:
		t.usage.Records += e.blocks
	}
}

func (t *tally) record(e entry, below string) {
	t.usage.Records += e.blocks
	host, _, _ := strings.Cut(below, "/")
	u := t.of(ownerOf(host))
	u.Records += e.blocks
	if path.Base(e.dir) == tagsDir {
		u.Tags++
	}
	repo, _, _ := strings.Cut(below, "/_")
	if repo != t.repo { // records of one repository follow each other
		t.repo = repo
		u.Repositories++
	}
}
