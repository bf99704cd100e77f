package proxy

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"entrepot/oci"
)

// registry is a small true Source in memory. Its function fields are faults.
type registry struct {
	repos map[oci.Repository]*contents

	outcome     oci.Outcome                                      // of every answer
	before      func(ctx context.Context, method string) error   // runs first in every call
	hint        func(size int64) int64                           // what Blob.Descriptor says
	statSize    func(size int64) int64                           // what Blob.Stat says
	readerSize  func(size int64) int64                           // what Reader.Size says
	reader      func(ctx context.Context, r *stretch) oci.Reader // stands between
	resolved    func(oci.Resolved) oci.Resolved                  // what Resolve says
	listTags    func(page oci.Page) (oci.TagList, error)         // instead of Tags
	manifestAs  func(oci.Manifest) oci.Manifest                  // what Manifest says
	noRanges    bool                                             // every reader starts at 0 and goes to the end
	refuseRange func(offset, length int64) bool                  // Open says RangeInvalid
	opened      func(offset, length int64)                       // is told of every Open
	mu          sync.Mutex                                       // guards calls
	calls       []string                                         // "Resolve docker.io/library/hello latest"
}

type contents struct {
	tags      map[string]oci.Digest
	manifests map[oci.Digest]oci.Manifest
	blobs     map[oci.Digest][]byte
	referrers map[oci.Digest][]oci.Referrer
}

func newRegistry() *registry {
	return &registry{repos: map[oci.Repository]*contents{}, outcome: oci.Outcome{Cache: oci.Hit}}
}

func (g *registry) repo(name string) *contents {
	r, err := oci.ParseRepository(name)
	if err != nil {
		panic(err)
	}
	c := g.repos[r]
	if c == nil {
		c = &contents{map[string]oci.Digest{}, map[oci.Digest]oci.Manifest{}, map[oci.Digest][]byte{}, map[oci.Digest][]oci.Referrer{}}
		g.repos[r] = c
	}
	return c
}

func (c *contents) addBlob(b []byte) oci.Digest {
	d := oci.Sum(b)
	c.blobs[d] = b
	return d
}

func (c *contents) addManifest(mediaType string, content []byte, tags ...string) oci.Digest {
	d := oci.Sum(content)
	c.manifests[d] = oci.Manifest{Descriptor: oci.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}, Content: content}
	for _, t := range tags {
		c.tags[t] = d
	}
	return d
}

func (c *contents) addReferrer(subject oci.Digest, raw string) {
	var r oci.Referrer
	if err := json.Unmarshal([]byte(raw), &r); err != nil {
		panic(err)
	}
	c.referrers[subject] = append(c.referrers[subject], r)
}

func (g *registry) enter(ctx context.Context, method string, args ...any) error {
	g.mu.Lock()
	g.calls = append(g.calls, strings.TrimSpace(method+" "+fmt.Sprintln(args...)))
	g.mu.Unlock()
	if g.before != nil {
		return g.before(ctx, method)
	}
	return ctx.Err()
}

// took returns the calls since the last time.
func (g *registry) took() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	calls := g.calls
	g.calls = nil
	return calls
}

func (g *registry) Resolve(ctx context.Context, repo oci.Repository, tag string, ask oci.Ask) (oci.Resolved, oci.Outcome, error) {
	if err := g.enter(ctx, "Resolve", repo, tag, note(ask.Refresh, "refresh")); err != nil {
		return oci.Resolved{}, g.outcome, err
	}
	c, ok := g.repos[repo]
	if !ok {
		return oci.Resolved{}, g.outcome, oci.ErrNameUnknown
	}
	d, ok := c.tags[tag]
	if digest, err := oci.ParseDigest(tag); err == nil {
		d, ok = digest, c.manifests[digest].Content != nil
	}
	if !ok {
		return oci.Resolved{}, g.outcome, oci.ErrManifestUnknown
	}
	r := oci.Resolved{Descriptor: c.manifests[d].Descriptor}
	if g.resolved != nil {
		r = g.resolved(r)
	}
	return r, g.outcome, nil
}

func note(set bool, word string) string {
	if set {
		return word
	}
	return ""
}

func (g *registry) Manifest(ctx context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Manifest, oci.Outcome, error) {
	if err := g.enter(ctx, "Manifest", repo, d, note(ask.Refresh, "refresh")); err != nil {
		return oci.Manifest{}, g.outcome, err
	}
	c, ok := g.repos[repo]
	if !ok {
		return oci.Manifest{}, g.outcome, oci.ErrNameUnknown
	}
	m, ok := c.manifests[d]
	if !ok {
		return oci.Manifest{}, g.outcome, oci.ErrManifestUnknown
	}
	if g.manifestAs != nil {
		m = g.manifestAs(m)
	}
	return m, g.outcome, nil
}

func (g *registry) Blob(ctx context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Blob, error) {
	if err := g.enter(ctx, "Blob", repo, d, note(ask.Ranged, "ranged")); err != nil {
		return nil, err
	}
	c, ok := g.repos[repo]
	if !ok {
		return nil, oci.ErrNameUnknown
	}
	content, ok := c.blobs[d]
	if !ok {
		return nil, oci.ErrBlobUnknown
	}
	return &blob{g, d, content}, nil
}

