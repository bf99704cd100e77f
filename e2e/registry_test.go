//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"entrepot/internal/ocitest"

	"github.com/google/go-cmp/cmp"
)

// distribution is a Debian docker-registry, a program by other people.
type distribution struct {
	*process
	host string // "localhost:4321"
}

var (
	distributionReady = regexp.MustCompile(`listening on 127\.0\.0\.1:(\d+)`)
	accessLine        = regexp.MustCompile(`"(GET|HEAD) (/v2/\S+/(?:manifests|blobs)/\S+) HTTP/\S+" 200 .* "entrepot/`)
)

// newDistribution starts one on a free port. More is YAML for its http section
// and for what follows that.
func newDistribution(t *testing.T, dir, more string) distribution {
	t.Helper()
	config := filepath.Join(dir, "config.yml")
	write(t, config, fmt.Sprintf(`version: 0.1
storage:
  filesystem:
    rootdirectory: %s
http:
  addr: 127.0.0.1:0
%s`, filepath.Join(dir, "storage"), more))
	p := start(t, "docker-registry", []string{"OTEL_TRACES_EXPORTER=none"}, distributionReady, "docker-registry", "serve", config)
	return distribution{p, "localhost:" + distributionReady.FindStringSubmatch(p.output.String())[1]}
}

// served are the manifests and blobs that it gave to the cache, sorted. Only of
// one that has stopped, for then its log is whole.
func (d distribution) served() []string {
	got := []string{}
	for _, m := range accessLine.FindAllStringSubmatch(d.output.String(), -1) {
		got = append(got, m[1]+" "+m[2])
	}
	slices.Sort(got)
	return got
}

// A registry that other people wrote: in the clear, with name and password, and
// over TLS by an authority of our own.
func TestDebianRegistryAsUpstream(t *testing.T) {
	const user, password = "reader", "correct-horse"
	ca, files := ocitest.NewCA(), tempDir(t)
	file := func(name, content string) string {
		path := filepath.Join(files, name)
		write(t, path, content)
		return path
	}
	certificate, key := ocitest.KeyPair(ca.Certificate())
	for _, tc := range []struct {
		name     string
		scheme   string
		config   string   // of the registry
		settings []string // of the cache
	}{
		{name: "plain", scheme: "http"},
		{
			name: "basic", scheme: "http",
			config: fmt.Sprintf("auth:\n  htpasswd:\n    realm: e2e\n    path: %s\n",
				file("htpasswd", run(t, nil, "htpasswd", "-nbB", user, password))),
			settings: []string{
				"ENTREPOT_UPSTREAM_2_USERNAME=" + user,
				"ENTREPOT_UPSTREAM_2_PASSWORD_FILE=" + file("password", password+"\n"),
			},
		},
		{
			name: "tls", scheme: "https",
			config:   fmt.Sprintf("  tls:\n    certificate: %s\n    key: %s\n", file("tls.crt", string(certificate)), file("tls.key", string(key))),
			settings: []string{"ENTREPOT_UPSTREAM_2_CA_FILE=" + file("ca.crt", string(ca.PEM))},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := newDistribution(t, tempDir(t), tc.config)
			name := tc.name + ".test"
			s := newSite(t, append(tc.settings, "ENTREPOT_UPSTREAM_2_NAME="+name, "ENTREPOT_UPSTREAM_2_URL="+tc.scheme+"://"+d.host)...)
			image := newHello(t, "hello from a registry: "+tc.name, false, 64<<10)
			s.hub.Push("fill/hello", "1", image.Image)
			fill(t, s, d, "fill/hello:1", "team/hello:1", user+":"+password)

			pullAndRun := func() {
				t.Helper()
				dir := tempDir(t)
				ref := s.ref(name + "/team/hello:1")
				run(t, s.client(dir), craneBin, "validate", "--remote", ref)
				docker := newDocker(t, s, dir, "{}")
				docker.run(t, "pull", ref)
				docker.greets(t, ref, image.greeting)
			}
			pullAndRun()
			pullAndRun()
			if err := d.stop(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(image.served("team/hello", "1"), d.served()); diff != "" {
				t.Errorf("two pulls: the registry served (-want +got):\n%s", diff)
			}
			if strings.Contains(s.cache.output.String(), password) {
				t.Error("the password is in the log")
			}
			s.restartCache(t, "ENTREPOT_TAG_TTL=1ms")
			pullAndRun()
		})
	}
}

// fill copies an image from the hub, with all its platforms.
func fill(t *testing.T, s *site, d distribution, from, to, credentials string) {
	t.Helper()
	run(t, containers(t, s, tempDir(t)), "skopeo", "copy", "--all", "--preserve-digests",
		"--src-tls-verify=false", "--dest-tls-verify=false", "--dest-creds", credentials,
		"docker://"+s.hub.Host()+"/"+from, "docker://"+d.host+"/"+to)
}

// served is what the image costs a registry whose log we read.
func (h hello) served(repo, tag string) []string {
	want := []string{"HEAD /v2/" + repo + "/manifests/" + tag}
	for _, image := range []ocitest.Image{h.Image, h.own, h.foreign} {
		want = append(want, "GET /v2/"+repo+"/manifests/"+image.Digest.String())
		for _, blob := range image.Blobs {
			want = append(want, "GET /v2/"+repo+"/blobs/"+blob.Digest.String())
		}
	}
	slices.Sort(want)
	return want
}
