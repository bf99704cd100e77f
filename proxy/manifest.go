package proxy

import (
	"fmt"
	"net/http"

	"entrepot/oci"
)

// manifest answers for a tag or a digest. Bytes and media type go out as they
// are: nothing is converted, compressed or cut into ranges, and Accept is not
// looked at.
func (x *exchange) manifest() error {
	switch {
	case x.req.Tag != "":
		x.ask.Refresh = x.h.cfg.MayRefresh != nil && refreshes(x.r.Header) && x.h.cfg.MayRefresh(x.r, x.pass.User)
		return x.resolve(x.req.Tag)
	case x.mute:
		return x.resolve(x.req.Digest.String()) // moves no content, where a manifest might be fetched
	}
	return x.manifestByDigest(x.req.Digest)
}

// resolve answers by what reference names. For HEAD that is enough, if media
// type and size are known; else the manifest is asked for as well, because
// clients that miss one of the headers spend a counted GET.
func (x *exchange) resolve(reference string) error {
	named, out, err := x.pass.Source.Resolve(&x.ctx, x.at.repo, reference, x.ask)
	x.learn(out)
	if err != nil {
		return err
	}
	switch {
	case named.Digest.IsZero():
		return fmt.Errorf("source resolved %s:%s to no digest", x.at.repo, reference)
	case x.holds(named.Digest):
		return x.notModified(named.Digest)
	case named.Manifest != nil:
		return x.sendManifest(named.Digest, *named.Manifest)
	case x.mute && named.MediaType != "" && named.Size >= 0:
		return x.sendManifestHead(named.Descriptor)
	}
	x.ask.Begun = out.Cache == oci.Miss
	return x.manifestByDigest(named.Digest)
}

func (x *exchange) manifestByDigest(d oci.Digest) error {
	ask := x.ask
	ask.Refresh = false // a digest's content cannot have changed
	m, out, err := x.pass.Source.Manifest(&x.ctx, x.at.repo, d, ask)
	x.learn(out)
	if err != nil {
		return err
	}
	if x.holds(d) {
		return x.notModified(d)
	}
	return x.sendManifest(d, m)
}

// sendManifest goes by the bytes, not by what m says of their number.
func (x *exchange) sendManifest(d oci.Digest, m oci.Manifest) error {
	if err := x.sendManifestHead(oci.Descriptor{MediaType: m.MediaType, Digest: d, Size: int64(len(m.Content))}); err != nil {
		return err
	}
	_, err := x.send(m.Content)
	return err
}

func (x *exchange) sendManifestHead(desc oci.Descriptor) error {
	if err := x.describe(desc); err != nil {
		return err
	}
	x.WriteHeader(http.StatusOK)
	return nil
}
