package cache

import (
	"errors"
	"strconv"
	"testing"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// TestPrivateContentStaysPrivate: whoever may push manifests somewhere lists a
// private image's layer, config and manifest there. Nothing of it is given out
// under that name, in whatever state it is here, and whether or not upstream can
// be asked.
func TestPrivateContentStaysPrivate(t *testing.T) {
	layer := pattern(50, 300_000)
	elsewhere := oci.Repository{Host: "quay.io", Path: "mallory/public"}
	for _, thief := range []oci.Repository{mallory, elsewhere} {
		for _, state := range []string{"held", "held before a restart", "evicted", "evicted and back"} {
			t.Run(thief.String()+" "+state, func(t *testing.T) {
				s := newSource()
				image := s.pushImage(secret, "latest", layer)
				links, err := oci.ParseLinks(image.Content)
				if err != nil {
					t.Fatal(err)
				}
				claim := s.pushImage(thief, "image", layer, pattern(51, 10))
				delete(s.blobs, thief.String()+"@"+oci.Sum(layer).String())
				index := s.pushManifest(thief, "index", []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[`+
					`{"mediaType":"`+image.MediaType+`","digest":"`+image.Digest.String()+`","size":1}]}`), "application/vnd.oci.image.index.v1+json")
				delete(s.manifests, thief.String()+"@"+image.Digest.String())

				on := store.Config{Dir: t.TempDir(), Memory: 1 << 20, Budget: 4 << 20}
				c := openCacheOf(t, on, s, Config{TTL: time.Hour, Private: true})
				pullSecret := func() {
					t.Helper()
					if _, err := pull(t.Context(), c, secret, "latest"); err != nil {
						t.Fatal(err)
					}
					for _, blob := range links.Blobs() {
						if _, _, err := read(t.Context(), c, secret, blob.Digest, 0, -1); err != nil {
							t.Fatal(err)
						}
					}
					awaitNoFills(c)
				}
				pullSecret()
				for _, m := range []oci.Manifest{claim, index} {
					if _, _, err := c.Manifest(t.Context(), thief, m.Digest, oci.Ask{}); err != nil {
						t.Fatal(err)
					}
				}
				switch state {
				case "held before a restart":
					closeCache(t, c)
					c = openCacheOf(t, on, s, Config{TTL: time.Hour, Private: true})
				case "evicted", "evicted and back":
					crowdOut(t, c, s, oci.Sum(layer))
					if state == "evicted and back" {
						pullSecret()
					}
				}
				for _, want := range []struct {
					down           error
					blob, manifest oci.Code
				}{{nil, oci.BlobUnknown, oci.ManifestUnknown}, {errDown, oci.Unavailable, oci.Unavailable}} {
					s.set(func() { s.down = want.down })
					c.Forget()
					for _, blob := range links.Blobs() {
						for _, length := range []int64{-1, 10} {
							got, _, err := read(t.Context(), c, thief, blob.Digest, 0, length)
							wantCode(t, err, want.blob)
							if len(got) > 0 {
								t.Errorf("%d bytes went out", len(got))
							}
						}
						b, err := c.Blob(t.Context(), thief, blob.Digest, oci.Ask{})
						if err != nil {
							t.Fatal(err)
						}
						_, _, err = b.Stat(t.Context())
						wantCode(t, err, want.blob)
					}
					_, _, err := c.Manifest(t.Context(), thief, image.Digest, oci.Ask{})
					wantCode(t, err, want.manifest)
					_, _, err = c.Resolve(t.Context(), thief, image.Digest.String(), oci.Ask{})
					wantCode(t, err, want.manifest)
				}
				s.set(func() { s.down = nil })
				c.Forget()
				pullSecret()
			})
		}
	}
}

// crowdOut pulls other images until the budget has no room for d any more.
func crowdOut(t *testing.T, c *Cache, s *source, d oci.Digest) {
	t.Helper()
	other := oci.Repository{Host: "docker.io", Path: "crowd/app"}
	for n := range 40 {
		tag, content := strconv.Itoa(n), pattern(60+n, 290_000)
		s.set(func() { s.pushImage(other, tag, content) })
		if _, err := pull(t.Context(), c, other, tag); err != nil {
			t.Fatal(err)
		}
		if _, _, err := read(t.Context(), c, other, oci.Sum(content), 0, -1); err != nil {
			t.Fatal(err)
		}
		awaitNoFills(c)
		if _, err := c.disk.Size(d); errors.Is(err, store.ErrNotHeld) && c.disk.Stats().Evicted > 0 {
			return
		}
	}
	t.Fatalf("%s is still here: nothing crowded it out", d)
}
