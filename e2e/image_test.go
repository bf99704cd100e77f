//go:build e2e

package e2e

import (
	"encoding/json"
	"hash/fnv"
	"io"
	"os"
	"runtime"
	"sync"
	"testing"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// hello is an image that runs: an index of one for this machine, with a layer for
// the program and one for the file that it prints, and of one for another
// machine, which only some clients fetch.
type hello struct {
	ocitest.Image
	greeting string
	own      ocitest.Image
	foreign  ocitest.Image
}

// newHello makes an image that greets so, with docker's media types or OCI's,
// and ballast bytes beside the greeting. Each greeting has content of its own,
// the program's layer apart.
func newHello(t *testing.T, greeting string, docker bool, ballast int64) hello {
	t.Helper()
	first, err := programLayer()
	if err != nil {
		t.Fatal(err)
	}
	h := fnv.New64()
	_, _ = io.WriteString(h, greeting)
	seed := h.Sum64() >> 16
	second := ocitest.TarGz(
		ocitest.File{Name: "etc/greeting", Content: []byte(greeting + "\n")},
		ocitest.File{Name: "ballast", Content: ocitest.Blob(seed, ballast).Bytes()},
	)
	image := hello{greeting: greeting + "\n"}
	image.own = runnable(t, docker, oci.Platform{OS: "linux", Architecture: runtime.GOARCH}, []string{"/hello"}, first, second)
	image.foreign = runnable(t, docker, oci.Platform{OS: "linux", Architecture: "s390x"}, []string{"/hello"},
		ocitest.TarGz(ocitest.File{Name: "hello", Content: []byte("for another machine: " + greeting), Mode: 0o755}))
	index := ocitest.Index
	if docker {
		index = ocitest.DockerIndex
	}
	image.Image = index(image.own, image.foreign)
	return image
}

var programLayer = sync.OnceValues(func() (ocitest.Layer, error) {
	program, err := os.ReadFile(helloBin)
	return ocitest.TarGz(ocitest.File{Name: "hello", Content: program, Mode: 0o755}), err
})

// runnable is an image with a config that is true of its layers.
func runnable(t *testing.T, docker bool, platform oci.Platform, entrypoint []string, layers ...ocitest.Layer) ocitest.Image {
	t.Helper()
	diffIDs, contents := []string{}, []ocitest.Content{}
	for _, layer := range layers {
		diffIDs = append(diffIDs, layer.DiffID.String())
		contents = append(contents, layer.Content)
	}
	raw, err := json.Marshal(map[string]any{
		"architecture": platform.Architecture,
		"os":           platform.OS,
		"config":       map[string]any{"Entrypoint": entrypoint, "Env": []string{"PATH=/usr/local/go/bin:/bin"}},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		t.Fatal(err)
	}
	mediaType := "application/vnd.oci.image.config.v1+json"
	if docker {
		mediaType = "application/vnd.docker.container.image.v1+json"
	}
	config := ocitest.Bytes(mediaType, raw)
	return ocitest.ImageSpec{Docker: docker, Platform: platform, Config: &config, Layers: contents}.Build()
}
