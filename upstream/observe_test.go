package upstream

import (
	"io"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// Each request tells on whose account and for whom it was sent, and what it
// brought: of content, not of tokens and refusals.
func TestRequestsTellWhoCausedThem(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	hub.AddUser("robot", "hunter2")
	image := ocitest.RandomImage(1, 3<<20)
	hub.Push("library/alpine", "1", image)
	hub.Private("library/alpine", "robot")
	type cause struct {
		Kind                        Kind
		Repository, Account, Client string
	}
	var mu sync.Mutex
	asked, brought := map[cause]int{}, map[cause]int64{}
	causeOf := func(c Call) cause { return cause{c.Kind, c.Repository, c.Account, c.Client} }
	client := connect(t, hub, func(cfg *Config) {
		cfg.Credentials = Password("robot", "hunter2")
		cfg.Observe = func(c Call) {
			mu.Lock()
			defer mu.Unlock()
			if c.Status == 200 {
				asked[causeOf(c)]++
			}
		}
		cfg.Received = func(c Call, n int64) {
			mu.Lock()
			defer mu.Unlock()
			brought[causeOf(c)] += n
		}
	})
	if _, _, err := client.Resolve(t.Context(), alpine, "1", oci.Ask{Client: "a"}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := client.Manifest(t.Context(), alpine, image.Digest, oci.Ask{Client: "b"}); err != nil {
		t.Fatal(err)
	}
	layer := image.Blobs[len(image.Blobs)-1]
	blob, err := client.Blob(t.Context(), alpine, layer.Digest, oci.Ask{Client: "c"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := blob.Open(t.Context(), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, r, 100_000); err != nil { // and no more: what came counts
		t.Fatal(err)
	}
	r.Close()
	mu.Lock()
	defer mu.Unlock()
	const repo = "library/alpine"
	wantAsked := map[cause]int{
		{TokenKind, repo, "robot", "a"}: 1, {ManifestKind, repo, "robot", "a"}: 1,
		{ManifestKind, repo, "robot", "b"}: 1, {BlobKind, repo, "robot", "c"}: 1,
	}
	if diff := cmp.Diff(wantAsked, asked); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	wantBrought := map[cause]int64{{ManifestKind, repo, "robot", "b"}: image.Size, {BlobKind, repo, "robot", "c"}: 100_000}
	if diff := cmp.Diff(wantBrought, brought); diff != "" {
		t.Errorf("bytes (-want +got):\n%s", diff)
	}
}
