// Package warm fetches images before anybody asks for them: at once, or as a
// list that is kept fresh. It knows an oci.Source and nothing else: where that
// is the cache, whatever was read through it is held.
//
// Start with read, which finds out what an image consists of, then Puller.Pull,
// which reads all of that, and List, which does so again and again.
package warm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"entrepot/oci"
)

// Image is what is to be fetched.
type Image struct {
	Repository oci.Repository
	Reference  string // a tag or a digest
}

// ParseImage reads a person's "[registry/]name[:tag][@digest]" by the rules that
// hold for clients. A digest counts before a tag.
func ParseImage(names *oci.Names, s string) (Image, error) {
	repo, tag, d, err := names.Reference(s)
	if !d.IsZero() {
		tag = d.String()
	}
	return Image{repo, tag}, err
}

func (i Image) String() string {
	if i.isDigest() {
		return i.Repository.String() + "@" + i.Reference
	}
	return i.Repository.String() + ":" + i.Reference
}

// isDigest: no tag has a colon.
func (i Image) isDigest() bool { return strings.Contains(i.Reference, ":") }

// client is who spends what is spent here, for the accounts.
const client = "warm"

// ask is how everything here is asked.
func ask(refresh bool) oci.Ask {
	return oci.Ask{Refresh: refresh, Background: true, Client: client}
}

// plan is what an image consists of.
type plan struct {
	root      oci.Digest
	manifests []oci.Descriptor // each behind those that it leads to
	blobs     []blob           // each once
	fetched   int64            // bytes of the manifests that were not held
	config    *oci.Descriptor  // of a root that is no index
	platforms []oci.Platform   // that indexes have of those that are wanted
}

// blob is a config or a layer.
type blob struct {
	oci.Descriptor
	foreign bool // it may be had elsewhere, and there alone
}

// The bounds of what one image may lead to. Indexes have some dozens of children,
// and hold no other indexes as a rule; images have at most 127 layers.
const (
	maxManifests = 512
	maxDepth     = 3
	maxBlobs     = 10_000
)

// reading is a plan in the making.
type reading struct {
	plan
	source oci.Source
	repo   oci.Repository
	want   Platforms
	seen   map[oci.Digest]bool
	get    func(func() error) error // tries again what may pass
	held   func(oci.Digest) bool    // set: nothing else is read
}

// errNotHeld ends the reading of what is held.
var errNotHeld = errors.New("it is not held")

// read finds out what the manifest root leads to, by the platforms that are
// wanted.
func read(ctx context.Context, source oci.Source, repo oci.Repository, root oci.Digest, want Platforms, get func(func() error) error) (*plan, error) {
	return (&reading{source: source, repo: repo, want: want, get: get}).read(ctx, root)
}

// read begins at root.
func (r *reading) read(ctx context.Context, root oci.Digest) (*plan, error) {
	r.root, r.seen = root, map[oci.Digest]bool{}
	if err := r.visit(ctx, root, 0); err != nil {
		return nil, err
	}
	return &r.plan, nil
}

// look finds out what of an image is held, without asking anybody else: errNotHeld if
// that is not all, but for so many layers that are had elsewhere.
func look(ctx context.Context, source oci.Source, repo oci.Repository, root oci.Digest, want Platforms, held func(oci.Digest) bool, elsewhere int) (Result, error) {
	once := func(get func() error) error { return get() }
	r := &reading{source: source, repo: repo, want: want, get: once, held: held}
	p, err := r.read(ctx, root)
	if err != nil {
		return Result{}, err
	}
	res, missing := p.result(), false
	for _, b := range p.blobs {
		res.Bytes += hint(b.Size)
		missing = missing || !b.foreign && !held(b.Digest)
	}
	res.without(func(b blob) bool { return !held(b.Digest) }, p)
	if missing || res.Skipped > elsewhere {
		return Result{}, errNotHeld
	}
	res.whole, res.Absent = true, want.absent(r.found(ctx, source, repo))
	return res, nil
}

