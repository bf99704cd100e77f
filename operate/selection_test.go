package operate

import (
	"strings"
	"testing"

	"entrepot/oci"
)

func TestSelection(t *testing.T) {
	names := &oci.Names{Default: "docker.io", Upstreams: []string{"docker.io", "ghcr.io"}, Rules: new(oci.Rules)}
	for target, source := range map[string]string{"ours/*": "ghcr.io/team/*", "hub/*": "docker.io/*"} {
		var r oci.Rule
		var err error
		if r.Target, err = oci.ParseTarget(target); err == nil {
			r.Source, err = oci.ParseSource(source)
		}
		if err == nil {
			err = names.Rules.Add(r)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	digest := "sha256:" + strings.Repeat("a", 64)
	for _, row := range []struct{ arg, repository, tag, digest string }{
		{"alpine", "docker.io/library/alpine", "", ""},
		{"alpine:3.20", "docker.io/library/alpine", "3.20", ""},
		{"team/app@" + digest, "docker.io/team/app", "", digest},
		{"team/app:1@" + digest, "docker.io/team/app", "1", digest},
		{"index.docker.io/alpine", "docker.io/library/alpine", "", ""},
		{"ghcr.io/a/b:x", "ghcr.io/a/b", "x", ""},
		{"gone.example:5000/a/b", "gone.example:5000/a/b", "", ""}, // an upstream that was taken out
		{"localhost/a", "localhost/a", "", ""},
		{"*", "*", "", ""},
		{"alp*", "docker.io/library/alp*", "", ""},
		{"library/*", "docker.io/library/*", "", ""},
		{"docker.io/*", "docker.io/*", "", ""},
		{"registry-1.docker.io/*", "docker.io/*", "", ""},
		{"*.io/a", "*.io/a", "", ""},
		{"alpine:3.*", "docker.io/library/alpine", "3.*", ""},
		{"*:latest", "*", "latest", ""},
		{"ours/app:1", "ghcr.io/team/app", "1", ""},
		{"ours/*", "ghcr.io/team/*", "", ""},
		{"ours/a/b*:1", "ghcr.io/team/a/b*", "1", ""},
		{"hub/alpine", "docker.io/library/alpine", "", ""},
		{"hub/*", "docker.io/*", "", ""},
		{"our*/app", "docker.io/our*/app", "", ""},
	} {
		got, err := selectionOf(names, row.arg)
		if err != nil || got.repository != row.repository || got.tag != row.tag || got.digest.String() != row.digest {
			t.Errorf("%s: %+v, %v; want %+v", row.arg, got, err, row)
		}
	}
	for _, arg := range []string{"", ":", "@", "a:b:c", "A", "a/../b", "docker.io", "x@sha256:12", "ghcr.io/", "a::", "alpine:.x"} {
		if got, err := selectionOf(names, arg); err == nil {
			t.Errorf("%q: %+v, want an error", arg, got)
		}
	}
}

func FuzzSelection(f *testing.F) {
	for _, s := range []string{"alpine:3.*", "ghcr.io/a/b@sha256:", "*", "[a-z]/x:y", "localhost:5000/x"} {
		f.Add(s)
	}
	names := &oci.Names{Default: "docker.io", Upstreams: []string{"docker.io", "ghcr.io"}}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := selectionOf(names, s)
		if err != nil || isPattern(got.repository) {
			return
		}
		repo, err := oci.ParseRepository(got.repository)
		if err != nil || got.tag != "" && !isPattern(got.tag) && !oci.ValidTag(got.tag) {
			t.Fatalf("%q: %+v", s, got)
		}
		if again, err := selectionOf(names, repo.String()); err != nil || again.repository != got.repository {
			t.Fatalf("%q is %s, which is %s, %v", s, got.repository, again.repository, err)
		}
	})
}
