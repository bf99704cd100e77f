package oci_test

import (
	"strings"
	"testing"

	"entrepot/oci"
)

func TestMatches(t *testing.T) {
	for _, row := range []struct {
		pattern, s string
		want       bool
	}{
		{"*", "docker.io/library/alpine:latest", true},
		{"*:latest", "docker.io/library/alpine:latest", true},
		{"*:latest", "docker.io/library/alpine:latest-slim", false},
		{"docker.io/*", "docker.io/library/alpine:3", true},
		{"docker.io/*", "ghcr.io/a/b:3", false},
		{"*:[0-9]*.[0-9]*", "docker.io/library/alpine:3.20.1", true},
		{"*:[0-9]*.[0-9]*", "docker.io/library/alpine:edge", false},
		{"*:v?", "quay.io/a/b:v1", true},
		{"*:v?", "quay.io/a/b:v10", false},
		{"a*b*c", "a-b-b-c", true},
		{"a*b*c", "a-b-b-d", false},
		{"", "", true},
		{"", "a", false},
		{"**", "", true},
		{"[", "[", true},
		{"[a-", "[a-", true},
	} {
		if got := oci.Matches(row.pattern, row.s); got != row.want {
			t.Errorf("Matches(%q, %q) = %v, want %v", row.pattern, row.s, got, row.want)
		}
	}
}

func FuzzMatches(f *testing.F) {
	f.Add("docker.io/*:[0-9]*", "docker.io/library/alpine:3.20")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if !strings.ContainsAny(s, "*?[") && !oci.Matches(s, s) {
			t.Errorf("%q does not match itself", s)
		}
		if oci.Matches(pattern, s) && !oci.Matches("*"+pattern+"*", s) {
			t.Errorf("%q matches %q, but not with a star at each end", pattern, s)
		}
	})
}
