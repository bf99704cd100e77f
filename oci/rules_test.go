package oci_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"entrepot/oci"
)

// rule reads "target => source".
func rule(s string) (r oci.Rule, err error) {
	target, source, _ := strings.Cut(s, " => ")
	if r.Target, err = oci.ParseTarget(target); err != nil {
		return r, err
	}
	r.Source, err = oci.ParseSource(source)
	return r, err
}

func rules(t testing.TB, lines ...string) *oci.Rules {
	t.Helper()
	all := new(oci.Rules)
	for _, line := range lines {
		r, err := rule(line)
		if err == nil {
			err = all.Add(r)
		}
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	return all
}

func TestRulesOfNames(t *testing.T) {
	n := names()
	n.Rules = rules(t,
		"dotnet/* => mcr.microsoft.com/dotnet/*",
		"dotnet/nightly/* => docker.io/nightly/*",
		"dotnet/nightly/pinned => mcr.microsoft.com/dotnet/sdk",
		"dotnet/hello => docker.io/hello-world",
		"hub/* => docker.io/*",
		"local/* => localhost:5005/*",
		"k8s.gcr.io/* => mcr.microsoft.com/oss/kubernetes/*",
		"docker.io/library/busybox => mcr.microsoft.com/mirror/busybox",
		"mcr.microsoft.com/old/* => mcr.microsoft.com/new/*",
		"sub.example/team/* => docker.io/team/*",
	)
	for _, row := range []struct{ name, ns, want string }{
		{"dotnet/sdk", "", "mcr.microsoft.com/dotnet/sdk"},
		{"dotnet/framework/sdk", "", "mcr.microsoft.com/dotnet/framework/sdk"},
		{"dotnet", "", "docker.io/library/dotnet"}, // a * stands for something
		{"dotnetx/sdk", "", "docker.io/dotnetx/sdk"},
		{"a/dotnet/sdk", "", "docker.io/a/dotnet/sdk"},
		// The more specific one wins.
		{"dotnet/nightly/sdk", "", "docker.io/nightly/sdk"},
		{"dotnet/nightly/pinned", "", "mcr.microsoft.com/dotnet/sdk"},
		{"dotnet/nightly/pinned/x", "", "docker.io/nightly/pinned/x"},
		{"dotnet/nightly", "", "mcr.microsoft.com/dotnet/nightly"},
		{"dotnet/hello", "", "docker.io/library/hello-world"},
		// Docker Hub's one-part names have their library here too.
		{"hub/alpine", "", "docker.io/library/alpine"},
		{"hub/library/alpine", "", "docker.io/library/alpine"},
		{"hub/grafana/grafana", "", "docker.io/grafana/grafana"},
		{"local/x", "", "localhost:5005/x"},
		// What no rule takes means what it always did.
		{"library/alpine", "", "docker.io/library/alpine"},
		{"mcr.microsoft.com/dotnet/sdk", "", "mcr.microsoft.com/dotnet/sdk"},
		// Who names a registry means it, by ns as by path, unless a rule is for
		// that registry's names.
		{"dotnet/sdk", "docker.io", "docker.io/dotnet/sdk"},
		{"dotnet/sdk", "cache.example", "mcr.microsoft.com/dotnet/sdk"}, // our own name
		{"sdk", "dotnet", "NAME_UNKNOWN"},                               // a registry that looks like a target
		{"sdk", "dotnet/nightly", "NAME_UNKNOWN"},
		{"docker.io/dotnet/sdk", "", "docker.io/dotnet/sdk"},
		{"pause", "k8s.gcr.io", "mcr.microsoft.com/oss/kubernetes/pause"},
		{"k8s.gcr.io/pause", "k8s.gcr.io", "mcr.microsoft.com/oss/kubernetes/pause"},
		{"k8s.gcr.io/pause", "", "mcr.microsoft.com/oss/kubernetes/pause"},
		{"K8S.gcr.io/pause", "", "mcr.microsoft.com/oss/kubernetes/pause"},
		{"docker.io/busybox", "", "mcr.microsoft.com/mirror/busybox"},
		{"index.docker.io/library/busybox", "", "mcr.microsoft.com/mirror/busybox"},
		{"busybox", "docker.io", "mcr.microsoft.com/mirror/busybox"},
		{"busybox", "", "docker.io/library/busybox"},
		{"mcr.microsoft.com/old/x", "", "mcr.microsoft.com/new/x"}, // once: new is not looked up again
		{"sub.example/team/x", "", "docker.io/team/x"},
		{"sub.example/other/x", "", "NAME_UNKNOWN"},
		{"x", "sub.example", "NAME_UNKNOWN"},
		{"dotnet/../x", "", "NAME_INVALID"},
		{"dotnet/" + strings.Repeat("a", 245), "", "NAME_INVALID"}, // too long by what the source has
	} {
		repo, _, err := n.Repository(row.name, row.ns, "registry.local:5000")
		got := repo.String()
		if err != nil {
			got = oci.CodeOf(err).String()
		}
		if got != row.want {
			t.Errorf("%q, ns %q: %s, %v; want %s", row.name, row.ns, got, err, row.want)
		}
	}
}

// TestARuleForEveryName takes all that has no registry, and nothing else: names
// as the catalogue lists them go on to mean what they say.
func TestARuleForEveryName(t *testing.T) {
	n := names()
	n.Rules = rules(t, "* => mcr.microsoft.com/all/*", "library/* => docker.io/library/*")
	for _, row := range []struct{ name, ns, want string }{
		{"a", "", "mcr.microsoft.com/all/a"},
		{"a/b", "", "mcr.microsoft.com/all/a/b"},
		{"library/alpine", "", "docker.io/library/alpine"},
		{"docker.io/a", "", "docker.io/library/a"},
		{"a", "docker.io", "docker.io/library/a"},
		{"evil.example/a", "", "NAME_UNKNOWN"},
		{"mcr.microsoft.com", "", "NAME_UNKNOWN"},
		{"", "", "NAME_UNKNOWN"},
	} {
		repo, _, err := n.Repository(row.name, row.ns, "x")
		got := repo.String()
		if err != nil {
			got = oci.CodeOf(err).String()
		}
		if got != row.want {
			t.Errorf("%q, ns %q: %s, %v; want %s", row.name, row.ns, got, err, row.want)
		}
	}
}

func TestRulesThatAreRefused(t *testing.T) {
	for _, row := range []struct{ lines, want string }{
		{"dotnet* => mcr.microsoft.com/dotnet*", "whole last part"},
		{"a/*/b => docker.io/a/*/b", "whole last part"},
		{"*/* => docker.io/*", "whole last part"},
		{"** => docker.io/*", "whole last part"},
		{"a/* => *", "does not begin with an upstream"},
		{"a/* => dotnet/*", "does not begin with an upstream"},
		{"a => docker.io", "grammar"},
		{"a => ", "names nothing"},
		{" => docker.io/a", "names nothing"},
		{"/* => docker.io/*", "names nothing"},
		{"A/* => docker.io/*", "grammar"},
		{"a/../b => docker.io/a", "grammar"},
		{"a/ => docker.io/a", "grammar"},
		{"mcr.microsoft.com => docker.io/a", "grammar"},
		{"https://docker.io/a => docker.io/a", "not a host"},
		{"a => https://docker.io/a", "not a host"},
		{"a/* => docker.io/a", "end of both or of neither"},
		{"a => docker.io/*", "end of both or of neither"},
		{"a/* => docker.io/x/* | a/* => docker.io/y/*", "another rule, a/* => docker.io/x/*"},
		{"a => docker.io/x | a => docker.io/x", "another rule"},
		{"* => docker.io/x/* | * => docker.io/y/*", "another rule"},
		{"docker.io/a => docker.io/x | index.docker.io/library/a => docker.io/y", "another rule"},
	} {
		all := new(oci.Rules)
		var err error
		for line := range strings.SplitSeq(row.lines, " | ") {
			var r oci.Rule
			if r, err = rule(line); err == nil {
				err = all.Add(r)
			}
		}
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", row.lines, err, row.want)
		}
	}
}

