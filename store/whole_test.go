package store

import (
	"fmt"
	"testing"

	"entrepot/oci"
)

func TestWholeImages(t *testing.T) {
	config := `"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + oci.Sum([]byte("config")).String() + `","size":6}`
	layer := func(content, urls string) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d%s}`, layerType, oci.Sum([]byte(content)), len(content), urls)
	}
	image := func(layers string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,%s,"layers":[%s]}`, manifestType, config, layers)
	}
	child := func(manifest, os string) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":%q,"architecture":"amd64"}}`, manifestType, oci.Sum([]byte(manifest)), len(manifest), os)
	}
	index := func(children string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, indexType, children)
	}
	full, part := image(layer("layer", "")), image(layer("layer", "")+","+layer("lost", ""))
	for name, tc := range map[string]struct {
		manifest string
		held     []string // beside the manifest and what each has
		want     bool
	}{
		"all is there":                {full, nil, true},
		"a layer is not":              {part, nil, false},
		"one lies elsewhere":          {image(layer("layer", "") + "," + layer("lost", `,"urls":["https://example.com/x"]`)), nil, true},
		"no config":                   {`{"schemaVersion":2,"config":{"mediaType":"` + manifestType + `","digest":"` + oci.Sum([]byte("no")).String() + `","size":2},"layers":[]}`, nil, false},
		"one that is empty":           {`{"schemaVersion":2,"config":{"mediaType":"` + emptyConfig + `","digest":"` + oci.Sum([]byte("{}")).String() + `","size":2},"layers":[` + layer("layer", "") + `]}`, nil, true},
		"one platform of two":         {index(child(part, "linux") + "," + child(full, "windows")), []string{part, full}, true},
		"none of two":                 {index(child(part, "linux") + "," + child(full, "windows")), []string{part}, false},
		"an attestation alone":        {index(child(part, "linux") + "," + child(full, "unknown")), []string{part, full}, false},
		"what runs nowhere":           {index(child(full, "")), []string{full}, true},
		"an index of an index":        {index(child(index(child(full, "linux")), "linux")), []string{full, index(child(full, "linux"))}, true},
		"what is no manifest at all":  {"text", nil, true},
		"an index that lists nothing": {index(""), nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := openDisk(t, t.TempDir(), nil)
			for _, content := range append([]string{"config", "layer", tc.manifest}, tc.held...) {
				if err := d.PutFrom(oci.Sum([]byte(content)), []byte(content), busybox.Host); err != nil {
					t.Fatal(err)
				}
			}
			if got := d.IsWhole(t.Context(), oci.Sum([]byte(tc.manifest))); got != tc.want {
				t.Errorf("%t, want %t", got, tc.want)
			}
			if d.IsWhole(t.Context(), oci.Sum([]byte("never seen"))) {
				t.Error("what is not here is whole")
			}
		})
	}
}