// maxConfig bounds what is read of an image's config.
const maxConfig = 4 << 20

// found are the platforms of what was read, those of an index by its word, else by that
// of the config, which is held by now; none if that does not say.
func (p *plan) found(ctx context.Context, source oci.Source, repo oci.Repository) []oci.Platform {
	if p.config == nil {
		return p.platforms
	}
	var says struct{ OS, Architecture, Variant string }
	b, err := source.Blob(ctx, repo, p.config.Digest, ask(false))
	if err != nil {
		return nil
	}
	content, err := b.Open(ctx, 0, -1)
	if err != nil {
		return nil
	}
	defer content.Close()
	if json.NewDecoder(io.LimitReader(content, maxConfig)).Decode(&says) != nil || says.OS == "" || says.Architecture == "" {
		return nil
	}
	return []oci.Platform{{OS: says.OS, Architecture: says.Architecture, Variant: says.Variant}}
}

func (r *reading) visit(ctx context.Context, d oci.Digest, depth int) error {
	switch {
	case r.seen[d]:
		return nil
	case depth > maxDepth, len(r.manifests) >= maxManifests:
		return oci.Errorf(oci.ManifestInvalid, "the index leads to more than %d manifests, or deeper than %d", maxManifests, maxDepth)
	}
	r.seen[d] = true
	m, err := r.manifest(ctx, d)
	if err != nil {
		return err
	}
	links, err := oci.ParseLinks(m.Content)
	if err != nil {
		return err
	}
	children, err := r.children(links)
	if err != nil {
		return err
	}
	if depth == 0 && len(children) == 0 {
		r.config = links.Config
	}
	for _, child := range children {
		if err := r.visit(ctx, child.Digest, depth+1); err != nil {
			return err
		}
	}
	r.manifests = append(r.manifests, m.Descriptor)
	return r.addBlobs(links)
}

func (r *reading) manifest(ctx context.Context, d oci.Digest) (m oci.Manifest, err error) {
	if r.held != nil && !r.held(d) {
		return m, errNotHeld
	}
	err = r.get(func() error {
		var out oci.Outcome
		m, out, err = r.source.Manifest(ctx, r.repo, d, ask(false))
		if err == nil && out.Cache != oci.Hit {
			r.fetched += m.Size
		}
		return err
	})
	return m, err
}

// children are those of an index that are wanted. An index with nothing for any
// platform that is wanted is a mistake of who wants them.
func (r *reading) children(links *oci.Links) (wanted []oci.Child, err error) {
	var others []string
	for _, child := range links.Manifests {
		if r.want.want(child.Platform) {
			wanted = append(wanted, child)
			r.platforms = append(r.platforms, child.Platform)
		} else if name := strings.Trim(fmt.Sprintf("%.40s/%.40s/%.40s", child.Platform.OS, child.Platform.Architecture, child.Platform.Variant), "/"); !slices.Contains(others, name) && len(others) < 20 {
			others = append(others, name)
		}
	}
	if len(wanted) == 0 && len(others) > 0 {
		return nil, oci.Errorf(oci.ManifestUnknown, "%s has nothing for %s, but for %s", r.repo, r.want, strings.Join(others, ", "))
	}
	return wanted, nil
}

func (r *reading) addBlobs(links *oci.Links) error {
	add := func(b blob) {
		if !r.seen[b.Digest] {
			r.seen[b.Digest] = true
			r.blobs = append(r.blobs, b)
		}
	}
	if links.Config != nil {
		add(blob{*links.Config, false})
	}
	for _, l := range links.Layers {
		add(blob{l.Descriptor, len(l.URLs) > 0})
	}
	if len(r.blobs) > maxBlobs {
		return oci.Errorf(oci.ManifestInvalid, "it leads to more than %d blobs", maxBlobs)
	}
	return nil
}
