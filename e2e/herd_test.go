//go:build e2e

package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"entrepot/internal/ocitest"
)

// Ten clients of seven kinds want the same image at the same moment, and the
// line to the upstream is slow enough for all of them to meet in its fills.
func TestTenClientsCostWhatOneCosts(t *testing.T) {
	s := newSite(t)
	const repo, ballast = "library/e2e-herd", 4 << 20
	image := newHello(t, "hello to everybody", false, ballast)
	s.hub.Push(repo, "latest", image.Image)
	s.hub.Set(func(h *ocitest.Habits) { h.Rate = 2 << 20 })

	clients := herd(t, s, repo)
	failures := make(chan error, len(clients))
	for _, c := range clients {
		go func() {
			_, err := try(t.Context(), commandTimeout, c.env, c.command...)
			failures <- err
		}()
	}
	for range clients {
		if err := <-failures; err != nil {
			t.Error(err)
		}
	}

	want := s.hub.cold(repo, "latest", image.Image, image.own, image.foreign)
	if diff := cmp.Diff(want, s.hub.spent()); diff != "" {
		t.Errorf("the upstream paid for more than one pull (-want +got):\n%s\nin order:\n%s", diff, strings.Join(s.hub.Lines(), "\n"))
	}
}

// puller is a client ready to pull.
type puller struct {
	env     []string
	command []string
}

// herd is ten clients without any content. Two of them fetch all platforms.
func herd(t *testing.T, s *site, repo string) []puller {
	t.Helper()
	name, path := "docker.io/"+repo+":latest", s.ref("docker.io/"+repo+":latest")
	mirrored := newDocker(t, s, tempDir(t), s.clientFile(t, "docker"))
	named := newDocker(t, s, tempDir(t), "{}")
	c := newContainerd(t, s, tempDir(t))
	write(t, filepath.Join(c.hosts, "docker.io", "hosts.toml"), s.clientFile(t, "containerd", "docker.io"))
	other := newContainerd(t, s, tempDir(t))
	clients := []puller{
		{mirrored.env, []string{"docker", "pull", name}},
		{named.env, []string{"docker", "pull", path}},
		{c.env, []string{"ctr", "--address", c.socket, "images", "pull", "--snapshotter", "native", "--hosts-dir", c.hosts, name}},
		{other.env, []string{"ctr", "--address", other.socket, "images", "pull", "--snapshotter", "native", "--plain-http", path}},
	}
	for _, program := range [][]string{
		{"podman", "pull", name},
		{"buildah", "pull", name},
		{"skopeo", "copy", "--src-tls-verify=false", "docker://" + path, "dir:"},
		{craneBin, "pull", "--format", "oci", path, ""},
		{craneBin, "pull", "--format", "oci", path, ""},
		{craneBin, "validate", "--remote", path},
	} {
		dir := tempDir(t)
		if last := &program[len(program)-1]; *last == "" || *last == "dir:" {
			*last += filepath.Join(dir, "copy")
		}
		clients = append(clients, puller{containers(t, s, dir), program})
	}
	return clients
}
