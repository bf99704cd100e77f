//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"testing"
)

// containers is the environment of podman, buildah and skopeo: storage of their
// own, every signature accepted, and the cache as mirror of docker.io and ghcr.io.
func containers(t *testing.T, s *site, dir string) []string {
	t.Helper()
	write(t, filepath.Join(dir, "registries.conf"), s.clientFile(t, "podman"))
	write(t, filepath.Join(dir, "storage.conf"), fmt.Sprintf("[storage]\ndriver = \"vfs\"\ngraphroot = %q\nrunroot = %q\n",
		filepath.Join(dir, "storage"), filepath.Join(dir, "run")))
	// runc, since crun refuses the hybrid cgroups of some hosts; limits that need no privilege to set.
	write(t, filepath.Join(dir, "containers.conf"), fmt.Sprintf(`[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = %q
`, filepath.Join(dir, "libpod")))
	write(t, filepath.Join(dir, ".config/containers/policy.json"), `{"default":[{"type":"insecureAcceptAnything"}]}`)
	return append(s.client(dir),
		"CONTAINERS_REGISTRIES_CONF="+filepath.Join(dir, "registries.conf"),
		"CONTAINERS_STORAGE_CONF="+filepath.Join(dir, "storage.conf"),
		"CONTAINERS_CONF="+filepath.Join(dir, "containers.conf"))
}

func TestPodmanWithMirror(t *testing.T) {
	s := newSite(t)
	image := newHello(t, "hello to podman", false, 64<<10)
	s.hub.Push("library/e2e-podman", "latest", image.Image)
	want := s.hub.cold("library/e2e-podman", "latest", image.Image, image.own)
	prove(t, s, s.hub, want, func(dir string) {
		env := containers(t, s, dir)
		run(t, env, "podman", "pull", "e2e-podman")
		if got := run(t, env, "podman", "run", "--rm", "--network", "none", "--pull", "never", "e2e-podman"); got != image.greeting {
			t.Errorf("podman run printed %q, want %q", got, image.greeting)
		}
	})
}

func TestBuildah(t *testing.T) {
	s := newSite(t)
	image := newHello(t, "hello to buildah", true, 64<<10)
	s.ghcr.Push("octo/e2e-buildah", "2", image.Image)
	want := s.ghcr.cold("octo/e2e-buildah", "2", image.Image, image.own)
	prove(t, s, s.ghcr, want, func(dir string) {
		env := containers(t, s, dir)
		run(t, env, "buildah", "from", "--name", "here", "ghcr.io/octo/e2e-buildah:2")
		if got := run(t, env, "buildah", "run", "--isolation", "chroot", "here", "/hello"); got != image.greeting {
			t.Errorf("buildah run printed %q, want %q", got, image.greeting)
		}
	})
}
