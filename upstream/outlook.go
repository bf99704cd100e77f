package upstream

import (
	"context"

	"entrepot/oci"
	"entrepot/ratelimit"
)

// Outlook is what a client would be told now whose question is not sent, for each
// that a pull can lead to; nil where it is sent, after a wait perhaps.
type Outlook struct {
	Check    error // what a tag names, by HEAD
	Moved    error // the manifest of a tag that has moved from one that is held
	Manifest error
	Blob     error

	Spent error // what is expected of a manifest's GET that is sent: upstream said last that nothing is left; nil: a manifest
}

// Outlook says what would become of questions about a tag, or a digest in its place. It asks nobody,
// and nothing is probed for it.
func (c *Client) Outlook(ctx context.Context, repo oci.Repository, tag string) (o Outlook, err error) {
	ref, err := reference(repo, tag)
	if err != nil {
		return o, err
	}
	o.Check = c.foresee(ctx, &question{repo: repo}, ratelimit.Check, ref)
	o.Moved = c.foresee(ctx, &question{repo: repo, ask: oci.Ask{Held: true}}, ratelimit.Pull, ref)
	o.Manifest = c.foresee(ctx, &question{repo: repo}, ratelimit.Pull, ref)
	o.Blob = c.foresee(ctx, &question{repo: repo}, ratelimit.Blob, oci.Request{Kind: oci.BlobKind, Name: repo.Path, Digest: ref.Digest})
	if o.Manifest == nil {
		o.Spent = c.spent(ctx, &question{repo: repo})
	}
	return o, ctx.Err()
}

// spent is nil if there is a site that may still give out a manifest, as far as it has
// said.
func (c *Client) spent(ctx context.Context, q *question) (verdict error) {
	for _, s := range c.sites {
		call := s.call(ctx, q, ratelimit.Pull)
		if s.breakers.isOpen(call.Host) || s.limiter.Refusal(call) != nil {
			continue
		}
		if verdict = s.limiter.Spent(call); verdict == nil {
			return nil
		}
	}
	return verdict
}

// Outlook is the Client's, of the upstream that the repository names.
func (s *Set) Outlook(ctx context.Context, repo oci.Repository, tag string) (Outlook, error) {
	c, err := s.pick(repo)
	if err != nil {
		return Outlook{}, err
	}
	return c.Outlook(ctx, repo, tag)
}

// foresee is nil if there is a site that q would be sent to. Else it is what all
// say together, as for those who ask.
func (c *Client) foresee(ctx context.Context, q *question, class ratelimit.Class, r oci.Request) error {
	var said joint
	for _, s := range c.sites {
		err := s.breakers.foresee(target{url: s.url(r), repo: q.repo.Path})
		if err == nil {
			err = s.limiter.Refusal(s.call(ctx, q, class))
		}
		if err == nil && class == ratelimit.Blob {
			err = s.breakers.foreseeLed()
		}
		if err == nil {
			return nil
		}
		if s == c.primary {
			said.primary = err
		} else {
			said.other(s, err)
		}
	}
	return said.err()
}
