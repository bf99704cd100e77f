//go:build e2e

package e2e

import (
	"path/filepath"
	"regexp"
	"testing"
)

// docker is a dockerd without images, and the command line for it.
type docker struct {
	env []string
}

var dockerReady = regexp.MustCompile(`API listen on`)

// newDocker starts a dockerd in dir, with a daemon.json. It has neither bridge nor firewall rules:
// containers get no network, or the host's.
func newDocker(t *testing.T, s *site, dir string, config string) docker {
	t.Helper()
	write(t, filepath.Join(dir, "daemon.json"), config)
	socket := "unix://" + filepath.Join(dir, "docker.sock")
	env := append(s.client(dir), "DOCKER_HOST="+socket, "DOCKER_BUILDKIT=0", "DOCKER_CONFIG="+filepath.Join(dir, "config"))
	start(t, "dockerd", env, dockerReady, "dockerd",
		"--config-file", filepath.Join(dir, "daemon.json"),
		"--host", socket,
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid"),
		"--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false")
	return docker{env}
}

func (d docker) run(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, d.env, append([]string{"docker"}, args...)...)
}

// greets runs an image that is there already.
func (d docker) greets(t *testing.T, ref, greeting string) {
	t.Helper()
	if got := d.run(t, "run", "--rm", "--network", "none", "--pull", "never", ref); got != greeting {
		t.Errorf("docker run %s printed %q, want %q", ref, got, greeting)
	}
}

// A mirror is asked for short names, without the registry's: dockerd sends no
// hint which registry it means.
func TestDockerWithRegistryMirror(t *testing.T) {
	s := newSite(t)
	image := newHello(t, "hello through a registry mirror", true, 64<<10)
	s.hub.Push("library/e2e-mirror", "latest", image.Image)
	want := s.hub.cold("library/e2e-mirror", "latest", image.Image, image.own)
	prove(t, s, s.hub, want, func(dir string) {
		d := newDocker(t, s, dir, s.clientFile(t, "docker"))
		d.run(t, "pull", "e2e-mirror")
		d.greets(t, "e2e-mirror", image.greeting)
	})
}

// The cache's address in front of the whole name works for every upstream.
func TestDockerWithPath(t *testing.T) {
	s := newSite(t)
	image := newHello(t, "hello from another registry", false, 64<<10)
	s.ghcr.Push("octo/e2e-path", "v1", image.Image)
	want := s.ghcr.cold("octo/e2e-path", "v1", image.Image, image.own)
	prove(t, s, s.ghcr, want, func(dir string) {
		d := newDocker(t, s, dir, "{}")
		ref := s.ref("ghcr.io/octo/e2e-path:v1")
		d.run(t, "pull", ref)
		d.greets(t, ref, image.greeting)
	})
}

// A FROM that names the cache is pulled by the daemon while it builds.
func TestDockerBuildFromTheCache(t *testing.T) {
	s := newSite(t)
	image := newHello(t, "hello to a build", true, 64<<10)
	s.hub.Push("library/e2e-base", "1.0", image.Image)
	want := s.hub.cold("library/e2e-base", "1.0", image.Image, image.own)
	prove(t, s, s.hub, want, func(dir string) {
		d := newDocker(t, s, dir, "{}")
		write(t, filepath.Join(dir, "context", "Dockerfile"), `ARG BASE
FROM ${BASE}
RUN ["/hello"]
LABEL built=here
`)
		d.run(t, "build", "--network", "none", "--build-arg", "BASE="+s.ref("docker.io/library/e2e-base:1.0"), "--tag", "built", filepath.Join(dir, "context"))
		d.greets(t, "built", image.greeting)
	})
}
