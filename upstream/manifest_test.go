package upstream

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// How a tag is resolved by registries of different habits, and what that costs.
func TestResolve(t *testing.T) {
	image := ocitest.RandomImage(1, 100)
	const (
		head = "registry HEAD manifest library/alpine:latest"
		get  = "registry GET manifest library/alpine:latest"
		tok  = "token GET token library/alpine"
	)
	cdn := digestLine("cdn HEAD manifest library/alpine", image.Digest)
	tests := []struct {
		name   string
		habits ocitest.Habits
		saw    []string
		read   bool   // the manifest came along
		size   int64  // if not the image's
		kind   string // media type, if not the image's
	}{
		{name: "no auth (MCR)", habits: ocitest.Habits{Auth: ocitest.NoAuth}, saw: []string{head}},
		{name: "tokens (Docker Hub)", saw: []string{head, tok, head}},
		{name: "access_token alone", habits: ocitest.Habits{TokenField: "access_token"}, saw: []string{head, tok, head}},
		{name: "token alone", habits: ocitest.Habits{TokenField: "token"}, saw: []string{head, tok, head}},
		{name: "no expires_in (GHCR)", habits: ocitest.Habits{NoExpiresIn: true}, saw: []string{head, tok, head}},
		{name: "first scope only", habits: ocitest.Habits{FirstScopeOnly: true}, saw: []string{head, tok, head}},
		{name: "HEAD 405", habits: ocitest.Habits{Auth: ocitest.NoAuth, RefuseHead: 405}, saw: []string{head, get}, read: true},
		{name: "HEAD 501", habits: ocitest.Habits{Auth: ocitest.NoAuth, RefuseHead: 501}, saw: []string{head, get}, read: true},
		{name: "no digest", habits: ocitest.Habits{Auth: ocitest.NoAuth, OmitDigest: true}, saw: []string{head, get}, read: true},
		{name: "no length", habits: ocitest.Habits{Auth: ocitest.NoAuth, Chunked: true}, saw: []string{head}, size: -1},
		{name: "no type", habits: ocitest.Habits{Auth: ocitest.NoAuth, ManifestType: "application/octet-stream"}, saw: []string{head}, kind: "-"},
		{name: "type with parameters", habits: ocitest.Habits{Auth: ocitest.NoAuth, ManifestType: image.MediaType + "; charset=utf-8"}, saw: []string{head}},
		{name: "redirected (registry.k8s.io)", habits: ocitest.Habits{Auth: ocitest.NoAuth, RedirectManifests: true}, saw: []string{head, cdn}},
		{name: "strict Accept", habits: ocitest.Habits{Auth: ocitest.NoAuth, StrictAccept: true}, saw: []string{head}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			hub := ocitest.NewHub(t, ocitest.Config{Habits: tt.habits})
			hub.Push("library/alpine", "latest", image)
			c := connect(t, hub)
			got, out, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{})
			if err != nil {
				t.Fatal(err)
			}
			want := image.Descriptor
			if tt.size != 0 {
				want.Size = tt.size
			}
			if tt.kind != "" {
				want.MediaType = strings.Trim(tt.kind, "-")
			}
			if got.Descriptor != want {
				t.Errorf("got %+v, want %+v", got.Descriptor, want)
			}
			if (got.Manifest != nil) != tt.read || tt.read && !bytes.Equal(got.Manifest.Content, image.Bytes()) {
				t.Errorf("the manifest came along: %v, want %v", got.Manifest != nil, tt.read)
			}
			if out.Cache != oci.Miss || out.Spent != len(tt.saw) || out.Checked.IsZero() {
				t.Errorf("outcome %+v, want %d requests spent", out, len(tt.saw))
			}
			saw(t, hub, tt.saw...)
		})
	}
}

// A digest in place of the tag asks for membership.
func TestResolveOfADigest(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth, OmitDigest: true}})
	image := ocitest.RandomImage(1, 100)
	hub.Push("library/alpine", "latest", image)
	c := connect(t, hub)
	got, _, err := c.Resolve(t.Context(), alpine, image.Digest.String(), oci.Ask{})
	if err != nil || got.Descriptor != image.Descriptor {
		t.Errorf("got %+v, %v", got, err)
	}
	saw(t, hub, digestLine("registry HEAD manifest library/alpine", image.Digest))
	for _, bad := range []string{"", "a/b", "../../x", "sha256:xyz", "a?b"} {
		_, _, err := c.Resolve(t.Context(), alpine, bad, oci.Ask{})
		wantCode(t, err, oci.ManifestUnknown)
	}
	saw(t, hub)
}

