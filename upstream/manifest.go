package upstream

import (
	"context"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"entrepot/oci"
	"entrepot/ratelimit"
)

// Resolve asks by HEAD, which Docker Hub does not count, and by GET only where
// HEAD is refused as a method (405, 501) or brings no usable digest. Size is -1
// and MediaType empty where a HEAD left them out. A digest in place of the tag
// asks whether the repository has that manifest.
func (c *Client) Resolve(ctx context.Context, repo oci.Repository, tag string, ask oci.Ask) (oci.Resolved, oci.Outcome, error) {
	q := &question{repo: repo, ask: ask}
	resolved, err := inOrder(ctx, c, q, ratelimit.Check, func(ctx context.Context, q *question, s *site) (oci.Resolved, error) { return s.resolve(ctx, q, tag) })
	if err != nil {
		return oci.Resolved{}, q.failed(), fmt.Errorf("resolve %s:%s: %w", repo, tag, err)
	}
	out := q.outcome()
	if ask.Held && resolved.Manifest == nil {
		out.Withheld, out.Reserved = c.withheld(ctx, q)
	}
	return resolved, out, nil
}

// Manifest gets a manifest by its digest.
func (c *Client) Manifest(ctx context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Manifest, oci.Outcome, error) {
	q := &question{repo: repo, ask: ask}
	ref := oci.Request{Kind: oci.ManifestKind, Name: repo.Path, Digest: d}
	m, err := inOrder(ctx, c, q, ratelimit.Pull, func(ctx context.Context, q *question, s *site) (oci.Manifest, error) {
		return s.getManifest(ctx, q, ref)
	})
	if err != nil {
		return oci.Manifest{}, q.failed(), fmt.Errorf("manifest %s@%s: %w", repo, d, err)
	}
	return m, q.outcome(), nil
}

func (s *site) resolve(ctx context.Context, q *question, tag string) (oci.Resolved, error) {
	ref, err := reference(q.repo, tag)
	if err != nil {
		return oci.Resolved{}, err
	}
	a, err := s.follow(ctx, q, s.manifestRequest(ref, http.MethodHead))
	if err != nil {
		return oci.Resolved{}, err
	}
	q.why = "HEAD brought no digest"
	switch a.status {
	case http.StatusOK:
		if err := checkDigest(a, ref.Digest); err != nil {
			return oci.Resolved{}, err
		}
		if d, ok := headDigest(a, ref); ok {
			q.why = ""
			return oci.Resolved{Descriptor: oci.Descriptor{MediaType: manifestType(a.header), Digest: d, Size: headSize(a)}}, nil
		}
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		q.why = "HEAD is not answered"
	default:
		return oci.Resolved{}, s.refusal(a, oci.ManifestUnknown)
	}
	m, err := s.getManifest(ctx, q, ref)
	if err != nil {
		return oci.Resolved{}, err
	}
	return oci.Resolved{Descriptor: m.Descriptor, Manifest: &m}, nil
}

// reference is the request for a tag or a digest.
func reference(repo oci.Repository, s string) (oci.Request, error) {
	ref := oci.Request{Kind: oci.ManifestKind, Name: repo.Path}
	if oci.ValidTag(s) {
		ref.Tag = s
		return ref, nil
	}
	d, err := oci.ParseDigest(s)
	if err != nil {
		return oci.Request{}, oci.Errorf(oci.ManifestUnknown, "%.140q is neither a tag nor a digest", s)
	}
	ref.Digest = d
	return ref, nil
}

// headDigest is the digest of what a HEAD was answered for: the one asked for,
// or else the one that the answer names.
func headDigest(a *answer, ref oci.Request) (oci.Digest, bool) {
	if !ref.Digest.IsZero() {
		return ref.Digest, true
	}
	d, err := oci.ParseDigest(a.header.Get("Docker-Content-Digest"))
	return d, err == nil
}

func (s *site) manifestRequest(ref oci.Request, method string) request {
	r := request{kind: ManifestKind, class: ratelimit.Pull, method: method, url: s.url(ref), accept: strings.Join(oci.ManifestAccept, ", ")}
	if method == http.MethodHead {
		r.class = ratelimit.Check
	}
	return r
}

// headSize is the size that a HEAD tells. No manifest is empty: some servers
// write a length of nothing beside the body that HEAD leaves out.
func headSize(a *answer) int64 {
	if a.length <= 0 {
		return -1
	}
	return a.length
}

// manifestType is the media type of a HEAD's answer, empty where it says
// nothing about a manifest.
func manifestType(h http.Header) string {
	mediaType, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	switch {
	case err != nil, strings.HasPrefix(mediaType, "text/"), mediaType == "application/json", mediaType == "application/octet-stream":
		return ""
	}
	return mediaType
}

// getManifest reads a manifest by tag or digest and checks that it is what was
// asked for, and what its own header says.
func (s *site) getManifest(ctx context.Context, q *question, ref oci.Request) (oci.Manifest, error) {
	a, err := s.follow(ctx, q, s.manifestRequest(ref, http.MethodGet))
	if err != nil {
		return oci.Manifest{}, err
	}
	defer a.close()
	if a.status != http.StatusOK {
		return oci.Manifest{}, s.refusal(a, oci.ManifestUnknown)
	}
	m, err := s.readManifest(a, ref)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: %w", oci.ErrSpoilt, err)
	}
	return m, err
}

// readManifest reads the one that an answer gives.
func (s *site) readManifest(a *answer, ref oci.Request) (oci.Manifest, error) {
	if err := checkDigest(a, ref.Digest); err != nil {
		return oci.Manifest{}, err
	}
	content, err := readAll(a, s.cfg.MaxManifest, "manifest")
	if err != nil {
		return oci.Manifest{}, err
	}
	want := ref.Digest
	if want.IsZero() {
		// Upstream's own word, where it is one, decides the algorithm too.
		want, _ = oci.ParseDigest(a.header.Get("Docker-Content-Digest"))
	}
	m, err := oci.NewManifest(content, a.header.Get("Content-Type"), want)
	if err != nil && !want.IsZero() && want.Verify(content) != nil {
		return oci.Manifest{}, fmt.Errorf("%w: %w", errLied, err)
	}
	return m, err
}

// checkDigest refuses an answer that names itself otherwise than it was asked
// for. A header that is malformed, or of another algorithm, says nothing.
func checkDigest(a *answer, want oci.Digest) error {
	got, err := oci.ParseDigest(a.header.Get("Docker-Content-Digest"))
	if err != nil || want.IsZero() || got.Algorithm() != want.Algorithm() || got == want {
		return nil
	}
	return oci.Errorf(oci.BadUpstream, "%s answered with %s instead of %s", a.url.Host, got, want)
}

// readAll reads a body of at most limit bytes.
func readAll(a *answer, limit int64, what string) ([]byte, error) {
	tooLarge := func() error {
		return oci.Errorf(oci.BadUpstream, "%s sent a %s of more than %d bytes", a.url.Host, what, limit)
	}
	if a.length > limit {
		return nil, tooLarge()
	}
	content, err := io.ReadAll(io.LimitReader(a.body, limit+1))
	switch {
	case err != nil:
		return nil, brokenAnswer(a.url.Host, err)
	case int64(len(content)) > limit:
		return nil, tooLarge()
	}
	return content, nil
}
