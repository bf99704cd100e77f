package trace

import (
	"context"

	"entrepot/oci"
)

// Source is src with a span for each question of a request that is traced. A
// blob's ends when its first byte is there; what comes after is the request's.
func Source(src oci.Source) oci.Source { return &source{src} }

type source struct{ oci.Source }

func (s *source) Resolve(ctx context.Context, repo oci.Repository, reference string, ask oci.Ask) (oci.Resolved, oci.Outcome, error) {
	ctx, span := begin(ctx, "resolve", repo, reference)
	res, out, err := s.Source.Resolve(ctx, repo, reference, ask)
	end(span, out, err)
	return res, out, err
}

func (s *source) Manifest(ctx context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Manifest, oci.Outcome, error) {
	ctx, span := begin(ctx, "manifest", repo, d.String())
	m, out, err := s.Source.Manifest(ctx, repo, d, ask)
	end(span, out, err)
	return m, out, err
}

func (s *source) Tags(ctx context.Context, repo oci.Repository, page oci.Page, ask oci.Ask) (oci.TagList, oci.Outcome, error) {
	ctx, span := begin(ctx, "tags", repo, "")
	list, out, err := s.Source.Tags(ctx, repo, page, ask)
	end(span, out, err)
	return list, out, err
}

func (s *source) Referrers(ctx context.Context, repo oci.Repository, d oci.Digest, artifactType string, ask oci.Ask) (oci.ReferrerList, oci.Outcome, error) {
	ctx, span := begin(ctx, "referrers", repo, d.String())
	list, out, err := s.Source.Referrers(ctx, repo, d, artifactType, ask)
	end(span, out, err)
	return list, out, err
}

func (s *source) Blob(ctx context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Blob, error) {
	b, err := s.Source.Blob(ctx, repo, d, ask)
	if err != nil {
		return nil, err
	}
	return &blob{b, repo, d}, nil
}

type blob struct {
	oci.Blob
	repo   oci.Repository
	digest oci.Digest
}

func (b *blob) Stat(ctx context.Context) (oci.Descriptor, oci.Outcome, error) {
	ctx, span := begin(ctx, "stat blob", b.repo, b.digest.String())
	desc, out, err := b.Blob.Stat(ctx)
	end(span, out, err)
	return desc, out, err
}

// Open gives out the reader as it is: one around it would hide how the kernel
// can send its bytes.
func (b *blob) Open(ctx context.Context, offset, length int64) (oci.Reader, error) {
	inner, span := begin(ctx, "open blob", b.repo, b.digest.String())
	r, err := b.Blob.Open(inner, offset, length)
	if err != nil {
		end(span, oci.Outcome{}, err)
		return nil, err
	}
	end(span, r.Outcome(), nil)
	return r, nil
}

func begin(ctx context.Context, work string, repo oci.Repository, reference string) (context.Context, oci.Span) {
	if oci.SpanOf(ctx) == nil {
		return ctx, nil
	}
	return oci.BeginSpan(ctx, work, "entrepot.upstream", repo.Host, "entrepot.repository", repo.Path, "entrepot.reference", reference)
}

func end(span oci.Span, out oci.Outcome, err error) {
	if span != nil {
		oci.EndSpan(span, err, "entrepot.outcome", string(out.Cache), "entrepot.why", out.Why)
	}
}
