package oci

import (
	"encoding/json"
	"mime"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// MaxManifest is the most bytes of a manifest that are taken in by default: the
// spec's floor, and what containerd accepts.
const MaxManifest = 4 << 20

// Manifest is a manifest as its registry sent it.
type Manifest struct {
	Descriptor
	Content []byte // never changed after it is set
}

// Links are what a manifest leads to. All come from a stranger's bytes: sizes
// and media types are hints, digests are well formed.
type Links struct {
	MediaType    string // as the body names it; empty if it does not
	ArtifactType string
	Config       *Descriptor
	Layers       []Layer
	Manifests    []Child     // of an index
	Subject      *Descriptor // what this manifest refers to
	Annotations  map[string]string
}

// Layer is a layer's descriptor; URLs are set for foreign layers.
type Layer struct {
	Descriptor
	URLs []string
}

// Child is a manifest of an index.
type Child struct {
	Descriptor
	Platform Platform
}

// Platform is what a child of an index runs on.
type Platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant"`
}

// String is os/architecture[/variant]; empty for none.
func (p Platform) String() string {
	if p == (Platform{}) {
		return ""
	}
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// Runs reports whether p is a machine's. BuildKit lists its attestations in an
// index as of unknown/unknown.
func (p Platform) Runs() bool { return p.OS != "" && p.OS != "unknown" }

// Blobs are the blobs that l names: config first, then layers.
func (l *Links) Blobs() []Descriptor {
	var blobs []Descriptor
	if l.Config != nil {
		blobs = append(blobs, *l.Config)
	}
	for _, layer := range l.Layers {
		blobs = append(blobs, layer.Descriptor)
	}
	return blobs
}

// wireDescriptor reads any entry of a manifest that names content.
type wireDescriptor struct {
	MediaType string   `json:"mediaType"`
	Digest    Digest   `json:"digest"`
	Size      int64    `json:"size"`
	URLs      []string `json:"urls"`
	Platform  Platform `json:"platform"`
}

func (w wireDescriptor) descriptor() Descriptor {
	return Descriptor{MediaType: w.MediaType, Digest: w.Digest, Size: max(w.Size, -1)}
}

// ParseLinks reads what a manifest or index leads to. A schema 1 manifest names
// its layers in another field. Error: ManifestInvalid for what is not JSON or
// holds a malformed digest.
func ParseLinks(content []byte) (*Links, error) {
	var body struct {
		MediaType    string            `json:"mediaType"`
		ArtifactType string            `json:"artifactType"`
		Config       *wireDescriptor   `json:"config"`
		Layers       []wireDescriptor  `json:"layers"`
		Manifests    []wireDescriptor  `json:"manifests"`
		Subject      *wireDescriptor   `json:"subject"`
		Annotations  map[string]string `json:"annotations"`
		FSLayers     []struct {
			BlobSum Digest `json:"blobSum"`
		} `json:"fsLayers"`
	}
	if err := json.Unmarshal(content, &body); err != nil {
		return nil, Errorf(ManifestInvalid, "read manifest: %w", err)
	}
	links := &Links{MediaType: body.MediaType, ArtifactType: body.ArtifactType, Annotations: body.Annotations}
	links.Config = optional(body.Config)
	links.Subject = optional(body.Subject)
	for _, w := range body.Layers {
		if !w.Digest.IsZero() {
			links.Layers = append(links.Layers, Layer{w.descriptor(), w.URLs})
		}
	}
	for _, s := range body.FSLayers {
		if !s.BlobSum.IsZero() {
			links.Layers = append(links.Layers, Layer{Descriptor: Descriptor{Digest: s.BlobSum, Size: -1}})
		}
	}
	for _, w := range body.Manifests {
		if !w.Digest.IsZero() {
			links.Manifests = append(links.Manifests, Child{w.descriptor(), w.Platform})
		}
	}
	return links, nil
}

func optional(w *wireDescriptor) *Descriptor {
	if w == nil || w.Digest.IsZero() {
		return nil
	}
	d := w.descriptor()
	return &d
}

// ManifestAccept are the media types that we ask an upstream for, one list for
// every client, so that an answer does not depend on who asked first.
var ManifestAccept = []string{
	string(types.OCIImageIndex),
	string(types.DockerManifestList),
	string(types.OCIManifestSchema1),
	string(types.DockerManifestSchema2),
	string(types.DockerManifestSchema1Signed),
	string(types.DockerManifestSchema1),
	"*/*",
}

// IsManifestType reports whether content of this media type is a manifest or an
// index, of OCI or Docker.
func IsManifestType(mediaType string) bool {
	t := types.MediaType(mediaType)
	return t.IsIndex() || t.IsImage() || t.IsSchema1()
}

// NewManifest checks what an upstream sent as a manifest. contentType is its
// header; a body that names another media type is refused (a client would
// otherwise read one thing as two). want is the digest asked for, zero if the
// question was a tag. Errors: BadUpstream.
func NewManifest(content []byte, contentType string, want Digest) (Manifest, error) {
	mediaType, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		mediaType = ""
	}
	d := want
	if want.IsZero() {
		d = Sum(content)
	} else if err := want.Verify(content); err != nil {
		return Manifest{}, Errorf(BadUpstream, "upstream sent a manifest that is not what %s names: %w", want, err)
	}
	var body struct {
		SchemaVersion int    `json:"schemaVersion"`
		MediaType     string `json:"mediaType"`
	}
	if err := json.Unmarshal(content, &body); err != nil {
		return Manifest{}, Errorf(BadUpstream, "upstream sent a manifest %s that is not JSON (Content-Type %q): %w", d, clip(contentType), err)
	}
	switch {
	case mediaType == "" || mediaType == "application/octet-stream" || mediaType == "text/plain" || mediaType == "application/json" && body.MediaType != "":
		mediaType = body.MediaType
	case body.MediaType != "" && body.MediaType != mediaType:
		return Manifest{}, Errorf(BadUpstream, "upstream sent manifest %s as %q, but its body says %q", d, clip(mediaType), clip(body.MediaType))
	}
	switch {
	case mediaType == "":
		return Manifest{}, Errorf(BadUpstream, "upstream sent manifest %s without a media type", d)
	case body.SchemaVersion == 0 && !IsManifestType(mediaType): // an error page in JSON, sent as 200
		return Manifest{}, Errorf(BadUpstream, "upstream sent %s as a manifest, which %q without a schemaVersion is not", d, clip(mediaType))
	}
	return Manifest{Descriptor: Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}, Content: content}, nil
}

// Referrer is one entry of a referrers index, kept as it came.
type Referrer struct {
	ArtifactType string
	Digest       Digest
	Raw          json.RawMessage
}

// UnmarshalJSON keeps the bytes beside the fields that we filter by.
func (r *Referrer) UnmarshalJSON(b []byte) error {
	var w struct {
		ArtifactType string `json:"artifactType"`
		Digest       Digest `json:"digest"`
	}
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*r = Referrer{ArtifactType: w.ArtifactType, Digest: w.Digest, Raw: append(json.RawMessage(nil), b...)}
	return nil
}

// MarshalJSON gives the entry back as it came.
func (r Referrer) MarshalJSON() ([]byte, error) { return r.Raw, nil }