func TestRulesAreListedAsTheyAreTried(t *testing.T) {
	all := rules(t, "* => docker.io/x/*", "b/* => docker.io/b/*", "z => docker.io/z", "b/c/* => docker.io/c/*", "b/c/d => quay.io/d").All()
	want := []string{"b/c/d => quay.io/d", "z => docker.io/library/z", "b/c/* => docker.io/c/*", "b/* => docker.io/b/*", "* => docker.io/x/*"}
	var got []string
	for _, r := range all {
		got = append(got, r.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// FuzzRules: whatever rules there are and whatever a client sends, the answer is
// that of the most specific rule, as a plain search finds it, and a repository of
// a configured upstream that is safe as a file path.
func FuzzRules(f *testing.F) {
	f.Add("dotnet/* => mcr.microsoft.com/dotnet/*\ndotnet/x/* => docker.io/*", "dotnet/x/y", "")
	f.Add("* => docker.io/library/*\na => mcr.microsoft.com/b", "a", "docker.io")
	f.Add("docker.io/* => evil.example/*\nk8s.gcr.io/* => localhost:5005/*", "pause", "k8s.gcr.io")
	f.Add("a/b/* => docker.io/../*\na/b => docker.io/a", "a/b/../c", "")
	f.Add("0/* => 0.0/*", "1", "0")
	f.Fuzz(func(t *testing.T, lines, name, ns string) {
		n := names()
		n.Rules = new(oci.Rules)
		var added []oci.Rule
		for line := range strings.SplitSeq(lines, "\n") {
			r, err := rule(line)
			if err != nil {
				continue
			}
			if again, err := rule(r.String()); err != nil || again != r {
				t.Fatalf("%q is read as %q, and that as %q, %v", line, r, again, err)
			}
			if n.Rules.Add(r) == nil {
				added = append(added, r)
			}
		}
		repo, _, err := n.Repository(name, ns, "x")
		want, has := slowest(added, name, ns)
		if got := n.Rule(name, ns, "x"); (got != nil) != has || has && *got != want {
			t.Fatalf("%q, ns %q: rule %v, want %v", name, ns, got, want)
		}
		if err != nil {
			if code := oci.CodeOf(err); code != oci.NameUnknown && code != oci.NameInvalid {
				t.Errorf("error %v", err)
			}
			return
		}
		if !slices.Contains(n.Upstreams, repo.Host) || !safePath(repo) {
			t.Errorf("%q became %q", name, repo)
		}
		if has && !want.Source.Covers(repo.String()) {
			t.Errorf("%q became %q by %s", name, repo, want)
		}
		if twice, _, _ := n.Repository(name, ns, "x"); twice != repo {
			t.Errorf("%q is %q and then %q", name, repo, twice)
		}
	})
}

// slowest looks at every rule.
func slowest(all []oci.Rule, name, ns string) (best oci.Rule, ok bool) {
	full := name
	first, rest, _ := strings.Cut(name, "/")
	registry := strings.ContainsAny(first, ".:") || first == "localhost"
	switch {
	case ns != "" && !strings.EqualFold(ns, "x") && !strings.EqualFold(ns, "cache.example"):
		if oci.FoldHost(first) == oci.FoldHost(ns) {
			name = rest
		}
		full, registry, rest = fmt.Sprintf("%s/%s", oci.FoldHost(ns), name), true, name
	case registry:
		full = fmt.Sprintf("%s/%s", oci.FoldHost(first), rest)
	default:
		rest = name
	}
	if hub, ok := strings.CutPrefix(full, "docker.io/"); ok && registry && !strings.Contains(hub, "/") && hub != "" {
		full = "docker.io/library/" + hub
	}
	for _, r := range all {
		covers := r.Target.Covers(full) && rest != "" && (!registry || oci.IsRegistry(strings.Split(r.Target.Name, "/")[0]))
		if covers && (!ok || !r.Target.Below || best.Target.Below && len(r.Target.Name) > len(best.Target.Name)) {
			best, ok = r, true
		}
	}
	return best, ok
}
