package oci_test

import (
	"net/url"
	"strings"
	"testing"

	"entrepot/oci"
)

func TestParseRequest(t *testing.T) {
	d := digest(t, "sha256:"+hex64)
	d512 := digest(t, "sha512:"+hex128)
	long := strings.Repeat("a", 255)
	for path, want := range map[string]oci.Request{
		"/v2":                                 {Kind: oci.Ping},
		"/v2/":                                {Kind: oci.Ping},
		"/v2/_catalog":                        {Kind: oci.CatalogKind},
		"/v2/a/manifests/latest":              {Kind: oci.ManifestKind, Name: "a", Tag: "latest"},
		"/v2/a/b/c/manifests/v1":              {Kind: oci.ManifestKind, Name: "a/b/c", Tag: "v1"},
		"/v2/a/manifests/" + d.String():       {Kind: oci.ManifestKind, Name: "a", Digest: d},
		"/v2/a/manifests/" + d512.String():    {Kind: oci.ManifestKind, Name: "a", Digest: d512},
		"/v2/docker.io/a/manifests/v1":        {Kind: oci.ManifestKind, Name: "docker.io/a", Tag: "v1"},
		"/v2/localhost:5000/a/manifests/v1":   {Kind: oci.ManifestKind, Name: "localhost:5000/a", Tag: "v1"},
		"/v2/[::1]:5000/a/manifests/v1":       {Kind: oci.ManifestKind, Name: "[::1]:5000/a", Tag: "v1"},
		"/v2/" + long + "/manifests/v1":       {Kind: oci.ManifestKind, Name: long, Tag: "v1"},
		"/v2/a/blobs/" + d.String():           {Kind: oci.BlobKind, Name: "a", Digest: d},
		"/v2/a/referrers/" + d.String():       {Kind: oci.ReferrersKind, Name: "a", Digest: d},
		"/v2/a/tags/list":                     {Kind: oci.TagsKind, Name: "a"},
		"/v2/a/blobs/uploads":                 {Kind: oci.UploadKind, Name: "a"},
		"/v2/a/blobs/uploads/":                {Kind: oci.UploadKind, Name: "a"},
		"/v2/a/blobs/uploads/4711-x":          {Kind: oci.UploadKind, Name: "a", Upload: "4711-x"},
		"/v2/manifests/manifests/manifests":   {Kind: oci.ManifestKind, Name: "manifests", Tag: "manifests"},
		"/v2/a/blobs/manifests/uploads":       {Kind: oci.ManifestKind, Name: "a/blobs", Tag: "uploads"},
		"/v2/a/blobs/uploads/manifests/v1":    {Kind: oci.ManifestKind, Name: "a/blobs/uploads", Tag: "v1"},
		"/v2/a/tags/tags/list":                {Kind: oci.TagsKind, Name: "a/tags"},
		"/v2/tags/list/manifests/v1":          {Kind: oci.ManifestKind, Name: "tags/list", Tag: "v1"},
		"/v2/a/manifests/blobs/" + d.String(): {Kind: oci.BlobKind, Name: "a/manifests", Digest: d},
	} {
		got, err := oci.ParseRequest(path)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v; want %+v", path, got, err, want)
		}
	}
}

