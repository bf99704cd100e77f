//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"regexp"
	"testing"
)

var containerdReady = regexp.MustCompile(`containerd successfully booted`)

// containerd is one without images, and ctr for it.
type containerd struct {
	env    []string
	socket string
	hosts  string // the certs.d directory
}

func newContainerd(t *testing.T, s *site, dir string) containerd {
	t.Helper()
	c := containerd{s.client(dir), filepath.Join(dir, "containerd.sock"), filepath.Join(dir, "certs.d")}
	config := filepath.Join(dir, "config.toml")
	write(t, config, fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = %q
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), c.socket))
	start(t, "containerd", c.env, containerdReady, "containerd", "--config", config)
	return c
}

func (c containerd) ctr(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, c.env, append([]string{"ctr", "--address", c.socket}, args...)...)
}

// greets pulls and runs an image.
func (c containerd) greets(t *testing.T, ref, greeting string, flags ...string) {
	t.Helper()
	c.ctr(t, append(append([]string{"images", "pull", "--snapshotter", "native"}, flags...), ref)...)
	if got := c.ctr(t, "run", "--rm", "--snapshotter", "native", ref, "hello"); got != greeting {
		t.Errorf("ctr run %s printed %q, want %q", ref, got, greeting)
	}
}

// The ways to send containerd to the cache. With hosts.toml it adds ?ns=docker.io
// to every request, and override_path makes it send the prefix too.
func TestContainerd(t *testing.T) {
	for _, tc := range []struct {
		name   string
		client []string // what of entrepot client is hosts.toml
		hosts  string   // or its text; %s is the cache
		dir    string   // where it stands
		path   bool     // name the cache instead
	}{
		{name: "ns", client: []string{"containerd", "docker.io"}, dir: "docker.io"},
		{name: "default", client: []string{"containerd"}, dir: "_default"},
		{name: "override_path", dir: "docker.io", hosts: `server = "https://registry-1.docker.io"

[host."http://%s/v2/docker.io"]
  capabilities = ["pull", "resolve"]
  override_path = true
`},
		{name: "path", path: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSite(t)
			repo := "library/e2e-ctr-" + tc.name
			image := newHello(t, "hello to containerd by "+tc.name, false, 64<<10)
			s.hub.Push(repo, "1", image.Image)
			want := s.hub.cold(repo, "1", image.Image, image.own)
			prove(t, s, s.hub, want, func(dir string) {
				c := newContainerd(t, s, dir)
				if tc.path {
					c.greets(t, s.ref("docker.io/"+repo+":1"), image.greeting, "--plain-http")
					return
				}
				hosts := fmt.Sprintf(tc.hosts, s.addr)
				if tc.client != nil {
					hosts = s.clientFile(t, tc.client...)
				}
				write(t, filepath.Join(c.hosts, tc.dir, "hosts.toml"), hosts)
				c.greets(t, "docker.io/"+repo+":1", image.greeting, "--hosts-dir", c.hosts)
			})
		})
	}
}