func TestManifestByDigest(t *testing.T) {
	for _, sha512 := range []bool{false, true} {
		hub := ocitest.NewHub(t, ocitest.Config{})
		image := ocitest.ImageSpec{SHA512: sha512, Layers: []ocitest.Content{ocitest.Blob(1, 100)}}.Build()
		hub.Push("library/alpine", "latest", image)
		c := connect(t, hub)
		m, out, err := c.Manifest(t.Context(), alpine, image.Digest, oci.Ask{})
		if err != nil {
			t.Fatal(err)
		}
		if m.Descriptor != image.Descriptor || !bytes.Equal(m.Content, image.Bytes()) || out.Spent != 3 {
			t.Errorf("got %+v, %+v; want %+v for 3 requests", m.Descriptor, out, image.Descriptor)
		}
	}
}

// What upstreams send that is no manifest, and what it is called.
func TestBadManifests(t *testing.T) {
	good := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`)
	const ociType = "application/vnd.oci.image.manifest.v1+json"
	d := oci.Sum(good)
	tests := []struct {
		name   string
		answer http.HandlerFunc
		code   oci.Code
	}{
		{"other content", send(ociType, []byte(`{"schemaVersion":2}`)), oci.BadUpstream},
		{"other type in the body", send("application/vnd.docker.distribution.manifest.v2+json", good), oci.BadUpstream},
		{"too large", send(ociType, bytes.Repeat([]byte(" "), 2000)), oci.BadUpstream},
		{"too large, chunked", func(w http.ResponseWriter, r *http.Request) {
			for range 4 {
				_, _ = w.Write(bytes.Repeat([]byte(" "), 500))
				w.(http.Flusher).Flush()
			}
		}, oci.BadUpstream},
		{"cut", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "79")
			_, _ = w.Write(good[:20])
		}, oci.BadUpstream},
		{"encoded", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(good)
		}, oci.BadUpstream},
		{"another digest in the header", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Docker-Content-Digest", oci.Sum([]byte("x")).String())
			send(ociType, good)(w, r)
		}, oci.BadUpstream},
		{"204", status(204, ""), oci.BadUpstream},
		{"300", status(300, ""), oci.BadUpstream},
		{"302 to nowhere", status(302, ""), oci.BadUpstream},
		{"404", status(404, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`), oci.ManifestUnknown},
		{"404 of the name", status(404, `{"errors":[{"code":"NAME_UNKNOWN"}]}`), oci.NameUnknown},
		{"404 in HTML", status(404, `<html>`), oci.BadUpstream},
		{"401 without a challenge", status(401, ""), oci.Denied},
		{"403", status(403, `{"errors":[{"code":"DENIED"}]}`), oci.Denied},
		{"429 in HTML", status(429, `<html>`), oci.TooManyRequests},
		{"500", status(500, ""), oci.Unavailable},
		{"502", status(502, ""), oci.BadUpstream},
		{"503", status(503, ""), oci.Unavailable},
		{"504", status(504, ""), oci.Timeout},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := connectAt(t, listen(t, tt.answer), newClock().now, func(cfg *Config) { cfg.MaxManifest = 1000 })
			_, out, err := c.Manifest(t.Context(), alpine, d, oci.Ask{})
			wantCode(t, err, tt.code)
			if out.Spent != 1 {
				t.Errorf("%d requests were spent, want 1", out.Spent)
			}
		})
	}
}

func send(contentType string, body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write(body)
	}
}

func status(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	}
}

