package access

import (
	"testing"

	"entrepot/oci"

	"github.com/google/go-cmp/cmp"
)

func TestPublic(t *testing.T) {
	const rules = `
rules:
  - {who: [authenticated], repositories: ["**"]}
  - {who: [anonymous], repositories: ["ghcr.io/open/*", "docker.io/library/*", "*/public/**"]}
  - {who: [alice, anonymous], repositories: ["docker.io/library/*", "docker.io/acme/app"], actions: [content/read]}
  - {who: [anonymous], repositories: ["docker.io/listed/*"], actions: [metadata/read]}
`
	names := &oci.Names{Default: "docker.io", Upstreams: []string{"docker.io", "ghcr.io"}}
	for host, want := range map[string][]string{
		"docker.io": {"docker.io/library/*", "*/public/**", "docker.io/acme/app"},
		"ghcr.io":   {"ghcr.io/open/*", "*/public/**"},
		"quay.io":   {"*/public/**"},
	} {
		got, err := Public([]byte(rules), names, host)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", host, diff)
		}
	}
	if got, err := Public([]byte(`rules: [{who: [anonymous], repositories: ["**"]}]`), names, "docker.io"); err != nil || len(got) != 1 {
		t.Errorf("all there is: %q, %v", got, err)
	}
}