type blob struct {
	g       *registry
	d       oci.Digest
	content []byte
}

func (b *blob) size(as func(int64) int64) int64 {
	n := int64(len(b.content))
	if as != nil {
		n = as(n)
	}
	return n
}

func (b *blob) Descriptor() oci.Descriptor {
	return oci.Descriptor{Digest: b.d, Size: b.size(b.g.hint)}
}

func (b *blob) Stat(ctx context.Context) (oci.Descriptor, oci.Outcome, error) {
	if err := b.g.enter(ctx, "Stat"); err != nil {
		return oci.Descriptor{}, b.g.outcome, err
	}
	return oci.Descriptor{Digest: b.d, Size: b.size(b.g.statSize)}, b.g.outcome, nil
}

func (b *blob) Open(ctx context.Context, offset, length int64) (oci.Reader, error) {
	if err := b.g.enter(ctx, "Open", offset, length); err != nil {
		return nil, err
	}
	if b.g.opened != nil {
		b.g.opened(offset, length)
	}
	size := int64(len(b.content))
	if offset > size || b.g.refuseRange != nil && b.g.refuseRange(offset, length) {
		return nil, oci.ErrRangeInvalid
	}
	end := size
	if length >= 0 {
		end = min(size, offset+length)
	}
	if b.g.noRanges {
		offset, end = 0, size
	}
	r := &stretch{Reader: bytes.NewReader(b.content[offset:end]), b: b, offset: offset}
	if b.g.reader != nil {
		return b.g.reader(ctx, r), nil
	}
	return r, nil
}

// stretch hides bytes.Reader's WriterTo: the plain way is the harder one.
type stretch struct {
	io.Reader
	b      *blob
	offset int64
}

func (r *stretch) Read(p []byte) (int, error) { return r.Reader.Read(p) }
func (r *stretch) Close() error               { return nil }
func (r *stretch) Offset() int64              { return r.offset }
func (r *stretch) Size() int64                { return r.b.size(r.b.g.readerSize) }
func (r *stretch) Outcome() oci.Outcome       { return r.b.g.outcome }

func (g *registry) Tags(ctx context.Context, repo oci.Repository, page oci.Page, _ oci.Ask) (oci.TagList, oci.Outcome, error) {
	if err := g.enter(ctx, "Tags", repo, page.N, page.Last); err != nil {
		return oci.TagList{}, g.outcome, err
	}
	if g.listTags != nil {
		list, err := g.listTags(page)
		return list, g.outcome, err
	}
	c, ok := g.repos[repo]
	if !ok {
		return oci.TagList{}, g.outcome, oci.ErrNameUnknown
	}
	names, more := pageOf(c.tags, func(s string) string { return s }, page)
	return oci.TagList{Tags: names, More: more}, g.outcome, nil
}

func (g *registry) Repositories(ctx context.Context, page oci.Page) ([]string, bool, error) {
	if err := g.enter(ctx, "Repositories", page.N, page.Last); err != nil {
		return nil, false, err
	}
	names, more := pageOf(g.repos, oci.Repository.String, page)
	return names, more, nil
}

func pageOf[K comparable, V any](m map[K]V, name func(K) string, page oci.Page) (names []string, more bool) {
	for k := range m {
		if s := name(k); s > page.Last {
			names = append(names, s)
		}
	}
	slices.SortFunc(names, cmp.Compare[string])
	if page.N >= 0 && len(names) > page.N {
		return names[:page.N], true
	}
	return names, false
}

func (g *registry) Referrers(ctx context.Context, repo oci.Repository, d oci.Digest, artifactType string, _ oci.Ask) (oci.ReferrerList, oci.Outcome, error) {
	if err := g.enter(ctx, "Referrers", repo, d, artifactType); err != nil {
		return oci.ReferrerList{}, g.outcome, err
	}
	c, ok := g.repos[repo]
	if !ok {
		return oci.ReferrerList{}, g.outcome, oci.ErrNameUnknown
	}
	var list oci.ReferrerList
	for _, r := range c.referrers[d] {
		if artifactType == "" || r.ArtifactType == artifactType {
			list.Manifests = append(list.Manifests, r)
		}
	}
	return list, g.outcome, nil
}

// The content that most tests ask for.
const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	helloBlob    = "0123456789"
	helloConfig  = `{"architecture":"amd64"}`
)

var helloManifest = []byte(`{"schemaVersion":2,"mediaType":"` + manifestType + `","config":{"mediaType":"x","digest":"` + oci.Sum([]byte(helloConfig)).String() + `","size":24},"layers":[]}`)

func helloRegistry(testing.TB) *registry {
	g := newRegistry()
	c := g.repo("docker.io/library/hello")
	c.addManifest(manifestType, helloManifest, "latest", "v1", "v2")
	c.addBlob([]byte(helloBlob))
	c.addBlob([]byte(helloConfig))
	c.addBlob(nil)
	return g
}
