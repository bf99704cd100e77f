package oci_test

import (
	"slices"
	"strings"
	"testing"

	"entrepot/oci"
)

func names() *oci.Names {
	return &oci.Names{
		Default:   oci.DockerHub,
		Upstreams: []string{oci.DockerHub, "mcr.microsoft.com", "localhost:5005"},
		Own:       []string{"cache.example"},
	}
}

// TestNamesOfRequests has a row for each form of design section 7.
func TestNamesOfRequests(t *testing.T) {
	const own = "registry.local:5000"
	tests := map[string]struct {
		name, ns string
		want     string // host/path, or the wire code of the refusal
		scoped   bool
	}{
		"one part":                     {"alpine", "", "docker.io/library/alpine", false},
		"library":                      {"library/alpine", "", "docker.io/library/alpine", false},
		"two parts":                    {"grafana/grafana", "", "docker.io/grafana/grafana", false},
		"many parts":                   {"a/b/c/d", "", "docker.io/a/b/c/d", false},
		"upstream in the path":         {"mcr.microsoft.com/dotnet/sdk", "", "mcr.microsoft.com/dotnet/sdk", false},
		"other upstream, one part":     {"mcr.microsoft.com/windows", "", "mcr.microsoft.com/windows", false},
		"hub in the path, one part":    {"docker.io/alpine", "", "docker.io/library/alpine", false},
		"hub in the path, library":     {"docker.io/library/alpine", "", "docker.io/library/alpine", false},
		"hub's second name":            {"index.docker.io/library/alpine", "", "docker.io/library/alpine", false},
		"hub's third name":             {"registry-1.docker.io/alpine", "", "docker.io/library/alpine", false},
		"upstream with a port":         {"localhost:5005/x", "", "localhost:5005/x", false},
		"ns":                           {"library/alpine", "docker.io", "docker.io/library/alpine", true},
		"ns, one part":                 {"alpine", "docker.io", "docker.io/library/alpine", true},
		"ns of another":                {"dotnet/sdk", "mcr.microsoft.com", "mcr.microsoft.com/dotnet/sdk", true},
		"ns folds":                     {"library/alpine", "registry-1.docker.io", "docker.io/library/alpine", true},
		"ns in upper case":             {"library/alpine", "Docker.IO", "docker.io/library/alpine", true},
		"ns and the same path":         {"docker.io/library/alpine", "docker.io", "docker.io/library/alpine", true},
		"ns and a name that folds":     {"index.docker.io/alpine", "docker.io", "docker.io/library/alpine", true},
		"ns wins over another path":    {"mcr.microsoft.com/dotnet/sdk", "docker.io", "docker.io/mcr.microsoft.com/dotnet/sdk", true},
		"only the first part is ours":  {"docker.io/docker.io/a", "docker.io", "docker.io/docker.io/a", true},
		"ns is our host":               {"library/alpine", own, "docker.io/library/alpine", false},
		"ns is our host, other case":   {"library/alpine", "Registry.Local:5000", "docker.io/library/alpine", false},
		"ns is our name":               {"mcr.microsoft.com/dotnet/sdk", "cache.example", "mcr.microsoft.com/dotnet/sdk", false},
		"unknown upstream in the path": {"evil.example/a", "", "NAME_UNKNOWN", false},
		"unknown port in the path":     {"docker.io:444/a", "", "NAME_UNKNOWN", false},
		"localhost is a registry":      {"localhost/a", "", "NAME_UNKNOWN", false},
		"unknown ns":                   {"library/alpine", "evil.example", "NAME_UNKNOWN", true},
		"ns with a scheme":             {"library/alpine", "https://docker.io", "NAME_UNKNOWN", true},
		"ns with a path":               {"library/alpine", "docker.io/../x", "NAME_UNKNOWN", true},
		"an address as ns":             {"library/alpine", "169.254.169.254", "NAME_UNKNOWN", true},
		"upstream and nothing else":    {"mcr.microsoft.com", "", "NAME_UNKNOWN", false},
		"ns and only the upstream":     {"docker.io", "docker.io", "NAME_UNKNOWN", true},
		"bad path":                     {"a/../b", "", "NAME_INVALID", false},
		"bad path with ns":             {"../b", "docker.io", "NAME_INVALID", true},
		"too long with library":        {strings.Repeat("a", 240), "", "NAME_INVALID", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			repo, scoped, err := names().Repository(test.name, test.ns, own)
			got := repo.String()
			if err != nil {
				got = oci.CodeOf(err).String()
			}
			if got != test.want || scoped != test.scoped {
				t.Errorf("got %s, scoped %v, %v; want %s, scoped %v", got, scoped, err, test.want, test.scoped)
			}
		})
	}
}

// TestRefusalOfAnUpstreamNamesTheKnownOnes, since it reaches the user's screen.
func TestRefusalOfAnUpstreamNamesTheKnownOnes(t *testing.T) {
	_, _, err := names().Repository("evil.example/a", "", "")
	if err == nil || !strings.Contains(err.Error(), "evil.example") || !strings.Contains(err.Error(), "mcr.microsoft.com") {
		t.Errorf("got %v", err)
	}
}