// TestBadRequests: what is wrong is told by code, and the route is known even
// then, so that the answer can name the right thing as unknown.
func TestBadRequests(t *testing.T) {
	d := "sha256:" + hex64
	for path, want := range map[string]struct {
		code oci.Code
		kind oci.Kind
	}{
		"":                             {oci.NotFound, oci.Ping},
		"/":                            {oci.NotFound, oci.Ping},
		"/v1/":                         {oci.NotFound, oci.Ping},
		"/v22/":                        {oci.NotFound, oci.Ping},
		"v2/":                          {oci.NotFound, oci.Ping},
		"/v2//":                        {oci.NotFound, oci.Ping},
		"/v2/a":                        {oci.NotFound, oci.Ping},
		"/v2/a/b":                      {oci.NotFound, oci.Ping},
		"/v2/a/tags":                   {oci.NotFound, oci.Ping},
		"/v2/a/tags/all":               {oci.NotFound, oci.Ping},
		"/v2/a/tags/list/":             {oci.NotFound, oci.Ping},
		"/v2/a/uploads/x":              {oci.NotFound, oci.Ping},
		"/v2/a/layers/" + d:            {oci.NotFound, oci.Ping},
		"/v2/_catalog/":                {oci.NotFound, oci.Ping},
		"/v2/_oci/ext/discover":        {oci.NotFound, oci.Ping},
		"/v2/manifests/v1":             {oci.NotFound, oci.Ping},
		"/v2//manifests/v1":            {oci.NameInvalid, oci.ManifestKind},
		"/v2/A/manifests/v1":           {oci.NameInvalid, oci.ManifestKind},
		"/v2/a//b/manifests/v1":        {oci.NameInvalid, oci.ManifestKind},
		"/v2/../a/manifests/v1":        {oci.NameInvalid, oci.ManifestKind},
		"/v2/a/../../b/blobs/" + d:     {oci.NameInvalid, oci.BlobKind},
		"/v2/./a/blobs/" + d:           {oci.NameInvalid, oci.BlobKind},
		"/v2/a\x00b/tags/list":         {oci.NameInvalid, oci.TagsKind},
		"/v2/_catalog/tags/list":       {oci.NameInvalid, oci.TagsKind},
		"/v2//blobs/uploads/":          {oci.NameInvalid, oci.UploadKind},
		"/v2/a/manifests/":             {oci.ManifestUnknown, oci.ManifestKind},
		"/v2/a/manifests/..":           {oci.ManifestUnknown, oci.ManifestKind},
		"/v2/a/manifests/-x":           {oci.ManifestUnknown, oci.ManifestKind},
		"/v2/a/manifests/v1 ":          {oci.ManifestUnknown, oci.ManifestKind},
		"/v2/a/manifests/sha256:x":     {oci.DigestInvalid, oci.ManifestKind},
		"/v2/a/manifests/md5:" + hex64: {oci.DigestInvalid, oci.ManifestKind},
		"/v2/a/blobs/":                 {oci.DigestInvalid, oci.BlobKind},
		"/v2/a/blobs/latest":           {oci.DigestInvalid, oci.BlobKind},
		"/v2/a/blobs/..":               {oci.DigestInvalid, oci.BlobKind},
		"/v2/a/referrers/latest":       {oci.DigestInvalid, oci.ReferrersKind},
		"/v2/" + strings.Repeat("a", 256) + "/tags/list": {oci.NameInvalid, oci.TagsKind},
	} {
		got, err := oci.ParseRequest(path)
		if oci.CodeOf(err) != want.code || err == nil || got.Kind != want.kind {
			t.Errorf("%q: got %v of kind %s, want %s of kind %s", path, err, got.Kind, want.code, want.kind)
		}
		if want.code == oci.NameInvalid && got.Name != "" {
			t.Errorf("%q: who is told of it is told the name %q", path, got.Name)
		}
	}
}

// TestEscapedSlashesAreSlashes: whatever a client escapes, the decoded path is
// what counts, and it reaches no other route and no other name.
func TestEscapedSlashesAreSlashes(t *testing.T) {
	for raw, want := range map[string]string{
		"/v2/library%2Falpine/manifests/latest":       "library/alpine latest",
		"/v2/library%2falpine%2fmanifests%2flatest":   "library/alpine latest",
		"/v2/%6cibrary/alpine/manifests/latest":       "library/alpine latest",
		"/v2/library/alpine/manifests/%2e%2e":         "MANIFEST_UNKNOWN",
		"/v2/%2e%2e%2f%2e%2e%2fetc/manifests/latest":  "NAME_INVALID",
		"/v2/library%252falpine/manifests/latest":     "NAME_INVALID",
		"/v2/library/alpine/manifests/a%00b":          "MANIFEST_UNKNOWN",
		"/v2/library%5calpine/manifests/latest":       "NAME_INVALID",
		"/v2/library/alpine/manifests/latest%3Fns%3D": "MANIFEST_UNKNOWN",
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		req, err := oci.ParseRequest(u.Path)
		got := req.Name + " " + req.Reference()
		if err != nil {
			got = oci.CodeOf(err).String()
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", raw, got, want)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, path := range []string{
		"/v2/", "/v2/_catalog", "/v2/library/alpine/manifests/latest", "/v2/a/blobs/sha256:" + hex64,
		"/v2/a/manifests/sha512:" + hex128, "/v2/localhost:5000/a/tags/list", "/v2/a/referrers/sha256:" + hex64,
		"/v2/a/blobs/uploads/x", "/v2/a/blobs/uploads", "/v2/a/../../etc/manifests/passwd", "/v2/[::1]:1/a/manifests/x",
		"/v2/" + strings.Repeat("a", 255) + "/manifests/" + strings.Repeat("b", 128),
		"/v2/a/blobs/uploads/manifests/uploads", "/v2//manifests//",
	} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		req, err := oci.ParseRequest(path)
		if err != nil {
			if row := oci.CodeOf(err).Row(); row.Status/100 != 4 || len(err.Error()) > 1000 {
				t.Errorf("%q: error %v", path, err)
			}
			return
		}
		if back, err := oci.ParseRequest(req.Path()); err != nil || back != req {
			t.Errorf("%q is %+v, whose path %q is %+v, %v", path, req, req.Path(), back, err)
		}
		if req.Name == "" {
			return
		}
		u, err := url.Parse("http://localhost" + req.Path()) // as a client would send it
		if req.Kind != oci.UploadKind && (err != nil || u.Path != req.Path() || u.RawQuery != "") {
			t.Errorf("%q does not survive in a URL: %v, %v", req.Path(), u, err)
		}
		repo, err := oci.NewRepository(oci.DockerHub, req.Name)
		if err == nil && !safePath(repo) {
			t.Errorf("%q gives the file path %q", path, repo)
		}
	})
}
