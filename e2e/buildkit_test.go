//go:build e2e

package e2e

import (
	"path/filepath"
	"regexp"
	"testing"
)

var buildkitReady = regexp.MustCompile(`running server on`)

// buildOn has BuildKit build on an image, and throws the outcome away.
func buildOn(t *testing.T, s *site, dir, from string, flags ...string) {
	t.Helper()
	env, address := append(s.client(dir), "DOCKER_CONFIG="+filepath.Join(dir, "docker")), "unix://"+filepath.Join(dir, "buildkitd.sock")
	write(t, filepath.Join(dir, "buildkitd.toml"), s.clientFile(t, "buildkit"))
	daemon := start(t, "buildkitd", env, buildkitReady, buildkitdBin, "--config", filepath.Join(dir, "buildkitd.toml"),
		"--addr", address, "--root", filepath.Join(dir, "root"), "--oci-worker-snapshotter", "native", "--oci-worker-net", "host", "--containerd-worker=false")
	daemon.told = 1 // to it a signal is an error
	write(t, filepath.Join(dir, "context", "Dockerfile"), "FROM "+from+"\nCOPY Dockerfile /\n")
	context := filepath.Join(dir, "context")
	run(t, env, append([]string{
		buildctlBin, "--addr", address, "build", "--frontend", "dockerfile.v0",
		"--local", "context=" + context, "--local", "dockerfile=" + context, "--output", "type=oci,dest=" + filepath.Join(dir, "image.tar"),
	}, flags...)...)
}

// BuildKit pulls the base of a build from its mirrors, with ?ns= as containerd
// does.
func TestBuildKit(t *testing.T) {
	s := newSite(t)
	image := newHello(t, "hello to buildkit", false, 64<<10)
	s.hub.Push("library/e2e-buildkit", "1", image.Image)
	want := s.hub.cold("library/e2e-buildkit", "1", image.Image, image.own)
	prove(t, s, s.hub, want, func(dir string) { buildOn(t, s, dir, "e2e-buildkit:1") })
}