// TestOwnAddressIsCut has a row for each form of our own address.
func TestOwnAddressIsCut(t *testing.T) {
	for _, row := range []struct {
		name, ports   string
		rest, guessed string
	}{
		{"cache.example/a", "", "a", ""},
		{"localhost:5000/a", "5000", "a", ""},
		{"[::1]:5000/a/b", "5000", "a/b", ""},
		{"cache.lan:5000/a", "5000", "a", "cache.lan:5000"},
		{"cache.lan:5000/a", "5001", "cache.lan:5000/a", ""},
		{"localhost:5005/a", "5005", "localhost:5005/a", ""}, // an upstream
		{"localhost/a", "443", "a", ""},
		{"127.0.0.1/a", "80", "a", ""},
		{"localhost/a", "5000", "localhost/a", ""},
		{"cache.lan/a", "443", "a", "cache.lan"},
		{"cache.lan:5000/a", "443", "cache.lan:5000/a", ""},
		{"gcr.io/a", "443", "gcr.io/a", ""},
		{"mcr.microsoft.com/a", "443", "mcr.microsoft.com/a", ""},
		{"team/a", "443", "team/a", ""},
		{"localhost", "443", "localhost", ""},
	} {
		n := names()
		n.OwnPorts = []string{row.ports}
		if rest, guessed := n.CutOwn(row.name); rest != row.rest || guessed != row.guessed {
			t.Errorf("%s at port %s: %q, guessed %q; want %+v", row.name, row.ports, rest, guessed, row)
		}
	}
}

func TestReference(t *testing.T) {
	d := "sha256:" + hex64
	for s, want := range map[string]string{
		"alpine":                           "docker.io/library/alpine latest ",
		"alpine:3.19":                      "docker.io/library/alpine 3.19 ",
		"alpine@" + d:                      "docker.io/library/alpine  " + d,
		"alpine:3.19@" + d:                 "docker.io/library/alpine 3.19 " + d,
		"mcr.microsoft.com/dotnet/sdk:9.0": "mcr.microsoft.com/dotnet/sdk 9.0 ",
		"localhost:5005/x":                 "localhost:5005/x latest ",
		"localhost:5005/x:y":               "localhost:5005/x y ",
		"":                                 "NAME_UNKNOWN",
		"alpine:":                          "NAME_INVALID",
		"alpine:a:b":                       "NAME_UNKNOWN", // a host and no repository
		"Alpine":                           "NAME_INVALID",
		"alpine@sha256:x":                  "DIGEST_INVALID",
		"alpine@":                          "DIGEST_INVALID",
		"evil.example/a":                   "NAME_UNKNOWN",
	} {
		repo, tag, digest, err := names().Reference(s)
		got := repo.String() + " " + tag + " " + digest.String()
		if err != nil {
			got = oci.CodeOf(err).String()
		}
		if got != want {
			t.Errorf("%q: got %q, %v; want %q", s, got, err, want)
		}
	}
}

// FuzzNames: whatever a client sends, the answer is a refusal or a repository
// of a known upstream that is safe as a file path.
func FuzzNames(f *testing.F) {
	f.Add("library/alpine", "", "localhost:5000")
	f.Add("docker.io/library/alpine", "docker.io", "localhost:5000")
	f.Add("mcr.microsoft.com/a", "docker.io", "")
	f.Add("a/../../../etc/passwd", "docker.io", "")
	f.Add("docker.io", "index.docker.io", "")
	f.Add("localhost:5000/a", "localhost:5000", "localhost:5000")
	f.Add("İ.docker.io/a", "İ", "")
	f.Fuzz(func(t *testing.T, name, ns, host string) {
		n := names()
		repo, scoped, err := n.Repository(name, ns, host)
		if scoped && ns == "" {
			t.Error("scoped by no ns")
		}
		if err != nil {
			if code := oci.CodeOf(err); code != oci.NameUnknown && code != oci.NameInvalid || len(err.Error()) > 2000 {
				t.Errorf("error %v", err)
			}
			return
		}
		if !slices.Contains(n.Upstreams, repo.Host) || !safePath(repo) {
			t.Errorf("became %q", repo)
		}
		again, _, err := n.Repository(repo.String(), "", "")
		if again != repo {
			t.Errorf("%q, asked for by its own name, is %q, %v", repo, again, err)
		}
		if again, _, err := n.Repository(repo.String(), repo.Host, "x"); again != repo {
			t.Errorf("%q, asked for by its own name and ns, is %q, %v", repo, again, err)
		}
	})
}

func TestPageOf(t *testing.T) {
	list := []string{"a", "b", "c"}
	for _, row := range []struct {
		page oci.Page
		want string
		more bool
	}{
		{oci.Page{N: -1}, "a b c", false},
		{oci.Page{N: 2}, "a b", true},
		{oci.Page{N: 3}, "a b c", false},
		{oci.Page{N: 0}, "", false},
		{oci.Page{N: 1, Last: "a"}, "b", true},
		{oci.Page{N: 1, Last: "aa"}, "b", true},
		{oci.Page{N: 9, Last: "c"}, "", false},
	} {
		if got := row.page.Of(list); strings.Join(got.Tags, " ") != row.want || got.More != row.more {
			t.Errorf("%+v: %v, more %v; want %q, %v", row.page, got.Tags, got.More, row.want, row.more)
		}
	}
}
