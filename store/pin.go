package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"entrepot/oci"
)

// ErrPinned says that something is protected by a pin: unpin it first.
var ErrPinned = errors.New("pinned")

// Pin is an image that eviction must leave alone: the manifest that a tag or a
// digest names, and all that it leads to as far as manifests are held. A pinned
// tag protects what it names now, and what it will name later instead: until that
// is whole, both.
type Pin struct {
	Repository oci.Repository
	Reference  string // a tag or a digest
	Since      time.Time
	Digest     oci.Digest // zero while nothing is known by that name
	Held       int64      // bytes of it that are held
	Missing    int        // digests of it that are not
}

// pinFile is what a pin's file says. The file's place says the same, so that one
// that somebody made by hand may be empty.
type pinFile struct {
	Repository string    `json:"repository"`
	Reference  string    `json:"reference"`
	Since      time.Time `json:"since"`
}

// maxImage bounds how many digests one image can lead to: hostile manifests must
// not fill our memory, or protect everything.
const maxImage = 10_000

func pinName(repo oci.Repository, reference string) string {
	base := path.Join(pinsDir, repo.Host, repo.Path)
	if dg, err := oci.ParseDigest(reference); err == nil {
		return path.Join(base, contentDir, dg.Algorithm(), dg.Hex())
	}
	return path.Join(base, tagsDir, reference)
}

// parsePin reads a pin from its place below pins/ and what is in its file.
// A file that makes no sense still protects what its place names.
func parsePin(name string, b []byte) (Pin, error) {
	rest, ok := strings.CutPrefix(name, pinsDir+"/")
	if !ok {
		return Pin{}, fmt.Errorf("%s is not below %s", name, pinsDir)
	}
	where, reference, ok := strings.Cut(rest, "/"+tagsDir+"/")
	if !ok {
		if where, reference, ok = strings.Cut(rest, "/"+contentDir+"/"); !ok {
			return Pin{}, fmt.Errorf("%s names neither a tag nor a digest", name)
		}
		reference = strings.Replace(reference, "/", ":", 1)
	}
	var file pinFile
	if json.Unmarshal(b, &file) == nil && strings.EqualFold(file.Repository+" "+file.Reference, where+" "+reference) {
		where, reference = file.Repository, file.Reference // as they were before a file system folded case
	}
	repo, err := oci.ParseRepository(where)
	if err != nil {
		return Pin{}, err
	}
	if _, err := oci.ParseDigest(reference); err != nil && !oci.ValidTag(reference) {
		return Pin{}, fmt.Errorf("%q is neither a tag nor a digest", reference)
	}
	return Pin{Repository: repo, Reference: reference, Since: file.Since}, nil
}

