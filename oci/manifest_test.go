package oci_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"entrepot/oci"
)

const (
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	schema1        = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

func TestParseLinks(t *testing.T) {
	d := func(i int) oci.Digest { return oci.Sum(fmt.Append(nil, i)) }
	content := fmt.Appendf(nil, `{
		"schemaVersion": 2, "mediaType": %q, "artifactType": "application/x", "annotations": {"k": "v"},
		"config": {"mediaType": "c", "digest": %q, "size": 3},
		"layers": [{"mediaType": "l", "digest": %q, "size": 5, "urls": ["https://example.com/l"]}, {"mediaType": "l", "digest": %q, "size": -7}],
		"subject": {"mediaType": "s", "digest": %q, "size": 9}}`, ociManifest, d(1), d(2), d(3), d(4))
	got, err := oci.ParseLinks(content)
	if err != nil {
		t.Fatal(err)
	}
	want := &oci.Links{
		MediaType: ociManifest, ArtifactType: "application/x", Annotations: map[string]string{"k": "v"},
		Config: &oci.Descriptor{MediaType: "c", Digest: d(1), Size: 3},
		Layers: []oci.Layer{
			{Descriptor: oci.Descriptor{MediaType: "l", Digest: d(2), Size: 5}, URLs: []string{"https://example.com/l"}},
			{Descriptor: oci.Descriptor{MediaType: "l", Digest: d(3), Size: -1}},
		},
		Subject: &oci.Descriptor{MediaType: "s", Digest: d(4), Size: 9},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(oci.Digest{})); diff != "" {
		t.Errorf("links (-want +got):\n%s", diff)
	}
	var blobs []oci.Digest
	for _, b := range got.Blobs() {
		blobs = append(blobs, b.Digest)
	}
	if want := []oci.Digest{d(1), d(2), d(3)}; !slices.Equal(blobs, want) {
		t.Errorf("blobs: got %v, want %v", blobs, want)
	}
}

func TestParseLinksOfIndexAndSchema1(t *testing.T) {
	d := oci.Sum(nil)
	index, err := oci.ParseLinks(fmt.Appendf(nil, `{"manifests":[{"mediaType":"m","digest":%q,"size":1,"platform":{"architecture":"arm","os":"linux","variant":"v7"}},{"size":1}]}`, d))
	if err != nil {
		t.Fatal(err)
	}
	want := []oci.Child{{Descriptor: oci.Descriptor{MediaType: "m", Digest: d, Size: 1}, Platform: oci.Platform{Architecture: "arm", OS: "linux", Variant: "v7"}}}
	if diff := cmp.Diff(want, index.Manifests, cmp.AllowUnexported(oci.Digest{})); diff != "" {
		t.Errorf("children (-want +got):\n%s", diff)
	}
	old, err := oci.ParseLinks(fmt.Appendf(nil, `{"schemaVersion":1,"fsLayers":[{"blobSum":%q},{}]}`, d))
	if err != nil || len(old.Layers) != 1 || old.Layers[0].Digest != d || old.Layers[0].Size != -1 {
		t.Errorf("schema 1: got %+v, %v", old, err)
	}
}

func TestHostileManifestsHaveNoLinks(t *testing.T) {
	for _, content := range []string{
		"", "<html>", "[]", `"x"`, `{"layers":{}}`, `{"config":{"digest":"sha256:../../x"}}`, `{"config":{"digest":""}}`,
		`{"layers":[{"digest":"md5:00"}]}`, `{"config":{"size":1e400}}`, `{"config":{"size":"1"}}`, `{"annotations":{"a":1}}`,
		strings.Repeat("[", 20_000),
	} {
		if links, err := oci.ParseLinks([]byte(content)); oci.CodeOf(err) != oci.ManifestInvalid {
			t.Errorf("%.40q: got %+v, %v; want MANIFEST_INVALID", content, links, err)
		}
	}
}

func TestNewManifest(t *testing.T) {
	body := `{"mediaType":"` + ociManifest + `"}`
	bare := `{"schemaVersion":2}`
	for name, test := range map[string]struct {
		content, contentType string
		want                 string // media type, or empty for a refusal
	}{
		"both agree":                     {body, ociManifest, ociManifest},
		"with a parameter":               {body, ociManifest + "; charset=utf-8", ociManifest},
		"body does not say":              {bare, ociManifest, ociManifest},
		"header is missing":              {body, "", ociManifest},
		"header is malformed":            {body, ";;", ociManifest},
		"header says octets":             {body, "application/octet-stream", ociManifest},
		"header says text":               {body, "text/plain; charset=utf-8", ociManifest},
		"header says just JSON":          {body, "application/json", ociManifest},
		"schema 1":                       {`{"schemaVersion":1}`, schema1, schema1},
		"they disagree":                  {body, dockerManifest, ""},
		"index as manifest":              {`{"mediaType":"` + ociIndex + `"}`, ociManifest, ""},
		"an HTML page":                   {"<!DOCTYPE html>", "text/html", ""},
		"an HTML page called a manifest": {"<!DOCTYPE html>", ociManifest, ""},
		"JSON with an HTML header":       {body, "text/html", ""},
		"nobody says":                    {bare, "", ""},
		"nobody says but octets":         {bare, "application/octet-stream", ""},
		"empty":                          {"", ociManifest, ""},
	} {
		m, err := oci.NewManifest([]byte(test.content), test.contentType, oci.Digest{})
		switch {
		case test.want == "" && oci.CodeOf(err) != oci.BadUpstream:
			t.Errorf("%s: got %q, %v; want it refused as upstream's fault", name, m.MediaType, err)
		case test.want != "" && (err != nil || m.MediaType != test.want || string(m.Content) != test.content ||
			m.Digest != oci.Sum([]byte(test.content)) || m.Size != int64(len(test.content))):
			t.Errorf("%s: got %+v, %v; want %s", name, m.Descriptor, err, test.want)
		}
	}
}

func TestNewManifestChecksTheDigest(t *testing.T) {
	content := []byte(`{"mediaType":"` + ociManifest + `"}`)
	if m, err := oci.NewManifest(content, ociManifest, digest(t, "sha256:"+hex64)); oci.CodeOf(err) != oci.BadUpstream {
		t.Errorf("other content: got %+v, %v; want BadUpstream", m.Descriptor, err)
	}
	h := digest(t, "sha512:"+hex128).Hash()
	h.Write(content)
	want := digest(t, fmt.Sprintf("sha512:%x", h.Sum(nil)))
	if m, err := oci.NewManifest(content, ociManifest, want); err != nil || m.Digest != want {
		t.Errorf("sha512: got %s, %v; want %s", m.Digest, err, want)
	}
}

func TestIsManifestType(t *testing.T) {
	for mediaType, want := range map[string]bool{
		ociManifest: true, ociIndex: true, dockerManifest: true, schema1: true,
		"application/vnd.docker.distribution.manifest.list.v2+json": true,
		"application/octet-stream":                                  false, "": false, "application/vnd.oci.image.config.v1+json": false,
	} {
		if got := oci.IsManifestType(mediaType); got != want {
			t.Errorf("%s: got %v, want %v", mediaType, got, want)
		}
	}
}

// TestReferrersKeepTheirBytes: their annotations are not ours to change.
func TestReferrersKeepTheirBytes(t *testing.T) {
	entry := `{"mediaType":"m","digest":"sha256:` + hex64 + `","size":1,"artifactType":"a","x":{"unknown":[1,2]}}`
	var r oci.Referrer
	if err := json.Unmarshal([]byte(entry), &r); err != nil || r.ArtifactType != "a" || r.Digest.Hex() != hex64 {
		t.Fatalf("got %+v, %v", r, err)
	}
	if back, err := json.Marshal(r); err != nil || string(back) != entry {
		t.Errorf("got %s, %v; want %s", back, err, entry)
	}
	if err := json.Unmarshal([]byte(`{"digest":"x"}`), &r); oci.CodeOf(err) != oci.DigestInvalid {
		t.Errorf("a malformed digest: got %v", err)
	}
}

// FuzzParseLinks: what comes out of a stranger's manifest is well formed, and
// what is refused is refused with the right code.
func FuzzParseLinks(f *testing.F) {
	f.Add([]byte(`{"mediaType":"`+ociManifest+`","config":{"digest":"sha256:`+hex64+`","size":-5},"layers":[{"digest":"sha512:`+hex128+`"}]}`), ociManifest)
	f.Add([]byte(`{"manifests":[{"digest":"sha256:`+hex64+`","platform":{"os":"linux"}}],"subject":{"digest":"sha256:`+hex64+`"}}`), ociIndex)
	f.Add([]byte(`{"fsLayers":[{"blobSum":"sha256:`+hex64+`"}]}`), schema1)
	f.Add([]byte(`null`), "")
	f.Add([]byte(`{"layers":[null]}`), "text/html")
	f.Add([]byte(`{"mediaType":"a","MEDIATYPE":"b"}`), "b")
	f.Fuzz(func(t *testing.T, content []byte, contentType string) {
		if m, err := oci.NewManifest(content, contentType, oci.Digest{}); err == nil && (m.MediaType == "" || m.Digest.Verify(content) != nil) {
			t.Errorf("became the manifest %+v", m.Descriptor)
		} else if err != nil && (oci.CodeOf(err) != oci.BadUpstream || len(err.Error()) > 2000) {
			t.Errorf("refused with %v", err)
		}
		links, err := oci.ParseLinks(content)
		if err != nil {
			if oci.CodeOf(err) != oci.ManifestInvalid {
				t.Errorf("refused with %v", err)
			}
			return
		}
		all := links.Blobs()
		for _, child := range links.Manifests {
			all = append(all, child.Descriptor)
		}
		if links.Subject != nil {
			all = append(all, *links.Subject)
		}
		for _, d := range all {
			if d.Size < -1 || !digestForm.MatchString(d.Digest.String()) {
				t.Errorf("link %+v", d)
			}
		}
	})
}

// What is taken for a manifest is taken again as what it was kept as.
func FuzzNewManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`), "application/json")
	f.Add([]byte(`{"schemaVersion":2}`), "application/vnd.oci.image.index.v1+json; charset=utf-8")
	f.Add([]byte(`{"errors":[]}`), "application/json")
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"a\r\nb"}`), "")
	f.Fuzz(func(t *testing.T, content []byte, contentType string) {
		m, err := oci.NewManifest(content, contentType, oci.Digest{})
		if err != nil {
			if oci.CodeOf(err) != oci.BadUpstream {
				t.Errorf("an error without a place: %v", err)
			}
			return
		}
		if m.MediaType == "" || m.Digest.Verify(content) != nil || m.Size != int64(len(content)) {
			t.Fatalf("taken as %+v", m.Descriptor)
		}
		again, err := oci.NewManifest(content, m.MediaType, m.Digest)
		if oci.IsManifestType(m.MediaType) && (err != nil || again.Descriptor != m.Descriptor) {
			t.Errorf("%+v is taken again as %+v, %v", m.Descriptor, again.Descriptor, err)
		}
	})
}