// Both of Docker Hub's 429s, and that the quota's does not stop what is not
// counted.
func TestTooManyRequests(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth, PullLimit: 1, InlineBlobs: true}})
	image := ocitest.RandomImage(1, 100)
	hub.Push("library/alpine", "latest", image)
	c := connect(t, hub, func(cfg *Config) { cfg.Limits.Wait = 1 })
	pull := func() error {
		_, _, err := c.Manifest(t.Context(), alpine, image.Digest, oci.Ask{})
		return err
	}
	if err := pull(); err != nil {
		t.Fatal(err)
	}
	err := pull()
	wantCode(t, err, oci.TooManyRequests)
	if oci.RetryAfter(err) <= 0 || !strings.Contains(err.Error(), "pull rate limit") {
		t.Errorf("%v (retry after %v) lacks the reason or the time", err, oci.RetryAfter(err))
	}
	hub.Reset()
	wantCode(t, pull(), oci.TooManyRequests) // without asking
	saw(t, hub)
	if _, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{}); err != nil {
		t.Errorf("HEAD after the quota is spent: %v", err)
	}
	if _, err := read(t.Context(), openBlob(t, c, alpine, image.Blobs[0].Digest), 0, -1); err != nil {
		t.Errorf("blob after the quota is spent: %v", err)
	}
	if q := c.Quotas(); len(q) != 1 || q[0].Limit != 1 || q[0].Left != 0 || q[0].Source != "127.0.0.1" || q[0].Upstream != "docker.io" {
		t.Errorf("quotas %+v", q)
	}

	hub.Inject(&ocitest.Fault{Match: ocitest.Match{Method: "HEAD"}, Effect: ocitest.AbuseLimit(), Times: 1})
	_, _, err = c.Resolve(t.Context(), alpine, "latest", oci.Ask{})
	wantCode(t, err, oci.TooManyRequests)
	hub.Reset()
	_, _, err = openBlob(t, c, alpine, image.Blobs[0].Digest).Stat(t.Context())
	wantCode(t, err, oci.TooManyRequests)
	if after := oci.RetryAfter(err).Seconds(); after < 50 || after > 60 {
		t.Errorf("retry after %v s, want about 60", after)
	}
	saw(t, hub)
}

// An answer to HEAD has no body to give a reason in, and clients show nothing
// but the code of an error whose text says no more than that.
func TestARefusalWithoutAReasonNamesWhoRefuses(t *testing.T) {
	for _, status := range []int{401, 403, 429, 500, 502, 503, 504} {
		hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
		hub.Inject(&ocitest.Fault{Effect: ocitest.Answer(status)})
		_, _, err := connect(t, hub).Resolve(t.Context(), alpine, "latest", oci.Ask{})
		if want := fmt.Sprintf("%s answers %d", hub.Host(), status); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
}

func TestObserveSeesEachRequest(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(1, 100)
	hub.Push("library/alpine", "latest", image)
	var rec recorder
	c := connect(t, hub, rec.attach)
	if _, err := read(t.Context(), openBlob(t, c, alpine, image.Blobs[0].Digest), 0, -1); err != nil {
		t.Fatal(err)
	}
	hub.Close()
	_, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{})
	wantCode(t, err, oci.Unavailable)
	want := []struct {
		kind   Kind
		method string
		status int
	}{{BlobKind, "GET", 401}, {TokenKind, "GET", 200}, {BlobKind, "GET", 307}, {BlobKind, "GET", 200}, {ManifestKind, "HEAD", 0}}
	if len(rec.calls) != len(want) {
		t.Fatalf("%d calls, want %d: %+v", len(rec.calls), len(want), rec.calls)
	}
	for i, w := range want {
		got := rec.calls[i]
		if got.Kind != w.kind || got.Method != w.method || got.Status != w.status || got.Upstream != "docker.io" || got.Repository != "library/alpine" || got.Duration <= 0 || (got.Err != nil) != (w.status == 0) {
			t.Errorf("call %d is %+v, want %+v", i, got, w)
		}
	}
	if rec.calls[0].Host == rec.calls[1].Host || rec.calls[0].Host == rec.calls[3].Host {
		t.Error("registry, token service and CDN have the same host")
	}
}

func TestClosedClientAsksForNoTokens(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	hub.Push("library/alpine", "latest", ocitest.RandomImage(1, 100))
	c := connect(t, hub)
	c.Close()
	c.Close()
	_, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{})
	wantCode(t, err, oci.Unavailable)
	if !errors.Is(err, errClosed) {
		t.Errorf("got %v, want that the client is closed", err)
	}
}