// Pin protects what a tag or digest of repo names, now and later. It need not be
// held yet.
func (d *Disk) Pin(ctx context.Context, repo oci.Repository, reference string) error {
	if _, err := oci.ParseDigest(reference); err != nil && !oci.ValidTag(reference) {
		return fmt.Errorf("pin %s: %q is neither a tag nor a digest", repo, reference)
	}
	b, err := json.Marshal(pinFile{repo.String(), reference, time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return err
	}
	if err := d.writeFile(pinName(repo, reference), b, written{mode: 0o644, sync: true}); err != nil {
		return fmt.Errorf("pin %s %s: %w", repo, reference, err)
	}
	return d.findPinned(ctx)
}

// Unpin takes a pin away; ErrNotHeld if there is none.
func (d *Disk) Unpin(ctx context.Context, repo oci.Repository, reference string) error {
	if _, err := d.remove(pinName(repo, reference)); err != nil {
		return fmt.Errorf("unpin %s %s: no such pin: %w", repo, reference, notHeld(err))
	}
	d.removeEmpty(path.Dir(pinName(repo, reference)), pinsDir)
	return d.findPinned(ctx)
}

// Pins lists the pins, by repository and reference, and how much of what they
// protect is held.
func (d *Disk) Pins(ctx context.Context) ([]Pin, error) {
	pins, err := d.readPins(ctx)
	if err != nil {
		return nil, err
	}
	for i := range pins {
		p := &pins[i]
		named := d.named(p.Repository, p.Reference)
		if len(named) == 0 {
			continue
		}
		p.Digest = named[0]
		d.eachOf(ctx, p.Digest, func(desc oci.Descriptor) {
			if info, err := d.root.Lstat(blobName(desc.Digest)); err == nil {
				p.Held += allocated(info)
			} else {
				p.Missing++
			}
		})
	}
	slices.SortFunc(pins, func(a, b Pin) int {
		return cmp.Or(strings.Compare(a.Repository.String(), b.Repository.String()), strings.Compare(a.Reference, b.Reference))
	})
	return pins, ctx.Err()
}

// readPins finds the pins. What is not one is passed over; a directory that
// cannot be read is an error, since nobody may take its pins for gone.
func (d *Disk) readPins(ctx context.Context) (pins []Pin, err error) {
	err = fs.WalkDir(d.root.FS(), pinsDir, func(name string, e fs.DirEntry, err error) error {
		switch {
		case isGone(err):
			return nil // removed while we walk
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case !e.Type().IsRegular() || strings.HasPrefix(e.Name(), "."):
			return nil
		}
		b, err := d.readFile(name, maxRecord)
		if isGone(err) {
			return nil
		}
		if p, err := parsePin(name, b); err == nil {
			pins = append(pins, p)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read pins: %w", err)
	}
	return pins, nil
}

// named are the manifests that a reference of repo may stand for, what it names now
// first; none if we do not know.
func (d *Disk) named(repo oci.Repository, reference string) []oci.Digest {
	if dg, err := oci.ParseDigest(reference); err == nil {
		return []oci.Digest{dg}
	}
	rec, err := d.Tag(repo, reference)
	if err != nil {
		return nil
	}
	return rec.images()
}

// findPinned works out which digests the pins protect.
func (d *Disk) findPinned(ctx context.Context) error {
	d.pinning.Lock()
	defer d.pinning.Unlock()
	pins, err := d.readPins(ctx)
	if err != nil {
		return err
	}
	pinned := make(map[uint64]bool)
	for _, p := range pins {
		for _, dg := range d.named(p.Repository, p.Reference) {
			d.eachOf(ctx, dg, func(desc oci.Descriptor) { pinned[brief(desc.Digest)] = true })
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	d.pinned.Store(&pinned)
	d.inUse.settle() // an eviction that looked at the set before us
	return nil
}

func (d *Disk) isPinned(dg oci.Digest) bool {
	pinned := d.pinned.Load()
	return pinned != nil && (*pinned)[brief(dg)]
}

// brief is the start of a digest: enough for a set whose worst mistake is to
// protect a blob too many.
func brief(dg oci.Digest) uint64 {
	n, _ := strconv.ParseUint(dg.Hex()[:16], 16, 64)
	return n
}

// eachOf tells visit of a manifest and of all that it leads to, each once: the
// children of an index, configs and layers. What it cannot read leads nowhere.
func (d *Disk) eachOf(ctx context.Context, root oci.Digest, visit func(oci.Descriptor)) {
	seen := map[oci.Digest]bool{root: true}
	todo := []oci.Descriptor{{Digest: root, Size: -1}}
	once := func(desc oci.Descriptor, manifest bool) {
		if seen[desc.Digest] || len(seen) >= maxImage {
			return
		}
		seen[desc.Digest] = true
		if manifest {
			todo = append(todo, desc)
		} else {
			visit(desc)
		}
	}
	for len(todo) > 0 && ctx.Err() == nil {
		desc := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		visit(desc)
		links := d.links(ctx, desc.Digest)
		for _, b := range links.Blobs() {
			once(b, false)
		}
		for _, child := range links.Manifests {
			once(child.Descriptor, true)
		}
	}
}

// Links are what a held manifest leads to; nothing if it is not held, or none.
func (d *Disk) Links(ctx context.Context, dg oci.Digest) *oci.Links { return d.links(ctx, dg) }

// links are what a held manifest leads to; nothing if it is not held, or none.
// Looking is not using: no file time changes.
func (d *Disk) links(ctx context.Context, dg oci.Digest) *oci.Links {
	b, err := d.peek(ctx, dg, oci.MaxManifest)
	if err != nil {
		return &oci.Links{}
	}
	links, err := oci.ParseLinks(b)
	if err != nil {
		return &oci.Links{}
	}
	return links
}

// peek reads content as Read does, but leaves no trace of a use.
func (d *Disk) peek(ctx context.Context, dg oci.Digest, limit int64) ([]byte, error) {
	if e := d.memory.get(dg); e != nil {
		return e.content, nil
	}
	f, info, err := d.openFile(dg)
	if err != nil {
		return nil, err
	}
	defer f.done()
	if !info.Mode().IsRegular() || info.Size() > limit || ctx.Err() != nil {
		return nil, cmp.Or(ctx.Err(), ErrNotHeld)
	}
	b := make([]byte, info.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("read %s: %w", dg, err)
	}
	if err := dg.Verify(b); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotHeld, err)
	}
	return b, nil
}
