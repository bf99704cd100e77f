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
			if got := d.IsWhole(t.Context(), oci.Sum([]byte(tc.manifest)), d.has); got != tc.want {
				t.Errorf("%t, want %t", got, tc.want)
			}
			if d.IsWhole(t.Context(), oci.Sum([]byte("never seen")), d.has) {
				t.Error("what is not here is whole")
			}
		})
	}
}

func TestWhatReplacesAnImage(t *testing.T) {
	image := func(layer string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`, manifestType, layerType, oci.Sum([]byte(layer)), len(layer))
	}
	index := func(platforms ...string) string {
		children := ""
		for i := 0; i < len(platforms); i += 2 {
			children += fmt.Sprintf(`,{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":%q}}`,
				manifestType, oci.Sum([]byte(image(platforms[i+1]))), len(image(platforms[i+1])), platforms[i])
		}
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, indexType, children[1:])
	}
	both := index("amd64", "old", "arm64", "older")
	for name, tc := range map[string]struct {
		image, other string
		want         bool
	}{
		"both are whole":                    {image("new"), image("old"), true},
		"it is not":                         {image("lost"), image("old"), false},
		"the other one is not either":       {image("new"), image("lost"), true},
		"one platform as one":               {index("amd64", "new"), index("amd64", "old"), true},
		"one platform of two":               {index("amd64", "new", "arm64", "lost"), both, false},
		"the other one of two":              {index("amd64", "lost", "arm64", "new"), both, false},
		"both":                              {index("amd64", "new", "arm64", "newer"), both, true},
		"it is not for one of them":         {index("amd64", "new"), both, true},
		"what the other one has not either": {index("amd64", "new", "s390x", "lost"), both, true},
		"it was for one platform":           {index("amd64", "new", "arm64", "lost"), image("old"), true},
		"it is for one platform now":        {image("new"), both, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := openDisk(t, t.TempDir(), nil)
			for _, content := range []string{"old", "older", "new", "newer", image("old"), image("older"), image("new"), image("newer"), image("lost"), tc.image, tc.other} {
				if err := d.PutFrom(oci.Sum([]byte(content)), []byte(content), busybox.Host); err != nil {
					t.Fatal(err)
				}
			}
			if got := d.Replaces(t.Context(), oci.Sum([]byte(tc.image)), oci.Sum([]byte(tc.other)), d.has); got != tc.want {
				t.Errorf("%t, want %t", got, tc.want)
			}
		})
	}
}
