//go:build e2e

// Package e2e drives the built binary with the clients that people have:
// dockerd, containerd, buildkit, podman, buildah, skopeo, crane and helm. Images are made
// on the spot and really run, and what the upstream saw is compared with what
// the pull may cost. It runs as root (make e2e) and touches nothing of the host's
// own daemons: each has its own directory, socket and pid.
//
// Start reading at prove in prove_test.go.
package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"entrepot/internal/ocitest"
)

// Built once, by TestMain or make.
var (
	entrepotBin string
	helloBin    string
	craneBin    string
	helmBin     string

	buildkitdBin string
	buildctlBin  string
	kubecheckBin string
)

func TestMain(m *testing.M) {
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	ocitest.Main(m)
}

// prepare builds what the tests run, before ocitest.Main takes the proxy
// settings away that a build may need.
func prepare() error {
	if os.Getuid() != 0 {
		return fmt.Errorf("the daemons need root")
	}
	bin, err := filepath.Abs("../bin")
	if err != nil {
		return err
	}
	entrepotBin, helloBin = filepath.Join(bin, "entrepot"), filepath.Join(bin, "hello")
	craneBin, helmBin = filepath.Join(bin, "crane"), filepath.Join(bin, "helm")
	buildkitdBin, buildctlBin = filepath.Join(bin, "buildkitd"), filepath.Join(bin, "buildctl")
	kubecheckBin = filepath.Join(bin, "kubecheck")
	for _, tool := range []string{craneBin, helmBin, buildkitdBin, buildctlBin, kubecheckBin} {
		if _, err := os.Stat(tool); err != nil {
			return fmt.Errorf("%w: make e2e builds it", err)
		}
	}
	return errors.Join(
		// A race that clients provoke ends the server with another exit code than 0.
		build("1", "-race", "-o", entrepotBin, "entrepot"),
		build("0", "-o", helloBin, "./testdata/hello"),
	)
}

func build(cgo string, args ...string) error {
	cmd := exec.Command("go", append([]string{"build"}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, output)
	}
	return nil
}
